"""benchmarks/gpu_steps.py in miniature, on the CPU."""

from __future__ import annotations

import importlib
import re
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT

from kd.runtime.files import read_json
from kd.training.stepper import Stepper


@pytest.fixture
def steps(monkeypatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("gpu_steps")


def test_steps_are_measured_once_each_and_go_on(steps, tmp_path: Path) -> None:
    steps.measure(tmp_path, time.monotonic() - 1, True, "cpu")
    assert not (tmp_path / "steps.json").exists(), "no time, no part"
    steps.measure(tmp_path, time.monotonic() + 300, True, "cpu")
    text = steps.markdown(read_json(tmp_path / "steps.json"))
    for part in steps.PARTS:
        assert f"**{part.__name__}** (cpu" in text
    assert "failed" not in text
    assert not re.search("MISSED|met", re.sub(r"\*\*.*", "", text)), "bars are for GPUs"
    written = (tmp_path / "steps.json").stat().st_mtime_ns
    steps.measure(tmp_path, time.monotonic() + 300, True, "cpu")
    assert (tmp_path / "steps.json").stat().st_mtime_ns == written


PARTS = ("steps", "inversion", "together", "epochs", "crd", "teacher_training", "kernels_by_kind", "together_with_data")


@pytest.fixture
def lab(steps, monkeypatch) -> Any:
    """A lab whose steps are captured as a GPU would, except where capture is off."""
    monkeypatch.syspath_prepend(str(ROOT / "tests/training"))
    importlib.import_module("tape").play_on_cpu(monkeypatch)
    begin = Stepper.__init__

    def as_asked(self: Stepper, device: torch.device, capture: str = "auto", *given: Any, **named: Any) -> None:
        begin(self, device, capture, *given, **named)
        self.capture = capture == "auto"

    monkeypatch.setattr(Stepper, "__init__", as_asked)
    return steps.Lab(steps.Size(True), torch.device("cpu"))


@pytest.mark.parametrize("part", PARTS)
def test_what_is_timed_is_captured(part, steps, lab) -> None:
    found = [each for each in getattr(steps, part)(lab).values() if isinstance(each, dict) and "captured" in each]
    assert {each["captured"] for each in found} == {"yes"}
    assert all(each["ms"] > 0 for each in found)


def test_captured_steps_are_compared_with_plain_ones(steps, lab, monkeypatch) -> None:
    found = steps.same_numbers(lab)
    assert {each["captured"] for each in found.values()} == {"yes"}
    assert {each["difference"] for each in found.values()} == {0.0}
    graph = importlib.import_module("kd.training.cuda_graph").Graph
    monkeypatch.setattr(graph, "replay", lambda self: None)  # a graph that does nothing
    assert all(each["difference"] > 0 for each in steps.same_numbers(lab).values())


def test_waits_are_noted_from_the_second_time_on_except_where_values_are_read(steps, monkeypatch) -> None:
    monkeypatch.setattr(importlib.import_module("kd.training.cuda_graph"), "waits", lambda: nullcontext(["a.py:1"]))
    watching = steps.Watching(torch.device("cpu"))
    watching.on_gpu = True
    for name in ("training", "monitoring", "training", "monitoring"):
        with watching.phase(name, torch.device("cpu")):
            pass
    assert watching.waits == ["a.py:1"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("void cudnn::bn_fw_inf_1C11_kernel_NHWC<float, float, true, true>(float", "BatchNorm"),
        ("void at::native::batch_norm_transform_input_channels_last_kernel<c10::BFloat16>", "BatchNorm"),
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tiles", "convolutions and products"),
        ("void cudnn::engines_precompiled::convertTensor_kernel<float, float", "copies and casts"),
        ("void at::native::elementwise_kernel<128, 2, direct_copy_kernel_cuda>", "copies and casts"),
        ("void at::native::vectorized_elementwise_kernel<8, at::native::CUDAFunctor_add>", "elementwise"),
        ("void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float>>", "rest"),
    ],
)
def test_kernels_have_a_kind(name, kind, steps) -> None:
    assert importlib.import_module("gpu_clock").kind(name) == kind


def test_a_clock_counts_neither_the_first_calls_nor_waits_for_each(steps) -> None:
    clock = importlib.import_module("gpu_clock").Clock(torch.device("cpu"), groups=3, each=2, warm_up=1)
    calls = 0
    while clock.more():
        time.sleep(0.2 if calls in (0, 3) else 0.001)
        calls += 1
    assert calls == 1 + 3 * 2
    assert 1 <= clock.milliseconds < 50, "the median leaves out one slow group"
