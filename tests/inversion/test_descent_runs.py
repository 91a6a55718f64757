"""Whole runs with DeepInversion, CMI and NAYER: what students learn from them; stopped, killed and resumed."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from pathlib import Path

import pytest
from conftest import COMPUTE, execute, tiny_run

from kd.inversion.sources.descent import Descent
from kd.runs.run import run_step
from kd.runtime.checkpoint import Checkpoint, Stopped
from kd.settings.run import Run

METHODS = ("adaptive-deepinversion", "cmi", "nayer")
TAUGHT = {"teacher__training__epochs": 6}
LEARNING = {
    "replay__full_size": 320,
    "distillation__training__epochs": 6,
    "distillation__steps": 40,
    "distillation__training__batch_size": 32,
}
STEPS = {
    "adaptive-deepinversion": {"inversion__deepinversion": {"batch_size": 64, "steps": 20, "warmup": 1}},
    "cmi": {"inversion__cmi": {"batch_size": 64, "steps": 25, "lr": 0.01, "noise_dim": 32, "width": 8, "bank": 128}},
    "nayer": {"inversion__nayer": {"batch_size": 64, "steps": 10, "noise_dim": 32, "width": 8, "life": 10}},
}


@pytest.fixture(scope="module")
def taught(store: Path) -> Path:
    """The shared results folder, with a teacher of more epochs."""
    teacher = tiny_run("kd", **TAUGHT).teacher
    run_step(teacher, store / teacher.path, store / teacher.data_path, [], COMPUTE)
    return store


@pytest.mark.parametrize("method", METHODS)
def test_a_student_learns_digits_that_it_has_never_seen(method: str, taught: Path, tmp_path: Path) -> None:
    metrics = execute(tiny_run(method, **TAUGHT, **LEARNING, **STEPS[method]), taught, tmp_path)
    assert metrics["accuracy"] > 30, "chance is 10; 360 test images"


def counts_and_numbers(run: Run, store: Path, folder: Path) -> tuple:
    execute(run, store, folder)
    record = json.loads((folder / "run.json").read_text())
    return record["counts"], (folder / "metrics.json").read_bytes(), (folder / "history.csv").read_bytes()


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_is_stopped_inside_an_inversion_ends_with_the_same_bytes(method, store, tmp_path, monkeypatch):
    run, judge, calls = tiny_run(method), Descent._judge, []

    def stop(self, *given):
        calls.append(1)
        if len(calls) == 8:  # in the third batch of three steps each
            os.kill(os.getpid(), signal.SIGTERM)
        return judge(self, *given)

    monkeypatch.setattr(Descent, "_judge", stop)
    with pytest.raises(Stopped):
        execute(run, store, tmp_path / "stopped")
    assert len(calls) == 8
    assert (tmp_path / "stopped/checkpoint.pt").exists()
    resumed = counts_and_numbers(run, store, tmp_path / "stopped")
    assert resumed == counts_and_numbers(run, store, tmp_path / "undisturbed")


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_is_killed_goes_on_from_its_last_checkpoint(method, store, tmp_path, monkeypatch):
    run, at_boundary, boundaries = tiny_run(method), Checkpoint.stop_or_save, []

    def die(self, parts):
        boundaries.append(1)
        if len(boundaries) == 13:
            raise KeyboardInterrupt
        at_boundary(self, parts)

    every = dataclasses.replace(COMPUTE, checkpoint_seconds=1e-9)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "stop_or_save", die)
        with pytest.raises(KeyboardInterrupt):
            execute(run, store, tmp_path / "killed", every)
    assert (tmp_path / "killed/checkpoint.pt").exists()
    resumed = counts_and_numbers(run, store, tmp_path / "killed")
    assert resumed == counts_and_numbers(run, store, tmp_path / "undisturbed")
