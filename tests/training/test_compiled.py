"""compute.compile: what is compiled computes the same, leaves no trace, and fails in one line."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import COMPUTE, ROOT, execute, tiny_run
from tape import Again, play_on_cpu
from torch import nn
from torch.utils._pytree import tree_leaves

from kd.models.build import build
from kd.runs.together import Company
from kd.settings.run import Run
from kd.settings.shapes import Compute
from kd.training import compiled
from kd.training.step import outputs

ON = Compute.by_hand(device="cpu", checkpoint_seconds=3600.0, compile="on")
LONG = Compute.by_hand(device="cpu", checkpoint_seconds=3600.0)


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let networks be compiled on the CPU, up to where code would be made; forget what others compiled."""
    import torch._dynamo

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    monkeypatch.setattr(compiled, "possible", lambda device: True)
    monkeypatch.setattr(compiled, "HOW", {"dynamic": False, "backend": "aot_eager"})
    monkeypatch.setattr(compiled, "CACHES", {})


def breaks() -> dict[str, int]:
    return dict(torch._dynamo.utils.counters["graph_break"])


def graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def made(run: Run, store: Path, folder: Path, compute: Compute) -> dict[str, Any]:
    for teacher in run.teachers or ():
        if not (store / teacher.path / "weights.pt").exists():
            execute(teacher, store, store / teacher.path)
    execute(run, store, folder, compute, log=folder.with_suffix(".log"))
    return json.loads((folder / "run.json").read_text())


CASES = [
    ("kd", {}, 2),
    ("kd", {"teacher__model": ["resnet8", "resnet8"], "training__epochs": 1}, 2),
    ("simkd", {}, 2),
    ("ab", {"objective__ab__first_epochs": 1}, 2),
    ("ssdkd", {}, 2),
]


@pytest.mark.parametrize(("method", "changes", "count"), CASES)
def test_compiled_networks_give_the_same_numbers(method, changes, count, store, tmp_path, on_cpu):
    run = tiny_run(method, **changes)
    plain = made(run, store, tmp_path / "plain", COMPUTE)
    assert "compiling" not in plain["seconds"]
    assert plain["computed"]["compiled"] == []
    record = made(run, store, tmp_path / "compiled", ON)
    assert record["computed"]["compiled"] == ["wrn_10_1", *(each.model for each in run.teachers or ())]
    assert record["seconds"]["compiling"] > 0
    assert record["counts"] == plain["counts"]
    assert (graphs(), breaks()) == (count, {})  # one graph per kind of network, compiled once
    one, other = (pd.read_csv(tmp_path / name / "history.csv") for name in ("plain", "compiled"))
    assert list(one.columns) == list(other.columns)
    assert np.allclose(one["loss"].dropna(), other["loss"].dropna(), rtol=0.01)  # rounding, which training amplifies
    one, other = (torch.load(tmp_path / name / "weights.pt", weights_only=True) for name in ("plain", "compiled"))
    assert one.keys() == other.keys()


@pytest.mark.parametrize(
    ("precision", "asked"), [("float32", {}), ("bf16", {"maps": True}), ("float32", {"maps": True, "signed": True})]
)
def test_a_step_gives_the_same_gradients_and_statistics(precision, asked, on_cpu):
    torch.manual_seed(0)
    shape = {"num_classes": 10, "in_channels": 3, "image_size": 8}
    images, student, teacher = torch.randn(8, 3, 8, 8), build("wrn_10_1", **shape), build("resnet8", **shape).eval()
    own = copy.deepcopy(student)
    for network, other in ((student, teacher), (compiled._compiled(own), compiled._compiled(teacher))):
        seen, answer = outputs(network, other, images, asked, precision)
        parts = [part for part in tree_leaves([tuple(seen), tuple(answer)]) if part.numel()]
        sum(part.square().mean() for part in parts if part.requires_grad).backward()
    for (name, value), parameter in zip(student.named_parameters(), own.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, value.grad, msg=name)
    for (name, value), buffer in zip(student.named_buffers(), own.buffers(), strict=True):
        torch.testing.assert_close(buffer, value, msg=name)


def test_runs_made_together_compile_once(store, tmp_path, on_cpu, monkeypatch):
    steppers = play_on_cpu(monkeypatch, Again)
    company = Company(ON, print)
    runs = [tiny_run("kd", seed) for seed in (0, 1)]
    company.work(
        [
            lambda run=run: execute(run, store, tmp_path / str(run.seed), ON, stepping=company.stepping, wait=False)
            for run in runs
        ]
    )
    assert [stepper.computed["compiled"] for stepper in steppers] == [["wrn_10_1", "resnet8"]] * 2
    assert [stepper.computed["together"] for stepper in steppers] == [2, 2]
    assert graphs() == 2


def test_the_trial_leaves_no_trace(on_cpu):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(144, 2))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    random = torch.get_rng_state()
    with compiled._untouched(network):
        network(torch.randn(5, 3, 8, 8)).sum().backward()
        assert network[1].num_batches_tracked == 1
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(torch.get_rng_state(), random)


def test_hooks_of_a_view_stay_those_of_their_network(on_cpu):
    images = torch.randn(3, 3, 8, 8)
    for factor in (2.0, 3.0):  # the same network otherwise
        network = build("resnet8", num_classes=2, in_channels=3, image_size=8).eval()
        network.register_forward_pre_hook(lambda module, inputs, factor=factor: (inputs[0] * factor, *inputs[1:]))
        with torch.no_grad():
            torch.testing.assert_close(compiled._compiled(network)(images).logits, network(images).logits)


def test_maps_of_a_wrapped_network_are_those_of_the_call(on_cpu):
    network = build("torchvision:mobilenet_v3_small", num_classes=2, in_channels=3, image_size=32).eval()
    again = compiled._compiled(network)
    for _ in range(2):  # it hangs hooks into itself at each call, which is one graph break
        images = torch.randn(3, 3, 32, 32)
        with torch.no_grad():
            one, other = network(images, maps=True), again(images, maps=True)
        assert len(one.maps) > 1
        torch.testing.assert_close(tuple(other), tuple(one))
    assert len(breaks()) == 1


def test_what_cannot_be_compiled_runs_as_it_is(store, tmp_path, on_cpu, monkeypatch):
    def broken(graph: Any, inputs: Any) -> Any:
        raise RuntimeError("no compiler here\nand a long story")

    run = tiny_run("kd")
    monkeypatch.setattr(compiled, "HOW", {"backend": broken})
    record = made(run, store, tmp_path / "broken", ON)
    said = [line for line in (tmp_path / "broken.log").read_text().splitlines() if "compile" in line]
    assert len(said) == 1
    assert "no compiler here" in said[0]
    assert record["computed"]["compiled"] == []
    made(run, store, tmp_path / "plain", COMPUTE)
    for file in ("metrics.json", "history.csv"):
        assert (tmp_path / "broken" / file).read_bytes() == (tmp_path / "plain" / file).read_bytes()


def test_auto_compiles_runs_that_are_long_enough(store, tmp_path, on_cpu, monkeypatch):
    assert not compiled.earns(torch.Size((256, 3, 32, 32)), 41_000)
    assert compiled.earns(torch.Size((256, 3, 32, 32)), 41_250)
    assert compiled.earns(torch.Size((64, 3, 64, 64)), 41_250)
    assert not compiled.earns(torch.Size((64, 3, 32, 32)), 41_250)
    for method, batch in (("kd", 48), ("ssdkd", 16)):
        asked = []
        monkeypatch.setattr(compiled, "earns", lambda images, steps, asked=asked: asked.append((images, steps)))
        record = made(tiny_run(method, training__batch_size=48), store, tmp_path / method, LONG)
        assert record["computed"]["compiled"] == []
        assert asked == [(torch.Size((batch, 1, 8, 8)), record["counts"]["student_steps"])], "all steps of the run"


def test_a_cpu_compiles_nothing(store, tmp_path):
    record = made(tiny_run("kd"), store, tmp_path / "run", ON)
    assert (tmp_path / "run.log").read_text().count("compute.compile: on, but nothing is compiled on a CPU") == 1
    assert record["computed"]["compiled"] == []
    assert "compiling" not in record["seconds"]


CODE = """
import os, sys
from pathlib import Path
import torch
from kd.training import compiled
import kd.training.with_data, kd.training.datafree
assert "torch._dynamo" not in sys.modules
compiled.possible = lambda device: True
def pretend(network, **how):
    print(*(os.environ[name] for name in compiled.CACHES), "torch._inductor" in sys.modules)
    raise RuntimeError
torch.compile = pretend
from kd.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def test_the_cache_lies_in_the_results_unless_the_user_has_one(store, tmp_path):
    settings = tmp_path / "run.yaml"
    teacher = tiny_run("kd").teacher.as_dict()
    settings.write_text(json.dumps(teacher | {"training": teacher["training"] | {"epochs": 1}}))
    given = ["run", "--settings", settings, "--device", "cpu", "--compile", "on", "--results", "here"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": "/of/the/user"}
    environment.pop("TORCHINDUCTOR_CACHE_DIR", None)
    command = [sys.executable, "-c", CODE, *map(str, given)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert f"{tmp_path / 'here/cache/inductor'} /of/the/user False" in done.stdout
