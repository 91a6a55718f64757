"""YAML as users write it: a mistake gives one line, and endless aliases are refused. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from kd.runtime.messages import ConfigError, kind_of, shown

DEEPEST = 50  # levels of a file
HINTS = {  # words of PyYAML -> what to do
    "tab character": "indent with spaces",
    "'\\t'": "indent with spaces",
    "mapping values are not allowed": "put text with a colon in quotes, and check the indentation",
    "did not find expected key": "check the indentation",
}
REPEATED = 100_000  # values that aliases may add to a file


_Safe = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C is ten times as fast


class _Loader(_Safe):
    """Refuses keys that are given twice, of which YAML keeps only the last, and aliases that unfold without end."""

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        sizes: dict[int, int] = {}
        if node is not None and _size(node, sizes, 1) - len(sizes) > REPEATED:
            raise yaml.YAMLError(f"its aliases stand for more than {REPEATED} values")
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        first: dict[str, yaml.Node] = {}
        for key, _ in node.value:
            if not isinstance(key.value, str) or key.value == "<<":
                continue
            if (before := first.setdefault(key.value, key)) is not key:
                line = before.start_mark.line + 1
                problem = f"key {key.value!r} is given twice, first in line {line}; remove one of them"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
        except (
            AttributeError,
            IndexError,
            KeyError,
            TypeError,
            ValueError,
            OverflowError,
        ) as error:  # !!int of no integer
            problem = f"{shown(node.value)} is no {node.tag.rsplit(':', 1)[-1]} ({error})"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None
        if isinstance(value, int) and abs(value) >= 2**64:
            raise yaml.constructor.ConstructorError(None, None, "an integer of more than 64 bits", node.start_mark)
        if isinstance(value, str) and not _encodable(value):
            raise yaml.constructor.ConstructorError(None, None, "half a character", node.start_mark)
        return value


def _require_shallow(text: str) -> None:
    """Raise YAMLError for deep nesting, which would overflow the stack of the parser in C and end the process."""
    level = 0
    for event in yaml.parse(text, _Safe):
        level += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if level > DEEPEST:
            raise yaml.YAMLError(f"more than {DEEPEST} levels")


def _size(node: yaml.Node, sizes: dict[int, int], level: int) -> int:
    """Count the values that a node stands for; those of an alias count again."""
    if level > DEEPEST:
        raise yaml.YAMLError(f"more than {DEEPEST} levels, or an alias inside of what it names")
    if id(node) not in sizes:
        inside = node.value if not isinstance(node, yaml.ScalarNode) else ()
        parts = [part for item in inside for part in (item if isinstance(item, tuple) else (item,))]
        sizes[id(node)] = 1 + sum(_size(part, sizes, level + 1) for part in parts)
    return sizes[id(node)]


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def parse_yaml(text: str) -> Any:
    """Return what a text holds. Raises ConfigError with one line."""
    try:
        _require_shallow(text)
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, TypeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", error)).split())
        problem += next((f"; {hint}" for words, hint in HINTS.items() if words in problem), "")
        raise ConfigError(f"not valid YAML{where} ({problem})") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file. Raises ConfigError if the file is missing, unreadable or holds no mapping."""
    try:
        content = parse_yaml(path.read_text("utf-8"))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    if content is None:
        raise ConfigError(f"{path}: is empty; a mapping of settings is needed")
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: holds {kind_of(content)}; a mapping of settings is needed")
    return content
