"""Settings merged by one explicit rule and cut down to what one run needs. Imports no torch."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from kd.registry.datasets import OWN_FOLDER
from kd.registry.kinds import KINDS
from kd.runtime.files import whole_path
from kd.settings.given_file import GivenFile
from kd.settings.run import Run


def merge(base: dict[str, Any], *overrides: dict[str, Any]) -> dict[str, Any]:
    """Return the mappings merged key by key, everything else replaced; nothing given is changed."""
    merged = _copy(base)
    for override in overrides:
        _update(merged, override)
    return merged


def _update(place: dict[str, Any], override: dict[str, Any]) -> None:
    for key, value in override.items():
        if isinstance(value, dict) and isinstance(place.get(key), dict):
            _update(place[key], value)
        else:
            place[key] = _copy(value)


def _copy(value: Any) -> Any:
    """Copy what an alias of YAML names twice, too, so that a change in one place is none in the other."""
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


def run_of(settings: dict[str, Any], seed: int) -> Run:
    """Return the run that merged, validated settings describe, cut down to what changes its numbers."""
    kind, model = settings["kind"], settings["student"]["model"]
    view = settings["student"]["view"]
    common = {key: settings[key] for key in ("dataset", "scale", "precision")}
    if settings["dataset"]["name"] not in OWN_FOLDER:
        common["dataset"] = {**settings["dataset"], "root": None}
    own = {key: settings[key] for key in (*KINDS[kind].uses, *KINDS[kind].may_use) if key in settings}
    if "objective" in own:
        own["objective"] = active(own["objective"])
    if "inversion" in own:
        source = own["inversion"]["source"]
        own["inversion"] = {"source": source, source: own["inversion"].get(source, {})}
    if "teachers" in KINDS[kind].uses:
        own["teachers"] = [_described(json.dumps(teacher)) for teacher in _teachers(settings["teacher"], seed, common)]
    return Run.from_dict({"kind": kind, "model": model, "view": view, "seed": seed, **common, **own})


def _teachers(recipe: dict[str, Any], seed: int, common: dict[str, Any]) -> list[dict[str, Any]]:
    names = teacher_models(recipe["model"])
    if recipe.get("weights"):
        return [_given(*each, recipe["view"], common) for each in zip(names, weight_files(recipe), strict=True)]
    return [
        {
            "kind": "train",
            "model": name,
            "view": recipe["view"],
            "seed": (seed * len(names) if recipe["seed"] is None else recipe["seed"]) + names[:place].count(name),
            **common,
            "scale": 1.0,
            "training": recipe["training"],
            "objective": {"ce": {"weight": 1.0}},
        }
        for place, name in enumerate(names)
    ]


def _given(name: str, file: str, view: str, common: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a teacher that the user has trained: how its data are augmented does not matter."""
    return {
        "kind": "given",
        "model": name,
        "view": view,
        "seed": 0,
        "scale": 1.0,
        "precision": "float32",
        "dataset": {**common["dataset"], "pad": 0, "flip": False},
        "weights": {"file": file, "digest": GivenFile.at(file, "teacher.weights").digest},
    }


@cache
def _described(settings: str) -> Run:
    """Return a run from JSON; cached, because the students of a study share few teachers."""
    return Run.from_dict(json.loads(settings))


def teacher_models(model: str | list[str]) -> list[str]:
    """Return the setting teacher.model as a list: one name, or an ensemble's (a repeated name: another seed)."""
    return [model] if isinstance(model, str) else list(model)


def weight_files(recipe: dict[str, Any]) -> list[str]:
    """Return the setting teacher.weights as a list of paths, none where teachers are trained."""
    given = recipe.get("weights") or []
    return [whole_path(file, "teacher.weights") for file in ([given] if isinstance(given, str) else given)]


def active(objective: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the terms whose weight is not 0: weight 0 is how a term is switched off."""
    return {name: terms for name, terms in objective.items() if terms["weight"] != 0}
