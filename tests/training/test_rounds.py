"""Epochs of several rounds: what is made when, what the student learns from, and runs that are killed anywhere."""

from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import execute, tiny_run
from quick_rounds import IN_ROUNDS, in_rounds

from kd.inversion.replay import ReplayBuffer
from kd.inversion.sources.adversarial import Adversarial
from kd.runtime.checkpoint import Checkpoint, Stopped
from kd.training import datafree

ROUNDS = {"distillation__steps": 6, "distillation__rounds": 3}


def rows_and_counts(folder: Path) -> tuple[list[dict[str, str]], dict[str, int]]:
    with (folder / "history.csv").open() as file:
        return list(csv.DictReader(file)), json.loads((folder / "run.json").read_text())["counts"]


def test_every_round_brings_images_and_its_share_of_the_steps(store: Path, tmp_path: Path, monkeypatch) -> None:
    done: list[str] = []
    for name in ("synthesise", "learn", "look", "_step"):
        original = getattr(datafree._Distillation, name)

        def noted(self, *given, original=original, name=name):
            if name != "_step" or not done or done[-1] != "step":
                done.append(name.strip("_"))
            return original(self, *given)

        monkeypatch.setattr(datafree._Distillation, name, noted)
    execute(tiny_run("ssdkd", **ROUNDS, replay__full_size=500), store, tmp_path)
    warm_up = 3 * ["synthesise", "learn"] + ["look"]
    assert done == warm_up + 3 * (3 * ["synthesise", "learn", "step"] + ["look"])
    rows, counts = rows_and_counts(tmp_path)
    assert len(rows) == 1 + 3, "one row per epoch"
    assert (counts["images"], counts["inversions"], counts["generator_steps"]) == (12 * 16, 12, 12 * 2)
    assert counts["student_steps"] == 3 * 6
    course = np.load(tmp_path / "synthetic.npz")
    assert course["class_counts_by_epoch"].sum(1).tolist() == [48, 96, 144, 192]
    assert course["confidence_counts_by_epoch"].sum(1).tolist() == 4 * [16], "of an epoch's last images"


def test_curves_hold_the_losses_of_an_epochs_last_round(store: Path, tmp_path: Path, monkeypatch) -> None:
    made, batch = [], Adversarial.batch

    def kept(self, *given):
        made.append(batch(self, *given))
        return made[-1]

    monkeypatch.setattr(Adversarial, "batch", kept)
    execute(tiny_run("vanilla", **in_rounds("vanilla")), store, tmp_path)
    rows, _ = rows_and_counts(tmp_path)
    assert len(made) == 3 * 3 + datafree.HELD_OUT_BATCHES
    assert [float(row["inversion_adv"]) for row in rows] == [float(each.losses["adv"]) for each in made[2:9:3]]


@pytest.mark.parametrize("method", IN_ROUNDS)
def test_the_student_sees_each_image_of_its_round_equally_often(
    method: str, store: Path, tmp_path: Path, monkeypatch
) -> None:
    made: list[torch.Tensor] = []
    drawn: list[list[torch.Tensor]] = []
    batch, sample = Adversarial.batch, ReplayBuffer.sample

    def noting(self, *given):
        new = batch(self, *given)
        made.append(new.images)
        drawn.append([])
        return new

    def sampled(self, *given):
        found = sample(self, *given)
        drawn[-1].extend(self.images[found.index])
        return found

    monkeypatch.setattr(Adversarial, "batch", noting)
    monkeypatch.setattr(ReplayBuffer, "sample", sampled)
    small = in_rounds(method)
    passes = 2 * small["replay__full_size"] // 8
    execute(tiny_run(method, **{**small, "distillation__steps": 3 * passes}), store, tmp_path)
    assert len(made) == 3 * 3 + datafree.HELD_OUT_BATCHES
    for images, seen in zip(made[:9], drawn[:9], strict=True):
        assert sorted(map(bytes_of, seen)) == sorted(2 * list(map(bytes_of, images)))


def bytes_of(image: torch.Tensor) -> bytes:
    return image.numpy().tobytes()


SHORT = {"distillation__training__epochs": 2, "distillation__steps": 4, "distillation__rounds": 2}
ONE = {"distillation__steps": 3, "distillation__rounds": 1, "inversion__generator__oh": 2.0}
IN_PASSES = {"replay__with_replacement": False, "replay__full_size": 40}
KILLED = {
    "ssdkd": {"replay__refresh": "all", **SHORT},
    "fast": {**IN_PASSES, **SHORT},
    "fast, one round": {**IN_PASSES, **SHORT, **ONE},
    **{name: in_rounds(name, **SHORT) for name in IN_ROUNDS},
}


@pytest.mark.parametrize("case", KILLED)
def test_a_run_that_is_stopped_in_its_last_round_ends_with_the_same_bytes(
    case: str, store: Path, tmp_path: Path, monkeypatch
) -> None:
    """Before its images, before its first step, where the order of a pass is drawn, and between its steps."""
    run, boundaries, at = tiny_run(case.partition(",")[0], **KILLED[case]), [], [0]
    stop_or_save = Checkpoint.stop_or_save

    def stopping(self, parts):
        boundaries.append(True)
        if len(boundaries) == at[0]:
            os.kill(os.getpid(), signal.SIGTERM)
        stop_or_save(self, parts)

    monkeypatch.setattr(Checkpoint, "stop_or_save", stopping)
    execute(run, store, tmp_path / "whole")
    count = len(boundaries)
    warm_up = run.inversion.settings.get("warmup", 0)
    assert count == (warm_up + 2) * run.distillation.rounds + 2 * run.distillation.steps, (
        "a boundary per batch of images and per step"
    )
    for at[0] in range(count - 3, count + 1):
        boundaries.clear()
        folder = tmp_path / str(at[0])
        with pytest.raises(Stopped):
            execute(run, store, folder)
        execute(run, store, folder)
        for name in ("metrics.json", "history.csv"):
            assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), (name, at[0])
        assert rows_and_counts(folder)[1] == rows_and_counts(tmp_path / "whole")[1]


def test_steps_from_passes_are_rounded_up_to_whole_rounds() -> None:
    shape = tiny_run("ssdkd", distillation__rounds=4).distillation
    assert shape.steps_per_epoch(100) == 8, "ceil(100 / 16) is 7"
    assert shape.steps_per_epoch(128) == 8
    assert shape.steps_per_epoch(16) == 4, "each round has a step"
    assert tiny_run("ssdkd", **ROUNDS).distillation.steps_per_epoch(100) == 6


LEARNING = {  # less would do for most, but not for all
    "distillation__training__epochs": 6,
    "distillation__training__lr": 0.05,
    "inversion__adversarial__lr": 0.003,
    "inversion__adversarial__width": 16,
    "inversion__adversarial__noise_dim": 16,
    "distillation__steps": 40,
}


@pytest.mark.parametrize("method", IN_ROUNDS)
def test_each_method_teaches_digits_without_having_seen_one(method: str, store: Path, tmp_path: Path) -> None:
    changes = in_rounds(method, batch=32, **LEARNING)
    changes["distillation__rounds"] = {"dfq": 4, "zskt": 4}.get(method, 8)
    metrics = execute(tiny_run(method, **changes), store, tmp_path)
    assert metrics["accuracy"] > 25, "chance is 10 %"
