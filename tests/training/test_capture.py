"""Captured steps: a step that is noted and replayed (tests/tape.py) gives the bytes of one that is run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import execute, tiny_run
from quick_rounds import in_rounds
from tape import Again, play_on_cpu

from kd.settings.run import Run

STEP, FIRST, STUDENT = "step", "first stage's step", "student's step"
INVERSION, ADVERSARY = "inversion step", "inversion step with the adversary"
LONGER = {"inversion__generator__warmup": 3, "distillation__training__epochs": 5}  # two epochs without an adversary
LONG = {"distillation__training__epochs": 5}
FLIPPED = {"inversion__deepinversion__flip": True, "inversion__deepinversion__l2": 0.1, "dataset__flip": True, **LONG}
IN_PASSES = {
    "replay__with_replacement": False,
    "replay__admitted": 0.5,
    "distillation__steps": 7,
    "inversion__generator__adv_with_lr": True,
    "inversion__generator__until": 0.7,
}
CASES = [
    ("scratch", {}, {STEP}),
    ("kd", {"training__schedule": "steps", "training__milestones": [1]}, {STEP}),
    ("kd", {"objective__kd__warmup": 3, "training__epochs": 4}, {STEP}),
    ("kd", {"precision": "bf16", "teacher__model": ["resnet8", "wrn_10_1"], "student__view": "rgb"}, {STEP}),
    ("crd", {}, {STEP}),
    ("crd-kd", {"training__nesterov": True, "scale": 0.7, "objective__crd__positive": "relax"}, {STEP}),
    ("crd", {"objective__crd__memory": "queue"}, {STEP}),
    ("crd", {"objective__crd__negatives_from": "other_indices", "objective__crd__estimator": "infonce"}, {STEP}),
    ("crd", {"teacher__model": ["resnet8", "wrn_10_1"]}, {STEP}),
    *((name, {}, {STEP}) for name in ("fitnet", "at", "sp", "cc", "vid", "rkd", "pkt", "nst", "dkd", "dist")),
    *((name, {}, {STEP}) for name in ("reviewkd", "simkd")),
    *((name, {f"objective__{name}__first_epochs": 1}, {FIRST, STEP}) for name in ("ab", "ft", "fsp")),
    ("ssdkd", LONGER, {STUDENT, INVERSION, ADVERSARY}),
    (
        "ssdkd",
        {"replay__full_size": 99, "inversion__generator__batch_size": 14, "replay__final_beta": 1.0, **LONGER},
        {STUDENT, INVERSION, ADVERSARY},
    ),
    (
        "ssdkd",
        {"inversion__generator__meta": "reptile", "replay__refresh": "all", "replay__replacement": "lowest", **LONGER},
        {STUDENT, INVERSION, ADVERSARY},
    ),
    (
        "ssdkd",
        {"inversion__generator__precision": "bf16", "precision": "bf16", "replay__initial_priority": "phi", **LONGER},
        {STUDENT, INVERSION, ADVERSARY},
    ),
    (
        "ssdkd",
        {"modulation__gradient": True, "modulation__class_of": "target", "replay__replacement": "random", **LONGER},
        {STUDENT, INVERSION, ADVERSARY},
    ),
    ("ssdkd", {"inversion__generator__adv": 0.0, **LONGER}, {STUDENT, INVERSION}),
    ("fast", {**IN_PASSES, **LONGER}, {STUDENT, INVERSION, ADVERSARY}),
    ("ssdkd", {"distillation__rounds": 3, **LONGER}, {STUDENT, INVERSION, ADVERSARY}),
    *((name, in_rounds(name), {STUDENT, "generator's step", "drawing of images"}) for name in ("dafl", "dfq", "zskt")),
    ("adaptive-deepinversion", {"inversion__deepinversion__warmup": 5, **FLIPPED}, {STUDENT, INVERSION, ADVERSARY}),
    ("cmi", {"inversion__cmi__warmup": 3, **LONG}, {STUDENT, INVERSION, ADVERSARY}),
    ("nayer", {"inversion__nayer__warmup": 3, **LONG}, {STUDENT, INVERSION, ADVERSARY}),
    ("original", {}, {STUDENT}),
]  # all but kdsvd, whose decomposition makes a GPU wait


@pytest.mark.parametrize(("method", "changes", "steps"), CASES)
def test_replayed_steps_give_the_same_bytes(method, changes, steps, store, tmp_path, monkeypatch):
    run = tiny_run(method, **changes)
    with monkeypatch.context() as patch:
        if method == "reviewkd":
            play_on_cpu(patch, Again)
        plain = result(run, store, tmp_path / "plain")
    steppers = play_on_cpu(monkeypatch)
    replayed = result(run, store, tmp_path / "replayed")
    assert set(steppers[-1].computed["captured"]) == steps
    assert steppers[-1].computed["not_captured"] == {}
    assert replayed == plain


def result(run: Run, store: Path, folder: Path) -> tuple:
    """Every number that a run leaves behind."""
    for teacher in run.teachers or ():
        if not (store / teacher.path / "weights.pt").exists():
            execute(teacher, store, store / teacher.path)
    execute(run, store, folder)
    weights = torch.load(folder / "weights.pt", weights_only=True)
    bytes_of = {name: value.contiguous().numpy().tobytes() for name, value in weights.items()}
    return bytes_of, (folder / "metrics.json").read_text(), (folder / "history.csv").read_text()
