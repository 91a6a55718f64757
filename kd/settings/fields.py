"""How a setting is declared: a field with its default, its sentence and its range. Imports no torch."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from kd.registry.setting import Setting


def setting(
    default: Any,
    says: str,
    *,
    neutral: Any = ...,
    pattern: str | None = None,
    schema: dict[str, Any] | None = None,
    **bounds: float,
) -> Any:
    """Return a field: the default of config.yaml, its sentence, its range; `neutral` as the module's docstring says.

    `pattern` is a regular expression for a text; an empty one refuses the empty text only. `schema` is what else the
    JSON schema says.
    """
    metadata = {
        "default": default,
        "setting": Setting(says, neutral=neutral, **bounds),
        "pattern": pattern,
        "schema": schema or {},
    }
    return field(metadata=metadata) if neutral is ... else field(default=neutral, metadata=metadata)


def section(says: str, **defaults: Any) -> Any:
    """Return a field that holds a section of settings; `defaults` replace those of the section's own fields."""
    return field(metadata={"says": says, "defaults": defaults})
