"""The student and the teacher of one run, built for its data."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from kd.data import views
from kd.data.dataset import Data
from kd.models.build import build
from kd.models.classifier import Ensemble
from kd.runtime.files import file_digest
from kd.runtime.messages import ConfigError
from kd.runtime.weights import fill, read_state
from kd.settings.run import Run
from kd.training.device_flags import set_flags
from kd.training.stepper import Stepper

SAYS = {False: "one class per image", True: "a class for every pixel"}


def student_and_teacher(
    run: Run, data: Data, teacher_weights: list[Path], stepper: Stepper
) -> tuple[nn.Module, nn.Module | None, torch.Generator]:
    """Build a run's networks and the generator of all its later randomness, both seeded by the run.

    The student has its initial weights. The teacher is frozen, in eval mode, with the weights of the given state
    dicts: an Ensemble if there are several, None for a run without a teacher. Raises ConfigError for a file that
    cannot be used.
    """
    set_flags()
    device = stepper.device
    torch.manual_seed(run.seed)
    student = network(run, data, device)
    teachers = []
    for described, weights in zip(run.teachers or (), teacher_weights, strict=True):
        teacher = network(described, data, device)
        try:
            fill(teacher, read_state(weights))
            teachers.append(
                stepper.graphs.common((described.digest, file_digest(weights)), lambda teacher=teacher: teacher)
            )
        except ValueError as error:
            raise ConfigError(
                f"{weights}: cannot be used as weights of the teacher {described.model}: {error}; put the right file "
                "there, or delete this one: the teacher is then made again"
            ) from None
    for described, own in zip(run.teachers or (), teachers, strict=True):
        if own.dense != student.dense:
            raise ConfigError(
                f"teacher.model: {described.model} says {SAYS[own.dense]}, student.model: {run.model} "
                f"{SAYS[student.dense]}; take two of a kind"
            )
    teacher = Ensemble(teachers) if len(teachers) > 1 else (teachers or [None])[0]
    if teacher is not None:
        teacher.eval().requires_grad_(False)
    stepper.watch(student, teacher)
    return student, teacher, stepper.draws_from(torch.Generator(device).manual_seed(run.seed))


def network(run: Run, data: Data, device: torch.device) -> nn.Module:
    """Build the run's network; it turns every batch into the run's view and has that many input channels.

    Raises ConfigError for a network that cannot be built, and where it says a class for every pixel and the labels are
    no maps, or the reverse.
    """
    channels = views.channels(run.view, data.channels)
    try:
        network = build(run.model, num_classes=len(data.classes), in_channels=channels, image_size=data.image_size)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if (len(data.train) or len(data.score)) and network.dense != data.score.dense:
        raise ConfigError(
            f"model: {run.model} says {SAYS[network.dense]}; the labels of {run.dataset.label} are "
            f"{SAYS[data.score.dense]}: take another network"
        )
    if channels != data.channels:
        views.look_through(run.view, network, data.augment)
    return network.to(device, memory_format=torch.channels_last)
