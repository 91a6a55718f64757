"""Every distiller in a whole run, first stages, signed maps and the teacher's classifier, at tiny size."""

from __future__ import annotations

import importlib
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import execute
from quick_runs import METHODS, quick, with_teachers
from torch import nn

from kd.batch import Batch, LossContext, Output
from kd.losses.base import Loss
from kd.losses.objective import EnsembleObjective, Objective
from kd.models.build import build
from kd.models.classifier import Classifier, Ensemble, Reusing
from kd.registry.losses import LOSSES
from kd.runtime.checkpoint import Checkpoint, Stopped
from kd.runtime.messages import ConfigError
from kd.training.step import train_step


@pytest.mark.parametrize("method", METHODS)
def test_every_method_with_data_makes_a_run(method: str, store: Path, tmp_path: Path) -> None:
    run = quick(method)
    metrics = with_teachers(run, store, tmp_path)
    assert metrics["teacher_accuracy"] > 50
    history = pd.read_csv(tmp_path / "history.csv")
    assert len(history) == 1 + any(loss in run.objective for loss in ("ab", "ft", "fsp"))
    assert history["loss"].notna().all()
    assert ("crd_bound" in history) == ("crd" in run.objective)


def test_a_first_stage_comes_before_the_schedule_and_learns_apart(store: Path, tmp_path: Path, monkeypatch) -> None:
    """FT's paraphraser learns only in the first stage, the student and the translator only in the second."""
    seen: list[tuple[float, dict, dict]] = []
    original = Checkpoint.stop_or_save

    def watch(self: Checkpoint, parts: dict) -> None:
        copied = [
            {name: value.clone() for name, value in parts[part].named_parameters()} for part in ("student", "objective")
        ]
        seen.append((parts["optimizer"].param_groups[0]["lr"].item(), *copied))
        original(self, parts)

    monkeypatch.setattr(Checkpoint, "stop_or_save", watch)
    run = quick("ft", objective__ft__first_epochs=2, objective__ft__first_lr=0.003)
    with_teachers(run, store, tmp_path)
    seen = seen[-3 * 2 :]
    steps = len(seen) // 3
    assert [lr for lr, _, _ in seen] == [0.003] * 2 * steps + [0.1] * steps
    start, boundary = seen[0], seen[2 * steps]

    def moved(before: dict, after: dict) -> set[str]:
        return {name.split(".")[1] for name in before if not torch.equal(before[name], after[name])}

    assert moved(start[1], boundary[1]) == set(), "the student has no part in the first stage"
    assert moved(start[2], boundary[2]) == {"encoder", "decoder"}
    assert moved(boundary[2], seen[-1][2]) == {"translator"}
    assert any(not torch.equal(value, seen[-1][1][name]) for name, value in boundary[1].items())


STAGES, RISING = ("ab", {"objective__ab__first_epochs": 2}), ("dkd", {"objective__dkd__warmup": 3})


@pytest.mark.parametrize(
    ("method", "changes", "stop_at"),
    [  # in the first stage, at its end, after it (two steps an epoch); while a weight rises; with learned layers
        *((*STAGES, step) for step in (3, 4, 6)),
        *((loss, {f"objective__{loss}__first_epochs": 2}, 3) for loss in ("ft", "fsp")),
        (*RISING, 3),
        ("simkd", {}, 3),
        ("reviewkd", {}, 3),
    ],
)
def test_a_run_in_stages_resumes_exactly(method, changes, stop_at, store: Path, tmp_path: Path, monkeypatch) -> None:
    run = quick(method, training__epochs=2, **changes)
    with_teachers(run, store, tmp_path / "whole")
    original, calls = Checkpoint.stop_or_save, []

    def stop(self: Checkpoint, parts: dict) -> None:
        calls.append(True)
        if len(calls) == stop_at:
            self.stopping = 15
        original(self, parts)

    monkeypatch.setattr(Checkpoint, "stop_or_save", stop)
    with pytest.raises(Stopped):
        execute(run, store, tmp_path / "killed")
    monkeypatch.setattr(Checkpoint, "stop_or_save", original)
    execute(run, store, tmp_path / "killed")
    for name in ("metrics.json", "history.csv"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()


def test_what_a_loss_refuses_in_a_job_is_said_in_one_line_with_its_name() -> None:
    shapes = ((4, 2, 2),) * 3
    context = LossContext(4, 4, torch.zeros(5, dtype=torch.int64), 2, torch.Generator(), shapes, shapes)
    with pytest.raises(ConfigError, match=r"^objective\.crd: negatives_from: other_classes finds no negatives: .*$"):
        Objective({"crd": {"weight": 1.0}}, context)
    with pytest.raises(ConfigError, match=r"^objective\.fitnet: no layer 3 among 3 maps .*$"):
        Objective({"fitnet": {"weight": 1.0, "layer": 3}}, context)
    with pytest.raises(ConfigError, match=r"^objective\.kdsvd: .* has no 9 singular vectors; choose a smaller k$"):
        Objective({"kdsvd": {"weight": 1.0, "k": 9}}, context)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_losses_that_make_the_student_another_network_have_one_teacher(name: str) -> None:
    module, attribute = LOSSES[name].code.split(":")
    loss = getattr(importlib.import_module(module), attribute)
    assert (isinstance(loss, type) and loss.adopt is not Loss.adopt) == LOSSES[name].one_teacher


def test_a_weight_rises_in_a_straight_line_from_the_end_of_the_first_stage() -> None:
    objective = Objective({"ce": {"weight": 2.0}, "kd": {"weight": 8.0, "temperature": 1.0, "warmup": 4}}, None)
    student, teacher = (Output(torch.randn(3, 5), torch.zeros(3, 0)) for _ in range(2))
    batch = Batch(torch.zeros(3), torch.tensor([0, 1, 2]), torch.arange(3), torch.ones(3))
    p, q = (output.logits.softmax(1) for output in (teacher, student))
    ce, kd = -q[torch.arange(3), batch.labels].log(), (p * (p / q).log()).sum(1)
    for epoch, weight in enumerate([2.0, 4.0, 6.0, 8.0, 8.0]):
        objective.begin(epoch)
        torch.testing.assert_close(objective(student, teacher, batch), 2 * ce + weight * kd)
    objective.losses["kd"].first_epochs = 3
    objective.begin(4)
    assert objective.weight("kd") == 4.0


# --------------------------------------------------------------------------------------------------------- signed maps


class Small(Classifier):
    """A user's network, which has nothing but `stages`."""

    def __init__(self):
        super().__init__(in_channels=3, image_size=8)
        self.stem, self.body = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, 2, padding=1)
        self.head = nn.Linear(6, 3)

    def stages(self, images):
        stem = self.stem(images).relu()
        return [stem, self.body(stem).relu()]


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("name", ["ab", "reviewkd", "at"])
def test_a_network_with_only_stages_learns_and_is_asked_for_signed_maps_where_a_loss_wants_them(name, several) -> None:
    torch.manual_seed(0)
    student, teacher = Small(), Small().eval()
    shapes, labels = student.map_shapes(), torch.arange(6) % 3
    context = LossContext(6, 6, labels, 3, torch.Generator().manual_seed(0), shapes, shapes, teacher)
    objective = Objective({name: {"weight": 1.0}}, context)
    if several:
        objective = EnsembleObjective([objective, Objective({name: {"weight": 1.0}}, context)])
    objective.begin(0)
    before, asked = [parameter.detach().clone() for parameter in student.body.parameters()], []
    for network in (student, teacher):
        network.register_forward_pre_hook(lambda module, args, kwargs: asked.append(kwargs), with_kwargs=True)
    batch = Batch(torch.randn(6, 3, 8, 8), labels, torch.arange(6), torch.ones(6))
    optimizer = torch.optim.SGD([*student.parameters(), *objective.parameters()], lr=0.1)
    asking = Ensemble([teacher, teacher]).each if several else teacher
    step = train_step(student, asking, objective, batch, optimizer, "float32")
    assert step.loss.isfinite().all()
    assert len(asked) == 2 + several
    assert all(kwargs == {"maps": True} | ({} if name == "at" else {"signed": True}) for kwargs in asked)
    assert all(not torch.equal(*pair) for pair in zip(before, student.body.parameters(), strict=True))


# --------------------------------------------------------------------------------------------- the teacher's classifier


@pytest.mark.parametrize("teacher_name", ["resnet8", "wrn_10_2", "vgg8", "mobilenetv2_half"])
def test_a_student_classifies_with_its_teachers_pooling_and_head(teacher_name: str) -> None:
    """Built from the equation: head_t(pool_t(projector(F_s))), nothing of the teacher's stages left."""
    torch.manual_seed(0)
    sizes = {"num_classes": 3, "image_size": 16}
    teacher, student = build(teacher_name, **sizes).eval(), build("wrn_10_1", **sizes).eval()
    width = teacher.map_shapes()[-1][0]
    projector = nn.Conv2d(64, width, 1)
    images = torch.randn(2, 3, 16, 16)
    last = nn.functional.adaptive_avg_pool2d(student(images, maps=True).maps[-1], min(4, teacher.map_shapes()[-1][1]))
    reusing = Reusing(student, projector, teacher).eval()
    torch.testing.assert_close(reusing(images).logits, teacher.head(teacher.pool(projector(last))))
    assert torch.equal(reusing(images, signed=True).logits, reusing(images).logits)
    kept = sum(p.numel() for p in reusing.parameters()) - sum(
        p.numel() for p in [*student.parameters(), *projector.parameters()]
    )
    assert kept < 0.35 * sum(p.numel() for p in teacher.parameters())
    assert not [name for name in reusing.state_dict() if name.startswith("student.head")], "its own head is unused"


def test_simkd_is_the_mean_squared_error_and_what_it_scores_is_what_it_saves(store: Path, tmp_path: Path) -> None:
    run = quick("simkd", training__epochs=3, scale=1.0)
    metrics = with_teachers(run, store, tmp_path)
    assert metrics["accuracy"] > 50
    weights = torch.load(tmp_path / "weights.pt")
    assert {name.split(".")[0] for name in weights} == {"student", "projector", "teacher"}
    history = pd.read_csv(tmp_path / "history.csv")
    assert history["train_accuracy"].iloc[-1] > 0.5, "by the teacher's classifier"
    assert not [name for name in weights if name.startswith("student.head")]
    learned = sum(value.numel() for name, value in weights.items() if "running_" not in name and "num_b" not in name)
    assert metrics["parameters"] == learned
    with pytest.raises(ConfigError, match=r"objective.simkd: takes over the classifier of one teacher; got 2"):
        with_teachers(quick("simkd", teacher__model=["wrn_10_1", "resnet8"]), store, tmp_path / "two")
