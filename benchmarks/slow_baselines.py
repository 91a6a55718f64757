"""What slow data-free methods would take where a study ran: python benchmarks/slow_baselines.py STUDY

Extrapolated: seconds per step, measured here, times the steps that their names state, times the batches that make as
many images as the study's 100 % scale; for comparison the student's training of the study's Fast at 100 %.

- DeepInversion, 2,000 steps (Yin et al., CVPR 2020): Adam on the pixels of a batch against BatchNorm prior, task loss,
  the adversarial term, total variation and the squared norm.
- CMI, 500 steps (Fang et al., IJCAI 2021): a generator for each batch; without its contrastive term: a lower bound.

STUDY is the folder of a finished study with ssdkd at 10 % and Fast at 100 %, results/studies/ssdkd-cifar100-quick for
example. Run it on the machine that ran the study; one thread. Steps are measured in turn, medians are shown.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

if find_spec("kd") is None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pandas as pd
import torch
from torch import nn

from kd.data.dataset import Data, load
from kd.inversion.priors import BatchStatistics, adversarial_loss, batchnorm_loss, class_loss
from kd.inversion.replay import ReplayBuffer
from kd.inversion.sources.base import SourceContext
from kd.inversion.sources.generator import MetaGenerator
from kd.models.build import build
from kd.models.classifier import frozen
from kd.runtime.files import read_json
from kd.settings.run import Run

ROUNDS, STEPS = 7, 10


class Setting:
    """The networks and sizes of a run, with random weights: steps take the same time."""

    def __init__(self, run: Run, data: Data):
        self.run, self.data, self.augment, self.classes = run, data, data.augment, len(data.classes)
        self.channels, self.size = data.channels, data.image_size
        self.teacher, self.student = (self.network(name) for name in (run.teacher.model, run.model))
        self.teacher.requires_grad_(False)
        self.random = torch.Generator().manual_seed(0)

    def network(self, name: str) -> nn.Module:
        built = build(name, num_classes=self.classes, in_channels=self.channels, image_size=self.size)
        return built.to(memory_format=torch.channels_last).eval()

    def pixels(self) -> Callable[[], None]:
        """STEPS steps of DeepInversion on one batch."""
        settings = self.run.inversion.settings
        shape = (settings["batch_size"], self.channels, self.size, self.size)
        images = (
            torch.randn(shape, generator=self.random).contiguous(memory_format=torch.channels_last).requires_grad_()
        )
        targets = torch.randint(self.classes, shape[:1], generator=self.random)
        optimizer = torch.optim.Adam([images], lr=0.05, betas=(0.5, 0.9), fused=True)

        def steps() -> None:
            with frozen(self.student), BatchStatistics(self.teacher) as noted:
                for _ in range(STEPS):
                    moved = self.augment(images, self.random)
                    logits = self.teacher(moved).logits
                    loss = settings["bn"] * batchnorm_loss(noted.layers, noted.collect())
                    loss = loss + class_loss(logits, targets).mean()
                    loss = loss + adversarial_loss(logits, self.student(moved).logits).mean()
                    variation = images.diff(dim=2).square().sum() + images.diff(dim=3).square().sum()
                    loss = loss + 1e-4 * variation + 1e-5 * images.square().sum()
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                    optimizer.step()

        return steps

    def generator(self) -> Callable[[], None]:
        """STEPS steps of a generator on one batch."""
        settings = {**self.run.inversion.settings, "steps": STEPS}
        context = SourceContext(self.teacher, self.data, self.run.modulation, self.random, settings["batch_size"], 0)
        source = MetaGenerator(context, **settings)
        shape = (self.channels, self.size, self.size)
        buffer = ReplayBuffer(settings["batch_size"], shape, self.classes, self.run.replay, torch.device("cpu"))

        def steps() -> None:
            source.batch(1, self.student, buffer)

        return steps


def seconds_per_step(calls: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Return medians over rounds in which each call has its turn."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            taken[name].append((time.perf_counter() - start) / STEPS)
    return {name: statistics.median(values[1:]) for name, values in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("study", type=Path, help="folder of a finished study")
    folder = parser.parse_args().study
    torch.set_num_threads(1)
    results = pd.read_csv(folder / "results.csv").drop_duplicates("path")
    plain = results[results["ablation"] == "full"]
    small = plain[(plain["method"] == "ssdkd") & (plain["scale"] == 0.1)]
    fast = plain[(plain["method"].isin(["fast2", "fast"])) & (plain["scale"] == 1.0)]
    if small.empty or fast.empty:
        sys.exit(f"{folder}: this study has no run of ssdkd at scale 0.1 or none of Fast at 1.0")
    root = folder.parents[1]
    record = read_json(root / small["path"].iloc[0] / "run.json")
    run = Run.from_dict(record["settings"])
    data = load(root / run.data_path, run.dataset, torch.device("cpu"))
    setting = Setting(run, data)
    found = seconds_per_step({"DeepInversion": setting.pixels(), "CMI": setting.generator()})
    ours, images = small["seconds_total"].mean(), run.replay.full_size or data.full_size
    batches = -(-images // run.inversion.settings["batch_size"])
    size = f"{setting.size}x{setting.size}"
    batch = run.inversion.settings["batch_size"]
    print(f"{run.teacher.model} -> {run.model}, {images:,} images of {size}, batches of {batch}\n")
    print("| method | seconds per step | steps x batches | inversion, s | student, s | together, s | times SSD-KD |")
    print("|---|---|---|---|---|---|---|")
    student = fast["seconds_distillation"].mean()
    for (name, step), steps in zip(found.items(), (2000, 500), strict=True):
        inversion = step * steps * batches
        row(f"{name}, extrapolated | {step:.3f} | {steps:,} x {batches}", inversion, student, inversion + student, ours)
    for name, rows in (("Fast at 100 %, measured", fast), ("SSD-KD at 10 %, measured", small)):
        phases = [rows[f"seconds_{phase}"].mean() for phase in ("inversion", "distillation", "total")]
        row(f"{name} | |", *phases, ours)


def row(start: str, inversion: float, student: float, total: float, ours: float) -> None:
    print(f"| {start} | {inversion:,.0f} | {student:,.0f} | {total:,.0f} | {total / ours:,.1f} |")


if __name__ == "__main__":
    main()
