"""Faults of what all runs of a study have in common: where files lie, the data set, schedules. Imports no torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

from kd.registry.datasets import DATASETS, OWN_FOLDER, WITH_DEPTH
from kd.runtime.messages import shown, suggest


def common_faults(settings: dict[str, Any]) -> Iterator[str]:
    """Yield faults of the data set, of schedules and places."""
    yield from _place_faults(settings["results"])
    yield from _dataset_faults(settings["dataset"])
    for who in ("training", "teacher.training", "distillation.training"):
        yield from _training_faults(settings, who)


def _place_faults(folder: str) -> Iterator[str]:
    try:
        too_long = any(len(os.fsencode(part)) > 200 for part in folder.split("/"))
    except UnicodeEncodeError:
        hint = f"in this locale names are {sys.getfilesystemencoding()}; choose such a name, or set LC_ALL=C.UTF-8"
        yield f"results: got {shown(folder)}; {hint}"
        return
    if not folder.isprintable() or set(folder) & set("{}") or too_long:
        yield f"results: got {shown(folder)}; allowed: the path of a folder without braces and control characters"


def _dataset_faults(dataset: dict[str, Any]) -> Iterator[str]:
    if (name := dataset["name"]) not in DATASETS:
        yield f"dataset.name: got {shown(name)}; {suggest(name, list(DATASETS))}"
    if name in OWN_FOLDER and dataset["root"] is None:
        yield f"dataset.root: got null; needed by dataset.name {name}: the path of {OWN_FOLDER[name]}"

    if dataset.get("stream"):
        yield from _stream_faults(dataset)
    channels = dataset.get("channels")
    if channels == 4 and name not in (*WITH_DEPTH, "none"):
        yield f"dataset.channels: got 4; colours and depth are those of {', '.join(WITH_DEPTH)}"
    for key in ("mean", "std"):
        values = dataset.get(key)
        if values and channels and len(values) != channels:
            yield f"dataset.{key}: got {len(values)} numbers; needed: one for each of the {channels} dataset.channels"
    if (dataset.get("mean") is None) != (dataset.get("std") is None):
        yield "dataset.mean, dataset.std: one of them is null; give both, or none of them"


def _stream_faults(dataset: dict[str, Any]) -> Iterator[str]:
    """Yield what images that stay in their files cannot have."""
    if (name := dataset["name"]) != "folder":
        yield f"dataset.stream: got true with dataset.name {shown(name)}; only images of a folder lie in files"
    if dataset.get("mean") is None:
        yield (
            "dataset.mean: got null; with dataset.stream nothing is read beforehand that would tell it; give mean and "
            "std: ImageNet's are [0.485, 0.456, 0.406] and [0.229, 0.224, 0.225]"
        )
    if dataset.get("channels") not in (None, 3):
        yield f"dataset.channels: got {dataset['channels']}; with dataset.stream images are RGB: 3, or null"


def _training_faults(settings: dict[str, Any], who: str) -> Iterator[str]:
    """Yield faults of one schedule, named by its dotted key."""
    training = settings
    for part in who.split("."):
        training = training[part]
    late = [epoch for epoch in training["milestones"] if epoch >= training["epochs"]]
    if training["schedule"] == "steps" and late:
        fitting = _fitting_milestones(training["milestones"], training["epochs"])
        hint = f"write milestones: {fitting} in {who}, or schedule: cosine"
        yield f"{who}.milestones: got {late[0]}; allowed: below epochs ({training['epochs']}); {hint}"
    if training["nesterov"] and training["momentum"] == 0:
        yield f"{who}.nesterov: needs momentum above 0; got momentum 0; set nesterov: false or raise the momentum"


def _fitting_milestones(milestones: list[int], epochs: int) -> list[int]:
    """Scale milestones so that the last is at 7/8 of the epochs, as 210 of 240: what a user may copy."""
    scaled = {round(epoch * 0.875 * epochs / max(milestones)) for epoch in milestones}
    return sorted({max(epoch, 1) for epoch in scaled if max(epoch, 1) < epochs})
