"""Hostile input: broken, odd and malicious configurations, names and files are accepted safely or refused readably."""

from __future__ import annotations

import copy
import datetime
import functools
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml
from conftest import PAIR, ROOT, TINY, tiny_run

from kd.__main__ import main
from kd.runs.provenance import run_code
from kd.runtime.messages import ConfigError
from kd.runtime.yaml_files import read_yaml
from kd.settings.run import Run, merge
from kd.studies.status import plan, status
from kd.studies.study import Study, load_study

CONFIG, SCHEMAS = ROOT / "config/config.yaml", ROOT / "workflow/schemas"
MUTATIONS = 660
UNREADABLE = ("Traceback", "jsonschema", "Failed validating", "On instance", "<class '", "Error")
SAFE_PATH = re.compile(r"[A-Za-z0-9_./-]+")
Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


# ------------------------------------------------------------------------------------------------- what is demanded


def assert_readable(message: str, file: Path | str = "") -> None:
    """Every fault is one printable line of bearable length that names the file."""
    lines = message.split("\n")
    assert lines != [""]
    for line in lines:
        assert line.isprintable(), ascii(line)[:300]
        assert len(line) < 1000, line[:300]
        assert str(file) in line or "/etc/passwd: " in line, line[:300]
        assert not [word for word in UNREADABLE if word in line.replace(str(file), "")], line[:300]


def assert_safe(study: Study) -> None:
    """Whatever names a study used, what it writes lies below its results folder, and a run survives its file."""
    assert study.runs
    for text in (study.title, str(study.root), *(entry["title"] for entry in study.experiments.values())):
        text.encode()  # what is printed and written has to be writable
    folders = [f"studies/{study.name}/tune/{tuning.folder}" for tuning in study.tunings.values()]
    figures = [f"studies/{study.name}/figures/{name}.png" for name in study.experiments]
    for path in [*study.runs, *study.datasets, *folders, *figures]:
        assert_safe_path(path)
    assert set(study.table["path"]) <= set(study.runs)
    for path, run in study.runs.items():
        assert_round_trip(run)
        assert run.path == path


def assert_safe_path(path: str) -> None:
    assert SAFE_PATH.fullmatch(path), path
    parts = path.split("/")
    assert all(part not in ("", ".", "..") and len(part) <= 200 for part in parts), path
    assert not Path(path).is_absolute()


def assert_round_trip(run: Run) -> None:
    described = run.as_dict()
    again = Run.from_dict(json.loads(json.dumps(described, allow_nan=False)))
    assert again == run
    assert again.as_dict() == described
    assert (again.digest, again.path) == (run.digest, run.path)
    assert_safe_path(run.path)
    for seed in (run.seed, run.teacher.seed if run.teacher else 0):
        assert 0 <= seed < 2**63  # torch takes no more


def listing(folder: Path) -> set[str]:
    """What lies in a folder, without what Snakemake and Python keep for themselves."""
    found = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    return {path for path in found if not path.startswith(".snakemake") and "__pycache__" not in path}


@functools.cache
def read_once(path: Path) -> dict[str, Any]:
    return read_yaml(path)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The project's own files, which no mutation touches, are parsed once."""
    own = {CONFIG, *SCHEMAS.iterdir()}

    def read(path: Path) -> dict[str, Any]:
        return copy.deepcopy(read_once(path)) if path in own else read_yaml(path)

    for module in ("kd.studies.study", "kd.settings.validation"):
        monkeypatch.setattr(f"{module}.read_yaml", read)


# -------------------------------------------------------------------------------------------------------- mutations


def bases() -> list[dict[str, Any]]:
    """Small studies of one to three runs each: a short one, one that sets every setting there is, and the demo's."""
    own = {key: value for key, value in TINY.items() if key != "methods"}
    space = {"replay.alpha": {"low": 0.0, "high": 1.0}, "inversion.meta": {"choices": ["maml", "reptile"]}}
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


def deep(levels: int, of: type = list) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value] if of is list else {"a": value}
    return value


ODD: dict[str, Any] = {
    "null": None,
    "empty list": [],
    "empty mapping": {},
    "list": [1, "a", None],
    "list of lists": [[[]]],
    "mapping": {"a": 1, 2: {"b": None}},
    "true": True,
    "false": False,
    "text": "some text",
    "empty text": "",
    "space": " ",
    "zero": 0,
    "one": 1,
    "three": 3,
    "half": 0.5,
    "minus one": -1,
    "minus a half": -0.5,
    "large": 2**63,
    "huge": 10**400,
    "minus huge": -(10**400),
    "tiny": 5e-324,
    "largest": sys.float_info.max,
    "nan": math.nan,
    "inf": math.inf,
    "minus inf": -math.inf,
    "text of a number": "1e-3",
    "text of a huge number": "1e400",
    "unicode": "naïve мир 日本 e\u0301",
    "right to left": "abc\u202e\u2066cba",
    "control": "\x07\x1b[31mred\x7f",
    "newline": "a\nb",
    "line separators": "a\x85b\u2028c\r",
    "long": "x" * 300,
    "shell": "; touch PWNED; $(touch PWNED) `touch PWNED` '\"",
    "braces": "50 % {x} {wildcards.run} {",
    "up": "../../..",
    "absolute": "/etc/passwd",
    "code": '__import__("os").system("touch PWNED")',
    "date": datetime.date(2020, 1, 1),
    "bytes": b"\x00\xff",
    "set": {"a", "b"},
    "deep list": deep(60),
    "deep mapping": deep(60, dict),
}
ODD_KEYS = [
    "typo",
    "",
    " ",
    1,
    -1,
    1.5,
    None,
    True,
    datetime.date(2020, 1, 1),
    "a\nb",
    "\x1b[31m",
    "мир",
    "{x}",
    "x" * 300,
]
ODD_KEYS += ["a.b", "a/b", "../a", "$(touch PWNED)", "<<", "=", "__class__", "weight", "training", "seed"]


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

ODD_YAML = [
    "!!python/object/apply:os.system [touch PWNED]",
    '!!python/object/new:os.system ["touch PWNED"]',
    "!!python/name:os.system",
    "!own {a: 1}",
    "!!timestamp x",
    "!!bool maybe",
    "!!int ''",
    "!!int 0x",
    "!!float ''",
    "!!float x",
    "!!null x",
    "!!binary é",
    "!!set {a, b}",
    "!!omap [a: 1]",
    "!!pairs [a: 1]",
    "!!str 5",
    "!!seq {a: 1}",
    "!!map [1]",
    "2020-99-99",
    "2020-01-01",
    "2001-12-14t21:59:43.10+99:99",
    "1e400",
    "1.0e+400",
    "-.inf",
    "0x" + "f" * 5000,
    "9" * 5000,
    "190:20:30",
    "0b1",
    "017",
    "*nowhere",
    "&a [*a]",
    "&a {b: *a}",
    "&a 3",
    "{<<: 5}",
    "{<<: [5]}",
    "{<<: {a: 1}}",
    "{? [1, 2] : 3}",
    "{? {a: 1} : 3}",
    "{a: 1, a: 2}",
    "[1, 2",
    "{a: 1",
    '"open',
    '"\\ud800"',
    '"\\x00"',
    '"\\q"',
    "@",
    "`touch PWNED`",
    "%",
    "|\n  a\n  b",
    "?",
    "-",
    "[" * 500 + "]" * 500,
    "{a: " * 500 + "1" + "}" * 500,
    "\x07",
    "\u2028",
]


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


def load(file: Path, **given: Any) -> Study | None:
    """A study, found safe; None where it was refused readably."""
    try:
        study = load_study(CONFIG, SCHEMAS, {"study": str(file), **given})
    except ConfigError as error:
        assert_readable(str(error), file)
        return None
    assert_safe(study)
    return study


def told(name: str, error: Exception) -> str:
    return f"{name[:120]} -> {type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"


@pytest.mark.usefixtures("quick")
def test_mutated_studies_are_accepted_safely_or_refused_readably(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine.yaml"
    accepted, refused, wrong = 0, 0, []
    for name, content in mutations(MUTATIONS, bases()):
        file.write_bytes(content)
        try:
            if load(file) is None:
                refused += 1
            else:
                accepted += 1
        except Exception as error:
            wrong.append(told(name, error))
    print(f"{accepted} accepted, {refused} refused, {len(wrong)} wrong")
    assert not wrong, f"{len(wrong)} of {MUTATIONS}:\n" + "\n".join(wrong)
    assert accepted >= 60
    assert refused >= 300
    assert listing(tmp_path) == {"mine.yaml"}


SPOTS = {
    "a number": ("settings", "training", "lr"),
    "a number or null": ("settings", "inversion", "reset_epoch"),
    "an integer": ("settings", "training", "epochs"),
    "a number of a loss": ("methods", "soft", "objective", "kd", "temperature"),
    "a switch": ("settings", "dataset", "flip"),
    "a word": ("settings", "training", "schedule"),
    "a list": ("settings", "training", "milestones"),
    "a section": ("settings", "training"),
    "all settings": ("settings",),
    "a method": ("methods", "soft"),
    "an ablation": ("ablations", "flat"),
    "an experiment": ("experiments", "a"),
    "seeds": ("experiments", "a", "seeds"),
    "a seed": ("experiments", "a", "seeds", 0),
    "a scale": ("experiments", "a", "scales", 0),
    "a pair": ("experiments", "a", "pairs", 0),
    "a model": ("experiments", "a", "pairs", 0, 1),
    "a title": ("title",),
    "classes": ("settings", "dataset", "classes"),
    "results": ("settings", "results"),
    "the teacher's seed": ("settings", "teacher", "seed"),
    "a limit of a search": ("tune", "t", "space", "replay.alpha", "high"),
    "a space of a search": ("tune", "t", "space"),
}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("spot", SPOTS)
def test_every_odd_value_at_every_kind_of_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spot: str) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine.yaml"
    *parents, key = SPOTS[spot]
    wrong = []
    words = [*ODD, *(ODD_YAML if spot in ("a number", "a method", "a title") else [])]
    for word in words:
        content = copy.deepcopy(bases()[0])
        content["methods"]["soft"] |= {"kind": "distill"}
        content["experiments"]["a"]["methods"] = ["ssdkd", "soft"]
        box = content
        for part in parents:
            box = box[part]
        box[key] = copy.deepcopy(ODD[word]) if word in ODD else "PLACE"
        text = yaml.dump(content, Dumper=Dumper, sort_keys=False)
        file.write_text(text if word in ODD else text.replace("PLACE", word))
        try:
            load(file)
        except Exception as error:
            wrong.append(told(ascii(word), error))
    assert not wrong, f"{len(wrong)} of {len(words)}:\n" + "\n".join(wrong)
    assert listing(tmp_path) == {"mine.yaml"}


SPACE = {"low": 0.0, "high": 1.0}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("key", [1, None, True, datetime.date(2020, 1, 1), "\ud800"], ids=ascii)
@pytest.mark.parametrize(
    "change",
    [
        lambda key: {key: 1},
        lambda key: {"settings": {key: 1, "x": 2}},
        lambda key: {"settings": {"training": {key: 1, "x": 2}}},
        lambda key: {"settings": {"objective": {key: {"weight": 1.0}, "x": {}}}},
        lambda key: {"settings": {"objective": {"ce": {key: 1.0, "x": 2}}}},
        lambda key: {"methods": {key: {"kind": "train"}}},
        lambda key: {"methods": {"soft": {key: {}, "x": 1}}},
        lambda key: {"ablations": {key: {}}},
        lambda key: {"ablations": {"flat": {"replay": {key: 1, "x": 2}}}},
        lambda key: {"experiments": {key: {}}},
        lambda key: {"experiments": {"a": {key: 1, "x": 2}}},
        lambda key: {"experiments": {"a": {"settings": {key: 1, "x": 2}}}},
        lambda key: {"tune": {key: {}}},
        lambda key: {"tune": {"t": {key: 1, "x": 2}}},
        lambda key: {"tune": {"t": {"space": {key: SPACE}}}},
        lambda key: {"tune": {"t": {"space": {"replay.alpha": {key: 1.0, "x": 2}}}}},
    ],
    ids=[
        *("top", "settings", "section", "objective", "loss", "methods", "method", "ablations", "ablation"),
        *("experiments", "experiment", "settings of an experiment", "tune", "search", "space", "range"),
    ],
)
def test_a_key_that_is_no_name_is_refused(tmp_path: Path, change: Callable[[Any], dict], key: Any) -> None:
    content = bases()[0]
    content["experiments"]["a"]["methods"] = ["ssdkd", "soft"]
    file = tmp_path / "mine.yaml"
    text = yaml.safe_dump(merge(content, change(key)), sort_keys=False)
    file.write_text(text)
    assert load(file) is None


# ----------------------------------------------------------------------------------------------------------- the DAG


def dry_run(project: Path, *config: str, **environment: str) -> subprocess.CompletedProcess:
    command = [str(Path(sys.executable).with_name("snakemake")), "-n", "-q", "--config", *config]
    path = os.pathsep.join([str(ROOT), *filter(None, [environment.pop("PYTHONPATH", "")])])
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment, "PYTHONPATH": path}
    return subprocess.run(command, cwd=project, capture_output=True, text=True, env=env, timeout=120)


def fault_of(done: subprocess.CompletedProcess) -> str:
    """What is wrong with the end of a dry run: it has to succeed, or to give error lines alone; empty: nothing."""
    said = done.stdout + done.stderr
    if "Traceback" in said:
        return "Traceback: " + said.strip().splitlines()[-1][:300]
    if done.returncode == 0:
        return ""
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    return "" if errors and all(len(line) < 1100 for line in errors) else f"no error line: {said[-400:]}"


def dry_runs(project: Path, cases: dict[str, list[str]], **environment: str) -> None:
    """All of them, two at a time; nothing may come into being."""
    before = listing(project)
    with ThreadPoolExecutor(2) as pool:
        done = pool.map(lambda config: dry_run(project, *config, **environment), cases.values())
        faults = {name: fault for name, fault in zip(cases, map(fault_of, done), strict=True) if fault}
    assert not faults, f"{len(faults)} of {len(cases)}:\n" + "\n".join(
        f"{name}: {fault}" for name, fault in faults.items()
    )
    new = {path for path in listing(project) - before if path.split("/")[0] != "results"}
    assert not new


@pytest.mark.usefixtures("quick")
def test_accepted_mutations_dry_run(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kind of accepted mutation once or twice, until there are twenty."""
    monkeypatch.chdir(project)
    cases, seen = {}, {}
    for name, content in mutations(MUTATIONS, bases()):
        kind = name.split()[1]
        if seen.get(kind, 0) == 4:
            continue
        file = project / f"case{len(cases)}.yaml"
        file.write_bytes(content)
        try:
            accepted = load(file) is not None
        except Exception:  # the test above tells
            accepted = False
        if not accepted:
            file.unlink()
            continue
        seen[kind] = seen.get(kind, 0) + 1
        cases[name] = [f"study={file.name}"]
        if len(cases) == 20:
            break
    assert len(cases) == 20
    dry_runs(project, cases)


# ----------------------------------------------------------------------------------------------------- bombs, depths

ALONE = """
import resource, sys, time
from pathlib import Path
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
resource.setrlimit(resource.RLIMIT_CPU, (12, 12))
from kd.runtime.messages import ConfigError
from kd.studies.study import load_study
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
try:
    load_study(Path(sys.argv[1]), Path(sys.argv[2]), {"study": sys.argv[3]})
    print("accepted")
except ConfigError as error:
    print(f"refused {error}")
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(time.process_time() - start, (after - before) / 1024)
"""


def bomb(levels: int = 9, width: int = 9) -> str:
    """A list of lists of lists ..., each of which names the one before so many times: width ** levels values."""
    lines = [f"a0: &a0 [{', '.join(['x'] * width)}]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, levels)]
    return "\n".join(f"      {line}" for line in lines)


def merge_bomb(levels: int = 9, width: int = 9) -> str:
    """The same with merge keys: mappings whose keys come `width` times from the one before."""
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * width)}]}}" for n in range(1, levels)]
    return "\n".join(f"      {line}" for line in lines)


def minimal(*more: str) -> str:
    run = "experiments:\n  a: {pairs: [[resnet8, wrn_10_1]], methods: [scratch], seeds: [0]}"
    return "\n".join(["title: Small", run, *more]) + "\n"


@pytest.mark.parametrize(
    "text",
    [
        minimal("more:", bomb()),
        minimal("settings:", "  dataset:", bomb()),
        minimal("methods:", "  bomb:", bomb()),  # a method that no experiment uses may hold anything
        minimal("ablations:", "  bomb:", bomb()),
        minimal("methods:", "  bomb:", merge_bomb()),
        minimal("methods:", "  bomb:", bomb(440, 1)),  # few values, but many levels
        minimal("methods:", "  bomb:", bomb(440, 1).replace("[", "{x: ").replace("]", "}")),
        minimal("methods:", "  bomb:", "      a: &a [1, *a]"),
        minimal("methods:", "  bomb: &a", "      a: *a"),
        minimal("settings:", "  dataset: &a", "      name: *a"),
        minimal(f"methods: {{deep: {{a: {'[' * 100_000}{']' * 100_000}}}}}"),
        minimal(f"methods: {{deep: {'{a: ' * 100_000}1{'}' * 100_000}}}"),
    ],
    ids=[
        *("unknown", "settings", "method", "ablation", "merge keys", "chain", "chain of mappings"),
        *("itself in a list", "itself", "its name", "[", "{"),
    ],
)
def test_a_file_that_unfolds_without_end_is_handled_at_once(tmp_path: Path, text: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    command = [sys.executable, "-c", ALONE, str(CONFIG), str(SCHEMAS), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, f"exit code {done.returncode}: {done.stderr[-300:]}"
    said, numbers = done.stdout.strip().rsplit("\n", 1)
    seconds, megabytes = map(float, numbers.split())
    assert seconds < 10
    assert megabytes < 200
    if said != "accepted":
        assert_readable(said.removeprefix("refused "), file)


# ------------------------------------------------------------------------------------------------------------- names


def test_a_study_cannot_call_itself_by_another_name(project: Path) -> None:
    """The jobs find the study's folder by the setting `study`."""
    (project / "config/studies/demo.yaml").write_text(yaml.safe_dump(own_study(settings={"study": "another"})))
    try:
        study = load_study(project / "config/config.yaml", SCHEMAS, {})
    except ConfigError as error:
        assert_readable(str(error), "demo.yaml")
    else:
        assert Path(study.settings["study"]).stem == study.name == "demo"


WORDS = [
    "a b",
    "'",
    '"',
    "a;touch PWNED",
    "$(touch PWNED)",
    "`touch PWNED`",
    "|touch PWNED",
    "..",
    "../../a",
    "/a",
    "a\nb",
    "a\x00b",
    "\x1b[31ma",
    "x" * 300,
    "x" * 5000,
    "naïve мир 日本",
    "-rf",
    "--config",
    "{}",
    "{",
    "{wildcards.x}",
    "{x!r:>99999999}",
    "%s%n%(x)s",
    "~nobody-here",
    "*",
    "",
]


def own_study(**changes: Any) -> dict[str, Any]:
    own = {key: value for key, value in TINY.items() if key != "methods"}
    experiment = {"pairs": [PAIR], "methods": ["scratch"], "seeds": [0]}
    return merge({"title": "Named", "settings": own, "experiments": {"a": experiment}}, changes)


def searching(**changes: Any) -> dict[str, Any]:
    search = {"pair": PAIR, "method": "ssdkd", "scale": 0.3, "seed": 0, "trials": 2, "validation": 0.2}
    return {**search, "space": {"replay.alpha": {"low": 0.0, "high": 1.0}}, **changes}


def with_experiment(**values: Any) -> dict[str, Any]:
    return own_study(experiments={"a": values})


PLACES: dict[str, Callable[[str], dict[str, Any]]] = {
    "experiment": lambda word: {**own_study(), "experiments": {word: own_study()["experiments"]["a"]}},
    "method": lambda word: merge(with_experiment(methods=[word]), {"methods": {word: {"kind": "train"}}}),
    "unknown method": lambda word: with_experiment(methods=[word]),
    "ablation": lambda word: merge(with_experiment(ablations=[word]), {"ablations": {word: {"scale": 0.5}}}),
    "unknown ablation": lambda word: with_experiment(ablations=[word]),
    "file of an ablation": lambda word: own_study(ablations={"x": word}),
    "search": lambda word: own_study(tune={word: searching()}),
    "setting of a search": lambda word: own_study(tune={"t": searching(space={word: {"low": 0, "high": 1}})}),
    "part of a setting of a search": lambda word: own_study(
        tune={"t": searching(space={f"replay.{word}": {"low": 0.0, "high": 1.0}})}
    ),
    "choice of a search": lambda word: own_study(
        tune={"t": searching(space={"inversion.meta": {"choices": ["maml", word]}})}
    ),
    "teacher": lambda word: with_experiment(pairs=[[word, PAIR[1]]], methods=["kd"]),
    "student": lambda word: with_experiment(pairs=[[PAIR[0], word]]),
    "module of a model": lambda word: with_experiment(pairs=[[PAIR[0], f"{word}:build"]]),
    "function of a model": lambda word: with_experiment(pairs=[[PAIR[0], f"kd.models.wrn:{word}"]]),
    "torchvision's model": lambda word: with_experiment(pairs=[[PAIR[0], f"torchvision:{word}"]]),
    "data set": lambda word: own_study(settings={"dataset": {"name": word}}),
    "root": lambda word: own_study(settings={"dataset": {"name": "folder", "root": word}}),
    "name of a root": lambda word: own_study(settings={"dataset": {"name": "folder", "root": f"images/{word}"}}),
    "class": lambda word: own_study(settings={"dataset": {"classes": ["zero", word]}}),
    "loss": lambda word: own_study(settings={"objective": {word: {"weight": 1.0}}}),
    "setting of a loss": lambda word: own_study(settings={"objective": {"ce": {word: 1.0}}}),
    "view": lambda word: with_experiment(view=word),
    "title": lambda word: own_study(title=word),
    "title of an experiment": lambda word: with_experiment(title=word),
    "results": lambda word: own_study(settings={"results": word}),
    "tracking": lambda word: own_study(settings={"tracking": {"uri": word}}),
    "device": lambda word: own_study(settings={"compute": {"device": word}}),
    "kind": lambda word: own_study(settings={"kind": word}),
    "study": lambda word: own_study(settings={"study": word}),
    "key": lambda word: own_study(**{word: 1}),
    "key of a section": lambda word: own_study(settings={"training": {word: 1}}),
    "value": lambda word: own_study(settings={"training": {"lr": word}}),
}
NEVER = {"key", "key of a section", "value", "view", "device", "kind", "loss", "setting of a loss", "data set"}
NEVER |= {"unknown method", "unknown ablation", "file of an ablation", "teacher", "student", "module of a model"}
NEVER |= {"torchvision's model", "function of a model", "setting of a search", "choice of a search"}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("place", PLACES)
def test_a_hostile_name_is_made_safe_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine.yaml"
    wrong, accepted = [], []
    for word in WORDS:
        file.write_text(yaml.dump(PLACES[place](word), Dumper=Dumper, sort_keys=False))
        try:
            if load(file) is not None:
                accepted.append(word)
        except Exception as error:
            wrong.append(told(ascii(word), error))
    assert not wrong, "\n".join(wrong)
    assert listing(tmp_path) == {"mine.yaml"}
    if place in NEVER:
        assert accepted == []


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "given",
    [
        lambda word: {"study": word},
        lambda word: {"study": f"{word}.yaml"},
        lambda word: {word: 1},
        lambda word: {"training": {word: 1}},
        lambda word: {"training": {"lr": word}},
        lambda word: {"training": word},
        lambda word: {"methods": {word: {}}},
        lambda word: {"results": word},
        lambda word: {"dataset": {"name": "folder", "root": word}},
    ],
    ids=["study", "file", "key", "inner key", "value", "section", "method", "results", "root"],
)
def test_a_hostile_word_on_the_command_line_is_made_safe_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: Callable[[str], dict[str, Any]]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(own_study()))
    wrong = []
    for word in WORDS:
        try:
            try:
                assert_safe(load_study(CONFIG, SCHEMAS, {"study": "mine.yaml", **given(word)}))
            except ConfigError as error:
                assert_readable(str(error))
        except Exception as error:
            wrong.append(told(ascii(word), error))
    assert not wrong, "\n".join(wrong)
    assert listing(tmp_path) == {"mine.yaml"}


@pytest.mark.usefixtures("quick")
def test_a_study_file_with_a_hostile_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = 0
    for word in WORDS:
        name = f"{word}.yaml"
        if "\0" in name or len(name.encode()) > 255 or "/" in name:
            continue
        Path(name).write_text(yaml.safe_dump(own_study()))
        made += 1
        with pytest.raises(ConfigError) as caught:
            load_study(CONFIG, SCHEMAS, {"study": name})
        assert_readable(str(caught.value))
    assert made > 15
    assert "PWNED" not in listing(tmp_path)


def test_hostile_names_dry_run(project: Path) -> None:
    """What Snakemake formats, splits and calls: braces, quotes, spaces, newlines, long names."""
    words = {"braces": "50 % {x} {wildcards.run} {", "shell": "a b;$(touch PWNED)`touch PWNED`'\""}
    cases = {}

    def case(name: str, content: dict[str, Any], *config: str, file: str | None = None) -> None:
        path = project / (file or f"case{len(cases)}.yaml")
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.dump(content, Dumper=Dumper, sort_keys=False))
        cases[name] = [f"study={path.relative_to(project)}", *config]

    for name, word in words.items():
        dataset = {"name": "folder", "root": f"images/{word}", "classes": [word, "b"]}
        settings = {"dataset": dataset, "tracking": {"uri": word}}
        unused = {"odd": {word: [word, {1: word}], 2: None}}
        texts = own_study(title=word, settings=settings, methods=unused)
        experiment = {"title": word, "methods": ["scratch", "ssdkd"]}
        case(f"texts, {name}", merge(texts, {"experiments": {"a": experiment}}), file=f"{word}/mine.yaml")
        case(f"results, {name}", own_study(settings={"results": word}))
    case("results with a newline", own_study(settings={"results": "a\nb"}))
    case("results of 300 characters", own_study(settings={"results": "x" * 300}))
    case("results with a null", own_study(settings={"results": "a\0b"}))
    case("results of the command line", own_study(), "results='a{b}c'")
    case("a study of the command line", own_study(), "study=$(touch PWNED).yaml")
    case("a value of the command line", own_study(), "training={lr: $(touch PWNED), epochs: {x}}")
    dry_runs(project, cases)
    assert not list(project.rglob("PWNED*"))


@pytest.mark.parametrize(
    "item",
    [
        "a={",
        "scale=[",
        "scale=2020-99-99",
        "scale=!!timestamp x",
        "scale=!!int ''",
        "scale=*a",
        "=1",
        "scale",
        "scale=\0",
    ],
)
def test_odd_yaml_on_the_command_line_of_kd_is_refused(capsys: pytest.CaptureFixture, item: str) -> None:
    assert main(["status", "demo", "--config", item]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert_readable(said.strip())


# -------------------------------------------------------------------------------------------- code that a config names

CODE = [
    "os:system",
    "builtins:eval",
    "builtins:exec",
    "subprocess:call",
    "pathlib:Path",
    "evil:build",
    "evil:run",
    "evilpackage:build",
    "evilpackage.net:build",
    "evilpackage.net.deeper:build",
    "no_such_module:build",
    '__import__("os").system("touch PWNED")',
    'os:system("touch PWNED")',
    "evil",
    "kd.models.wrn:WideResNet",
]


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path with a module and a package that leave a file behind when they are imported."""
    folder = tmp_path / "there"
    (folder / "evilpackage").mkdir(parents=True)
    mark = f"from pathlib import Path\nPath({str(tmp_path / 'PWNED')!r}).touch()\n"
    function = f"{mark}\n\ndef build(**sizes):\n    Path({str(tmp_path / 'PWNED')!r}).touch()\n"
    (folder / "evil.py").write_text(function)
    (folder / "evilpackage/__init__.py").write_text(function)
    (folder / "evilpackage/net.py").write_text(function)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.chdir(folder)
    yield folder
    for name in [name for name in sys.modules if name.startswith("evil")]:
        del sys.modules[name]


def assert_nothing_ran(tmp_path: Path) -> None:
    assert not list(tmp_path.rglob("PWNED*"))
    assert not [name for name in sys.modules if name.startswith("evil")]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", CODE)
def test_code_that_a_configuration_names_is_not_run_by_a_look(tmp_path: Path, evil: Path, name: str) -> None:
    """Validation, `plan` and `status`, and the digest of a run's code read files and import nothing of the user's."""
    file = evil / "mine.yaml"
    file.write_text(yaml.safe_dump(with_experiment(pairs=[[name, name]], methods=["kd"])))
    study = load(file, results=str(tmp_path / "results"))
    if study is not None:
        assert plan(study)
        assert status(study)
        assert all(re.fullmatch("[0-9a-f]{10}", run_code(run)) for run in study.runs.values())
    assert_nothing_ran(tmp_path)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("name", "accepted"), [("evil:build", True), ("evil:run", False), ("no_such_module:build", False), ("evil", False)]
)
def test_a_function_of_ones_own_has_to_be_there(evil: Path, name: str, accepted: bool) -> None:
    file = evil / "mine.yaml"
    file.write_text(yaml.safe_dump(with_experiment(pairs=[[name, name]], methods=["kd"])))
    assert (load(file) is not None) == accepted


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", CODE)
def test_models_alone_may_name_code(tmp_path: Path, evil: Path, name: str) -> None:
    file = evil / "mine.yaml"
    for place in ("data set", "loss", "setting of a loss", "view", "device", "kind", "unknown method"):
        file.write_text(yaml.safe_dump(PLACES[place](name)))
        assert load(file) is None, place
    assert_nothing_ran(tmp_path)


def test_code_that_a_configuration_names_is_not_run_by_a_dry_run(tmp_path: Path, project: Path, evil: Path) -> None:
    cases = {}
    for pair in (
        ["evil:build", "os:system"],
        ["evilpackage.net:build", "subprocess:call"],
        ["builtins:eval", "evil:build"],
    ):
        file = project / f"case{len(cases)}.yaml"
        file.write_text(yaml.safe_dump(with_experiment(pairs=[pair], methods=["kd"])))
        cases[" and ".join(pair)] = [f"study={file.name}"]
    before = listing(evil)
    dry_runs(project, cases, PYTHONPATH=str(evil))
    assert_nothing_ran(tmp_path)
    assert listing(evil) == before


# --------------------------------------------------------------------------------------------------- files of one run

RUN_MUTATIONS = 150


@pytest.fixture
def by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, quick: None
) -> Callable[[bytes], list[Run] | None]:
    """`python -m kd run --settings FILE` in which no run is made: those that would be, or None after error lines."""
    asked: list[Run] = []
    monkeypatch.setattr("kd.runs.worker.work_through", lambda runs, *_: asked.extend(runs) or {})
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "run.yaml"

    def run(content: bytes) -> list[Run] | None:
        file.write_bytes(content)
        asked.clear()
        code = main(["run", "--settings", str(file), "--results", str(tmp_path / "results")])
        said = capsys.readouterr().err
        if code == 0:
            for one in asked:
                assert_round_trip(one)
                assert_whole(one)
            return list(asked)
        assert code == 1
        lines = said.splitlines()
        assert lines
        assert all(line.startswith("error: ") for line in lines), said[:300]
        assert_readable(said.rstrip("\n"), file)
        return None

    return run


def assert_whole(run: Run) -> None:
    """A run that is accepted has what its kind needs, or it would fail only when it is its turn."""
    needed = {"train": ("training", "objective"), "distill": ("training", "objective", "teachers")}
    needed["datafree"] = ("teachers", "inversion", "modulation", "replay", "distillation")
    assert all(getattr(run, name) is not None for name in needed[run.kind]), f"{run.kind} without what it needs"
    if run.teacher is not None:
        assert run.teacher.kind == "train"
        assert_whole(run.teacher)


def run_files() -> list[dict[str, Any]]:
    runs = [tiny_run(method).as_dict() for method in ("scratch", "kd", "ssdkd")]
    return [*runs, {"settings": runs[1], "seconds": {"total": 1.0}}, {"runs": [runs[0], runs[1]]}]


def test_mutated_run_files_are_accepted_safely_or_refused_readably(by_hand: Callable) -> None:
    accepted, refused, wrong = 0, 0, []
    for name, content in mutations(RUN_MUTATIONS, run_files()):
        try:
            if by_hand(content) is None:
                refused += 1
            else:
                accepted += 1
        except Exception as error:
            wrong.append(told(name, error))
    print(f"{accepted} accepted, {refused} refused, {len(wrong)} wrong")
    assert not wrong, f"{len(wrong)} of {RUN_MUTATIONS}:\n" + "\n".join(wrong)
    assert accepted >= 5
    assert refused >= 90
    assert listing(Path.cwd()) == {"run.yaml"}


WITHOUT = [(method, key) for method in ("scratch", "kd", "ssdkd") for key in tiny_run(method).as_dict()]


@pytest.mark.parametrize(("method", "key"), WITHOUT, ids=["-".join(pair) for pair in WITHOUT])
def test_a_run_that_lacks_what_its_kind_needs_is_refused(by_hand: Callable, method: str, key: str) -> None:
    settings = tiny_run(method).as_dict()
    assert by_hand(yaml.safe_dump(settings).encode()) == [tiny_run(method)]
    del settings[key]
    assert by_hand(yaml.safe_dump(settings).encode()) is None


@pytest.mark.parametrize(
    "change",
    [
        {"seed": -1},
        {"seed": 2**70},
        {"seed": None},
        {"seed": True},
        {"kind": "distil"},
        {"kind": "train"},
        {"teacher": {"seed": -1}},
        {"teacher": {"training": None}},
        {"teacher": {"kind": "datafree"}},
        {"teacher": {"objective": None}},
        {"teachers": None},
        {"teachers": []},
        {"teachers": 5},
        {"objective": ["ce"]},
        {"objective": {"ce": 5}},
        {"objective": {"ce": {"weight": 0}, "kd": {"weight": 0}}},
        {"objective": None},
        {"training": {"milestones": 5}},
        {"training": {"milestones": None}},
        {"training": {"milestones": "abc"}},
        {"training": {"lr": 10**400}},
        {"training": {1: 2, "a": 3}},
        {"dataset": {"classes": 1}},
        {"dataset": {"name": "nowhere"}},
        {"model": "resnet9"},
        {"model": ["resnet8"]},
        {"scale": float("nan")},
        {1: 2},
        {None: None, "x": 1},
        {"colour\n": 1},
    ],
    ids=str,
)
def test_a_mistake_in_a_run_file_is_refused(by_hand: Callable, change: dict) -> None:
    settings = merge(tiny_run("kd").as_dict(), change)
    if isinstance(settings.get("teacher"), dict):  # changes of its teacher
        settings["teachers"] = [merge(settings["teachers"][0], settings.pop("teacher"))]
    assert by_hand(yaml.dump(settings, Dumper=Dumper, sort_keys=False).encode()) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"runs: 5",
        b"runs: {}",
        b"runs: [1]",
        b"runs: null",
        b"settings: null",
        b"settings: [1]",
        b"{}",
        b"runs: [{}]",
    ],
    ids=str,
)
def test_a_run_file_of_another_shape_is_refused(by_hand: Callable, content: bytes) -> None:
    assert by_hand(content) is None
