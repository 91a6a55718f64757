"""Scores of networks that say a class for every pixel, counted over parts of the images: their logits are large."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd.batch import UNLABELLED
from kd.data.augment import Augment
from kd.data.dataset import Split
from kd.models.classifier import Ensemble, evaluating

PIXELS = 2**19  # whose logits are held at once
SHOWN = 6  # images in a figure


def at_once(image_size: int) -> int:
    """Return how many images' logits are held at once."""
    return max(1, PIXELS // image_size**2)


def confusion(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return how often pixels of each class [rows] are taken for each class [columns], [K, K] int64.

    predicted, labels: classes of pixels, int64, of one shape; pixels labelled UNLABELLED count nowhere.
    """
    counts = labels != UNLABELLED
    pair = labels[counts] * num_classes + predicted[counts]
    return torch.bincount(pair, minlength=num_classes**2).view(num_classes, num_classes)


def iou_by_class(confusion: Tensor) -> Tensor:
    """Return intersection over union of each class, [K] float64; NaN where a class is neither there nor predicted."""
    counts = confusion.double()
    hits = counts.diagonal()
    return hits / (counts.sum(0) + counts.sum(1) - hits)


def evaluate_maps(
    student: nn.Module, split: Split, augment: Augment, classes: int, teacher: nn.Module | None = None
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Return scores of a segmenting student, in percent, and how logits correlate across classes.

    `accuracy` is the mean over classes of intersection over union (mIoU), the measure that studies compare; next to
    it are `pixel_accuracy`, `loss` (mean cross entropy) and `iou_<k>` of each class, all over labelled pixels; with a
    teacher its mIoU (`teacher_accuracy`) and `agreement`, the share of all pixels with the same class, and
    `correlation_gap`. Correlations as `kd.training.evaluate.evaluate` returns them, over pixels.
    """
    device = split.labels.device
    found = torch.zeros(2, classes, classes, dtype=torch.int64, device=device)  # the student's, the teacher's
    members = teacher.members if isinstance(teacher, Ensemble) else [] if teacher is None else [teacher]
    moments = [_Moments(classes, device) for _ in (student, *members)]
    loss, agree, pixels = (torch.zeros((), dtype=torch.float64, device=device) for _ in range(3))
    for start in range(0, len(split), at_once(split.images.shape[-1])):
        part = split.subset(slice(start, start + at_once(split.images.shape[-1])))
        images, labels = augment.normalise(part.images), part.targets()
        said = []
        for network, own in zip((student, *members), moments, strict=True):
            with evaluating(network):
                said.append(network(images)._replace(feature=None))
            own.add(said[-1].logits)
        predicted = said[0].logits.argmax(1)
        found[0] += confusion(predicted, labels, classes)
        loss += F.cross_entropy(said[0].logits.double(), labels, reduction="sum", ignore_index=UNLABELLED)
        if members:
            together = Ensemble.together(said[1:]) if len(members) > 1 else said[1]
            answers = together.logits.argmax(1)
            found[1] += confusion(answers, labels, classes)
            agree += (answers == predicted).sum()
            pixels += answers.numel()
    return _metrics(found, loss, agree / pixels, bool(members)), _correlations(moments)


def shown(
    student: nn.Module, split: Split, augment: Augment, palette: Tensor | None, teacher: nn.Module | None = None
) -> dict[str, np.ndarray]:
    """Return arrays for a figure: SHOWN images spread over the split, their label maps, and what networks say.

    images [n, C, S, S]; labels, predicted and, with a teacher, taught [n, S, S], all uint8; `palette` [K, 3] if any.
    """
    part = split.subset(torch.linspace(0, len(split) - 1, min(SHOWN, len(split))).long().to(split.labels.device))
    arrays = {"images": part.images, "labels": part.labels}
    for name, network in (("predicted", student), ("taught", teacher)):
        if network is not None:
            with evaluating(network):
                arrays[name] = network(augment.normalise(part.images)).logits.argmax(1).to(torch.uint8)
    arrays |= {} if palette is None else {"palette": palette}
    return {name: values.cpu().numpy() for name, values in arrays.items()}


def _metrics(found: Tensor, loss: Tensor, agreement: Tensor, taught: bool) -> dict[str, float]:
    own = found[0].double()
    iou = iou_by_class(found[0])
    metrics = {
        "accuracy": 100 * iou.nanmean().item(),
        "pixel_accuracy": 100 * (own.diagonal().sum() / own.sum()).item(),
        "loss": (loss / own.sum()).item(),
    }
    if taught:
        metrics["teacher_accuracy"] = 100 * iou_by_class(found[1]).nanmean().item()
        metrics["agreement"] = 100 * agreement.item()
    there = iou.isfinite().nonzero()[:, 0].tolist()
    return metrics | {f"iou_{label}": 100 * iou[label].item() for label in there}


class _Moments:
    """Sums from which the correlations of logits over pixels follow."""

    def __init__(self, classes: int, device: torch.device):
        self.count = 0
        self.sums = torch.zeros(classes, dtype=torch.float64, device=device)
        self.products = torch.zeros(classes, classes, dtype=torch.float64, device=device)

    def add(self, logits: Tensor) -> None:
        rows = logits.double().movedim(1, -1).flatten(0, -2)  # [pixels, K]
        self.count += len(rows)
        self.sums += rows.sum(0)
        self.products += rows.T @ rows

    def correlation(self) -> Tensor:
        """Return Pearson's correlations, [K, K]; a class whose logit never changes correlates with none."""
        mean = self.sums / self.count
        covariance = self.products / self.count - mean[:, None] * mean
        spread = covariance.diagonal().clamp_min(0).sqrt()
        return torch.where(
            spread * spread[:, None] > 1e-12, covariance / (spread * spread[:, None]).clamp_min(1e-12), 0
        )


def _correlations(moments: list[_Moments]) -> dict[str, Tensor]:
    student, *teachers = (own.correlation() for own in moments)
    if not teachers:
        return {"student": student}
    teacher = torch.stack(teachers).mean(0)
    return {"student": student, "teacher": teacher, "difference": student - teacher}
