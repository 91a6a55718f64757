"""Takes over a teacher that the user has trained: its weights as they are, and its score where there is data."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from kd.data.dataset import Data
from kd.runtime.checkpoint import Checkpoint
from kd.runtime.journal import Journal
from kd.runtime.messages import ConfigError
from kd.runtime.weights import fill, read_state
from kd.settings.run import Run
from kd.training.device_flags import set_flags
from kd.training.evaluate import Result, evaluate
from kd.training.networks import network
from kd.training.stepper import Stepper


def compute(
    run: Run,
    data: Data,
    teacher_weights: list[Path],
    stepper: Stepper,
    journal: Journal,
    checkpoint: Checkpoint,
) -> Result:
    """Return the network with the weights of the user's file, and its scores on the data's images if there are any.

    Nothing is trained, and no statistic moves. Raises ConfigError for a file that has changed since the study was read,
    or does not fit the network.
    """
    set_flags()
    (file,) = teacher_weights
    run.weights.unchanged("teacher.weights")
    teacher = network(run, data, stepper.device)
    take_over(teacher, file, run.model)
    teacher.eval().requires_grad_(False)
    metrics: dict[str, float] = {}
    if len(data.score):
        with journal.phase("evaluation", stepper.device):
            metrics, _ = evaluate(teacher, data.score, data.augment)
        _warn_of_chance(metrics["accuracy"], len(data.classes), data.scored, file, journal)
    journal.history.append({"epoch": 1.0})
    return Result(teacher, metrics, {})


def take_over(network: nn.Module, file: Path, model: str) -> None:
    """Fill a network with the weights in a file. Raises ConfigError, with the first names, where they do not fit."""
    try:
        state = read_state(file)
        renamed = getattr(network, "own_names", lambda state: state)(state)
        fill(network, renamed)
    except ValueError as error:
        raise ConfigError(
            f"teacher.weights: {file}: cannot be used as {model}: {error}; number of classes, channels and image_size "
            "are those of the data set"
        ) from None


def _warn_of_chance(accuracy: float, classes: int, scored: str, file: Path, journal: Journal) -> None:
    """Say so where a teacher knows nothing of the images that it is scored on."""
    chance = 100 / classes
    if accuracy < chance + 0.1 * (100 - chance):
        journal.progress.say(
            f"WARNING: {file}: {accuracy:.1f} % on the {scored} images of {classes} classes, little above chance; are "
            "the order of classes, dataset.mean, dataset.std and image_size those that it was trained with?"
        )
