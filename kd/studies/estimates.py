"""Seconds and bytes of runs that are still to be made, estimated from finished ones. Imports no torch."""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd.registry.datasets import SIZES
from kd.runs.folder import Records, run_folders
from kd.settings.run import Run

RECENT = 5  # an estimate is the mean of this many finished runs, the latest ones


@dataclass(frozen=True)
class Finished:
    """What is left of a run of any study: settings, seconds by phase, size of its training set, when it finished."""

    run: Run
    folder: Path
    seconds: dict[str, float]
    images: int
    when: str
    device: str

    @property
    def bytes(self) -> int:
        """Size of its files on the disk."""
        try:
            return sum(entry.stat().st_size for entry in os.scandir(self.folder) if entry.is_file())
        except OSError:  # removed in the meantime
            return 0


class Estimates:
    """Seconds and bytes of runs still to be made, from the finished runs of all studies in a results folder.

    They come from runs with the same settings (other seeds); else from runs of the same kind, data set and networks,
    or of the same kind and data set, scaled by the number of images that pass through the networks.
    """

    def __init__(self, records: Records, known: dict[str, Run]):
        """Read all runs in the results folder of `records`; `known` are runs by path whose settings need no reading."""
        self._by: dict[tuple, list[Finished]] = defaultdict(list)
        found = sorted(_finished(records, known), key=lambda item: item.when)
        self.count = len(found)
        self.devices = sorted({item.device for item in found if item.device})
        self._sizes: dict[str, int] = {}
        for item in found:
            self._add(item)

    def learn(self, run: Run, folder: Path, record: dict[str, Any]) -> None:
        """Add a run that has just been finished; a record of another version teaches nothing."""
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
            self._add(_read(run, folder, record))

    def _add(self, item: Finished) -> None:
        self._sizes[item.run.data_path] = item.images
        for key in _likenesses(item.run):
            self._by[key].append(item)

    def seconds(self, run: Run) -> float | None:
        """Return the seconds of a whole run; None where no finished run is like it."""
        for alike in filter(None, (self._by.get(key) for key in _likenesses(run))):
            return _mean(_scaled_seconds(run, item) for item in alike[-RECENT:])
        return None

    def training_images(self, run: Run) -> int | None:
        """Return the size of a run's training set: as its data set is known, else as finished runs found it."""
        if run.dataset.name not in SIZES:
            return self._sizes.get(run.data_path)
        (images, all_classes), chosen = SIZES[run.dataset.name], run.dataset.classes
        classes = len(chosen) if isinstance(chosen, tuple) else chosen or all_classes
        return images * classes // all_classes

    def bytes(self, run: Run) -> float | None:
        """Return the bytes that a run takes on the disk; None where no finished run is like it."""
        for alike in filter(None, (self._by.get(key) for key in _likenesses(run)[:2])):
            return _mean(item.bytes for item in alike[-RECENT:])
        return None


def _finished(records: Records, known: dict[str, Run]) -> Iterator[Finished]:
    for path in run_folders(records.root):
        if (record := records[path]) is None:
            continue
        try:
            run = known.get(path)
            if run is None or record["digest"] != run.digest:
                run = Run.from_dict(record["settings"])
            yield _read(run, records.root / path, record)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):  # of another version: of no use
            continue


def _read(run: Run, folder: Path, record: dict[str, Any]) -> Finished:
    seconds = {name: float(value) for name, value in record["seconds"].items()}
    images, finished = int(record["train_images"]), str(record["finished"])
    return Finished(run, folder, seconds, images, finished, record.get("device") or "")


def _likenesses(run: Run) -> list[tuple]:
    """Return keys that runs share which are like each other, the closest likeness first."""
    kind = (run.kind, run.dataset.label, run.dataset.image_size)
    return [("settings", run.digest), ("networks", *kind, run.model, run.teacher_names, run.precision), ("kind", *kind)]


def _scaled_seconds(run: Run, item: Finished) -> float:
    """Return the seconds of `run` if an image costs in each phase what it cost in the finished run."""
    mine, theirs = images_by_phase(run, item.images), images_by_phase(item.run, item.images)
    fixed = item.seconds["total"] - sum(item.seconds.get(phase, 0.0) for phase in theirs)
    return fixed + sum(item.seconds.get(phase, 0.0) * mine.get(phase, 0) / theirs[phase] for phase in theirs)


def images_by_phase(run: Run, training_set: int) -> dict[str, float]:
    """Return how many images pass through the networks in each phase; {} where nothing is trained."""
    if run.kind == "given":
        return {}
    if run.kind != "datafree":
        return {"training": run.training.epochs * run.scale * training_set}
    epochs, full = run.distillation.training.epochs, run.replay.full_size or training_set
    batch, made = run.distillation.training.batch_size, run.inversion.settings
    batches = run.distillation.rounds * (made.get("warmup", 0) + made.get("until", 1.0) * epochs)
    drawn = made.get("batches", 0) / 3  # fresh images, without the way back
    phases = {
        "inversion": batches * (made.get("steps", 0) + drawn) * made.get("batch_size", 0),
        "distillation": epochs * batch * run.distillation.steps_per_epoch(run.scale * full),
    }
    return {phase: images for phase, images in phases.items() if images}


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)
