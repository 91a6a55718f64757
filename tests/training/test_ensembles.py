"""Ensembles of teachers: their objective, their classes, and students that learn from them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import tiny_run
from quick_runs import QUICK, with_teachers
from torch import nn

from kd.batch import Batch, Output
from kd.losses.objective import EnsembleObjective
from kd.models.build import build
from kd.models.classifier import Ensemble
from kd.runtime.files import read_json
from kd.settings.run import slug


def test_an_ensemble_is_the_mean_over_its_teachers_objectives() -> None:
    class Loss(nn.Module):
        maps, first_epochs, first_lr, first, losses = True, 0, None, False, {}

        def __init__(self, factor: float):
            super().__init__()
            self.factor = factor

        def forward(self, student, teacher, batch):
            return self.factor * (student.logits - teacher.logits).abs().sum(1)

        def logged(self):
            return {"x": torch.tensor(self.factor)}

    objective = EnsembleObjective([Loss(1.0), Loss(3.0)])
    student = Output(torch.zeros(2, 3), torch.zeros(2, 0))
    teachers = [Output(torch.full((2, 3), value), torch.zeros(2, 0)) for value in (1.0, 2.0)]
    batch = Batch(torch.zeros(2), torch.zeros(2), torch.arange(2), torch.ones(2))
    assert objective(student, teachers, batch).tolist() == [(3 * 1 + 3 * 3 * 2) / 2] * 2
    assert objective.logged()["x"] == 2.0


def test_an_ensemble_classifies_by_its_mean_probability() -> None:
    members = [build("wrn_10_1", num_classes=4, image_size=8).eval() for _ in range(3)]
    images = torch.randn(5, 3, 8, 8)
    expected = torch.stack([member(images).logits.softmax(1) for member in members]).mean(0)
    torch.testing.assert_close(Ensemble(members)(images).logits.softmax(1), expected)


@pytest.mark.parametrize("method", ["kd", "crd", "at"])
def test_a_student_learns_from_teachers_of_several_kinds(method: str, store: Path, tmp_path: Path) -> None:
    names = ["resnet8", "wrn_10_1", "wrn_10_1"]
    run = tiny_run(method, teacher__model=names, **QUICK)
    assert [(teacher.model, teacher.seed) for teacher in run.teachers] == [
        *(("resnet8", 0), ("wrn_10_1", 0), ("wrn_10_1", 1))
    ]
    assert run.path.split("/")[2] == f"{slug('+'.join(names))}--wrn_10_1"
    assert run.path.split("/")[2].startswith("resnet8.wrn_10_1.wrn_10_1.")
    metrics = with_teachers(run, store, tmp_path)
    alone = [read_json(store / teacher.path / "metrics.json")["accuracy"] for teacher in run.teachers]
    assert metrics["teacher_accuracy"] >= min(alone)
    single = tiny_run(method, teacher__model="resnet8", **QUICK)
    assert single.digest != run.digest
