"""What a user is told of a mistake: the key, what came, what is allowed. Imports no torch."""

from __future__ import annotations

import ast
import difflib
import errno
import os
from functools import cache
from typing import Any


class ConfigError(ValueError):
    """A user's mistake in a configuration; each line of the message names the key, what came and what is allowed.

    Whatever came, a line is printable and of bearable length.
    """

    def __init__(self, message: str):
        super().__init__("\n".join(_bearable(line) for line in message.split("\n")))


def _bearable(line: str) -> str:
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)
    return line if len(line) <= 900 else f"{line[:600]} ... {line[-280:]}"


def wanted_kind(value: Any, annotation: str) -> str:
    """What an annotation allows, in words, where `value` is something else; empty where it fits or cannot be told."""
    if annotation.startswith("Literal["):
        allowed = ast.literal_eval(f"[{annotation[8:-1]}]")
        return "" if value in allowed else ", ".join(map(str, allowed))
    names = _known_kinds(annotation)
    if any(isinstance(value, KINDS[name]) and (name == "bool" or not isinstance(value, bool)) for name in names):
        return ""
    words = {"float": "number", "int": "integer", "str": "text", "bool": "boolean", "None": "null"}
    return " or ".join(words[name] for name in names)


KINDS = {"float": (int, float), "int": (int,), "str": (str,), "bool": (bool,), "None": (type(None),)}


@cache
def _known_kinds(annotation: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in annotation.split("|"))
    return names if all(name in KINDS for name in names) else ()


def suggest(came: str, allowed: list[str]) -> str:
    """What is allowed, the nearest name first when there is one."""
    near = difflib.get_close_matches(came, allowed, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}allowed: {', '.join(allowed) or 'nothing here'}"


def kind_of(value: Any) -> str:
    """A value and its YAML type in words."""
    if value is None:
        return "null"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    names = {bool: "boolean", int: "integer", float: "number", str: "text"}
    return f"{shown(value)} ({names.get(type(value), type(value).__name__)})"


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def disk_fault(error: BaseException) -> str:
    """Return a line that says what is wrong with a disk or folder, and what to do; empty for any other error."""
    number = getattr(error, "errno", None)
    if not isinstance(error, OSError) or number not in _DISK:
        return ""
    file = f"{error.filename}: " if error.filename else ""
    return f"{file}{os.strerror(number)}; {_DISK[number]}"


_UNWRITABLE = "set `results` to a folder that can be written, or change its permissions"
_GONE = "a folder or file was removed or moved; start again, what is missing is made again"
_DISK = {
    errno.EROFS: _UNWRITABLE,
    errno.EACCES: _UNWRITABLE,
    errno.EPERM: _UNWRITABLE,
    errno.EEXIST: "a file is in the place of a folder; move it away, or set `results` to another folder",
    errno.ENOTDIR: "a file is in the place of a folder; move it away, or set `results` to another folder",
    errno.ENOENT: _GONE,
    errno.ESTALE: _GONE,
    errno.ENOSPC: "make room and start again; runs go on from their checkpoints",
    errno.EDQUOT: "make room and start again; runs go on from their checkpoints",
    errno.EIO: "check the disk and start again; runs go on from their checkpoints",
}
