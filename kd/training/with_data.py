"""One training step for everything, and the loop over real data: a teacher, a student from scratch or distilled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kd.batch import Batch, LossContext, Output
from kd.data.dataset import Data, Loader, stratified
from kd.losses.objective import EnsembleObjective, Objective
from kd.models.classifier import Ensemble
from kd.runtime.checkpoint import Checkpoint, RandomState
from kd.runtime.journal import Journal
from kd.settings.run import Run
from kd.training.diagnosis import require_learning, require_sound_loss
from kd.training.optimisers import learning_rate, set_lr, sgd


class Step(NamedTuple):
    """What a step has seen: the unweighted loss per sample [B] and both networks' outputs, without gradient."""

    loss: Tensor
    student: Output
    teacher: Output | None


def train_step(
    student: nn.Module,
    teacher: Callable[..., Any] | None,
    objective: nn.Module,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    precision: str,
) -> Step:
    """One update of the student (and of the objective's own parameters) on mean(weight * loss).

    The teacher is in eval mode and without gradient. No value is brought to the host.
    """
    asked = {kind: True for kind in ("maps", "signed") if getattr(objective, kind, False)}
    with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=precision == "bf16"):
        with torch.no_grad():
            teacher_output = None if teacher is None else teacher(batch.images, **asked)
        student_output = student(batch.images, **asked)
    loss = objective(student_output, teacher_output, batch)  # [B]
    optimizer.zero_grad(set_to_none=True)
    (batch.weight * loss).mean().backward()
    optimizer.step()
    return Step(loss.detach(), Output(*(part.detach() for part in student_output[:2])), teacher_output)


def train(
    run: Run,
    data: Data,
    student: nn.Module,
    teacher: nn.Module | None,
    generator: torch.Generator,
    journal: Journal,
    checkpoint: Checkpoint,
) -> nn.Module:
    """Train the student on the run's fraction of the real data; with a teacher, distil. Gives back what it has become.

    Losses with a first stage have it before the schedule begins, at its first learning rate or their own `first_lr`.
    A killed run goes on from its checkpoint. Raises Stopped after SIGTERM, Unhealthy for a run that leads nowhere.
    """
    device = data.train.labels.device
    split = (
        data.train if run.scale == 1 else data.train.take(stratified(data.train.labels, run.scale, run.seed).to(device))
    )
    loader = Loader(split, data.augment, run.training.batch_size, generator)
    objective = _objective(run, student, teacher, data, split.labels, generator).to(device)
    asked = teacher.each if isinstance(teacher, Ensemble) else teacher
    optimizer = sgd([student, objective], run.training)
    sums = Sums(["loss", "train_accuracy", *objective.logged()], device)
    parts = {
        "student": student,
        "objective": objective,
        "optimizer": optimizer,
        "loader": loader,
        "sums": sums,
        "random": RandomState(generator),
        "journal": journal,
    }
    checkpoint.restore(parts)
    student.train()
    first, per_epoch = objective.first_epochs, loader.steps_per_epoch
    epochs = first + run.training.epochs
    while journal.counts["student_steps"] < epochs * per_epoch:
        epoch = journal.counts["student_steps"] // per_epoch
        objective.begin(epoch)
        lr = learning_rate(run.training, max(0, epoch - first))
        set_lr(optimizer, objective.first_lr or lr if objective.first else lr)
        if journal.counts["student_steps"] == first * per_epoch:
            optimizer.state.clear()  # the stages share no momentum
        with journal.phase("training", device):
            for _ in range(journal.counts["student_steps"], (epoch + 1) * per_epoch):
                checkpoint.stop_or_save(parts)
                batch = loader.next()
                step = train_step(student, asked, objective, batch, optimizer, run.precision)
                hits = objective.answers(step.student).argmax(1) == batch.labels
                sums.add(step.loss.mean(), hits.float().mean(), *objective.logged().values())
                journal.counts["student_steps"] += 1
        row = journal.log(epoch + 1, epochs, sums.take())
        remedy = "lower training.lr, or check the weights in objective"
        main = journal.history[first:]
        require_sound_loss(row, main, "loss", remedy)
        if main:
            hits, seen = [row["train_accuracy"] for row in main], len(main) * per_epoch * run.training.batch_size
            what = "its training accuracy"
            require_learning(len(main), run.training.epochs, seen, hits, len(data.classes), what, remedy)
    return objective.adopt(student, teacher)


def _objective(
    run: Run, student: nn.Module, teacher: nn.Module | None, data: Data, labels: Tensor, generator: torch.Generator
) -> Objective | EnsembleObjective:
    if teacher is None:
        return Objective(run.objective, None)
    members = [
        Objective(
            run.objective,
            LossContext(
                student_dim=student.feature_dim,
                teacher_dim=member.feature_dim,
                labels=labels,
                num_classes=len(data.classes),
                generator=generator,
                student_maps=student.map_shapes(),
                teacher_maps=member.map_shapes(),
                teacher=member,
            ),
        )
        for member in (teacher.members if isinstance(teacher, Ensemble) else [teacher])
    ]
    return EnsembleObjective(members) if isinstance(teacher, Ensemble) else members[0]


class Sums:
    """Running means of an epoch, kept on the device; part of a checkpoint."""

    def __init__(self, names: list[str], device: torch.device):
        self.names = names
        self.totals = torch.zeros(len(names), device=device)
        self.steps = 0

    def add(self, *values: Tensor) -> None:
        self.totals += torch.stack(values)
        self.steps += 1

    def healthy(self) -> bool:
        """Whether all sums are finite; waits for the device."""
        return bool(self.totals.isfinite().all())

    def take(self) -> dict[str, float]:
        """Means since the last take, then start anew; one read from the device."""
        means = (self.totals / max(1, self.steps)).tolist()
        self.totals.zero_()
        self.steps = 0
        return dict(zip(self.names, means, strict=True))

    def state_dict(self) -> dict[str, object]:
        return {"totals": self.totals, "steps": self.steps}

    def load_state_dict(self, state: dict) -> None:
        self.totals.copy_(state["totals"])
        self.steps = state["steps"]
