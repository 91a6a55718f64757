"""A search: a run whose settings are partly left to Optuna, and how long it is searched. Imports no torch."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from kd.registry.datasets import SEGMENTATION
from kd.settings.merging import merge, run_of
from kd.settings.run import Run, digest

HELD_OUT_SEEDS_LATER = (
    1_000_003  # how far the seed of the run whose images judge a search lies behind that of its trials
)
STATES = ("COMPLETE", "PRUNED", "FAIL")  # how a trial ends, as Optuna names it
PARTS_OF_A_RUN = 10  # how often per trial the objective is measured, unless `every` says otherwise
SEARCHED = ("scale", "student", "inversion", "modulation", "replay", "distillation", "training", "objective")
GRID_LIMIT = 100_000  # points of a grid
ALPHA_BETA = ("replay.alpha", "replay.beta")  # of SSD-KD, drawn over each other where a search has both


class Pruned(Exception):
    """A trial is ended early: what it has reached is far from what others had by then."""


class Unfit(Exception):
    """The values of a trial do not go together, or not with this machine: the trial has failed, the search goes on."""


@dataclass(frozen=True)
class Tuning:
    """One search: a run whose settings `space` names are left to Optuna."""

    name: str
    settings: dict[str, Any]  # merged settings, the validation split held out
    space: dict[str, dict[str, Any]]  # dotted setting -> {low, high, integer[, step][, log]} or {choices}
    seed: int
    objective: str = "accuracy"  # on the validation split, or agreement: with the teacher on held-out synthetic images
    trials: int | None = None  # how many in all; None: no limit
    seconds: float | None = None  # of computing, summed over all trials; None: no limit
    workers: int = 1  # jobs that work on it
    sampler: str = "tpe"
    pruner: dict[str, Any] = field(default_factory=lambda: {"name": "none"})
    startup: int = 8  # trials at random before sampler and pruner learn from finished ones
    every: int | None = None  # epochs between two looks at the objective; None: a tenth of the epochs
    storage: str | None = field(default=None, repr=False)  # URL of a database, perhaps with a password; None: a file

    @property
    def identity(self) -> dict[str, Any]:
        """What a trial depends on; more trials, another sampler or pruner continue the same search."""
        parts = {key: getattr(self, key) for key in ("name", "settings", "space", "seed")}
        return parts | ({} if self.objective == "accuracy" else {"objective": self.objective})

    @property
    def digest(self) -> str:
        """Ten hex digits that identify the search."""
        return digest(self.identity)

    @property
    def options(self) -> dict[str, Any]:
        """How it is searched: what is no part of the identity, and no secret."""
        keys = ("objective", "trials", "seconds", "workers", "sampler", "pruner", "startup", "every")
        return {key: getattr(self, key) for key in keys}

    def run(self, suggestion: dict[str, Any]) -> Run:
        """Return the run of one trial, from values for the dotted settings of the space."""
        return run_of(merge(self.settings, nested(tidy(suggestion))), self.seed)

    @property
    def held_out_run(self) -> Run:
        """The run that makes the images which students are compared on: the method as it is, the same teacher."""
        return self.run({}).with_seed(self.seed + HELD_OUT_SEEDS_LATER)

    @property
    def score(self) -> str:
        """What the objective is called."""
        of_maps = self.objective == "accuracy" and self.settings.get("dataset", {}).get("name") in SEGMENTATION
        return "mean IoU" if of_maps else self.objective

    @property
    def measured(self) -> str:
        """What the objective is, in words."""
        return (
            f"{self.score} on held-out synthetic images"
            if self.objective == "agreement"
            else f"validation {self.score}"
        )

    @property
    def epochs(self) -> int:
        """Epochs of the student's training, before a setting of the space changes them."""
        run = self.run({})
        return (run.training or run.distillation.training).epochs

    @property
    def looks_every(self) -> int:
        """Epochs between two looks at the objective."""
        return self.every or max(1, math.ceil(self.epochs / PARTS_OF_A_RUN))

    def holds(self, params: Any) -> bool:
        """Whether these are values for the settings of the space, and nothing else."""
        try:
            return params.keys() == self.space.keys() and all(_is_in(params[key], self.space[key]) for key in params)
        except (TypeError, AttributeError):
            return False

    def wants_more(self, results: dict[int, dict[str, Any]]) -> bool:
        """Whether the budget leaves room for another trial next to the finished ones."""
        if self.trials is not None and all(number in results for number in range(self.trials)):
            return False
        return self.seconds is None or sum(result["seconds"] for result in results.values()) < self.seconds


def _is_in(value: Any, values: dict[str, Any]) -> bool:
    if "choices" in values:
        return value in values["choices"]
    low, high = values["low"], values["high"]
    slack = 1e-9 * max(abs(low), abs(high))  # a grid's points have twelve digits: a trial left out would be asked again
    return low - slack <= value <= high + slack


def grid(space: dict[str, dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """Return every combination of a space's values, in an order that the seed decides.

    Ranges go by their step, those of integers by 1 without one. Raises ValueError with the first range that has no end
    of values, or where there are more than GRID_LIMIT combinations.
    """
    values = {key: _points(key, given) for key, given in space.items()}
    if (count := math.prod(map(len, values.values()))) > GRID_LIMIT:
        raise ValueError(f"a grid of {count:,} points is too large; allowed: {GRID_LIMIT:,}; take larger steps")
    points = [dict(zip(values, point, strict=True)) for point in product(*values.values())]
    random.Random(seed).shuffle(points)
    return points


def _points(key: str, given: dict[str, Any]) -> list[Any]:
    if "choices" in given:
        return list(given["choices"])
    step = given.get("step") or (1 if given["integer"] and not given.get("log") else None)
    if step is None:
        raise ValueError(f"{key} has no step; a grid needs one, or choices")
    count = round((given["high"] - given["low"]) / step)
    points = [given["low"] + number * step for number in range(count + 1)]
    return points if given["integer"] else [float(f"{point:.12g}") for point in points]


def figures_of(space: dict[str, dict[str, Any]]) -> list[str]:
    """Return the figures of a search of this space: with one setting there is nothing to compare it with."""
    return ["history", *(["importances"] if len(space) > 1 else []), *(["plane"] if plane_of(space) else [])]


def plane_of(space: dict[str, dict[str, Any]]) -> tuple[str, str] | None:
    """Return the two settings that span the plane: alpha and beta, else the first two that are numbers."""
    numbers = [key for key, values in space.items() if "low" in values]
    if set(ALPHA_BETA) <= set(numbers):
        return ALPHA_BETA
    return (numbers[0], numbers[1]) if len(numbers) > 1 else None


def folder_of(root: Path, study: str, name: str) -> Path:
    """Return the folder of a study's search."""
    return root / "studies" / study / "tune" / name


def made_of(results: list[dict[str, Any]]) -> str:
    """Return the line of best.yaml that says of which trials it was made."""
    parts = sorted([result["number"], sorted(result["params"].items()), result["value"]] for result in results)
    return f"# made of trials {digest(parts)}"


def tidy(suggestion: dict[str, Any]) -> dict[str, Any]:
    """Return values as they are used and written: 0.6, where sums of steps gave 0.6000000000000001."""
    return {key: float(f"{value:.12g}") if isinstance(value, float) else value for key, value in suggestion.items()}


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


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values under dotted names: {"a": {"b": 1}} -> {"a.b": 1}."""
    flat = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


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
