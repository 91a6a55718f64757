"""Describes what the buffer holds: for figures, for the curves, and to stop a run that leads nowhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kd.batch import per_sample
from kd.data.augment import Augment
from kd.data.dataset import Data
from kd.inversion.replay import ReplayBuffer
from kd.inversion.sources.base import Images
from kd.losses.kd import kl_divergence
from kd.models.classifier import evaluating
from kd.training.evaluate import parts, predict_classes

CONFIDENCE_BINS = 20


class Course:
    """How the synthetic set changes, one entry per epoch: for figures and the collapse check; part of a checkpoint.

    class_counts: [epochs, K] samples of each class in the buffer; confidence_counts: [epochs, CONFIDENCE_BINS] the
    teacher's confidence in the last new images, counted in bins; priorities: [epochs, 5] quantiles 0, 0.25, ..., 1 of
    those in the buffer.
    """

    NAMES = ("class_counts", "confidence_counts", "priorities")

    def __init__(self) -> None:
        self.class_counts: list[np.ndarray] = []
        self.confidence_counts: list[np.ndarray] = []
        self.priorities: list[np.ndarray] = []

    def note(self, buffer: ReplayBuffer, made: Images) -> None:
        """Add the entry of an epoch; waits for the device."""
        priorities = buffer.priority[: buffer.size].cpu().numpy()
        confidence = made.confidence.cpu().numpy()
        self.class_counts.append(buffer.class_counts.cpu().numpy().copy())  # on the CPU it is the buffer's own memory
        self.confidence_counts.append(np.histogram(confidence, bins=CONFIDENCE_BINS, range=(0, 1))[0])
        self.priorities.append(np.quantile(priorities, [0, 0.25, 0.5, 0.75, 1]))

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays for synthetic.npz; none where nothing was synthesised."""
        return {f"{name}_by_epoch": np.stack(getattr(self, name)) for name in self.NAMES if getattr(self, name)}

    def state_dict(self) -> dict[str, Any]:
        return {name: [torch.from_numpy(entry) for entry in getattr(self, name)] for name in self.NAMES}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in self.NAMES:
            setattr(self, name, [entry.numpy() for entry in state[name]])


def followed(history: list[dict[str, float]]) -> dict[str, float]:
    """Return how well the student followed what it was shown, from the curves, in per cent.

    `agreement_drawn`: its agreement with the teacher on drawn samples, mean over the last twentieth of its epochs;
    `agreement_fall`: how far that lies below the highest mean over as many successive epochs.
    """
    agreement = [100 * row["agreement"] for row in history if "agreement" in row]
    width = max(1, len(agreement) // 20)
    means = np.convolve(agreement, np.full(width, 1 / width), "valid")
    return {"agreement_drawn": float(means[-1]), "agreement_fall": float(means.max() - means[-1])}


def gap(buffer: ReplayBuffer, data: Data, student: nn.Module, teacher: nn.Module, samples: int) -> dict[str, Tensor]:
    """Return the mean KL(teacher || student) over the buffer (`gap_stored`) and weighted by P (`gap_drawn`), [] each.

    Estimated from `samples` images spread over the buffer, not augmented, the student in eval mode.
    """
    index = torch.linspace(0, buffer.size - 1, min(samples, buffer.size), device=buffer.priority.device).long()
    divergence = divergences(teacher, student, buffer.images[index], data.augment).double()
    drawn = buffer.probabilities()[index]
    return {"gap_stored": divergence.mean(), "gap_drawn": (drawn * divergence).sum() / drawn.sum()}


def divergences(teacher: nn.Module, student: nn.Module, images: Tensor, augment: Augment) -> Tensor:
    """Return KL(teacher || student) of images [N, C, S, S], not augmented, [N]; of segmentation means over pixels."""
    with evaluating(teacher), evaluating(student):
        return torch.cat(
            [
                per_sample(kl_divergence(*(model(part).logits.float() for model in (teacher, student)), 1.0))
                for part in parts(student, images, augment)
            ]
        )


def describe(buffer: ReplayBuffer, data: Data, teacher: nn.Module, shown: int = 64) -> dict[str, np.ndarray]:
    """Return the synthetic set for figures: `shown` images [n, C, S, S], class counts [K], confidence counts [bins].

    Class and confidence are the teacher's on the stored, unaugmented images. Of segmentation `image_classes` are maps
    [n, S, S], and class counts are of pixels.
    """
    classes, confidence = predict_classes(teacher, buffer.images[: buffer.size], data.augment)
    spread = torch.linspace(0, buffer.size - 1, min(shown, buffer.size), device=classes.device).long()
    order = spread if teacher.dense else spread[classes[spread].sort(stable=True).indices]
    palette = {} if data.palette is None else {"palette": data.palette.cpu().numpy()}
    return palette | {
        "images": buffer.images[order].cpu().numpy(),
        "image_classes": classes[order].cpu().numpy(),
        "class_counts": np.bincount(classes.cpu().numpy().ravel(), minlength=len(data.classes)),
        "confidence_counts": np.histogram(confidence.cpu().numpy(), bins=CONFIDENCE_BINS, range=(0, 1))[0],
        "priority": buffer.priority[: buffer.size].cpu().numpy(),
    }
