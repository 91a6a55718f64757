"""The weighted sum of losses that a student minimises."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kd.batch import Batch, LossContext, Output, per_sample
from kd.losses.base import FunctionLoss, Loss
from kd.registry.losses import LOSSES, OF_TERMS, require_pair, require_settings
from kd.runtime.messages import ConfigError

if TYPE_CHECKING:
    from kd.models.classifier import Classifier


class Objective(nn.Module):
    """Sum over losses of weight * loss, one value per sample [B].

    Losses may have a first stage (`Loss.first_epochs`). During it only their `first_stage` is summed, without weights,
    and parts of the student rest (`resting`).
    A term's `warmup` is the number of epochs, counted after that stage, over which its weight rises in a straight line:
    in the e-th epoch it is min(1, e / warmup) of the whole.

    Losses are submodules: their parameters learn with the student's optimiser, and their state (memory banks,
    embeddings) is part of a checkpoint.

    Raises ConfigError where a loss refuses its settings, the networks or the data.
    """

    def __init__(self, terms: dict[str, dict[str, Any]], context: LossContext | None):
        super().__init__()
        self.maps = context is not None  # with data and a teacher, losses may ask for intermediate maps
        self.weights = {name: settings["weight"] for name, settings in terms.items()}
        self.warmups = {name: settings.get("warmup", 0) for name, settings in terms.items()}
        self.losses: dict[str, Loss] = {}
        self.first = False
        for name, settings in sorted(terms.items()):  # the order of a sum changes its last bits
            own = {key: value for key, value in settings.items() if key not in OF_TERMS}
            try:
                loss = build_loss(name, context, **own)
            except ValueError as error:
                raise ConfigError(f"objective.{name}: {str(error).removeprefix(f'{name}: ')}") from error
            self.losses[name] = loss
            self.add_module(name, loss)
            weight = torch.tensor(0.0 if self.warmups[name] else self.weights[name], dtype=torch.float64)
            self.register_buffer(f"_weight_{name}", weight, persistent=False)
        self.signed = any(loss.signed for loss in self.losses.values())  # these maps cost memory

    def begin(self, epoch: int) -> None:
        """Enter an epoch, counted from 0, before its steps: set the stage and the weights, risen so far.

        The weights are tensors, set in place: a captured step goes on with them. The stages are two different steps.
        """
        self.first = epoch < self.first_epochs
        risen = epoch - self.first_epochs + 1
        for name, warmup in self.warmups.items():
            share = min(1.0, risen / warmup) if warmup else 1.0
            self.weight(name).fill_(self.weights[name] * share)

    def resting(self, student: Classifier) -> list[nn.Module]:
        """Return what of the student no step of this epoch trains, to be kept in eval mode.

        In a first stage that is what stands behind its last map, as in the code of CRD's study, or all of it, where no
        loss trains it then (`Loss.trains_student`). In the main stage it is nothing.
        """
        if not self.first:
            return []
        trained = any(loss.first_epochs and loss.trains_student for loss in self.losses.values())
        return student.behind_maps() if trained else [student]

    def weight(self, name: str) -> Tensor:
        """Return the weight of a term in this epoch, [], float64."""
        return self.get_buffer(f"_weight_{name}")

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        total = torch.zeros(len(batch.index), device=batch.index.device)
        for name, loss in self.losses.items():
            if not self.first:
                found = per_sample(loss(student, teacher, batch))
                total = total + self.weight(name).to(found.dtype) * found
            elif loss.first_epochs:
                total = total + loss.first_stage(student, teacher, batch)
        return total

    def answers(self, student: Output) -> Tensor:
        """Return the logits [B, K] that training accuracy counts: the student's, or a loss's (`Loss.logits`)."""
        return next((loss.logits for loss in self.losses.values() if loss.logits is not None), student.logits)

    def adopt(self, student: nn.Module, teacher: nn.Module | None) -> nn.Module:
        """Return the network to score and save: the student, or what a loss makes of it."""
        for loss in self.losses.values():
            student = loss.adopt(student, teacher)
        return student

    @property
    def first_epochs(self) -> int:
        """Epochs of the first stage; 0 where no loss has one."""
        return max((loss.first_epochs for loss in self.losses.values()), default=0)

    @property
    def first_lr(self) -> float | None:
        """The lowest learning rate that a loss asks for in its first stage."""
        return min((loss.first_lr for loss in self.losses.values() if loss.first_lr is not None), default=None)

    def logged(self) -> dict[str, Tensor]:
        """Return the scalars, [] each, that losses recorded in their last forward pass, for history.csv."""
        return {f"{name}_{key}": value for name, loss in self.losses.items() for key, value in loss.logged.items()}


class EnsembleObjective(nn.Module):
    """The mean over teachers of an objective each, [B] (Tian et al., CRD, ICLR 2020, section 4.3).

    Each teacher has its own losses, with their embeddings, memory banks and regressors. Raises ConfigError for a loss
    with which the student takes over parts of its teacher.
    """

    maps = True

    def __init__(self, objectives: list[Objective]):
        super().__init__()
        for name in objectives[0].losses:
            if LOSSES[name].one_teacher:
                raise ConfigError(f"objective.{name}: takes over the classifier of one teacher; got {len(objectives)}")
        self.members = nn.ModuleList(objectives)

    def begin(self, epoch: int) -> None:
        for member in self.members:
            member.begin(epoch)

    def resting(self, student: Classifier) -> list[nn.Module]:
        return self.members[0].resting(student)

    @property
    def signed(self) -> bool:
        return self.members[0].signed

    @property
    def first(self) -> bool:
        return self.members[0].first

    @property
    def first_epochs(self) -> int:
        return self.members[0].first_epochs

    @property
    def first_lr(self) -> float | None:
        return self.members[0].first_lr

    def answers(self, student: Output) -> Tensor:
        return student.logits

    def adopt(self, student: nn.Module, teacher: nn.Module | None) -> nn.Module:
        return student

    def logged(self) -> dict[str, Tensor]:
        """Return the means over the teachers."""
        noted = [member.logged() for member in self.members]
        return {name: torch.stack([each[name] for each in noted]).mean() for name in noted[0]}

    def forward(self, student: Output, teachers: list[Output], batch: Batch) -> Tensor:
        losses = [member(student, teacher, batch) for member, teacher in zip(self.members, teachers, strict=True)]
        return torch.stack(losses).mean(0)


def build_loss(name: str, context: LossContext | None, **settings: Any) -> Loss:
    """Return a loss by its name in LOSSES, with its settings and networks checked.

    Without a teacher there is no context, and the networks are not checked.

    Raises:
        ConfigError: a setting is unknown or out of range, or the loss cannot relate the two networks.
    """
    require_settings(name, **settings)
    if context is not None:
        require_pair(name, context.student_maps, context.teacher_maps, **settings)
    module, attribute = LOSSES[name].code.split(":")
    loss = getattr(importlib.import_module(module), attribute)
    return loss(context, **settings) if isinstance(loss, type) else FunctionLoss(loss, **settings)
