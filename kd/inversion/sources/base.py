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
from kd.settings.shapes import Inversion, Modulation


class SourceContext(NamedTuple):
    """What a source may be built from."""

    teacher: nn.Module  # frozen, in eval mode
    data: Data  # sizes, class names, normalisation; its images are for sources that say so
    modulation: Modulation | None  # phi's settings; None where the source does not synthesise
    generator: torch.Generator  # on the training device; the only source of randomness, checkpointed by the loop
    capacity: int  # images in a full buffer
    seed: int  # of the run


class Images(NamedTuple):
    """New images for the buffer, not augmented."""

    images: Tensor  # [B, C, S, S] uint8
    classes: Tensor  # [B] int64
    phi: Tensor  # [B] modulation values, which may become priorities; 1 where there is none
    confidence: Tensor | None = None  # [B] the teacher's, in that class; None where nothing was synthesised
    losses: dict[str, Tensor] = {}  # noqa: RUF012  [] each, for the curves; `loss` and `image_std` are watched


class Source:
    """A data-free source. A subclass takes `(context: SourceContext, *, setting=default, ...)`.

    The loop asks once per epoch, student and all; the source never trains the student.
    """

    warmup = 0  # epochs of inversion before the student begins
    work: dict[str, int] = {}  # noqa: RUF012  what a batch adds to the run's counts: images, generator_steps
    # what to change where losses run away, all images are alike, most are of one class, or the student learns nothing
    remedy_diverged = remedy_alike = remedy_one_class = remedy_images = "change the settings below inversion"

    def brings(self, epoch: int) -> bool:
        """Whether there are new images in this epoch, counted from 0 with the warm-up."""
        return True

    def batch(
        self, learned: int, student: nn.Module, buffer: ReplayBuffer, interrupted: Callable[[], bool] = lambda: False
    ) -> Images | None:
        """Return an epoch's new images; None, and nothing has changed, where `interrupted()` turned true.

        learned: epochs that the student has behind it, negative in the warm-up.
        """
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs to go on exactly."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state that `state_dict` returned."""


def build_source(settings: Inversion, context: SourceContext) -> Source:
    """Build the source that the settings name. Raises ConfigError where it refuses the teacher or its settings."""
    module, name = SOURCES[settings.source].code.split(":")
    return getattr(importlib.import_module(module), name)(context, **settings.settings)
