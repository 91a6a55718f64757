"""Messages about mistakes: the key, what came, what is allowed, what to do. Imports no torch."""

from __future__ import annotations

import ast
import difflib
import errno
import os
import re
from functools import cache
from typing import Any


class ConfigError(ValueError):
    """A user's mistake in a configuration; each line of the message names the key, what came and what is allowed.

    Whatever came, each line is printable and not too long to read.
    """

    def __init__(self, message: str):
        super().__init__("\n".join(bearable(line) for line in message.split("\n")))


def bearable(line: str) -> str:
    """Return a line whose characters are printable, cut where it is too long to read."""
    line = escaped(line)
    return line if len(line) <= 900 else f"{line[:600]} ... {line[-280:]}"


def escaped(text: str) -> str:
    """Return a text in one printable line: line ends, control and half characters as `\\n`, `\\x07`, `\\udcff`."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def printable(text: str) -> str:
    """Return a text in printable lines. What files and other programs say must not move the cursor or colour lines."""
    return "\n".join("\t".join(map(escaped, line.split("\t"))) for line in text.split("\n"))


def name_as_text(name: str) -> str:
    """Return the printable name of a file or folder, the same in every locale; bytes that are not UTF-8 as `\\xff`."""
    return escaped(os.fsencode(name).decode("utf-8", "backslashreplace"))


def wanted_kind(value: Any, annotation: str) -> str:
    """Say in words what an annotation allows where `value` is something else; empty where it fits or is not known."""
    named, types, words = _allowed(annotation)
    if named:
        return "" if value in named else words
    fits = type(value) in types or (isinstance(value, tuple(types)) and not isinstance(value, bool))
    return "" if fits else words


@cache
def literals(annotation: str) -> tuple[Any, ...]:
    """Return what an annotation `Literal[...]` allows; nothing for any other."""
    return tuple(ast.literal_eval(f"[{annotation[8:-1]}]")) if annotation.startswith("Literal[") else ()


@cache
def _allowed(annotation: str) -> tuple[tuple[Any, ...], frozenset[type], str]:
    """Return the literals and the types that an annotation allows, and both in words."""
    if named := literals(annotation):
        return named, frozenset(), ", ".join(map(str, named))
    names = [part.strip() for part in annotation.split("|")]
    if not all(name in KINDS for name in names):
        return (), frozenset(), ""
    return (), frozenset().union(*(KINDS[name][0] for name in names)), " or ".join(KINDS[name][1] for name in names)


KINDS = {  # annotation -> types, and what a user calls them
    "float": ({float, int}, "number"),
    "int": ({int}, "integer"),
    "str": ({str}, "text"),
    "bool": ({bool}, "boolean"),
    "None": ({type(None)}, "null"),
}


def suggest(came: str, allowed: list[str]) -> str:
    """Say what is allowed, the nearest name first if one is near."""
    near = difflib.get_close_matches(came, allowed, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}allowed: {', '.join(allowed) or 'nothing here'}"


def kind_of(value: Any) -> str:
    """Return a value and its YAML type in words."""
    if value is None:
        return "null"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    names = {bool: "boolean", int: "integer", float: "number", str: "text"}
    return f"{shown(value)} ({names.get(type(value), type(value).__name__)})"


def shown(value: Any) -> str:
    """Write a value in at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def masked(text: str) -> str:
    """Replace by *** what may be secret in the URIs of a text: the user's part, and query parameters named like one.

    A password may hold `@`, `/` or `:`; so what comes before the last `@` is hidden, in doubt too much of a URI.
    """
    text = _SECRET_PARAMETER.sub(r"\1***", text)
    return _USER_PART.sub("***@", text)


_SECRET_NAME = r"[^=&;\s]{0,60}(?:pass|pwd|token|secret|key|sig|credential)[^=&;\s]{0,60}"
_SECRET_PARAMETER = re.compile(rf"""([?&;]{_SECRET_NAME}=)[^&\s]+?(?=["']?(?:[&\s]|$))""", re.IGNORECASE)
_USER_PART = re.compile(r"(?<=://)(?!/)\S*@")


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
    errno.EISDIR: "a folder is in the place of a file; move it away",
    errno.ENOTDIR: "a file is in the place of a folder; move it away, or set `results` to another folder",
    errno.ENOENT: _GONE,
    errno.ESTALE: _GONE,
    errno.ENOSPC: "make room and start again; runs go on from their checkpoints",
    errno.EDQUOT: "make room and start again; runs go on from their checkpoints",
    errno.EIO: "check the disk and start again; runs go on from their checkpoints",
}
