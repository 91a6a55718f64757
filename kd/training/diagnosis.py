"""Stops runs that will give no useful student, and names the setting that is likely to blame."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor, nn

from kd.data.augment import Augment
from kd.models.classifier import Ensemble
from kd.runtime.messages import ConfigError
from kd.runtime.weights import not_finite
from kd.settings.run import Run
from kd.training.evaluate import predict
from kd.training.segmentation import at_once

PATIENCE = 10  # epochs before a student must be better than chance, or a fifth of the schedule if that is more
ENOUGH = 5_000  # samples that it must have seen by then: few steps on a small buffer prove nothing
COLLAPSED_SHARE = 0.9  # of one class among the stored images
COLLAPSED_STD = 1.0  # grey levels of 255, over the images of a batch, mean over pixels
DIVERGED = 1000.0  # times the smallest loss so far


class Unhealthy(FloatingPointError):
    """Stops a run; its text says what was seen and what to change."""


def require_sound_loss(row: dict[str, float], history: list[dict[str, float]], name: str, remedy: str) -> None:
    """Raise Unhealthy when a logged loss is not finite, or a thousand times its smallest value so far.

    A loss that has been 0 or below, as likelihoods may be, is only checked for being finite.
    """
    value = row[name]
    if not math.isfinite(value):
        raise Unhealthy(f"epoch {row['epoch']:.0f}: {name} is {value}; {remedy}")
    smallest = min((earlier[name] for earlier in history if name in earlier), default=0.0)
    if value > DIVERGED * smallest > 0:
        raise Unhealthy(f"epoch {row['epoch']:.0f}: {name} is {value:.4g}, and was {smallest:.4g}; {remedy}")


class Suspects(NamedTuple):
    """All who may be to blame for a number that is not finite; `remedy` is what helps a student that diverges."""

    run: Run
    student: nn.Module
    teacher: nn.Module | None
    objective: nn.Module | None
    images: Tensor  # [N, C, S, S] uint8, which the networks are asked about
    augment: Augment
    remedy: str

    def advice(self, loss: float, remedy: str) -> str:
        """Return the remedy for a loss; where it is not finite, who is to blame instead, if that can be told."""
        return remedy if math.isfinite(loss) else self._culprit() or remedy

    def require_finite(self, metrics: dict[str, float]) -> None:
        """Raise Unhealthy when the student's weights or final numbers, which are to be written, are not finite."""
        wrong = [f"{name} is {value}" for name, value in metrics.items() if not math.isfinite(value)]
        if wrong or not_finite(self.student.state_dict()):
            raise Unhealthy("; ".join(["after the last epoch", *wrong, self._culprit() or self.remedy]))

    def _culprit(self) -> str:
        """Say who is not finite, and what to do: the teachers come first, since all others learn from them.

        Raises ConfigError for a teacher: other settings of the student would not help, nor count in a search.
        """
        members = self.teacher.members if isinstance(self.teacher, Ensemble) else [self.teacher]
        for described, member in zip(self.run.teachers or (), members, strict=False):
            if not self._answers(member):
                remedy = f"delete its weights in {described.path} below the results folder, which are then made again"
                raise ConfigError(f"the logits of the teacher {described.model} are not finite; {remedy}")
        if name := not_finite(self.student.state_dict()):
            return f"the student's weights are not finite (first: {name}); {self.remedy}"
        if self.objective is not None and (name := not_finite(self.objective.state_dict())):
            return f"the losses' own state is not finite (first: {name}); {self.remedy}"
        return "" if self._answers(self.student) else f"the student's logits are not finite; {self.remedy}"

    def _answers(self, network: nn.Module) -> bool:
        images = self.images[: at_once(self.images.shape[-1])] if network.dense else self.images
        return bool(predict(network, images, self.augment).isfinite().all())


def require_varied_images(
    epoch: int, top_share: float, image_std: float, num_classes: int, remedy_alike: str, remedy_one_class: str
) -> None:
    """Raise Unhealthy, with one of the remedies, when the generator has collapsed.

    top_share: share of the most frequent class in the buffer; image_std: std over the images of a batch, mean over
    pixels, in grey levels of 255.
    """
    if image_std < COLLAPSED_STD:
        raise Unhealthy(
            f"epoch {epoch}: the generator makes one image only (std {image_std:.2g} of 255 over a batch); "
            f"{remedy_alike}"
        )
    if num_classes > 2 and top_share > COLLAPSED_SHARE:
        raise Unhealthy(f"epoch {epoch}: {100 * top_share:.0f} % of the buffer are of one class; {remedy_one_class}")


def require_learning(
    epoch: int, epochs: int, seen: int, hits: list[float], num_classes: int, what: str, remedy: str
) -> None:
    """Raise Unhealthy when a student is no better than chance after enough epochs and samples.

    epoch: epochs that it has trained, of `epochs`; seen: samples in them; hits: per epoch, the share of samples whose
    class it got right. The mean over the last PATIENCE epochs counts.
    """
    agreement = sum(hits[-PATIENCE:]) / len(hits[-PATIENCE:])
    if epoch >= max(PATIENCE, epochs / 5) and seen >= ENOUGH and agreement < 1.2 / num_classes:
        raise Unhealthy(
            f"epoch {epoch}: the student does not learn: {what} is {100 * agreement:.1f} %, chance is "
            f"{100 / num_classes:.3g} %; {remedy}"
        )
