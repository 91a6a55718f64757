"""One training step, the same for all loops, and the means over the steps of an epoch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kd.batch import Batch, Output
from kd.losses.objective import EnsembleObjective, Objective


class Step(NamedTuple):
    """What a step has seen: the unweighted loss per sample [B] and both networks' outputs, without gradient."""

    loss: Tensor
    student: Output
    teacher: Output | None


def asked_of(objective: Objective | EnsembleObjective) -> dict[str, bool]:
    """Return what an objective needs of the networks, as keyword arguments of their calls."""
    return {kind: True for kind, wanted in (("maps", objective.maps), ("signed", objective.signed)) if wanted}


def outputs(
    student: Callable[..., Any],
    teacher: Callable[..., Any] | None,
    images: Tensor,
    asked: dict[str, bool],
    precision: str,
) -> tuple[Output, Any]:
    """Return what both networks say about images, the teacher without gradient; of an ensemble a list, or None."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
        with torch.no_grad():
            teacher_output = None if teacher is None else teacher(images, **asked)
        return student(images, **asked), teacher_output


def train_step(
    student: nn.Module,
    teacher: Callable[..., Any] | None,
    objective: Objective | EnsembleObjective,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    precision: str,
) -> Step:
    """Update the student (and the objective's own parameters) once on mean(weight * loss); return what the step saw.

    The teacher is in eval mode and without gradient. No value comes to the host.
    """
    student_output, teacher_output = outputs(student, teacher, batch.images, asked_of(objective), precision)
    loss = objective(student_output, teacher_output, batch)  # [B]
    optimizer.zero_grad(set_to_none=True)
    (batch.weight * loss).mean().backward()
    optimizer.step()
    return Step(loss.detach(), Output(*(part.detach() for part in student_output[:2])), teacher_output)


class Sums:
    """Running means of an epoch, kept on the device; part of a checkpoint."""

    def __init__(self, names: list[str], device: torch.device):
        self.names = names
        self.totals = torch.zeros(len(names), device=device)
        self.steps = torch.zeros((), dtype=torch.int64, device=device)

    def add(self, *values: Tensor) -> None:
        """Add the values of one step, [] each."""
        self.totals += torch.stack(values)
        self.steps += 1

    def healthy(self) -> bool:
        """Return whether all sums are finite; waits for the device."""
        return bool(self.totals.isfinite().all())

    def read_and_reset(self) -> dict[str, float]:
        """Return the means since the last reset, by name, and start again; reads the device once."""
        means = (self.totals / self.steps.clamp_min(1)).tolist()
        self.totals.zero_()
        self.steps.zero_()
        return dict(zip(self.names, means, strict=True))

    def state_dict(self) -> dict[str, object]:
        return {"totals": self.totals, "steps": self.steps}

    def load_state_dict(self, state: dict) -> None:
        self.totals.copy_(state["totals"])
        self.steps.copy_(state["steps"])
