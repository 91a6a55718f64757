"""What gpu_steps.py measures: networks, buffers and loops as runs hold them, and the clock."""

from __future__ import annotations

import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

if find_spec("kd") is None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.append(str(Path(__file__).resolve().parent))

import torch
from literal_datafree import Folder, LiteralGenerator, LiteralInversion, hooks_of
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from kd.batch import Batch, LossContext
from kd.data.augment import Augment
from kd.data.dataset import Data, Loader, Split
from kd.inversion.replay import ReplayBuffer
from kd.inversion.sources.base import SourceContext
from kd.inversion.sources.generator import MetaGenerator
from kd.losses.objective import Objective
from kd.models.build import build
from kd.runs.provenance import ROOT
from kd.runtime.torchvision_compat import import_torchvision
from kd.runtime.yaml_files import read_yaml
from kd.settings.merging import run_of
from kd.settings.shapes import Modulation, Replay, Training
from kd.training.optimisers import sgd
from kd.training.step import train_step

MEAN, STD, CLASSES = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262), 10


class Size:
    """What is measured: the paper's sizes on a GPU, small ones in miniature."""

    def __init__(self, miniature: bool):
        self.pairs = [("wrn_10_1", "resnet8")] if miniature else [("wrn_40_2", "wrn_16_1"), ("resnet34", "resnet18")]
        self.image, self.batch, self.stored = (8, 16, 64) if miniature else (32, 256, 5_000)
        self.width, self.noise = (4, 8) if miniature else (64, 256)
        self.steps, self.rounds = (2, 3) if miniature else (40, 20)
        self.square = 128 if miniature else 8192
        self.taught, self.negatives = (32, 16) if miniature else (512, 16_384)


class World:
    """Teacher, student, generator and a full buffer, as a data-free run holds them."""

    def __init__(
        self, pair: tuple[str, str], size: Size, device: torch.device, memory_format: Any = torch.channels_last
    ):
        torch.manual_seed(0)
        self.size, self.device = size, device
        defaults = read_yaml(ROOT / "config/config.yaml")
        settings = defaults | defaults["methods"]["ssdkd"]
        settings["dataset"] = {**settings["dataset"], "name": "cifar10", "image_size": size.image}
        run = run_of(settings, 0)
        self.modulation: Modulation = run.modulation
        self.replay: Replay = run.replay
        self.training: Training = run.distillation.training
        shape = {"num_classes": CLASSES, "in_channels": 3, "image_size": size.image}
        self.teacher, self.student = (build(name, **shape).to(device, memory_format=memory_format) for name in pair)
        self.teacher.eval().requires_grad_(False)
        self.student.train()
        self.random = torch.Generator(device).manual_seed(0)
        mean, std = (torch.tensor(values, device=device) for values in (MEAN, STD))
        self.augment = Augment(mean, std, size.image // 8, True)
        self.buffer = ReplayBuffer(size.stored, (3, size.image, size.image), CLASSES, self.replay, device)
        images = torch.randint(256, (size.stored, 3, size.image, size.image), device=device).to(torch.uint8)
        classes = torch.arange(size.stored, device=device) % CLASSES
        self.buffer.add(images, classes, torch.ones(size.stored, device=device), self.random)
        nothing = Split(images[:0], classes[:0])
        data = Data(nothing, nothing, "test", 0, [str(label) for label in range(CLASSES)], self.augment)
        sizes = {"batch_size": size.batch, "noise_dim": size.noise, "width": size.width}
        self.inversion = SimpleNamespace(**{**run.inversion.settings, **sizes})
        context = SourceContext(self.teacher, data, self.modulation, self.random, size.stored, 0)
        self.source = MetaGenerator(context, **vars(self.inversion))
        self.objective = Objective({"kd": {"weight": 1.0, "temperature": 20.0}}, None)
        self.optimizer = sgd([self.student], self.training)

    def batch(self) -> Batch:
        drawn = self.buffer.sample(self.size.batch, self.random)
        images = self.augment(self.buffer.images[drawn.index], self.random)
        return Batch(images, self.buffer.classes[drawn.index], drawn.index, drawn.weight)

    def step(self, precision: str = "float32") -> None:
        """One update of the student on images drawn from the buffer."""
        train_step(self.student, self.teacher, self.objective, self.batch(), self.optimizer, precision)

    def invert(self) -> Any:
        return self.source.batch(1, self.student, self.buffer)

    def epoch(self, precision: str = "float32") -> None:
        """An epoch of SSD-KD: one inversion, then passes * stored / batch student steps."""
        made = self.invert()
        self.buffer.add(made.images, made.classes, made.phi, self.random)
        for _ in range(self.size.steps):
            self.step(precision)


class Lesson:
    """Training on labelled images as kd.training.with_data does: CRD with a teacher, cross entropy without."""

    def __init__(self, pair: tuple[str | None, str], batch: int, size: Size, device: torch.device):
        torch.manual_seed(0)
        shape = {"num_classes": CLASSES, "in_channels": 3, "image_size": size.image}
        teacher, self.student = (
            name and build(name, **shape).to(device, memory_format=torch.channels_last) for name in pair
        )
        self.teacher = teacher and teacher.eval().requires_grad_(False)
        random = torch.Generator(device).manual_seed(0)
        labels = torch.arange(10 * batch, device=device) % CLASSES
        images = torch.randint(256, (len(labels), 3, size.image, size.image), device=device).to(torch.uint8)
        mean, std = (torch.tensor(values, device=device) for values in (MEAN, STD))
        self.loader = Loader(Split(images, labels), Augment(mean, std, size.image // 8, True), batch, random)
        terms: dict[str, Any] = {"ce": {"weight": 1.0}}
        context = None
        if teacher:
            terms["crd"] = {"weight": 0.8, "negatives": size.negatives}
            widths = {"student_dim": self.student.feature_dim, "teacher_dim": teacher.feature_dim}
            context = LossContext(**widths, labels=labels, num_classes=CLASSES, generator=random)
        self.objective = Objective(terms, context).to(device)
        defaults = read_yaml(ROOT / "config/config.yaml")
        self.optimizer = sgd([self.student, self.objective], run_of(defaults, 0).training)

    def step(self, precision: str = "float32") -> None:
        train_step(self.student, self.teacher, self.objective, self.loader.next(), self.optimizer, precision)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def milliseconds(call: Callable[[], Any], device: torch.device, rounds: int, warm_up: int = 3) -> float:
    """Return the median of `rounds` calls, after some that are not counted."""
    times = []
    for round_ in range(-warm_up, rounds):
        wait(device)
        start = time.perf_counter()
        call()
        wait(device)
        if round_ >= 0:
            times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def verdict(met: bool) -> str:
    return "met" if met else "MISSED"


def flops(call: Callable[[], Any]) -> int:
    """Return the operations of convolutions and matrix products, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def literal_epoch_of(world: World, folder: Path, device: torch.device) -> Callable[[], None]:
    transforms = import_torchvision().transforms
    moving = [transforms.RandomCrop(world.size.image, padding=world.size.image // 8), transforms.RandomHorizontalFlip()]
    files = Folder(folder, transforms.Compose([*moving, transforms.ToTensor(), transforms.Normalize(MEAN, STD)]))
    loader = DataLoader(files, world.size.batch, shuffle=True, drop_last=True, num_workers=0)
    hooks = hooks_of(world.teacher)
    share = torch.full((CLASSES,), 1 / CLASSES, device=device)
    generator = _literal_generator(world, device)
    inversion = LiteralInversion(generator, world.inversion, share, world.random)
    optimizer = torch.optim.SGD(world.student.parameters(), lr=0.2, momentum=0.9, weight_decay=1e-4, foreach=False)

    def batches() -> Iterator[Tensor]:
        while True:
            yield from (images for images, _ in loader)

    endless = batches()

    def epoch() -> None:
        with torch.device(device):  # where it makes its constants
            images, _, _ = inversion.epoch(world.teacher, hooks, world.student)
        for number, image in enumerate(images.mul(255).byte().cpu()):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{number:05}.png")
        for _ in range(world.size.steps):
            batch = next(endless).to(device)
            with torch.no_grad():
                teacher = world.teacher(batch).logits
            student = world.student(batch).logits
            loss = F.kl_div((student / 20).log_softmax(1), (teacher / 20).softmax(1), reduction="batchmean") * 400
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()

    return epoch


def _literal_generator(world: World, device: torch.device) -> nn.Module:
    """Return the literal generator at the paper's sizes, kd's own at others."""
    plain = world.source.generator.to(memory_format=torch.contiguous_format)
    return LiteralGenerator(plain).to(device) if (world.size.noise, world.size.width) == (256, 64) else plain


@contextmanager
def no_waiting(device: torch.device) -> Iterator[None]:
    """Make a wait of the host for the device an error inside."""
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")


def culprit(error: BaseException) -> str:
    """Return the last place in kd that an exception passed."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f"{ROOT}/kd/" in f.filename]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "torch"


def as_runs_have_it() -> None:
    torch.set_num_threads(1)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
