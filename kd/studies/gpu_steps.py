"""Seconds that runs would take on a GPU, estimated from a few steps that were measured there. Imports no torch."""

from __future__ import annotations

import math
from typing import NamedTuple

from kd.registry.models import entry
from kd.settings.run import Run
from kd.studies.estimates import images_by_phase

CARD = "NVIDIA H200"
# Exponent with which a step's time grows with multiply-adds: steps wait for memory (measured: 0.31 to 0.39).
GROWTH = 1 / 3
BACKWARD = 3  # forward and backward pass of a network that learns, in forward passes


class Step(NamedTuple):
    """A step that was measured, captured in a CUDA graph, on images of 32x32."""

    phase: str  # "training" of a network by itself, "distillation", "crd" or "inversion"
    teacher: str  # empty: none
    student: str
    batch: int
    precision: str
    milliseconds: float


MEASURED = [  # torch 2.11, driver 580, kd at commit b1876f6 with a prototype of captured steps (docs/gpu.md)
    Step("distillation", "wrn_40_2", "wrn_16_1", 256, "float32", 5.6),
    Step("distillation", "wrn_40_2", "wrn_16_1", 256, "bf16", 4.06),
    Step("distillation", "resnet34", "resnet18", 256, "float32", 11.6),
    Step("distillation", "resnet34", "resnet18", 256, "bf16", 7.64),
    Step("crd", "wrn_40_2", "wrn_16_2", 64, "float32", 3.19),
    Step("crd", "wrn_40_2", "wrn_16_2", 64, "bf16", 2.69),
    Step("inversion", "wrn_40_2", "wrn_16_1", 256, "float32", 88 / 5),
    Step("inversion", "resnet34", "resnet18", 256, "float32", 130 / 5),
    Step("training", "", "wrn_40_2", 512, "float32", 20.2),
    Step("training", "", "wrn_40_2", 512, "bf16", 12.4),
]


def gpu_seconds(run: Run, training_images: int | None) -> float | None:
    """Return about how long a whole run's captured steps take on CARD, without start-up and scores; None: unknown.

    Of the measured steps of a phase, the one whose networks are nearest counts, those of the same precision first. Its
    time is scaled by the number of images and their area, and by GROWTH for networks of other sizes.
    """
    size = (run.replay and run.replay.full_size) or training_images
    cost = _multiply_adds([teacher.model for teacher in run.teachers or ()], run.model)
    if size is None or cost is None:
        return None
    area = (run.dataset.image_size / 32) ** 2
    seconds = 0.0
    for phase, images in images_by_phase(run, size).items():
        precision, kind = run.precision, phase
        if phase == "inversion":
            precision = run.inversion.settings.get("precision", "float32")
        elif run.kind == "distill":
            kind = "crd" if "crd" in run.objective else "distillation"
        step, theirs = _nearest(kind, precision, cost)
        seconds += images * area * step.milliseconds / 1e3 / step.batch * (cost / theirs) ** GROWTH
    return seconds


def _nearest(kind: str, precision: str, cost: float) -> tuple[Step, float]:
    """Return the measured step that is most like the wanted one, and its multiply-adds."""
    found = [(step, _multiply_adds([step.teacher] if step.teacher else [], step.student)) for step in MEASURED]
    alike = [pair for pair in found if pair[0].phase == kind]
    return min(alike, key=lambda pair: (pair[0].precision != precision, abs(math.log(cost / pair[1]))))


def _multiply_adds(teachers: list[str], student: str) -> float | None:
    """Return the multiply-adds of a step per image, in millions; None where a network's are unknown."""
    entries = [entry(name) for name in (*teachers, student)]
    if any(found is None or found.multiply_adds is None for found in entries):
        return None
    *taught, learns = (found.multiply_adds for found in entries)
    return sum(taught) + BACKWARD * learns
