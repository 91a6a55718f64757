"""Violations of a JSON schema in readable lines. Imports no torch."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from functools import cache
from typing import Any

from kd.runtime.messages import kind_of, shown, suggest
from kd.settings.run import LARGEST


def schema_faults(value: Any, schema: dict[str, Any]) -> list[str]:
    """Return one readable line per violation of a JSON schema.

    Without jsonschema (bare GPU machines) only NaN, infinity and oversized integers are reported; such studies were
    checked when planned.
    """
    errors = []
    if importlib.util.find_spec("jsonschema") is not None:
        errors = sorted(
            _validator()(schema).iter_errors(value), key=lambda error: [str(part) for part in error.absolute_path]
        )
    return [_explain(error) for error in errors] + [
        f"{path}: got {shown(number)}; allowed: a finite number, an integer up to 2^53"
        for path, number in _not_finite(value)
    ]


@cache
def _validator() -> Any:
    """Return a validator for which 20.0 is no integer: range(20.0) fails."""
    import jsonschema  # only where a whole configuration is read; a run by hand needs no jsonschema

    base = jsonschema.Draft202012Validator
    strict = base.TYPE_CHECKER.redefine("integer", lambda _, item: isinstance(item, int) and not isinstance(item, bool))
    return jsonschema.validators.extend(base, type_checker=strict)


def _not_finite(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Yield places and values of NaN, infinity and oversized integers, which no comparison of a schema refuses."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _not_finite(item, f"{path}.{printable(key)}" if path else printable(key))
    if (isinstance(value, float) and not math.isfinite(value)) or (isinstance(value, int) and abs(value) > LARGEST):
        yield path, value


def _explain(error: Any) -> str:
    """Return a violation as one line: the key, what came, what is allowed."""
    path = (
        ".".join(printable(part) if isinstance(part, str) else str(part) for part in error.absolute_path) or "top level"
    )
    rule, allowed, came = error.validator, error.validator_value, error.instance
    if rule == "additionalProperties":
        known = sorted(error.schema.get("properties", {}))
        unknown = next(key for key in came if key not in known)
        return f"{path}: unknown key {shown(unknown)}; {suggest(str(unknown), known)}"
    if rule == "required":
        missing = next(key for key in allowed if key not in came)
        return f"{path}: key {missing!r} is missing; add it"
    if rule == "type":
        words = {"array": "a list", "object": "a mapping", "string": "text"}
        wanted = " or ".join(words.get(kind, kind) for kind in ([allowed] if isinstance(allowed, str) else allowed))
        hint = "; write 0.001, not 1e-3" if isinstance(came, str) and "number" in wanted and is_number(came) else ""
        return f"{path}: got {kind_of(came)}; allowed: {wanted}{hint}"
    if rule == "enum":
        word = {True: "on", False: "off"}[came] if isinstance(came, bool) else None
        hint = f"; YAML reads {word} as {str(came).lower()}: write '{word}'" if word in allowed else ""
        return f"{path}: got {shown(came)}; {suggest(str(came), [str(item) for item in allowed])}{hint}"
    limits = {"minimum": ">=", "maximum": "<=", "exclusiveMinimum": ">", "exclusiveMaximum": "<"}
    if rule in limits:
        return f"{path}: got {shown(came)}; allowed: {limits[rule]} {allowed}"
    if rule == "pattern":
        return f"{path}: got {shown(came)}; allowed: text that matches {allowed}"
    if rule in ("minItems", "maxItems", "minProperties", "minLength"):
        return f"{path}: got {shown(came)}; allowed: {'at least' if rule.startswith('min') else 'at most'} {allowed}"
    if rule == "uniqueItems":
        return f"{path}: got {shown(came)}; allowed: each entry once"
    if rule == "oneOf":
        return f"{path}: got {shown(came)}; allowed: {error.schema['$comment']}"
    return f"{path}: {error.message}"


def printable(key: Any) -> str:
    """Return a key as it stands in a message."""
    return key if isinstance(key, str) and key.isprintable() else repr(key)


def is_number(text: str) -> bool:
    """Whether a text is how Python, but not YAML, writes a number: 1e-3."""
    try:
        float(text)
    except ValueError:
        return False
    return True
