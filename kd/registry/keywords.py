"""The keyword-only arguments of a function or class, read from its source without importing it (and so without torch).

They are the settings that a loss or a data-free source takes: names, annotations and defaults stand in one place, the
signature.
"""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from pathlib import Path
from typing import Any


@cache
def annotations(code: str) -> dict[str, str]:
    """Return the keyword-only arguments of `module:name` with their annotations as text."""
    return {item.arg: ast.unparse(item.annotation) if item.annotation else "" for item in _arguments(code).kwonlyargs}


@cache
def defaults(code: str) -> dict[str, Any]:
    """Return the defaults of these arguments; an argument without one is missing."""
    given = _arguments(code)
    pairs = zip(given.kwonlyargs, given.kw_defaults, strict=True)
    return {item.arg: ast.literal_eval(value) for item, value in pairs if value is not None}


@cache
def _arguments(code: str) -> ast.arguments:
    module, name = code.split(":")
    tree = ast.parse(Path(importlib.util.find_spec(module).origin).read_bytes())
    node = next(item for item in tree.body if getattr(item, "name", None) == name)
    if isinstance(node, ast.ClassDef):
        node = next(item for item in node.body if getattr(item, "name", None) == "__init__")
    return node.args
