"""What gpu_steps.py measures: kd's own loops, at the paper's sizes, on random images."""

from __future__ import annotations

import copy
import io
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

if find_spec("kd") is None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.append(str(Path(__file__).resolve().parent))

import torch
from gpu_clock import Clock, milliseconds
from literal_datafree import CLASSES, MEAN, STD, Folder, LiteralGenerator, LiteralInversion, hooks_of, normalisations
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from kd.data.augment import Augment
from kd.data.dataset import Data, Split
from kd.runs.provenance import ROOT
from kd.runtime.checkpoint import Checkpoint
from kd.runtime.journal import Journal
from kd.runtime.progress import Progress
from kd.runtime.torchvision_compat import import_torchvision
from kd.runtime.turns import Turns
from kd.runtime.yaml_files import read_yaml
from kd.settings.merging import merge, run_of
from kd.settings.run import Run
from kd.training import cuda_graph
from kd.training.datafree import _Distillation
from kd.training.device_flags import set_flags
from kd.training.networks import network
from kd.training.stepper import WARM_UP, Graphs, Stepper
from kd.training.with_data import train

STEP = "student's step"
SCALE = 0.1  # of the buffer
NO_GRAPHS = "there are no CUDA graphs on a CPU"


class Size:
    """What is measured: the paper's sizes on a GPU, small ones in miniature."""

    def __init__(self, miniature: bool):
        self.pairs = [("wrn_10_1", "resnet8")] if miniature else [("wrn_40_2", "wrn_16_1"), ("resnet34", "resnet18")]
        self.crd_pair = self.pairs[0] if miniature else ("wrn_40_2", "wrn_16_2")
        self.image, self.images, self.square = (8, 640, 128) if miniature else (32, 50_000, 8192)
        self.batch, self.taught, self.with_data, self.negatives = (
            (16, 32, 8, 16) if miniature else (256, 512, 64, 16384)
        )
        self.generator = {"batch_size": self.batch, "warmup": 0}
        self.generator |= {"noise_dim": 8, "width": 4, "steps": 2} if miniature else {}
        self.passes = 1.0 if miniature else 2.0
        self.groups, self.each = (1, 2) if miniature else (5, 6)


class Lab:
    """One device and what its runs have in common: images, teachers, graphs, and the runs without data themselves."""

    def __init__(self, size: Size, device: torch.device):
        self.size, self.device, self.graphs = size, device, Graphs(device)
        self.rate = math.nan  # TFLOP/s of a bf16 product, once it is known
        self._teachers: dict[str, nn.Module] = {}
        self._made: dict[tuple, _Distillation] = {}
        set_flags()
        random = torch.Generator(device).manual_seed(0)
        shape = (size.images, 3, size.image, size.image)
        images = torch.randint(256, shape, generator=random, device=device, dtype=torch.uint8)
        split = Split(images, torch.arange(size.images, device=device) % CLASSES)
        mean, std = (torch.tensor(values, device=device) for values in (MEAN, STD))
        classes = [str(label) for label in range(CLASSES)]
        augment = Augment(mean, std, size.image // 8, True)
        self.data = Data(split, split, "test", size.images, classes, augment)

    def clock(self, groups: int | None = None, each: int | None = None, warm_up: int = WARM_UP + 2) -> Clock:
        """Return a clock that lets steps be captured before it counts."""
        return Clock(self.device, groups or self.size.groups, each or self.size.each, warm_up)

    def run(self, method: str, pair: tuple[str, str], precision: str, seed: int = 0, **changes: Any) -> Run:
        """Return a run with the defaults of config.yaml, at this size."""
        defaults, size = read_yaml(ROOT / "config/config.yaml"), self.size
        own: dict[str, Any] = {
            "dataset": {"name": "cifar10", "image_size": size.image, "pad": size.image // 8, "flip": True},
            "teacher": {"model": pair[0], "training": {"epochs": 120, "batch_size": size.taught}},
            "student": {"model": pair[1]},
            "precision": precision,
            "training": {"batch_size": size.with_data},
            "inversion": {"generator": {**size.generator, "precision": precision}},
            "distillation": {"passes": size.passes, "training": {"batch_size": size.batch}},
        }
        if method == "ssdkd":
            own["scale"] = SCALE
        if method == "crd":
            own["objective"] = {"crd": {"negatives": size.negatives}}
        return run_of(merge(defaults, defaults["methods"][method], own, changes), seed)

    def stepper(self, capture: str, **named: Any) -> Stepper:
        """Return what runs the steps of a run; networks are compiled only where a part asks for it."""
        made = Stepper(self.device, capture, **named)
        made.compile = "off"
        return made

    def student(self, run: Run) -> nn.Module:
        torch.manual_seed(run.seed)
        return network(run, self.data, self.device)

    def teacher(self, run: Run) -> nn.Module | None:
        """Return the run's teacher, the same for all: random weights, with BatchNorm statistics that fit them."""
        if not run.teachers:
            return None
        model = run.teachers[0].model
        if model not in self._teachers:
            torch.manual_seed(1)
            made = network(run.teachers[0], self.data, self.device)
            for layer in normalisations(made):
                layer.momentum = None  # the plain mean over what is seen
            with torch.no_grad():
                made(self.data.augment.normalise(self.data.train.images[:64]))
            self._teachers[model] = made.eval().requires_grad_(False)
        return self._teachers[model]

    def distillation(self, pair: tuple[str, str], precision: str, seed: int = 0) -> _Distillation:
        """Return SSD-KD's loop, made once: all parts that ask for it go on with it and with what it has captured."""
        key = (pair, precision, seed)
        if key not in self._made:
            self._made[key] = self.new_distillation(pair, precision, seed, "auto", self.graphs)
        return self._made[key]

    def new_distillation(
        self,
        pair: tuple[str, str],
        precision: str,
        seed: int,
        capture: str,
        graphs: Graphs | None = None,
        change: Callable[[nn.Module], nn.Module] = lambda student: student,
        **changes: Any,
    ) -> _Distillation:
        """Return SSD-KD's loop after its first epoch, with a full buffer of random images, and a changed student."""
        run, stepper = self.run("ssdkd", pair, precision, seed, **changes), self.stepper(capture, graphs=graphs)
        student, random = change(self.student(run)), stepper.draws_from(torch.Generator(self.device).manual_seed(seed))
        made = _Distillation(run, self.data, student, self.teacher(run), random, stepper, journal(), _checkpoint())
        images, classes = (
            values[: made.buffer.capacity] for values in (self.data.train.images, self.data.train.labels)
        )
        made.buffer.add(images, classes, torch.ones(len(classes), device=self.device), random)
        made.journal.counts.update(inversions=1, student_steps=made.steps)
        student.train()
        return made

    def with_data(
        self, runs: list[Run], clock: Clock | None, capture: str = "auto", note: Journal | None = None
    ) -> tuple[list[nn.Module], list[Stepper]]:
        """Let the loops of runs with data go on, in turns, until they end or the clock wants no more of their steps.

        Return their students and what ran their steps. `note` is the journal of a single run.
        """
        graphs = Graphs(self.device)

        def serve(asked: dict[int, Any]) -> dict[int, BaseException | None]:
            if clock is not None and not clock.more():
                return {number: _Enough() for number in asked}
            return dict(zip(asked, graphs.run(list(asked.values())), strict=True))

        def go(run: Run, student: nn.Module, stepper: Stepper) -> None:
            if self.device.type == "cuda":
                torch.cuda.set_device(self.device)
            random = stepper.draws_from(torch.Generator(self.device).manual_seed(run.seed))
            train(run, self.data, student, self.teacher(run), random, stepper, note or journal(), _checkpoint())

        turns = Turns(serve)
        students = [self.student(run) for run in runs]
        steppers = [self.stepper(capture, graphs=graphs, serve=turns.meet) for _ in runs]
        for error in turns.work([partial(go, *each) for each in zip(runs, students, steppers, strict=True)]):
            if error is not None and not isinstance(error, _Enough):
                raise error
        return students, steppers


class _Enough(Exception):
    """Ends a loop that has done as many steps as were wanted."""


def journal() -> Journal:
    return Journal(Progress("steps", terminal=io.StringIO()))


def _checkpoint() -> Checkpoint:
    """Return one that never saves."""
    return Checkpoint(Path("nowhere"), "", math.inf, str)


class Watching(Journal):
    """A journal that notes where the host waits for the device in its phases, except when values are read.

    It begins with the second phase of a name: a first step may create what later ones use.
    """

    def __init__(self, device: torch.device, counts: Counter[str] | None = None):
        super().__init__(Progress("steps", terminal=io.StringIO()))
        self.counts.update(counts or {})
        self.seen, self.waits = Counter(), []
        self.on_gpu = device.type == "cuda"

    @contextmanager
    def phase(self, name: str, device: torch.device) -> Iterator[None]:
        self.seen[name] += 1
        watched = self.on_gpu and self.seen[name] > 1 and name != "monitoring"
        with super().phase(name, device), cuda_graph.waits() if watched else nullcontext([]) as found:
            yield
        self.waits += found


def difference(one: nn.Module, other: nn.Module) -> tuple[bool, float]:
    """Return whether weights and statistics of two networks are the same finite bytes, and the largest difference."""
    pairs = list(zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    same = all(torch.equal(*pair) and bool(pair[0].isfinite().all()) for pair in pairs)
    return same, max(float((mine.double() - theirs.double()).abs().max()) for mine, theirs in pairs)


def epoch(distillation: _Distillation) -> None:
    """Go on for an epoch of SSD-KD: one inversion, then passes * stored / batch student steps."""
    number = distillation.journal.counts["inversions"]
    distillation.synthesise(number)
    distillation.learn(number)


def literal_epoch_of(lab: Lab, folder: Path) -> Callable[[int], None]:
    """Return an epoch, of that many student steps, as a first version looks: hooks, PNG files, a value per step."""
    size, device, like = lab.size, lab.device, lab.distillation(lab.size.pairs[0], "float32")
    for number, image in enumerate(like.buffer.images.cpu()):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{number:05}.png")
    transforms = import_torchvision().transforms
    moving = [transforms.RandomCrop(size.image, padding=size.image // 8), transforms.RandomHorizontalFlip()]
    files = Folder(folder, transforms.Compose([*moving, transforms.ToTensor(), transforms.Normalize(MEAN, STD)]))
    loader = DataLoader(files, size.batch, shuffle=True, drop_last=True, num_workers=0)
    plain = partial(nn.Module.to, memory_format=torch.contiguous_format)
    teacher, student = plain(copy.deepcopy(like.teacher)), plain(lab.student(like.run)).train()
    hooks, generator = hooks_of(teacher), plain(copy.deepcopy(like.source.generator))
    settings = SimpleNamespace(**like.run.inversion.settings)
    if (settings.noise_dim, settings.width) == (256, 64):  # the sizes that are written into it
        generator = LiteralGenerator(generator).to(device)
    random = torch.Generator(device).manual_seed(0)
    inversion = LiteralInversion(generator, settings, torch.full((CLASSES,), 1 / CLASSES, device=device), random)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.2, momentum=0.9, weight_decay=1e-4, foreach=False)

    def batches() -> Iterator[Tensor]:
        while True:
            yield from (images for images, _ in loader)

    endless = batches()

    def go_on(steps: int) -> None:
        with torch.device(device):  # where it makes its constants
            images, _, _ = inversion.epoch(teacher, hooks, student)
        for number, image in enumerate(images.mul(255).byte().cpu()):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{number:05}.png")
        for _ in range(steps):
            batch = next(endless).to(device)
            with torch.no_grad():
                answer = teacher(batch).logits
            own = student(batch).logits
            loss = F.kl_div((own / 20).log_softmax(1), (answer / 20).softmax(1), reduction="batchmean") * 400
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()

    return go_on


def plain_and_captured(lab: Lab, stepper: Stepper, name: str, step: Callable[[], None]) -> dict[str, Any]:
    """Return the times of a step as it is and captured, in ms."""
    call = partial(stepper.run, name, step)
    with one_by_one(stepper):
        plain = milliseconds(call, lab.clock(each=2))
    ms = milliseconds(call, lab.clock()) if stepper.capture else plain
    return {"plain_ms": plain, "ms": ms, "captured": captured(stepper, name)}


@contextmanager
def one_by_one(stepper: Stepper) -> Iterator[None]:
    """Let the steps run as they are."""
    may, stepper.capture = stepper.capture, False
    yield
    stepper.capture = may


def captured(stepper: Stepper, name: str, count: int | None = None) -> str:
    """Return whether a step was captured, at last in a graph of `count` steps, or why not."""
    if (found := stepper.captured.get(name)) is None:
        return NO_GRAPHS if not stepper.capture else f"no: {stepper.refused.get(name, 'it ran too seldom')}"
    return "yes" if count in (None, found) else f"no: {found} in its graph, not {count}"
