"""No training step waits for its device: no value comes to the host and no size depends on one.

On the CPU nothing waits, but the operators that would make a GPU wait run there too and carry the same names: torch's
profiler finds them, and where they come from. What the CPU cannot show is a copy from one device to another, so the
same loops run on a GPU, where there is one, with torch.cuda.set_sync_debug_mode("error"): there a wait is an exception.

The loops are the real ones. They do their steps inside `journal.phase` and read values outside of it, once per epoch;
the journal of these tests watches its phases.
"""

import copy
import io
import json
import re
import sys
import tempfile
from collections import Counter
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, tiny_run
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile, record_function

from kd.data.augment import Augment
from kd.data.dataset import Data, Split
from kd.inversion.replay import ReplayBuffer
from kd.models.classifier import Ensemble
from kd.runs import run as steps
from kd.runtime.checkpoint import Checkpoint
from kd.runtime.journal import Journal, Progress
from kd.training import datafree
from kd.training.step import Sums
from kd.training.with_data import train

CLASSES, SIZE, IMAGES = 10, 8, 48

# A value comes to the host, or a size depends on one. Python's own float(), bool(), if and [mask] end in these as well.
WAITING = re.compile(
    r"aten::(item|_local_scalar_dense|is_nonzero|equal|allclose|_to_cpu"
    r"|nonzero|nonzero_numpy|masked_select|bincount|histc|_?unique.*)"
)
# What reads a CPU tensor without any operator, or copies numbers of the host.
HOST_CALLS = {"tolist", "numpy", "__array__", "cpu", "tensor", "as_tensor", "from_numpy", "copy_of_numbers"}
TORCH = str(Path(torch.__file__).parent)


class Labels(TorchFunctionMode):
    """Names every call into torch in the profile: "call item at kd/training/with_data.py:123, take"."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        frame = sys._getframe(1)
        while frame.f_code.co_filename.startswith(TORCH):
            frame = frame.f_back
        file = frame.f_code.co_filename.removeprefix(f"{ROOT}/")
        name = "copy_of_numbers" if copies_numbers(func, args) else func.__name__
        with record_function(f"call {name} at {file}:{frame.f_lineno}, {frame.f_code.co_name}"):
            return func(*args, **(kwargs or {}))


def copies_numbers(func, args):
    """x[index] = 1.0 and x[[0, 2]]: a GPU gets the numbers by a copy that it waits for; x[1:] = 1.0 needs none.

    torch did so at least until June 2026 (https://github.com/pytorch/pytorch/pull/186486); `index_fill_` never does.
    """
    if func not in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
        return False
    index = args[1] if isinstance(args[1], tuple) else (args[1],)
    if any(isinstance(part, list | np.ndarray) for part in index):
        return True
    sliced = all(part is None or part is Ellipsis or isinstance(part, slice) for part in index)
    return func is torch.Tensor.__setitem__ and not sliced and not isinstance(args[2], torch.Tensor)


@contextmanager
def noted():
    """The list that is given fills, on the way out, with what would have made a GPU wait, and from where."""
    found = []
    with profile(activities=[ProfilerActivity.CPU]) as profiled, Labels():
        yield found
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        profiled.export_chrome_trace(str(trace))  # `profiled.events()` takes several times as long
        events = [event for event in json.loads(trace.read_text())["traceEvents"] if event["ph"] == "X"]
    events.sort(key=lambda event: (event["ts"], -event["dur"]))  # what is around an event comes before it
    for position, event in enumerate(events):
        if not is_waiting(event):
            continue
        above = list(ancestors(event, events[:position]))
        if any(map(is_waiting, above)) or any(outer["name"] == "aten::_fused_adam_" for outer in above):
            continue  # on the CPU fused Adam reads its own step counters, which on a GPU stay there
        call = next((outer["name"] for outer in [event, *above] if outer["name"].startswith("call ")), "backward")
        found.append(call if call == event["name"] else f"{event['name']} in {call}")


def ancestors(event, earlier):
    """What was going on around it in its thread, innermost first."""
    end = event["ts"] + event["dur"] - 5e-4  # in microseconds, noted to the nanosecond
    return (outer for outer in reversed(earlier) if outer["ts"] + outer["dur"] > end and outer["tid"] == event["tid"])


def is_waiting(event):
    name = event["name"]
    return bool(WAITING.fullmatch(name)) or (name.startswith("call ") and name.split()[1] in HOST_CALLS)


@contextmanager
def watched(device):
    """Fails when something inside waits; on a GPU the waiting line itself raises RuntimeError."""
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return
    with noted() as found:
        yield
    if found:
        times = Counter(found)
        raise AssertionError("\n".join(["a GPU would wait:", *(f"{times[wait]} x {wait}" for wait in times)]))


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


cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=cuda)])
def device(request):
    return torch.device(request.param)


# ---------------------------------------------------------------------------------------------------- the real loops


def data_on(device, channels):
    random = torch.Generator().manual_seed(1)
    images = torch.randint(256, (IMAGES, channels, SIZE, SIZE), generator=random, dtype=torch.uint8)
    split = Split(images.to(device), (torch.arange(IMAGES) % CLASSES).to(device))
    mean, std = (torch.full((channels,), value, device=device) for value in (0.4, 0.3))
    augment = Augment(mean, std, 1, True)
    return Data(split, split, "test", IMAGES, [str(number) for number in range(CLASSES)], augment)


def network(run, data, device):
    torch.manual_seed(2)
    return steps.network(run, data, device)


def go(run, device, tmp_path):
    """The run's whole loop with a journal that watches."""
    data = data_on(device, 1 if run.view == "rgb" else 3)
    student = network(run, data, device)
    teachers = [network(teacher, data, device).eval().requires_grad_(False) for teacher in run.teachers or ()]
    teacher = Ensemble(teachers) if len(teachers) > 1 else (teachers or [None])[0]
    journal, random = Watched(), torch.Generator(device).manual_seed(0)
    loop = datafree.distil if run.kind == "datafree" else train
    loop(run, data, student, teacher, random, journal, Checkpoint(tmp_path, "same", 1e9, str))
    return journal


WITH_DATA = {"training__epochs": 1, "training__batch_size": 16}


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


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("ssdkd", {}),
        ("fast", {}),
        ("ssdkd", {"inversion__generator__meta": "reptile", "replay__refresh": "all", "replay__replacement": "lowest"}),
        ("ssdkd", {"replay__initial_priority": "phi", "replay__replacement": "random", "precision": "bf16"}),
        ("ssdkd", {"modulation__gradient": True, "modulation__normalise": True, "modulation__class_of": "target"}),
        ("ssdkd", {"replay__priority_feedback": False, "replay__normalise_weights": False, "scale": 0.25}),
    ],
)
def test_no_step_without_data_waits(method, changes, device, tmp_path):
    journal = go(tiny_run(method, **{**WITHOUT_DATA, **changes}), device, tmp_path)
    inversion, distillation = ["inversion", "monitoring"], ["distillation", "monitoring"]
    assert journal.phases == inversion + 2 * (inversion + distillation)
    assert journal.counts["student_steps"] >= 2
    assert journal.counts["generator_steps"] == 6


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


# ------------------------------------------------------------------------------------------------ the checker itself


def index_by_mask(x):
    return x[x > 0]


def write_by_mask(x):
    x[x > 0] = x[x > 0]


def one_argument_where(x):
    return torch.where(x > 0)


def compare_on_the_host(x):
    return 1 if x.sum() > 0 else 0


def slice_by_a_tensor(x):
    return x[: (x > 0).sum()]


def index_by_a_number_on_the_device(x):
    return x[x.argmax()]


def repeat_by_a_tensor(x):
    return torch.repeat_interleave(x, torch.ones_like(x, dtype=torch.int64))


def index_by_a_list(x):
    return x[[0, 2]]


def write_a_number_by_index(x):
    x[torch.arange(2, device=x.device)] = 1.0


PLANTED = [
    lambda x: x.sum().item(),
    lambda x: float(x.sum()),
    lambda x: f"{x.sum():.2f}",
    lambda x: x.tolist(),
    lambda x: x.cpu(),
    lambda x: np.asarray(x.cpu()),
    lambda x: range(x.argmax()),
    lambda x: x.nonzero(),
    lambda x: x.unique(),
    lambda x: x.masked_select(x > 0),
    lambda x: torch.equal(x, x + 1),
    lambda x: torch.bincount(x.long().abs()),
    lambda x: torch.tensor([1.0, 2.0], device=x.device),
    compare_on_the_host,
    index_by_mask,
    write_by_mask,
    one_argument_where,
    slice_by_a_tensor,
    index_by_a_number_on_the_device,
    repeat_by_a_tensor,
    index_by_a_list,
]


def numbers(device):
    return torch.tensor([1.0, -2.0, 3.0, -4.0], device=device)


def expects_a_wait(device, place=""):
    if device.type == "cuda":
        return pytest.raises(RuntimeError, match="synchronizing")
    return pytest.raises(AssertionError, match=rf"a GPU would wait:\n\d+ x .* at .*{place}")


@pytest.mark.parametrize("plant", PLANTED)
def test_a_planted_wait_is_found(plant, device):
    x = numbers(device)
    with expects_a_wait(device), watched(device):
        plant(x)


def test_a_number_written_by_index_is_found():
    """On a GPU too, but whether torch waits there depends on its version."""
    x = numbers("cpu")
    with expects_a_wait(x.device), watched(x.device):
        write_a_number_by_index(x)


def test_a_planted_wait_in_a_loop_is_found(device, tmp_path, monkeypatch):
    add = Sums.add

    def add_and_look(self, *values):
        values[0].item()
        add(self, *values)

    monkeypatch.setattr(Sums, "add", add_and_look)
    for method, changes in (("kd", WITH_DATA), ("ssdkd", WITHOUT_DATA)):
        with expects_a_wait(device, "add_and_look"):
            go(tiny_run(method, **changes), device, tmp_path)


def test_a_wait_is_shown_with_its_place():
    with noted() as found:
        sums = Sums(["loss"], torch.device("cpu"))
        sums.add(torch.ones(()))
        sums.take()
        if numbers("cpu").sum() > 0:
            pass
    here = r"tests/test_no_host_sync\.py:\d+"
    for wait, expected in zip(
        found,
        [
            r"call tolist at kd/training/step\.py:\d+, take",
            rf"call tensor at {here}, numbers",
            rf"aten::is_nonzero in call __bool__ at {here}, test_a_wait_is_shown_with_its_place",
        ],
        strict=True,
    ):
        assert re.fullmatch(expected, wait)


def test_arithmetic_choice_and_indices_are_no_waits(device):
    x = numbers(device).requires_grad_()
    y = x.detach().clone()
    index = torch.arange(2, device=device)
    with watched(device):
        torch.where(x > 0, x, 0.0).sum().backward()
        y[index] = x.detach()[index]
        y[1:] = 0.0
        y.index_fill_(0, index, 1.0)
        y.scatter_reduce_(0, index, y[index], "amax")
        y.masked_fill_(y > 0, 1.0)
        y.sort(stable=True).indices[:2]
        (y / y.max()).to(torch.float64).cumsum(0)
        torch.full((), torch.inf, device=device)
        copy.deepcopy(y)


def test_only_adams_own_step_counters_are_read_in_its_step():
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([parameter], 0.1, (0.5, 0.999), fused=True)
    for hooked in (False, True):
        hook = optimizer.register_step_post_hook(lambda *_: parameter.sum().item()) if hooked else None
        with expects_a_wait(torch.device("cpu")) if hook else nullcontext(), watched(torch.device("cpu")):
            parameter.sum().backward()
            optimizer.step()
