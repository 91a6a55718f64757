"""GPU-hours from measured steps: what they say of a run, and when a plan says it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import tiny_run
from fake_results import fake_end, fake_finished, find, loaded, rows_of

from kd.settings.run import Run
from kd.studies import status as state
from kd.studies.gpu_steps import gpu_seconds
from kd.studies.study import Study

WRN = {
    "teacher__model": "wrn_40_2",
    "student__model": "wrn_16_1",
    "dataset__name": "cifar10",
    "dataset__image_size": 32,
}


def run(method: str, **changes: object) -> Run:
    return tiny_run(method, **{**WRN, **changes})


def free(**changes: object) -> Run:
    """SSD-KD as in the full-size run that was measured: 8,000 student steps and 220 inversions of 5 steps."""
    sizes = {"inversion__generator__batch_size": 256, "inversion__generator__steps": 5}
    epochs = {"inversion__generator__warmup": 20, "distillation__training__epochs": 200}
    student = {"distillation__training__batch_size": 256, "distillation__passes": 2.0, "replay__full_size": 50_000}
    return run("ssdkd", **{"scale": 0.1, "precision": "bf16", **sizes, **epochs, **student, **changes})


def test_pairs_that_were_measured_take_what_was_measured() -> None:
    assert gpu_seconds(free(), None) == pytest.approx(200 * 40 * 4.06e-3 + 220 * 88e-3)
    assert gpu_seconds(free(precision="float32"), None) == pytest.approx(200 * 40 * 5.6e-3 + 220 * 88e-3)
    large = {"teacher__model": "resnet34", "student__model": "resnet18"}
    assert gpu_seconds(free(**large), None) == pytest.approx(200 * 40 * 7.64e-3 + 220 * 130e-3)
    crd = run("crd", student__model="wrn_16_2", training__epochs=10)
    assert gpu_seconds(crd, 50_000) == pytest.approx(10 * 50_000 / 64 * 3.19e-3)
    assert gpu_seconds(crd.teacher, 50_000) == pytest.approx(2 * 50_000 / 512 * 20.2e-3)


def test_other_sizes_are_scaled() -> None:
    seconds = gpu_seconds(run("kd"), 50_000)
    assert seconds == pytest.approx(2 * 50_000 / 256 * 5.6e-3)
    assert gpu_seconds(run("kd", scale=0.5), 50_000) == pytest.approx(seconds / 2)
    assert gpu_seconds(run("kd", dataset__image_size=64), 50_000) == pytest.approx(4 * seconds)
    assert 0.3 * seconds < gpu_seconds(run("kd", teacher__model="resnet20", student__model="resnet8"), 50_000) < seconds
    resnets = gpu_seconds(run("kd", teacher__model="resnet34", student__model="resnet18"), 50_000)
    assert resnets < gpu_seconds(run("kd", teacher__model="resnet50", student__model="resnet34"), 50_000) < 2 * resnets


def test_what_is_unknown_is_not_guessed() -> None:
    assert gpu_seconds(run("kd"), None) is None, "of images in a folder of one's own"
    assert gpu_seconds(run("kd", student__model="torchvision:resnet18"), 50_000) is None


@pytest.fixture
def study(tmp_path: Path) -> Study:
    cifar = {"dataset": {"name": "cifar10", "image_size": 32, "classes": 5}, "compute": {"device": "auto"}}
    return loaded(tmp_path, settings=cifar)


def hours(study: Study) -> list[str]:
    return re.findall(r"^(?:GPU-)?hours .*$", state.plan(study), re.MULTILINE)


def test_a_plan_without_a_gpu_promises_none(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "visible_gpus", lambda: 0)
    assert hours(study) == [
        "hours     6 runs unknown, estimated from 0 finished runs",
        "GPU-hours under 0.01 on an NVIDIA H200, estimated from steps measured there",
    ]
    fake_finished(study, find(study, "ssdkd", 0), device="cpu, 1 thread")
    assert hours(study)[0] == "hours     0.08 + 3 runs unknown, estimated from 1 finished runs (cpu, 1 thread)"
    for run in study.runs.values():
        fake_finished(study, run)
    assert hours(study) == ["hours     0.00, estimated from 6 finished runs"]


def test_a_plan_with_a_gpu_fills_in_what_no_finished_run_tells(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "visible_gpus", lambda: 1)
    fake_finished(study, find(study, "ssdkd", 0), {"training": 3600.0}, device="NVIDIA H200")
    fake_end(study, find(study, "scratch"), None, done=6, total=12, seconds=1800.0)
    assert hours(study) == [
        "GPU-hours 3.50, estimated from 1 finished runs (NVIDIA H200) and, for 2 runs, "
        "from steps measured on an NVIDIA H200"
    ]
    assert rows_of(state.plan(study))["together"][:2] == ["6", "6"]
    assert "unknown" not in rows_of(state.plan(study))["together"]
    status = rows_of(state.status(study))["together"]
    assert status[-4:] == ["+", "2", "runs", "unknown"], "where a study stands is told by its own runs only"


def test_a_plan_for_the_cpu_speaks_of_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "visible_gpus", lambda: 1)
    assert hours(loaded(tmp_path)) == ["hours     6 runs unknown, estimated from 0 finished runs"]


def test_half_the_classes_are_half_the_images(study: Study) -> None:
    estimates = state.Estimates(state.Records(study.root), study.runs)
    assert estimates.training_images(find(study, "kd")) == 25_000
