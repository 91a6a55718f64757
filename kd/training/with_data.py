"""The loop over real data: trains a teacher, a student from scratch or a distilled one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from kd.batch import LossContext
from kd.data.dataset import Data, Split, stratified
from kd.losses.dense import labelled
from kd.losses.objective import EnsembleObjective, Objective
from kd.models.classifier import Ensemble, frozen
from kd.runtime.checkpoint import Checkpoint, RandomState
from kd.runtime.journal import Journal
from kd.settings.run import Run
from kd.training import compiled
from kd.training.diagnosis import Suspects, require_learning, require_sound_loss
from kd.training.evaluate import Result, evaluate
from kd.training.networks import student_and_teacher
from kd.training.optimisers import learning_rate, set_lr, sgd
from kd.training.segmentation import shown
from kd.training.step import Sums, asked_of, train_step
from kd.training.stepper import Stepper

REMEDY = "lower training.lr, or check the weights in objective"
ASKED = 50_000  # images that tell who is to blame for a number that is not finite


def compute(
    run: Run,
    data: Data,
    teacher_weights: list[Path],
    stepper: Stepper,
    journal: Journal,
    checkpoint: Checkpoint,
) -> Result:
    """Train and score the student of a run of kind train or distill. Raises as `train` does."""
    student, teacher, generator = student_and_teacher(run, data, teacher_weights, stepper)
    student = train(run, data, student, teacher, generator, stepper, journal, checkpoint)
    with journal.phase("evaluation", stepper.device):
        metrics, correlations = evaluate(student, data.score, data.augment, teacher)
    Suspects(run, student, teacher, None, data.score.images[:ASKED], data.augment, REMEDY).require_finite(metrics)
    small = {name: matrix.cpu().numpy().astype(np.float16) for name, matrix in correlations.items()}  # for a figure
    arrays = {"correlations": small}
    if data.score.dense:
        arrays["predictions"] = shown(student, data.score, data.augment, data.palette, teacher)
    return Result(student, metrics, arrays)


def train(
    run: Run,
    data: Data,
    student: nn.Module,
    teacher: nn.Module | None,
    generator: torch.Generator,
    stepper: Stepper,
    journal: Journal,
    checkpoint: Checkpoint,
) -> nn.Module:
    """Train the student on the run's fraction of the real data, with a teacher by distillation; return what is scored.

    A loss's first stage runs before the schedule begins, at the schedule's first learning rate or its own `first_lr`;
    what of the student it does not train is frozen, in eval mode, until it ends.
    A killed run goes on from its checkpoint. Raises Stopped after SIGTERM, Unhealthy for a run that leads nowhere.
    """
    device = data.train.labels.device
    split = (
        data.train
        if run.scale == 1
        else data.train.subset(stratified(data.train.labels, run.scale, run.seed).to(device))
    )
    loader = split.loader(data.augment, run.training.batch_size, generator)
    objective = _objective(run, student, teacher, data, split, generator).to(device)
    stepper.watch(objective)
    optimizer = sgd([student, objective], run.training)
    suspects = Suspects(run, student, teacher, objective, split.images[:ASKED], data.augment, REMEDY)
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
    team = stepper.team
    team.synchronise(student, objective, optimizer)
    first, per_epoch = objective.first_epochs, loader.steps_per_epoch
    epochs = first + run.training.epochs
    shape = (loader.batch_size, *split.images.shape[1:])
    given = (run, stepper, journal, student, teacher, shape, asked_of(objective))
    learner, answering = compiled.networks(*given, steps=run.training.epochs * per_epoch)
    if teacher is not None:
        members = tuple(map(id, teacher.members if isinstance(teacher, Ensemble) else [teacher]))
        each = answering.each if isinstance(answering, Ensemble) else answering  # each teacher answers for itself
        answering = stepper.answers_of(each, (*members, bool(stepper.compiled)))
        answering = team.share(answering)
        stepper.next_batch = lambda: (run.dataset, run.scale, run.seed, loader.place)
    first_learner, learner = team.share(student), team.share(learner)  # compiled as it is in the main stage

    def step() -> None:
        batch = loader.batch()
        learns = first_learner if objective.first else learner
        seen = train_step(learns, answering, objective, batch, optimizer, run.precision)
        hits = objective.answers(seen.student).argmax(1) == batch.labels
        sums.add(seen.loss.mean(), labelled(hits.float(), batch.labels).mean(), *objective.logged().values())

    while journal.counts["student_steps"] < epochs * per_epoch:
        epoch = journal.counts["student_steps"] // per_epoch
        objective.begin(epoch)
        lr = learning_rate(run.training, max(0, epoch - first))
        set_lr(optimizer, objective.first_lr or lr if objective.first else lr)
        if journal.counts["student_steps"] == first * per_epoch:
            optimizer.state.clear()  # the stages share no momentum
        with journal.phase("training", device), frozen(nn.ModuleList(objective.resting(student))):
            for _ in range(journal.counts["student_steps"], (epoch + 1) * per_epoch):
                checkpoint.stop_or_save(parts)
                loader.advance()
                stepper.run("first stage's step" if objective.first else "step", step)
                journal.counts["student_steps"] += 1
        row = journal.log(epoch + 1, epochs, sums.read_and_reset())
        main = journal.history[first:]
        require_sound_loss(row, main, "loss", suspects.advice(row["loss"], REMEDY))
        if main:
            hits, seen = [row["train_accuracy"] for row in main], len(main) * per_epoch * run.training.batch_size
            what = "its training accuracy"
            require_learning(len(main), run.training.epochs, seen, hits, len(data.classes), what, REMEDY)
    team.release(student)
    return objective.adopt(student, teacher)


def _objective(
    run: Run, student: nn.Module, teacher: nn.Module | None, data: Data, split: Split, generator: torch.Generator
) -> Objective | EnsembleObjective:
    """Build the run's weighted sum of losses; with several teachers, the mean of one sum per teacher.

    An image with a label map is of a class of its own: all others are its negatives.
    """
    if teacher is None:
        return Objective(run.objective, None)
    labels = torch.arange(len(split), device=split.labels.device) if split.dense else split.labels
    members = [
        Objective(
            run.objective,
            LossContext(
                student_dim=student.feature_dim,
                teacher_dim=member.feature_dim,
                labels=labels,
                num_classes=len(split) if split.dense else len(data.classes),
                generator=generator,
                student_maps=student.map_shapes(),
                teacher_maps=member.map_shapes(),
                teacher=member,
            ),
        )
        for member in (teacher.members if isinstance(teacher, Ensemble) else [teacher])
    ]
    return EnsembleObjective(members) if isinstance(teacher, Ensemble) else members[0]
