"""What one setting means and may be: the one place from which checks, schema and documentation are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

BOUNDS = {  # field -> JSON schema keyword, symbol, words
    "at_least": ("minimum", ">=", "at least"),
    "above": ("exclusiveMinimum", ">", "above"),
    "at_most": ("maximum", "<=", "at most"),
    "below": ("exclusiveMaximum", "<", "below"),
}


@dataclass(frozen=True)
class Setting:
    """A sentence for the documentation, and the range of a number (or of each number in a list)."""

    says: str
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    neutral: Any = ...  # of a setting that is born late: at this value it is left out of a run's identity

    @property
    def bounds(self) -> dict[str, float]:
        """The bounds that are set, by field name."""
        return {name: bound for name in BOUNDS if (bound := getattr(self, name)) is not None}

    @property
    def allowed(self) -> str:
        """Return the range in words, such as "at least 0 and below 1"; empty without bounds."""
        return " and ".join(f"{BOUNDS[name][2]} {bound}" for name, bound in self.bounds.items())

    @property
    def schema(self) -> dict[str, float]:
        """Return the range as JSON schema keywords."""
        return {BOUNDS[name][0]: bound for name, bound in self.bounds.items()}

    def holds(self, value: Any) -> bool:
        """Whether a value of the right type lies in the range; anything but numbers does."""
        if isinstance(value, Sequence) and not isinstance(value, str):
            return all(self.holds(item) for item in value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return True
        checks = {
            "at_least": lambda bound: value >= bound,
            "above": lambda bound: value > bound,
            "at_most": lambda bound: value <= bound,
            "below": lambda bound: value < bound,
        }
        return all(checks[name](bound) for name, bound in self.bounds.items())
