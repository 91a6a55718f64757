"""The JSON schema of merged settings, made from kd.settings.shapes. Imports no torch."""

from __future__ import annotations

from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, get_type_hints

from kd.registry.setting import Setting
from kd.registry.sources import SOURCES, source_settings
from kd.runtime.messages import literals
from kd.settings import shapes

TYPES = {"int": "integer", "float": "number", "bool": "boolean", "str": "string", "None": "null"}
NAME = "^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$(?!\\n)"


@cache
def settings_schema() -> dict[str, Any]:
    """Return the schema of config.yaml and of every merged settings."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **_section(shapes.Settings)}


def _section(shape: type) -> dict[str, Any]:
    """Return the schema of a section: its fields, all required but those with a neutral value."""
    properties, required = {}, []
    hints = get_type_hints(shape)
    for item in fields(shape):
        inner = hints[item.name]
        if item.name in OPEN:
            properties[item.name] = OPEN[item.name]()
        elif is_dataclass(inner):
            properties[item.name] = _section(inner)
        else:
            own = _value(item.type, item.metadata["setting"], item.metadata["pattern"])
            properties[item.name] = own | item.metadata["schema"]
        if item.default is MISSING:
            required.append(item.name)
    return {"type": "object", "additionalProperties": False, "required": required, "properties": properties}


def _value(annotation: str, setting: Setting, pattern: str | None = None) -> dict[str, Any]:
    """Return the schema of one value, by its annotation and its range; the pattern "" refuses the empty text only."""
    if annotation.startswith("Literal["):
        return {"enum": list(literals(annotation))}
    kinds: list[str] = []
    items: dict[str, Any] = {}
    for part in annotation.split(" | "):
        if part.startswith("tuple["):
            kinds.append("array")
            items = {"items": {"type": TYPES[part[6:].split(",")[0]]}, "uniqueItems": True}
        else:
            kinds.append(TYPES[part])
    if items and kinds[0] == "array":  # a list of numbers: the range holds for each
        items["items"] |= setting.schema
        bounds = {}
    else:
        bounds = setting.schema
    if items and len(kinds) > 1:  # a name or several; a number or names
        items["minItems"] = 2
    if pattern == "":
        bounds = {**bounds, "minLength": 1}
    elif pattern:
        bounds["pattern"] = pattern.removesuffix("$") + "$(?!\\n)"
    return {"type": kinds[0] if len(kinds) == 1 else kinds, **bounds, **items}


def _objective() -> dict[str, Any]:
    """Return the one open map: a loss's settings are checked against its own keyword arguments."""
    terms = {"weight": {"type": "number", "minimum": 0}, "warmup": {"type": "integer", "minimum": 0}}
    return {
        "type": "object",
        "propertyNames": {"type": "string", "pattern": "^[a-z0-9_]+$(?!\\n)"},
        "minProperties": 1,
        "additionalProperties": {
            "type": "object",
            "required": ["weight"],
            "properties": terms,
            "additionalProperties": {"type": ["number", "string", "boolean", "null"]},
        },
    }


def _inversion() -> dict[str, Any]:
    """Return the source's name, and each source's settings below its name; their defaults are in the code."""
    sources = {
        name: {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                key: _value(annotation, entry.settings[key]) for key, annotation in source_settings(name).items()
            },
        }
        for name, entry in SOURCES.items()
    }
    properties = {"source": {"enum": list(SOURCES)}, **sources}
    return {"type": "object", "additionalProperties": False, "required": ["source"], "properties": properties}


def _methods() -> dict[str, Any]:
    return {
        "type": "object",
        "propertyNames": {"type": "string", "pattern": NAME},
        "additionalProperties": {"type": "object"},
    }


OPEN = {"objective": _objective, "inversion": _inversion, "methods": _methods}
