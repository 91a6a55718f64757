"""No training step waits for its device: no value comes to the host and no size depends on one.

The loops are the real ones. They do their steps inside `journal.phase` and read values outside of it, once per epoch;
the journal of these tests watches its phases.
"""

import io
from contextlib import contextmanager, nullcontext

import pytest
import torch
from conftest import tiny_run
from host_waits import expects_a_wait, on_each_device, watched
from quick_rounds import in_rounds

from kd.data.augment import Augment
from kd.data.dataset import Data, Split
from kd.inversion.replay import ReplayBuffer
from kd.models.classifier import Ensemble
from kd.runtime.checkpoint import Checkpoint
from kd.runtime.journal import Journal, Progress
from kd.training import datafree, networks
from kd.training.step import Sums
from kd.training.stepper import Stepper
from kd.training.with_data import train

CLASSES, SIZE, IMAGES = 10, 8, 48


class Watched(Journal):
    """A journal in whose phases nothing may wait, but for the one that reads values, once per epoch."""

    def __init__(self):
        super().__init__(Progress("run", terminal=io.StringIO()))
        self.phases = []

    @contextmanager
    def phase(self, name, device):
        self.phases.append(name)
        with super().phase(name, device), nullcontext() if name == "monitoring" else watched(device):
            yield


def data_on(device, channels):
    random = torch.Generator().manual_seed(1)
    images = torch.randint(256, (IMAGES, channels, SIZE, SIZE), generator=random, dtype=torch.uint8)
    split = Split(images.to(device), (torch.arange(IMAGES) % CLASSES).to(device))
    mean, std = (torch.full((channels,), value, device=device) for value in (0.4, 0.3))
    augment = Augment(mean, std, 1, True)
    return Data(split, split, "test", IMAGES, [str(number) for number in range(CLASSES)], augment)


def network(run, data, device):
    torch.manual_seed(2)
    return networks.network(run, data, device)


def go(run, device, tmp_path):
    """The run's whole loop with a journal that watches."""
    data = data_on(device, 1 if run.view == "rgb" else 3)
    student = network(run, data, device)
    teachers = [network(teacher, data, device).eval().requires_grad_(False) for teacher in run.teachers or ()]
    teacher = Ensemble(teachers) if len(teachers) > 1 else (teachers or [None])[0]
    journal, random = Watched(), torch.Generator(device).manual_seed(0)
    loop = datafree.distil if run.kind == "datafree" else train
    stepper = Stepper(device, "off")  # as they are: a replayed step cannot wait
    loop(run, data, student, teacher, random, stepper, journal, Checkpoint(tmp_path, "same", 1e9, str))
    return journal


WITH_DATA = {"training__epochs": 1, "training__batch_size": 16}


@on_each_device
@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("scratch", {}),
        ("kd", {}),
        ("crd", {}),
        ("crd", {"objective__crd__positive": "relax"}),
        ("crd", {"objective__crd__negatives_from": "other_indices", "objective__crd__estimator": "infonce"}),
        ("crd-kd", {"precision": "bf16", "training__nesterov": True, "scale": 0.7}),
        ("crd", {"objective__crd__memory": "queue"}),
        *((name, {}) for name in ("fitnet", "at", "sp", "cc", "vid", "rkd", "pkt", "nst", "dkd", "dist", "reviewkd")),
        *((name, {f"objective__{name}__first_epochs": 1}) for name in ("ab", "ft", "fsp")),
        ("simkd", {}),
        ("kd", {"objective__kd__warmup": 3, "training__epochs": 2}),
        *((name, {"teacher__model": ["resnet8", "wrn_10_1"]}) for name in ("kd", "crd")),
        ("crd", {"student__view": "chrominance", "teacher__view": "luminance"}),
    ],  # all but kdsvd, whose decomposition makes a GPU wait
)
def test_no_step_with_real_data_waits(method, changes, device, tmp_path):
    journal = go(tiny_run(method, **{**WITH_DATA, **changes}), device, tmp_path)
    assert set(journal.phases) == {"training"}
    assert journal.counts["student_steps"] >= 2


WITHOUT_DATA = {"distillation__training__epochs": 2, "replay__full_size": 40}  # in the last epoch the buffer is full
ROUNDS = {"distillation__steps": 6, "distillation__rounds": 2}


@on_each_device
@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("ssdkd", {}),
        ("fast", {}),
        ("ssdkd", {"inversion__generator__meta": "reptile", "replay__refresh": "all", "replay__replacement": "lowest"}),
        ("ssdkd", {"replay__initial_priority": "phi", "replay__replacement": "random", "precision": "bf16"}),
        ("ssdkd", {"inversion__generator__precision": "bf16"}),
        ("ssdkd", {"modulation__gradient": True, "modulation__normalise": True, "modulation__class_of": "target"}),
        ("ssdkd", {"replay__priority_feedback": False, "replay__normalise_weights": False, "scale": 0.25}),
        ("fast", {"replay__with_replacement": False, "replay__admitted": 0.5, "distillation__steps": 3}),
        ("ssdkd", {"inversion__generator__adv_with_lr": True, "inversion__generator__adv_until": 0.5}),
    ],
)
def test_no_step_without_data_waits(method, changes, device, tmp_path):
    journal = go(tiny_run(method, **{**WITHOUT_DATA, **changes}), device, tmp_path)
    inversion, distillation = ["inversion", "monitoring"], ["distillation", "monitoring"]
    assert journal.phases == inversion + 2 * (inversion + distillation)
    assert journal.counts["student_steps"] >= 2
    assert journal.counts["generator_steps"] == 6


@on_each_device
@pytest.mark.parametrize("method", ["ssdkd", "vanilla", "zskt", "dafl", "dfq"])
def test_no_round_waits(method, device, tmp_path):
    changes = {} if method == "ssdkd" else in_rounds(method)
    journal = go(tiny_run(method, **{**changes, "distillation__training__epochs": 2, **ROUNDS}), device, tmp_path)
    warm_up = [*2 * ["inversion"], "monitoring"] if method == "ssdkd" else []
    epoch = ["inversion", "distillation", "inversion", "monitoring", "distillation", "monitoring"]
    assert journal.phases == warm_up + 2 * epoch, "values come to the host once per epoch"


@on_each_device
@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("adaptive-deepinversion", {"inversion__deepinversion__warmup": 1, "inversion__deepinversion__flip": True}),
        ("cmi", {}),
        ("nayer", {}),
    ],
)
def test_no_step_down_a_loss_waits(method, changes, device, tmp_path):
    journal = go(tiny_run(method, **{**WITHOUT_DATA, **changes}), device, tmp_path)
    assert journal.phases[0] == "inversion"
    assert journal.counts["generator_steps"] == 9


@on_each_device
def test_replay_buffer_never_waits(device):
    settings = tiny_run("ssdkd").replay
    random = torch.Generator(device).manual_seed(0)
    buffer = ReplayBuffer(20, (1, SIZE, SIZE), CLASSES, settings, device)
    images = torch.zeros(12, 1, SIZE, SIZE, dtype=torch.uint8, device=device)
    classes, phi = torch.arange(12, device=device) % CLASSES, torch.rand(12, device=device)
    with watched(device):
        for _ in range(3):  # empty, partly full, full
            buffer.add(images, classes, phi, random)
            drawn = buffer.sample(16, random)
            buffer.update_priority(drawn, drawn.weight)
            buffer.update_priority(buffer.everything(), buffer.priority[: buffer.size])
            buffer.class_share(classes)
    assert buffer.size == 20


@on_each_device
def test_a_planted_wait_in_a_loop_is_found(device, tmp_path, monkeypatch):
    add = Sums.add

    def add_and_look(self, *values):
        values[0].item()
        add(self, *values)

    monkeypatch.setattr(Sums, "add", add_and_look)
    for method, changes in (("kd", WITH_DATA), ("ssdkd", WITHOUT_DATA)):
        with expects_a_wait(device, "add_and_look"):
            go(tiny_run(method, **changes), device, tmp_path)
