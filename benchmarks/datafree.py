"""Speed and memory of data-free distillation's parts against a literal reference: python benchmarks/datafree.py

A is kd as a run uses it; B is the method written down directly, the way a first version of it looks:

- teacher forward in distillation: B keeps its BatchNorm hooks active in every forward pass, takes each layer's variance
  from a transposed copy, records the graph (weights that require gradients, the output detached afterwards) and leaves
  the memory format as torch makes it. Every other line is the same network.
- inversion step: one whole epoch of the generator (inner copy, noise, augmentation, all three losses, meta-gradient,
  common step), divided by its steps. B likewise, also computes gradients for the weights of teacher and student,
  runs Adam tensor by tensor and asks each step's loss for its value. Both draw the same numbers, and the benchmark
  stops unless losses, statistics and the meta-gradient agree.
- drawing a batch: A draws by priority from a buffer on the device and augments the batch as one; B is a folder of PNG
  files behind a torch DataLoader (no workers: one thread for both) with torchvision's transforms.
- memory: all tensors of a buffer of 50,000 images.

WRN-40-2 teaches WRN-16-1, 32x32x3 images, 10 classes, one CPU thread. A and B alternate, the first of a round changes
from round to round, and each round gives one ratio B/A; medians and ranges of the rounds are shown. The clock is this
process's own CPU time, so that work of others on the machine counts less; time that B would wait for its disk is not
counted. Takes two to three minutes. --json prints the numbers instead. Ends with code 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

if find_spec("kd") is None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from literal_datafree import (
    CLASSES,
    GAMMA,
    MEAN,
    PAD,
    STD,
    Folder,
    LiteralGenerator,
    LiteralInversion,
    hooks_of,
    normalisations,
)
from paired import AGREEMENT, Seconds, alternate, close
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from kd.data.augment import Augment
from kd.data.dataset import Data, Split
from kd.inversion.replay import ReplayBuffer
from kd.inversion.sources.base import Images, SourceContext
from kd.inversion.sources.generator import MetaGenerator
from kd.models.build import build
from kd.runtime.torchvision_compat import import_torchvision
from kd.settings.shapes import Modulation, Replay

ROOT = Path(__file__).resolve().parents[1]
TEACHER, STUDENT, SIZE = "wrn_40_2", "wrn_16_1", 32
FORWARD_BATCH, FORWARD_ROUNDS = 64, 15  # 256 would take four times as long for the same ratio
INVERSION_BATCH, INVERSION_ROUNDS = 32, 9
DRAW_BATCH, DRAW_IMAGES, DRAW_ROUNDS = 256, 5_000, 15
MEMORY_IMAGES = 50_000
BAR_FORWARD, BAR_INVERSION, BAR_DRAW, BAR_MEMORY = 1.5, 1.7, 8.0, 200e6
GRADIENT_AGREEMENT = 3e-2  # through 40 layers: either is 4e-3 away from B in float64

INVERSION = SimpleNamespace(
    batch_size=INVERSION_BATCH,
    warmup=20,
    steps=2,
    lr_generator=0.005,
    lr_noise=0.015,
    bn=10.0,
    oh=0.4,
    adv=1.1,
    bn_momentum=0.9,
    meta="maml",
    reset_epoch=None,
    noise_dim=256,
    width=64,
)
MODULATION = Modulation(diversity=1.0, gamma=GAMMA, class_of="prediction", gradient=False, normalise=False)
REPLAY = Replay(
    full_size=None,
    replacement="oldest",
    initial_priority="max",
    final_beta=None,
    alpha=0.6,
    beta=0.4,
    eps=1e-6,
    priority_feedback=True,
    normalise_weights=True,
    refresh="drawn",
)
CPU = torch.device("cpu")


def random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(name: str, seed: int) -> nn.Module:
    """Random weights, with running statistics that fit them: without these, activations double from block to block."""
    torch.manual_seed(seed)
    built = build(name, num_classes=CLASSES, in_channels=3, image_size=SIZE)
    layers = normalisations(built)
    for layer in layers:
        layer.momentum = None  # the plain mean over what is seen
    with torch.no_grad():
        built(torch.randn(64, 3, SIZE, SIZE))
    for layer in layers:
        layer.momentum = 0.1
    return built.eval()


def frozen_fast(built: nn.Module) -> nn.Module:
    """A network as a run holds its teacher."""
    return built.requires_grad_(False).to(memory_format=torch.channels_last)


def augmentation() -> Augment:
    return Augment(torch.tensor(MEAN), torch.tensor(STD), PAD, True)


# ------------------------------------------------------------------------------------------------------- measurement


def measure_forward(rounds: int) -> tuple[Seconds, dict[str, float]]:
    fast, slow = frozen_fast(network(TEACHER, 0)), network(TEACHER, 0)
    hooks_of(slow)
    images = torch.randn(FORWARD_BATCH, 3, SIZE, SIZE, generator=random(1))
    images_fast = images.contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def a() -> Tensor:
        return fast(images_fast).logits

    def b() -> Tensor:
        return slow(images).logits.detach()

    agreement = {"teacher's logits": close("teacher's logits", a(), b())}
    return alternate(a, b, rounds), agreement


class InversionSetting:
    """Both implementations with the same networks, generators, buffer and random numbers."""

    def __init__(self, settings: SimpleNamespace) -> None:
        self.teacher, self.literal_teacher = frozen_fast(network(TEACHER, 0)), network(TEACHER, 0)
        self.student, self.literal_student = network(STUDENT, 4), network(STUDENT, 4)  # agrees on most
        self.student.to(memory_format=torch.channels_last).train()
        self.literal_student.train()
        self.hooks = hooks_of(self.literal_teacher)
        self.buffer = ReplayBuffer(INVERSION_BATCH, (3, SIZE, SIZE), CLASSES, REPLAY, CPU)
        classes = torch.arange(INVERSION_BATCH) % (CLASSES - 2)  # some classes fill it more than others
        black = torch.zeros(INVERSION_BATCH, 3, SIZE, SIZE, dtype=torch.uint8)
        self.buffer.add(black, classes, torch.ones(INVERSION_BATCH), random(2))
        torch.manual_seed(3)
        nothing = Split(torch.zeros(0, 3, SIZE, SIZE, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64))
        data = Data(nothing, nothing, "test", 0, [str(label) for label in range(CLASSES)], augmentation())
        context = SourceContext(self.teacher, data, MODULATION, random(4), INVERSION_BATCH, 0, epochs=2)
        self.source = MetaGenerator(context, **vars(settings))
        self.common = self.source.generator.to(memory_format=torch.contiguous_format)
        share = self.buffer.class_share(torch.arange(CLASSES))
        self.literal = LiteralInversion(LiteralGenerator(self.common), settings, share, random(4))
        self.common.to(memory_format=torch.channels_last)

    def fast(self) -> Images:
        return self.source.batch(1, self.student, self.buffer)

    def slow(self) -> tuple[Tensor, float, Tensor]:
        return self.literal.epoch(self.literal_teacher, self.hooks, self.literal_student)

    def past(self, part: int) -> tuple[Tensor, Tensor]:
        """The remembered statistics of A and of B, means (0) or variances (1), all layers in one row."""
        both = self.source.past, self.literal.past
        return tuple(torch.cat([layer[part] for layer in past]) for past in both)


def agreement_of_inversion() -> dict[str, float]:
    """Compare two epochs, the second of which blends in the statistics of the first.

    Adam makes a direction of the sign of any gradient, rounding included, so that trajectories part: here the steps
    are tiny, and the generators start the second epoch from the same weights.
    """
    setting = InversionSetting(SimpleNamespace(**{**vars(INVERSION), "lr_generator": 1e-6, "lr_noise": 1e-6}))
    agreement: dict[str, float] = {}
    for _ in range(2):
        setting.literal.generator.take(setting.common)
        made, (images, lowest, meta) = setting.fast(), setting.slow()
        if not made.losses["adv"]:
            raise SystemExit("teacher and student agree on no image: the adversarial term is not compared")
        gradient = torch.cat([parameter.grad.flatten() for parameter in setting.common.parameters()])
        for what, a, b, tolerance in (
            ("inversion's loss", made.losses["loss"], torch.tensor(lowest), AGREEMENT),
            ("images, as stored", made.images.float(), images.mul(255).round(), 1e-3),  # .5 is rounded either way
            ("remembered means", *setting.past(0), AGREEMENT),
            ("remembered variances", *setting.past(1), AGREEMENT),
            ("meta-gradient", gradient, meta, GRADIENT_AGREEMENT),
        ):
            agreement[what] = max(agreement.get(what, 0.0), close(what, a, b, tolerance))
    return agreement


def measure_inversion(rounds: int) -> tuple[Seconds, dict[str, float]]:
    agreement = agreement_of_inversion()
    setting = InversionSetting(INVERSION)
    seconds = alternate(setting.fast, setting.slow, rounds)
    return [(a / INVERSION.steps, b / INVERSION.steps) for a, b in seconds], agreement


def measure_draw(rounds: int) -> tuple[Seconds, dict[str, float]]:
    draws = random(5)
    buffer = ReplayBuffer(DRAW_IMAGES, (3, SIZE, SIZE), CLASSES, REPLAY, CPU)
    coarse = torch.rand(DRAW_IMAGES, 3, 8, 8, generator=draws)  # smooth, as images are: noise would not compress
    images = F.interpolate(coarse, SIZE, mode="bilinear").mul(255).to(torch.uint8)
    buffer.add(images, torch.arange(DRAW_IMAGES) % CLASSES, torch.ones(DRAW_IMAGES), draws)
    buffer.priority.copy_(torch.rand(DRAW_IMAGES, generator=draws))
    augment = augmentation()
    transforms = import_torchvision().transforms
    plain = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    moving = [transforms.RandomCrop(SIZE, padding=PAD), transforms.RandomHorizontalFlip()]

    def batches(loader: DataLoader) -> Iterator[Any]:
        while True:
            yield from loader

    with tempfile.TemporaryDirectory() as folder:
        for number, image in enumerate(images):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(Path(folder, f"{number:05}.png"))
        files = Folder(Path(folder), transforms.Compose(plain))
        unmoved = torch.stack([files[number][0] for number in range(DRAW_BATCH)])
        agreement = {"drawn images": close("drawn images", augment.normalise(images[:DRAW_BATCH]), unmoved)}
        files.transform = transforms.Compose(moving + plain)
        endless = batches(DataLoader(files, DRAW_BATCH, shuffle=True, drop_last=True, num_workers=0))

        def a() -> Tensor:
            return augment(buffer.images[buffer.sample(DRAW_BATCH, draws).index], draws)

        def b() -> Tensor:
            return next(endless)[0]

        if a().shape != b().shape:
            raise SystemExit(f"drawn images: A {tuple(a().shape)}, B {tuple(b().shape)}")
        return alternate(a, b, rounds, fast_calls=10), agreement


def buffer_bytes() -> int:
    """Return the MB of all tensors of a buffer at CIFAR's full scale."""
    buffer = ReplayBuffer(MEMORY_IMAGES, (3, SIZE, SIZE), CLASSES, REPLAY, CPU)
    return sum(value.nbytes for value in vars(buffer).values() if isinstance(value, Tensor))


def hardware() -> dict[str, Any]:
    facts = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    cpu = next((line.split(":")[1].strip() for line in facts if line.startswith("model name")), "unknown")
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, encoding="utf-8")
    return {
        "cpu": cpu,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "commit": commit.stdout.strip() or "unknown",
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON instead of a table")
    parser.add_argument("--rounds", type=int, help="rounds of every part (each has its own number of them)")
    options = parser.parse_args()
    start = time.perf_counter()
    torch.set_num_threads(1)
    parts: dict[str, dict[str, Any]] = {}
    agreement: dict[str, float] = {}
    for name, measure, rounds, bar in (
        (f"teacher forward, batch {FORWARD_BATCH}", measure_forward, FORWARD_ROUNDS, BAR_FORWARD),
        (f"inversion step, batch {INVERSION_BATCH}", measure_inversion, INVERSION_ROUNDS, BAR_INVERSION),
        (f"draw and augment, batch {DRAW_BATCH}", measure_draw, DRAW_ROUNDS, BAR_DRAW),
    ):
        seconds, found = measure(options.rounds or rounds)
        ratios = [b / a for a, b in seconds]
        parts[name] = {
            "a_ms": 1e3 * statistics.median(a for a, _ in seconds),
            "b_ms": 1e3 * statistics.median(b for _, b in seconds),
            "ratio": statistics.median(ratios),
            "ratio_range": [min(ratios), max(ratios)],
            "rounds": len(ratios),
            "bar": bar,
            "met": statistics.median(ratios) >= bar,
        }
        agreement |= found
    size = buffer_bytes()
    memory = {"bytes": size, "bar": BAR_MEMORY, "met": size < BAR_MEMORY}
    seconds_taken = time.perf_counter() - start
    all_met = memory["met"] and all(part["met"] for part in parts.values())
    if options.json:
        report = {"hardware": hardware(), "parts": parts, "buffer": memory, "agreement": agreement}
        print(json.dumps({**report, "seconds": round(seconds_taken, 1)}, indent=2))
        return int(not all_met)
    print(", ".join(f"{key} {value}" for key, value in hardware().items()))
    print(f"{TEACHER} -> {STUDENT}, {SIZE}x{SIZE} images, {CLASSES} classes, {seconds_taken:.0f} s in all\n")
    print(f"{'':30}{'A kd, ms':>10}{'B literal, ms':>15}{'B/A':>7}{'range':>14}{'rounds':>8}   bar")
    for name, part in parts.items():
        low, high = part["ratio_range"]
        print(
            f"{name:30}{part['a_ms']:10.1f}{part['b_ms']:15.1f}{part['ratio']:7.2f}{f'{low:.2f}-{high:.2f}':>14}"
            f"{part['rounds']:8}   >= {part['bar']:g} {'met' if part['met'] else 'MISSED'}"
        )
    verdict = "met" if memory["met"] else "MISSED"
    print(f"\nbuffer of {MEMORY_IMAGES:,} images: {size / 1e6:.1f} MB   bar < {BAR_MEMORY / 1e6:g} MB {verdict}")
    print("\nrelative difference of A from B, worst of two epochs")
    for what, distance in agreement.items():
        print(f"  {what:22}{distance:12.1e}")
    return int(not all_met)


if __name__ == "__main__":
    sys.exit(main())
