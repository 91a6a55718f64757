"""What a trained student is worth, on the images that it is scored on."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd.data.augment import Augment
from kd.data.dataset import Split
from kd.models.classifier import evaluating

BATCH = 512


def evaluate(student: nn.Module, split: Split, augment: Augment, teacher: nn.Module | None = None) -> dict[str, float]:
    """Percent of images: `accuracy` (top 1), `top5` (more than five classes), `agreement` with the teacher's class;
    and `loss`, the mean cross entropy."""
    student_logits = predict(student, split.images, augment)
    classes = student_logits.argmax(1)
    metrics = {
        "accuracy": _percent(classes == split.labels),
        "loss": F.cross_entropy(student_logits.double(), split.labels).item(),
    }
    if student_logits.shape[1] > 5:
        best = student_logits.topk(5, dim=1).indices
        metrics["top5"] = _percent((best == split.labels[:, None]).any(1))
    if teacher is not None:
        teacher_classes = predict(teacher, split.images, augment).argmax(1)
        metrics["teacher_accuracy"] = _percent(teacher_classes == split.labels)
        metrics["agreement"] = _percent(classes == teacher_classes)
    return metrics


def correlation_difference(student: nn.Module, teacher: nn.Module, split: Split, augment: Augment) -> Tensor:
    """How the student's logits correlate across classes, minus how the teacher's do, [K, K], float64 (Tian et al., CRD,
    ICLR 2020, figure 3). A class whose logit never changes correlates with none."""
    matrices = [_correlation(predict(network, split.images, augment).double()) for network in (student, teacher)]
    return matrices[0] - matrices[1]


def _correlation(logits: Tensor) -> Tensor:
    """Pearson's, of columns: [N, K] -> [K, K]."""
    unit = F.normalize(logits - logits.mean(0), dim=0)
    return unit.T @ unit


def predict(model: nn.Module, images: Tensor, augment: Augment) -> Tensor:
    """Logits [N, K] of uint8 images [N, C, S, S], not augmented, in eval mode, float32."""
    with evaluating(model):
        return torch.cat([model(augment.normalise(part)).logits.float() for part in images.split(BATCH)])


def _percent(hits: Tensor) -> float:
    return 100.0 * hits.double().mean().item()
