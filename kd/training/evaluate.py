"""Scores of a trained student."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd.batch import Output, per_sample
from kd.data.augment import Augment
from kd.data.dataset import Split
from kd.models.classifier import Ensemble, evaluating
from kd.training.segmentation import at_once, evaluate_maps

BATCH = 512


class Result(NamedTuple):
    """What a loop returns."""

    student: nn.Module
    metrics: dict[str, float]  # final numbers, for metrics.json
    arrays: dict[str, dict[str, np.ndarray]]  # name of the file -> its arrays, for figures


def evaluate(
    student: nn.Module, split: Split, augment: Augment, teacher: nn.Module | None = None
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Return scores, and how logits correlate across classes.

    Scores in percent of images: `accuracy` (top 1), `top5` (more than five classes), with a teacher its accuracy and
    `agreement` with its class; `loss`, the mean cross entropy; `correlation_gap`, the mean absolute `difference` below.

    Correlations [K, K], float64: the `student`'s; the `teacher`'s and `difference`, student's minus teacher's (Tian et
    al., CRD, ICLR 2020, figure 3). An ensemble's are the mean of its members', because the log of a mean probability
    correlates otherwise than the logits behind it. A class whose logit never changes correlates with none.

    Of segmentation, see `kd.training.segmentation.evaluate_maps`: `accuracy` is then the mIoU.
    """
    if split.dense:
        metrics, correlations = evaluate_maps(student, split, augment, student.num_classes, teacher)
        if teacher is not None:
            metrics["correlation_gap"] = correlations["difference"].abs().mean().item()
        return metrics, correlations
    logits = predict(student, split.images, augment)
    classes = logits.argmax(1)
    metrics = {
        "accuracy": _percent(classes == split.labels),
        "loss": F.cross_entropy(logits.double(), split.labels).item(),
    }
    correlations = {"student": _correlation(logits)}
    if logits.shape[1] > 5:
        best = logits.topk(5, dim=1).indices
        metrics["top5"] = _percent((best == split.labels[:, None]).any(1))
    if teacher is not None:
        members = teacher.members if isinstance(teacher, Ensemble) else [teacher]
        said = [Output(predict(member, split.images, augment), None) for member in members]
        teacher_classes = (Ensemble.together(said) if len(said) > 1 else said[0]).logits.argmax(1)
        metrics["teacher_accuracy"] = _percent(teacher_classes == split.labels)
        metrics["agreement"] = _percent(classes == teacher_classes)
        correlations["teacher"] = torch.stack([_correlation(output.logits) for output in said]).mean(0)
        correlations["difference"] = correlations["student"] - correlations["teacher"]
        metrics["correlation_gap"] = correlations["difference"].abs().mean().item()
    return metrics, correlations


def _correlation(logits: Tensor) -> Tensor:
    """Return Pearson's correlations between the columns: [N, K] -> [K, K], float64."""
    logits = logits.double()
    unit = F.normalize(logits - logits.mean(0), dim=0)
    return unit.T @ unit


def predict(model: nn.Module, images: Tensor, augment: Augment) -> Tensor:
    """Return logits [N, K], float32, of uint8 images [N, C, S, S], not augmented, the model in eval mode."""
    with evaluating(model):
        return torch.cat([model(part).logits.float() for part in parts(model, images, augment)])


def predict_classes(model: nn.Module, images: Tensor, augment: Augment) -> tuple[Tensor, Tensor]:
    """Return the classes that a network says of images [N, C, S, S], [N] int64, and its confidence in them, [N].

    Of segmentation classes are maps [N, S, S] uint8, and the confidence is the mean over pixels.
    """
    kind, found = torch.uint8 if model.dense else torch.int64, []
    with evaluating(model):
        for part in parts(model, images, augment):
            confidence, classes = model(part).logits.float().softmax(1).max(1)
            found.append((classes.to(kind), per_sample(confidence)))
    classes, confidence = zip(*found, strict=True)
    return torch.cat(classes), torch.cat(confidence)


def parts(model: nn.Module, images: Tensor, augment: Augment) -> Iterator[Tensor]:
    """Yield normalised images in parts: of a segmenting network's logits [b, K, S, S] only few fit."""
    for part in images.split(at_once(images.shape[-1]) if model.dense else BATCH):
        yield augment.normalise(part)


def _percent(hits: Tensor) -> float:
    return 100.0 * hits.double().mean().item()
