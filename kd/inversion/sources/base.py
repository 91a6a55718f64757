"""What a data-free source is: the part of a data-free run that fills the replay buffer."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kd.data.dataset import Data
from kd.inversion.replay import ReplayBuffer
from kd.registry.sources import SOURCES
from kd.runtime.messages import ConfigError
from kd.settings.shapes import Inversion, Modulation


class SourceContext(NamedTuple):
    """What a source is built from."""

    teacher: nn.Module  # frozen, in eval mode
    data: Data  # sizes, class names, normalisation; its images are only for sources that use real ones
    modulation: Modulation | None  # phi's settings; None where phi weights nothing
    generator: torch.Generator  # on the training device; the only source of randomness, checkpointed by the loop
    capacity: int  # images in a full buffer
    seed: int  # of the run
    epochs: int = 1  # of the student's training
    relative_lr: Callable[[int], float] = lambda learned: 1.0  # the student's learning rate in an epoch, from 1 down
    # runs a step by its name; a GPU captures it once and replays it, see kd/training/stepper.py for what a step is
    run: Callable[[str, Callable[[], None]], None] = lambda name, step: step()


class Images(NamedTuple):
    """New images for the buffer, not augmented."""

    images: Tensor  # [B, C, S, S] uint8
    classes: Tensor  # [B] int64; of segmentation [B, S, S], of the augmented images, for the counts
    phi: Tensor  # [B] modulation values, which may become priorities; 1 where there is none
    confidence: Tensor | None = None  # [B] the teacher's, in that class; None where nothing was synthesised
    losses: dict[str, Tensor] = {}  # noqa: RUF012  [] each, for the curves; kd.training.diagnosis checks `loss` and `image_std`


class Source:
    """A data-free source. A subclass accepts `(context: SourceContext, *, setting=default, ...)`.

    The loop asks for images once per round (setting `distillation.rounds`: by default once per epoch) and passes the
    student, which the source never trains.
    """

    warmup = 0  # epochs of inversion before the student begins
    settled: float = 1  # student epochs after which a buffer of one class stops the run; math.inf: never
    work: dict[str, int] = {}  # noqa: RUF012  what a batch adds to the run's counts: images, generator_steps
    # what to change where losses run away, all images are alike, most are of one class, or the student learns nothing
    remedy_diverged = remedy_alike = remedy_one_class = remedy_images = "change the settings below inversion"

    def brings(self, epoch: int) -> bool:
        """Return whether the rounds of an epoch (from 0, warm-up included) bring images; the student's first must."""
        return True

    def batch(
        self, learned: int, student: nn.Module, buffer: ReplayBuffer, interrupted: Callable[[], bool] = lambda: False
    ) -> Images | None:
        """Return a round's new images, or None, with nothing changed, once `interrupted()` returns true.

        learned: epochs that the student has trained, negative during the warm-up.
        """
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to go on exactly."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""


def build_source(settings: Inversion, context: SourceContext) -> Source:
    """Build the source that the settings name. Raises ConfigError if it refuses the teacher or its settings."""
    entry = SOURCES[settings.source]
    if context.teacher.dense and not entry.dense:
        fitting = " or ".join(name for name, other in SOURCES.items() if other.dense)
        raise ConfigError(
            f"inversion.source: got {settings.source}, which asks for one class per image, and the teacher says one "
            f"for every pixel; take {fitting}"
        )
    module, name = entry.code.split(":")
    return getattr(importlib.import_module(module), name)(context, **settings.arguments())
