"""Looks at a student while it trains: its score every few epochs, for searches. What is seen changes no number."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from kd.data.dataset import Data, Split
from kd.registry.losses import LOSSES
from kd.runs.folder import arrays_in
from kd.runtime.checkpoint import Checkpoint
from kd.runtime.files import write_atomically
from kd.runtime.journal import Journal, Look
from kd.runtime.weights import fill, read_state
from kd.settings.run import Run
from kd.training.evaluate import evaluate, predict_classes
from kd.training.networks import network

SCORES = {"accuracy": "validation_accuracy", "agreement": "held_out_agreement"}  # objective -> column of history.csv


class Seen(NamedTuple):
    """What a watch sees at the end of an epoch."""

    epoch: int  # from 1, a data-free source's warm-up and a loss's first stage included
    epochs: int
    row: dict[str, float]  # of history.csv, so far
    parts: dict[str, Any]  # of the run's loop, as a checkpoint holds them; among them `student`
    data: Data


Watch = Callable[[Seen], dict[str, float]]


def looking(watch: Watch, data: Data, checkpoint: Checkpoint, journal: Journal) -> Look:
    """Return what the journal of a run calls after each epoch: `watch`, its seconds counted as monitoring."""

    def look(epoch: int, epochs: int, row: dict[str, float]) -> dict[str, float]:
        with journal.phase("monitoring", data.score.labels.device):
            return watch(Seen(epoch, epochs, row, checkpoint.parts, data))

    return look


class Scores:
    """A watch that scores the student every `every` epochs and after the last one, in percent of images.

    objective: `accuracy` on the images that the run scores, or `agreement` with the teacher on the images in
    `held_out` (as `HeldOut` writes it). Each score becomes a value of history.csv (SCORES) and is told to
    `report(epoch, value)`, which may raise to end the run. There is none while only a generator learns, in a loss's
    first stage, and where a loss makes another network of the student in the end.
    """

    def __init__(self, run: Run, objective: str, every: int, report: Callable[[int, float], None], held_out: Path):
        self.column, self.every, self.report = SCORES[objective], every, report
        self.held_out = held_out if objective == "agreement" else None
        self.final_only = becomes_another(run)

    def __call__(self, seen: Seen) -> dict[str, float]:
        student, first = seen.parts["student"], getattr(seen.parts.get("objective"), "first", False)
        last = seen.epoch == seen.epochs
        if "loss" not in seen.row or first or self.final_only or (seen.epoch % self.every and not last):
            return {}
        split = seen.data.score if self.held_out is None else _read(self.held_out, seen.data.score.labels.device)
        value = evaluate(student, split, seen.data.augment)[0]["accuracy"]
        self.report(seen.epoch, value)
        return {self.column: value}


def becomes_another(run: Run) -> bool:
    """Whether what is scored in the end is not the network that trains: SimKD's student gets its teacher's head."""
    return any(LOSSES[name].one_teacher for name in run.objective or {})


class HeldOut:
    """A watch that writes the images in a data-free run's buffer after the last epoch, with the teacher's class.

    They are what the students of other runs are compared with their teacher on: none of them has seen these images.
    """

    def __init__(self, run: Run, teacher_weights: list[Path], file: Path):
        self.run, self.teacher_weights, self.file = run, teacher_weights, file

    def __call__(self, seen: Seen) -> dict[str, float]:
        if seen.epoch == seen.epochs:
            buffer = seen.parts["buffer"]
            images = buffer.images[: buffer.size]
            classes, _ = predict_classes(self._teacher(seen.data, images.device), images, seen.data.augment)
            arrays = {"images": images.cpu().numpy(), "classes": classes.cpu().numpy()}
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.file, lambda file: np.savez_compressed(file, **arrays))
        return {}

    def _teacher(self, data: Data, device: torch.device) -> nn.Module:
        teacher = network(self.run.teacher, data, device)
        fill(teacher, read_state(self.teacher_weights[0]))
        return teacher.eval().requires_grad_(False)


def _read(file: Path, device: torch.device) -> Split:
    content = arrays_in(file)
    return Split(*(torch.from_numpy(content[name]).to(device) for name in ("images", "classes")))
