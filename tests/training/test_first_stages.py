"""What a loss's first stage trains of the student, and what it leaves as it is: behind the last map, or all of it."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from conftest import execute
from quick_runs import quick
from torch import Tensor, nn

from kd.batch import Batch, LossContext
from kd.losses.objective import EnsembleObjective, Objective
from kd.models.build import build
from kd.models.classifier import frozen
from kd.runtime.checkpoint import Checkpoint
from kd.training.step import train_step

BEHIND = {"norm", "head"}  # of a wide residual network


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize(("method", "rests"), [("ab", BEHIND), ("fsp", BEHIND), ("ft", {"stem", "body", *BEHIND})])
def test_what_rests_keeps_weights_and_statistics_and_learns_in_the_main_stage(
    method: str, rests: set[str], several: bool, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[dict[str, Tensor], set[str], set[str]]] = []
    original = Checkpoint.stop_or_save

    def watch(self: Checkpoint, parts: dict) -> None:
        student = parts["student"]
        state = {name: value.clone() for name, value in student.state_dict().items()}
        children = dict(student.named_children())
        still = {name for name, child in children.items() if not any(part.training for part in child.modules())}
        fixed = {name for name, child in children.items() if not any(p.requires_grad for p in child.parameters())}
        seen.append((state, still, fixed))
        original(self, parts)

    teachers = {"teacher__model": ["wrn_10_1", "wrn_10_1"]} if several else {}
    run = quick(method, **{f"objective__{method}__first_epochs": 2}, **teachers)
    for teacher in run.teachers:
        execute(teacher, store, store / teacher.path)
    monkeypatch.setattr(Checkpoint, "stop_or_save", watch)
    execute(run, store, tmp_path)
    steps = len(seen) // 3
    assert [(still, fixed) for _, still, fixed in seen] == [(rests, rests)] * 2 * steps + [(set(), set())] * steps
    (start, *_), (boundary, *_) = seen[0], seen[2 * steps]
    last = torch.load(tmp_path / "weights.pt", weights_only=True)

    def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
        return {name for name, value in before.items() if not torch.equal(value, after[name])}

    assert moved(start, boundary) == {name for name in start if name.split(".")[0] not in rests}
    assert moved(boundary, last) == set(start)


def test_ab_equals_a_loop_that_trains_only_the_stages_and_the_connectors() -> None:
    """In float64: the student in eval mode, its stem, stages and connectors in train mode and in the optimiser."""
    torch.manual_seed(0)
    sizes = {"num_classes": 4, "image_size": 8}
    student, teacher = build("wrn_10_1", **sizes).double(), build("wrn_10_2", **sizes).double()
    images, labels = torch.randn(3, 12, 3, 8, 8, dtype=torch.float64), torch.arange(12) % 4
    with torch.no_grad():
        teacher(images[0])
    teacher.eval()
    shapes = student.map_shapes(), teacher.map_shapes()
    context = LossContext(64, 128, labels, 4, torch.Generator().manual_seed(0), *shapes, teacher)
    terms = {"ab": {"weight": 1.0, "first_epochs": 1}, "ce": {"weight": 1.0}}
    objective = Objective(terms, context).double()
    other, connectors = copy.deepcopy(student), copy.deepcopy(objective.losses["ab"].connectors)

    given = {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}
    trained = nn.ModuleList([other.stem, other.body, connectors])
    optimizer = torch.optim.SGD(trained.parameters(), **given)
    other.eval()
    trained.train()
    for batch in images:
        x, loss = other.stem(batch), 0.0
        with torch.no_grad():
            answers = teacher(batch, signed=True).signed[1:]
        normalise = [other.body[1][0].bn1, other.body[2][0].bn1, other.norm]
        for stage, norm, connect, answer, share in zip(
            other.body, normalise, connectors, answers, (1 / 4, 1 / 2, 1), strict=True
        ):
            x = stage(x)
            connected = connect(norm(x))
            hinge = torch.where(answer > 0, (1 - connected).clamp_min(0), (1 + connected).clamp_min(0))
            loss = loss + share * hinge.square().sum() / len(batch) * 3 / 1000
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    objective.begin(0)
    student.train()
    optimizer = torch.optim.SGD([*student.parameters(), *objective.parameters()], **given)
    with frozen(nn.ModuleList(objective.resting(student))):
        for batch in images:
            seen = Batch(batch, labels, torch.arange(12), torch.ones(12))
            train_step(student, teacher, objective, seen, optimizer, "float32")
    for (name, value), expected in zip(student.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10, msg=name)
    for value, expected in zip(objective.parameters(), connectors.parameters(), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)


def test_with_several_losses_the_student_learns_if_one_of_them_trains_it() -> None:
    student = build("wrn_10_1", num_classes=4, image_size=8)
    shapes, labels = student.map_shapes(), torch.arange(4)
    context = LossContext(64, 64, labels, 4, torch.Generator().manual_seed(0), shapes, shapes, student)
    terms = {name: {"weight": 1.0, "first_epochs": 1} for name in ("ft", "fsp")}
    for names, rests in ((("ft",), [student]), (("ft", "fsp"), [student.norm, student.head])):
        objective = Objective({name: terms[name] for name in names} | {"kd": {"weight": 1.0}}, context)
        for asked in (objective, EnsembleObjective([objective])):
            asked.begin(0)
            assert asked.resting(student) == rests
            asked.begin(1)
            assert asked.resting(student) == []
