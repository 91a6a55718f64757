"""A search: a run whose settings are partly left to Optuna. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kd.settings.merging import merge, run_of
from kd.settings.run import Run, digest


@dataclass(frozen=True)
class Tuning:
    """One search: a run whose settings `space` names are left to Optuna."""

    name: str
    settings: dict[str, Any]  # merged settings, the validation split held out
    space: dict[str, dict[str, Any]]  # dotted setting -> {low, high[, log]} or {choices}
    seed: int
    trials: int

    @property
    def identity(self) -> dict[str, Any]:
        """What a trial depends on; more trials are the same search."""
        return {"name": self.name, "settings": self.settings, "space": self.space, "seed": self.seed}

    @property
    def folder(self) -> str:
        """Name of the search's folder: a search with other settings or another space is another search."""
        return f"{self.name}-{digest(self.identity)}"

    def run(self, suggestion: dict[str, Any]) -> Run:
        """Return the run of one trial, from values for the dotted settings of the space."""
        return run_of(merge(self.settings, nested(suggestion)), self.seed)


def made_of(results: list[dict[str, Any]]) -> str:
    """Return the line of best.yaml that says of which trials it was made."""
    parts = sorted([result["number"], result["params"], result["accuracy"]] for result in results)
    return f"# made of trials {digest(parts)}"


def nested(dotted: dict[str, Any]) -> dict[str, Any]:
    """Turn {"a.b": 1} into {"a": {"b": 1}}."""
    result: dict[str, Any] = {}
    for key, value in dotted.items():
        *parents, last = key.split(".")
        place = result
        for part in parents:
            place = place.setdefault(part, {})
        place[last] = value
    return result


def number_kind(schema: dict[str, Any], dotted: str) -> str:
    """Return `integer` where the schema of the settings accepts no other number, else `number`."""
    place = schema
    for part in dotted.split("."):
        if "$ref" in place:
            place = schema["$defs"][place["$ref"].rsplit("/", 1)[1]]
        place = place.get("properties", {}).get(part) or place.get("additionalProperties") or {}
    kinds = place.get("type", []) if isinstance(place, dict) else []
    kinds = [kinds] if isinstance(kinds, str) else kinds
    return "integer" if "integer" in kinds and "number" not in kinds else "number"
