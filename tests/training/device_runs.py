"""Tiny runs of random images on any device, each from its settings to its numbers, and how near two of them are.

A GPU's machine may have neither scikit-learn's digits nor a network: images, labels and teachers are drawn.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from conftest import tiny_run
from tape import play_on_cpu

from kd.data import views
from kd.models.build import build
from kd.runs.run import run_step
from kd.runs.together import Company, Stepping, alone
from kd.runtime.files import read_json
from kd.settings.run import Run
from kd.settings.shapes import Compute

CLASSES, COLOURS, SIZE, IMAGES = 10, 3, 8, 96
SHORT = {"training__batch_size": 16, "training__lr": 0.02}  # six steps an epoch; two epochs
SAME_WITHIN = 10  # times the distance of two runs of the same, where a device sums in any order


def short(method: str, seed: int = 0, **changes: Any) -> Run:
    return tiny_run(method, seed, **{**SHORT, **changes})


class Numbers(NamedTuple):
    """What a run leaves behind, and how its steps were computed."""

    weights: dict[str, torch.Tensor]
    metrics: dict[str, float]
    computed: dict[str, Any]

    def distance(self, other: Numbers) -> float:
        """Return the largest difference of a weight, relative to the largest weight of its tensor."""
        assert self.weights.keys() == other.weights.keys()
        pairs = [(value.double(), other.weights[name].double()) for name, value in self.weights.items()]
        return max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-12)) for a, b in pairs)


@functools.cache
def inputs() -> Path:
    """Return a folder with prepared images; `teacher_of` adds teachers."""
    folder, random = Path(tempfile.mkdtemp()), torch.Generator().manual_seed(1)
    images = torch.randint(256, (2, IMAGES, COLOURS, SIZE, SIZE), generator=random, dtype=torch.uint8)
    labels = torch.arange(IMAGES) % CLASSES
    split = {"train_images": images[0], "train_labels": labels, "test_images": images[1], "test_labels": labels}
    normal = {"mean": torch.full((COLOURS,), 0.4), "std": torch.full((COLOURS,), 0.3)}
    torch.save({**split, **normal, "classes": [str(number) for number in range(CLASSES)]}, folder / "data.pt")
    return folder


def teacher_of(run: Run) -> Path:
    """Return a file with random weights for a teacher."""
    file = inputs() / f"{run.digest}.pt"
    if not file.exists():
        torch.manual_seed(3)
        channels = views.channels(run.view, COLOURS)
        network = build(run.model, num_classes=CLASSES, in_channels=channels, image_size=SIZE)
        torch.save(network.state_dict(), file)
    return file


def made(
    run: Run, folder: Path, device: torch.device, capture: str = "auto", stepping: Stepping = alone, **given: Any
) -> Numbers:
    """Make a run in a folder; on a CPU, `capture: auto` is played by the steppers of `on`."""
    compute = Compute.by_hand(device=device.type, capture=capture, pretrained=False, checkpoint_seconds=3600.0)
    teachers = [teacher_of(teacher) for teacher in run.teachers or ()]
    run_step(run, folder, inputs() / "data.pt", teachers, compute, wait=False, stepping=stepping, **given)
    weights = torch.load(folder / "weights.pt", weights_only=True)
    return Numbers(weights, read_json(folder / "metrics.json"), read_json(folder / "run.json")["computed"])


def made_together(runs: list[Run], folder: Path, device: torch.device) -> list[Numbers]:
    """Make runs in one process, their steps next to each other."""
    company = Company(Compute.by_hand(device=device.type), lambda text: None)
    found: dict[int, Numbers] = {}

    def make(number: int, run: Run) -> Callable[[], None]:
        where = folder / f"together-{number}"
        return lambda: found.update({number: made(run, where, device, stepping=company.stepping)})

    company.work([make(number, run) for number, run in enumerate(runs)])
    return [found[number] for number in range(len(runs))]


def assert_same(found: Numbers, expected: Numbers, once_more: Callable[[], Numbers]) -> None:
    """Fail where two runs differ, by more than `once_more` differs from what is expected: a GPU's sums have any order.

    Where these two agree to the last bit, so must the others.
    """
    if distance := found.distance(expected):
        noise = once_more().distance(expected)
        assert distance <= SAME_WITHIN * noise, f"weights differ by {distance:.2g}, those of two such runs {noise:.2g}"
    else:
        assert found.metrics == expected.metrics


def capturing(device: torch.device, monkeypatch: Any) -> None:
    """Let steps be captured: on a CPU by a graph that is played there."""
    if device.type == "cpu":
        play_on_cpu(monkeypatch)
