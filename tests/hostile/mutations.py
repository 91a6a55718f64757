"""Mutations of study and run files: the same ones every time."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import yaml
from conftest import PAIR, ROOT, TINY, read_once
from hostile import CONFIG, Dumper, told
from odd_values import ODD, ODD_KEYS, ODD_YAML

from kd.settings.merging import merge


def bases() -> list[dict[str, Any]]:
    """Small studies of one to three runs each: a short one, one that sets every setting there is, and the demo's."""
    own = {key: value for key, value in TINY.items() if key != "methods"}
    space = {"replay.alpha": {"low": 0.0, "high": 1.0}, "inversion.generator.meta": {"choices": ["maml", "reptile"]}}
    search = {"pair": PAIR, "method": "ssdkd", "scale": 0.3, "seed": 0, "trials": 2, "validation": 0.2, "space": space}
    short = {
        "title": "Short",
        "settings": own,
        "methods": {"soft": {"kind": "distill", "objective": {"kd": {"weight": 0.9, "temperature": 4.0}}}},
        "ablations": {"flat": {"replay": {"alpha": 0.0}}},
        "experiments": {
            "a": {
                "title": "A",
                "view": "modules",
                "pairs": [PAIR],
                "methods": ["ssdkd"],
                "ablations": ["full", "flat"],
                "scales": [0.5],
                "seeds": [0],
            }
        },
        "tune": {"t": search},
    }
    whole = {
        "title": "Whole",
        "settings": merge(read_once(CONFIG), TINY),
        "experiments": {"a": {"pairs": [PAIR], "methods": ["kd"], "seeds": [0]}},
    }
    demo = read_once(ROOT / "config/studies/demo.yaml")
    demo = {**demo, "experiments": {"with-data": {**demo["experiments"]["with-data"], "seeds": [1]}}}
    return [short, whole, demo]


def places(value: Any, depth: int = 0) -> Iterator[tuple[Any, Any, int]]:
    """(container, key or index, depth) of every value inside."""
    for key, item in list(value.items()) if isinstance(value, dict) else enumerate(value):
        yield value, key, depth
        if isinstance(item, dict | list):
            yield from places(item, depth + 1)


def mappings(value: Any) -> list[dict]:
    return [value] + [box[key] for box, key, _ in places(value) if isinstance(box[key], dict)]


def pick(random: Random, content: Any, wanted: Callable[[Any, Any], bool] = lambda box, key: True) -> tuple[Any, Any]:
    """A place, every depth as likely as any other."""
    found = [(box, key, depth) for box, key, depth in places(content) if wanted(box, key)]
    depth = random.choice(sorted({depth for *_, depth in found}))
    return random.choice([(box, key) for box, key, at in found if at == depth])


def delete(random: Random, content: dict) -> str:
    box, key = pick(random, content)
    del box[key]
    return f"delete {key!r}"


def rename(random: Random, content: dict) -> str:
    def is_word(box: Any, key: Any) -> bool:
        return isinstance(box, dict) and isinstance(key, str) and len(key) > 1

    if not any(is_word(box, key) for box, key, _ in places(content)):  # earlier mutations have left none
        return add_key(random, content)
    box, key = pick(random, content, is_word)
    at = random.randrange(len(key) - 1)
    typos = (
        key[:at] + key[at + 1 :],
        key[:at] + key[at] + key[at:],
        key.upper(),
        f"{key} ",
        f"{key}\n",
        f"{key[::-1]}s",
    )
    changed = random.choice(typos)
    box[changed] = box.pop(key)
    return f"rename {key!r} to {changed!r}"


def replace(random: Random, content: dict) -> str:
    box, key = pick(random, content)
    word = random.choice(list(ODD))
    box[key] = copy.deepcopy(ODD[word])
    return f"replace {key!r} by {word}"


def add_key(random: Random, content: dict) -> str:
    box = random.choice(mappings(content))
    key, word = random.choice(ODD_KEYS), random.choice(list(ODD))
    box[key] = copy.deepcopy(ODD[word])
    return f"add {key!r}: {word}"


def swap(random: Random, content: dict) -> str:
    """Two sections, or a section and a value, in each other's place; where one lies in the other, a copy."""
    (box, key), (other, name) = pick(random, content), pick(random, content)
    box[key], other[name] = copy.deepcopy(other[name]), copy.deepcopy(box[key])
    return f"swap {key!r} and {name!r}"


def repeat(random: Random, content: dict) -> str:
    box, key = pick(random, content, lambda box, key: isinstance(box[key], list))
    box[key] = box[key] * random.choice([0, 2, 3])
    return f"repeat the entries of {key!r}"


def nudge(random: Random, content: dict) -> str:
    """Another number or switch of the same type: mostly what a user may well set."""
    kinds = (int, float, bool)
    box, key = pick(random, content, lambda box, key: isinstance(box[key], kinds))
    value = box[key]
    box[key] = not value if isinstance(value, bool) else value + 1 if isinstance(value, int) else value / 2
    return f"nudge {key!r} from {value} to {box[key]}"


def several(random: Random, content: dict) -> str:
    return "; ".join(random.choice([delete, rename, replace, add_key])(random, content) for _ in range(3))


STRUCTURAL = [delete, delete, rename, replace, replace, replace, add_key, swap, repeat, nudge, nudge, several]


def odd_value(random: Random, text: str) -> tuple[str, bytes]:
    """YAML that only text can hold, in the place of one line's value."""
    lines = text.splitlines()
    at = random.choice([number for number, line in enumerate(lines) if re.match(r"\s*[\w-]+: \S", line)])
    word = random.choice(ODD_YAML)
    key = lines[at].split(":")[0]
    lines[at] = f"{key}: {word}"
    return f"{key.strip()}: {word[:40]!r}", "\n".join(lines).encode("utf-8", "surrogatepass")


def twice(random: Random, text: str) -> tuple[str, bytes]:
    lines = text.splitlines()
    at = random.randrange(len(lines))
    return f"line {lines[at].strip()!r} twice", "\n".join([*lines[: at + 1], *lines[at:]]).encode()


def aliased(random: Random, text: str) -> tuple[str, bytes]:
    """A section under an anchor, and the same section again by its alias at the place of another line's value."""
    lines = text.splitlines()
    heads = [number for number, line in enumerate(lines[:-1]) if line.endswith(":")]
    head = random.choice(heads)
    later = [number for number in range(head + 2, len(lines)) if re.match(r"\s*[\w-]+: \S", lines[number])]
    lines[head] += " &there"
    if later:
        at = random.choice(later)
        lines[at] = f"{lines[at].split(':')[0]}: *there"
    return "alias", "\n".join(lines).encode()


def cut(random: Random, text: str) -> tuple[str, bytes]:
    at = random.randrange(len(text))
    return f"cut at {at}", text.encode()[:at]


def odd_bytes(random: Random, text: str) -> tuple[str, bytes]:
    at = random.randrange(len(text))
    insert = random.choice(
        [b"\x00", b"\xff", b"\xc3", b"\t", b"\x1b", b"\r", b":", b"#", b"\xef\xbb\xbf", b"\xc2\x85", b"- "]
    )
    return f"{insert!r} at {at}", text.encode()[:at] + insert + text.encode()[at:]


def odd_file(random: Random, text: str) -> tuple[str, bytes]:
    tabs = re.sub("^( +)", lambda match: "\t" * len(match[1]), text, flags=re.MULTILINE)
    files = {
        "Windows line ends": text.replace("\n", "\r\n").encode(),
        "old Mac line ends": text.replace("\n", "\r").encode(),
        "tabs": tabs.encode(),
        "UTF-16": text.encode("utf-16"),
        "UTF-16 without a mark": text.encode("utf-16-le"),
        "UTF-32": text.encode("utf-32"),
        "UTF-8 with a mark": text.encode("utf-8-sig"),
        "Latin-1": text.replace("a", "ä", 1).encode("latin-1"),
        "binary": bytes(random.randrange(256) for _ in range(500)),
        "zeros": bytes(500),
        "empty": b"",
        "comments": b"# nothing\n# here\n",
        "two documents": f"{text}---\n{text}".encode(),
        "one document with marks": f"%YAML 1.1\n---\n{text}...\n".encode(),
        "JSON": json.dumps(yaml.safe_load(text)).encode(),
        "trailing spaces": text.replace("\n", "  \n").encode(),
    }
    word = random.choice(list(files))
    return word, files[word]


TEXTUAL = [odd_value, odd_value, odd_value, odd_value, twice, aliased, cut, odd_bytes, odd_file, odd_file]


def mutations(count: int, contents: list[dict[str, Any]]) -> Iterator[tuple[str, bytes]]:
    """(what was done, the file): the same ones every time."""
    random = Random(0)
    for number in range(count):
        content = copy.deepcopy(contents[number % len(contents)])
        if random.random() < 0.7:
            done = random.choice(STRUCTURAL)(random, content)
            text = yaml.dump(content, Dumper=Dumper, sort_keys=False, allow_unicode=random.random() < 0.5)
            yield f"{number}: {done}", text.encode("utf-8", "surrogatepass")
        else:
            done, file = random.choice(TEXTUAL)(random, yaml.dump(content, Dumper=Dumper, sort_keys=False))
            yield f"{number}: {done}", file


def outcomes(mutated: Iterator[tuple[str, bytes]], attempt: Callable[[bytes], object]) -> tuple[int, int, list[str]]:
    """Return how many mutations `attempt` accepts and refuses (it returns None), and what it raises for the others."""
    accepted, refused, wrong = 0, 0, []
    for name, content in mutated:
        try:
            if attempt(content) is None:
                refused += 1
            else:
                accepted += 1
        except Exception as error:
            wrong.append(told(name, error))
    print(f"{accepted} accepted, {refused} refused, {len(wrong)} wrong")
    return accepted, refused, wrong
