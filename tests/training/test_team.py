"""Processes that share a run's steps: the whole batch's losses, gradients and statistics, as in one process."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from kd.batch import Batch, LossContext
from kd.losses.objective import Objective
from kd.models.build import build
from kd.training.optimisers import sgd
from kd.training.step import train_step
from kd.training.team import Team

CLASSES, IMAGES, BATCH, STEPS = 5, 40, 13, 3  # 13 samples: no team has equal parts
RELATING = {  # of the batch's samples, of maps, with memory, with own layers
    "crd": {"weight": 0.8, "negatives": 30, "feat_dim": 8},
    "rkd": {"weight": 1.0},
    "sp": {"weight": 3000.0},
    "vid": {"weight": 1.0},
    "kd": {"weight": 1.0},
}


def learned(team: Team, terms: dict[str, dict[str, Any]]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Return the losses [B] of some steps in float64, and all that was learned."""
    draws = torch.Generator().manual_seed(0)
    torch.manual_seed(1)
    sizes = {"num_classes": CLASSES, "in_channels": 3, "image_size": 8}
    student, teacher = build("wrn_10_1", **sizes).train(), build("resnet8", **sizes).eval().requires_grad_(False)
    images = torch.randn(IMAGES, 3, 8, 8, generator=draws)
    labels = torch.arange(IMAGES) % CLASSES
    context = LossContext(
        student.feature_dim, teacher.feature_dim, labels, CLASSES, draws, student.map_shapes(), teacher.map_shapes()
    )
    objective = Objective(terms, context)
    optimizer = sgd([student, objective], SimpleNamespace(lr=0.1, momentum=0.9, weight_decay=1e-3, nesterov=False))
    team.synchronise(student, objective, optimizer)
    learner, answering = team.share(student), team.share(teacher)
    objective.begin(0)
    losses = []
    for _ in range(STEPS):
        index = torch.randperm(IMAGES, generator=draws)[:BATCH]
        batch = Batch(images[index], labels[index], index, torch.ones(BATCH))
        losses.append(train_step(learner, answering, objective, batch, optimizer, "float32").loss)
    team.release(student)
    own = {f"objective.{key}": value for key, value in objective.state_dict().items()}
    return losses, {**student.state_dict(), **own}


def _member(number: int, size: int, folder: Path, terms: dict[str, dict[str, Any]]) -> None:
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=number, world_size=size)
    torch.save(learned(Team(number, size), terms), folder / f"{number}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("size", [2, 3])
def test_a_team_learns_what_one_process_does(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    context = multiprocessing.get_context("fork")
    members = [context.Process(target=_member, args=(number, size, tmp_path, RELATING)) for number in range(size)]
    for member in members:
        member.start()
    torch.set_default_dtype(torch.float64)
    try:
        losses, state = learned(Team(), RELATING)
    finally:
        torch.set_default_dtype(torch.float32)
    for member in members:
        member.join(120)
        assert member.exitcode == 0
    shared = [torch.load(tmp_path / f"{number}.pt", weights_only=True) for number in range(size)]
    for found, learned_there in shared:
        for one, other in zip(found, losses, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
        assert learned_there.keys() == state.keys()
        for name, value in state.items():
            assert (learned_there[name] - value).abs().max() <= 1e-9 * value.abs().max(), name
    for _, other in shared[1:]:
        assert all(torch.equal(value, other[name]) for name, value in shared[0][1].items()), "members have parted"
