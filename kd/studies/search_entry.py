"""An entry of a study's `tune` section, checked: what is searched, by whom, for how long. Imports no torch."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

from kd.registry.losses import LOSSES
from kd.registry.sources import SOURCES
from kd.runtime.messages import ConfigError, masked, shown
from kd.settings.merging import active
from kd.studies.search import Tuning, grid

VALIDATION = 0.2  # held out where an entry says nothing else
SHARED = {"trials", "seconds", "workers", "sampler", "startup", "every"}  # keys that a Tuning holds as they are


def validation_of(entry: dict[str, Any]) -> float:
    """Return the share of the training data that a search holds out."""
    return entry.get("validation", VALIDATION)


def require_sound_range(values: dict[str, Any], where: str) -> None:
    """Raise ConfigError for a range that is empty, or whose steps do not lead from its low to its high end."""
    if "choices" in values:
        return
    low, high, step, log = values["low"], values["high"], values.get("step"), values.get("log")
    if not low < high:
        raise ConfigError(f"{where}: low is {low} and high {high}; low must be below high")
    if log and low <= 0:
        raise ConfigError(f"{where}: low is {low}; a log range needs low above 0")
    if log and step is not None:
        raise ConfigError(f"{where}: got log and step; allowed: one of the two; a list of choices may hold both")
    if step is not None and abs((high - low) / step - round((high - low) / step)) > 1e-6:
        raise ConfigError(f"{where}: step {step} does not lead from low {low} to high {high}; choose high accordingly")


def require_whole_steps(values: dict[str, Any], where: str) -> None:
    """Raise ConfigError for a setting of integers whose step is none."""
    if values.get("integer") and not isinstance(values.get("step", 1), int):
        raise ConfigError(f"{where}: step is {shown(values['step'])}; the setting is an integer: write a whole number")


def tuning_of(name: str, entry: dict[str, Any], settings: dict[str, Any], space: dict[str, Any], where: str) -> Tuning:
    """Return the search that a checked space and merged settings describe. Raises ConfigError."""
    images = settings["dataset"]["name"] != "none"
    objective = entry.get("objective", "accuracy" if images else "agreement")
    _require_objective(objective, settings, images, where)
    pruner = entry.get("pruner", "none")
    pruner = {"name": pruner} if isinstance(pruner, str) else pruner
    if pruner["name"] != "none":
        for loss in active(settings["objective"]) if settings["kind"] == "distill" else ():
            if LOSSES[loss].one_teacher:
                raise ConfigError(
                    f"{where}.pruner: got {pruner['name']}; with objective.{loss} the student is scored with its "
                    "teacher's head, in the end only; set pruner: none"
                )
    if entry.get("sampler") == "cmaes" and importlib.util.find_spec("cmaes") is None:
        raise ConfigError(f"{where}.sampler: got cmaes; its package is missing: pip install cmaes, or take tpe")
    given = {key: value for key, value in entry.items() if key in SHARED}
    if entry.get("sampler") == "grid":
        try:
            size = len(grid(space, 0))
        except ValueError as error:
            raise ConfigError(f"{where}.sampler: got grid; {error}") from None
        given["trials"] = min(size, entry.get("trials", size))
    elif not {"trials", "seconds"} & set(entry):
        raise ConfigError(f"{where}: no budget; give trials: 24, or seconds: 3600 (of computing, all trials together)")
    seed, storage = entry.get("seed", 0), _storage(entry.get("storage"), where)
    return Tuning(name, settings, space, seed, objective, pruner=pruner, storage=storage, **given)


def _require_objective(objective: str, settings: dict[str, Any], images: bool, where: str) -> None:
    if objective == "accuracy" and not images:
        raise ConfigError(
            f"{where}.objective: got accuracy; without images (dataset.name none) only agreement can be measured"
        )
    if objective == "agreement" and settings["kind"] != "datafree":
        raise ConfigError(
            f"{where}.objective: got agreement with a method of kind {settings['kind']}; allowed: data-free methods, "
            "whose source makes the images; take accuracy"
        )
    if objective == "agreement" and not SOURCES[source := settings["inversion"]["source"]].synthesises:
        raise ConfigError(f"{where}.objective: got agreement; inversion.source {source} makes no images; take accuracy")


def _storage(given: str | None, where: str) -> str | None:
    """Return the URL of a database, from the environment where `$NAME` is given."""
    url = given
    if given is not None and given.startswith("$"):
        url = os.environ.get(given[1:].strip("{}"))
        if not url:
            raise ConfigError(f"{where}.storage: got {given}; this environment variable is not set; export it first")
    if url is not None and "://" not in url:
        hint = "a URL such as postgresql://user@host/db, or $NAME of a variable that holds one (with the password)"
        raise ConfigError(f"{where}.storage: got {shown(masked(url))}; allowed: {hint}")
    return url
