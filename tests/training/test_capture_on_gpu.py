"""Captured steps on a GPU: the numbers of steps that run as they are, also after failures, resumed, and together.

Every test runs on the CPU too, with a graph that is played there (tests/tape.py), if only for some of the methods.
`make test-gpu` runs these with the other tests of a GPU.
"""

from __future__ import annotations

import gc
import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from device_runs import Numbers, assert_same, capturing, made, made_together, short
from host_waits import GPU, on_each_device
from test_capture import CASES, IN_PASSES, LONGER

from kd.runtime.checkpoint import Checkpoint, Stopped
from kd.settings.run import Run
from kd.training import datafree, with_data
from kd.training.step import Sums

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
ON_CPU = ("scratch", "crd", "ssdkd")  # the others: tests/training/test_capture.py
VIEWS = ("kd", {"student__view": "chrominance", "teacher__view": "luminance"}, {"step"})
FIRST_ON_CPU = [VIEWS, *(next(case for case in CASES if case[0] == name) for name in ON_CPU)]
EACH = [
    *(pytest.param(*case, CPU, id=f"{case[0]}-cpu") for case in FIRST_ON_CPU),
    *(
        pytest.param(*case, torch.device("cuda"), marks=GPU, id=f"{case[0]}-{n}-cuda")
        for n, case in enumerate([*CASES, VIEWS])
    ),
]


@pytest.fixture(autouse=True)
def nothing_to_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images and teachers are drawn: no run of theirs leads anywhere."""
    for loop in (with_data, datafree):
        monkeypatch.setattr(loop, "require_learning", lambda *_: None)
    monkeypatch.setattr(datafree, "require_varied_images", lambda *_: None)


def as_it_is(run: Run, folder: Path, device: torch.device) -> Numbers:
    return made(run, folder, device, "off")


@pytest.mark.parametrize(("method", "changes", "steps", "device"), EACH)
def test_captured_steps_give_the_numbers_of_steps_as_they_are(method, changes, steps, device, tmp_path, monkeypatch):
    """Learning rates, weights, beta and the buffer's size change between replays of many of these."""
    run = short(method, **changes)
    expected = as_it_is(run, tmp_path / "expected", device)
    capturing(device, monkeypatch)
    found = made(run, tmp_path / "captured", device)
    how = {"captured": sorted(steps), "not_captured": {}, "together": 1, "compiled": [], "processes": 1}
    assert found.computed == how
    assert_same(found, expected, lambda: as_it_is(run, tmp_path / "once-more", device))


@GPU
def test_kdsvd_is_refused_once_and_its_numbers_are_those_of_steps_as_they_are(tmp_path, capsys):
    device, run = torch.device("cuda"), short("kdsvd")
    expected = as_it_is(run, tmp_path / "expected", device)
    capsys.readouterr()
    found = made(run, tmp_path / "captured", device)
    assert capsys.readouterr().err.count("is not captured: it makes the host wait for the GPU") == 1
    assert found.computed["captured"] == []
    assert list(found.computed["not_captured"]) == ["step"]
    assert "kdsvd.py" in found.computed["not_captured"]["step"]
    assert_same(found, expected, lambda: as_it_is(run, tmp_path / "once-more", device))


@GPU
def test_a_step_that_makes_the_host_wait_is_named_with_its_line(tmp_path, monkeypatch):
    add = Sums.add
    monkeypatch.setattr(Sums, "add", lambda self, *values: (values[0].item(), add(self, *values)))
    computed = made(short("kd"), tmp_path, torch.device("cuda")).computed
    assert "test_capture_on_gpu.py:" in computed["not_captured"]["step"]


@on_each_device
@pytest.mark.parametrize(("method", "step"), [("kd", "step"), ("ssdkd", "student's step")])
def test_a_capture_that_fails_changes_no_number(method, step, device, tmp_path, monkeypatch):
    """The other steps of an SSD-KD run have been captured by then, with the same generator: they must be again."""
    run = short(method, **(LONGER if method == "ssdkd" else {}))
    expected = as_it_is(run, tmp_path / "expected", device)
    capturing(device, monkeypatch)
    add = Sums.add

    def add_and_wait(self: Sums, *values: Any) -> None:
        add(self, *values)
        if device.type == "cuda":
            torch.cuda.synchronize()  # nothing warns of this one: only a capture refuses it
        else:
            values[0].item()

    monkeypatch.setattr(Sums, "add", add_and_wait)
    found = made(run, tmp_path / "captured", device)
    assert list(found.computed["not_captured"]) == [step]
    assert "captur" in found.computed["not_captured"][step], "the reason, not that the capture could not end"
    assert len(found.computed["captured"]) == (2 if method == "ssdkd" else 0)
    assert_same(found, expected, lambda: as_it_is(run, tmp_path / "once-more", device))
    if device.type == "cuda":
        assert torch.cuda.current_stream() == torch.cuda.default_stream()


@on_each_device
@pytest.mark.parametrize(
    ("method", "changes", "at"),
    [("kd", {}, 9), ("crd", {}, 8), ("ssdkd", LONGER, 30), ("fast", {**LONGER, **IN_PASSES}, 31)],
)
def test_one_that_goes_on_from_a_checkpoint_ends_as_an_undisturbed_one(
    method, changes, at, device, tmp_path, monkeypatch
):
    run = short(method, **changes)
    capturing(device, monkeypatch)
    expected = made(run, tmp_path / "undisturbed", device)
    save, boundaries = Checkpoint.stop_or_save, []

    def stop(self: Checkpoint, parts: dict[str, Any]) -> None:
        boundaries.append(True)
        if len(boundaries) == at:
            self.stopping = signal.SIGTERM
        save(self, parts)

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoint, "stop_or_save", stop)
        with pytest.raises(Stopped):
            made(run, tmp_path / "stopped", device)
    found = made(run, tmp_path / "stopped", device)
    assert found.computed["captured"]
    assert_same(found, expected, lambda: made(run, tmp_path / "once-more", device))


DROPPING = """
from torch import nn
def net(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    maps = [nn.Conv2d(in_channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*maps, nn.Flatten(), nn.Dropout(0.5), nn.Linear(8, num_classes))
"""


@pytest.fixture
def dropping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A user's network that draws from torch's own generators."""
    (tmp_path / "dropping_net.py").write_text(DROPPING, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "dropping_net", raising=False)
    return "dropping_net:net"


@on_each_device
@pytest.mark.parametrize("method", ["kd", "ssdkd", "mixed", "dropout"])
def test_three_together_end_as_each_alone(method, device, tmp_path, monkeypatch, dropping):
    if method == "mixed":
        runs = [short(name) for name in ("kd", "at", "crd")]
    elif method == "dropout":
        runs = [short("kd"), *(short("kd", seed, student__model=dropping) for seed in (0, 1))]
    else:
        runs = [short(method, seed, **(LONGER if method == "ssdkd" else {})) for seed in range(3)]
    alone = [as_it_is(run, tmp_path / f"alone-{number}", device) for number, run in enumerate(runs)]
    capturing(device, monkeypatch)
    found = made_together(runs, tmp_path, device)
    for run, each, expected in zip(runs, found, alone, strict=True):
        assert each.computed["not_captured"] == {}
        assert each.computed["together"] == 3
        assert_same(each, expected, lambda run=run: as_it_is(run, tmp_path / f"once-more-{run.digest}", device))


@GPU
def test_a_run_that_has_ended_leaves_no_memory_behind(tmp_path):
    """But for the libraries' own, which the first run makes."""
    device, runs = torch.device("cuda"), [short("kd"), short("ssdkd", **LONGER)]
    left: list[int] = []
    for number in range(3):
        for run in runs:
            made(run, tmp_path / f"{number}-{run.digest}", device)
        made_together(runs, tmp_path / str(number), device)
        gc.collect()
        torch.cuda.synchronize()
        left.append(torch.cuda.memory_allocated())
    assert left[2] - left[0] < 1e6, json.dumps(left)
