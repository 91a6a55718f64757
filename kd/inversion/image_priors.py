"""What DeepInversion and CMI ask of images besides the priors that Fast has. Pure formulas."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def total_variation_l2(images: Tensor) -> Tensor:
    """Return the sum of ||d||_2 over the four kinds of neighbours, [], of images [B, C, H, W]:

        d: differences of all pixels of the batch to the right, the lower, the lower left and the lower right neighbour

    (Yin et al., Dreaming to Distill, CVPR 2020, R_TV, as its code for CIFAR-10 has it.)
    """
    return sum(torch.linalg.vector_norm(differences) for differences in _neighbours(images))


def total_variation_l1(images: Tensor) -> Tensor:
    """Return the sum of mean |d| over the same four kinds of neighbours, [], of images [B, C, H, W]."""
    return sum(differences.abs().mean() for differences in _neighbours(images))


def _neighbours(images: Tensor) -> list[Tensor]:
    """Return the differences to the right, lower, lower left and lower right neighbour."""
    return [
        images[..., :-1] - images[..., 1:],
        images[..., :-1, :] - images[..., 1:, :],
        images[..., :-1, 1:] - images[..., 1:, :-1],
        images[..., :-1, :-1] - images[..., 1:, 1:],
    ]


def pixel_norm(images: Tensor) -> Tensor:
    """Return R_l2 = ||x||_2 over all pixels of a batch [B, C, H, W], [] (Yin et al., CVPR 2020)."""
    return torch.linalg.vector_norm(images)


def competition_loss(teacher_logits: Tensor, student_logits: Tensor, temperature: float) -> Tensor:
    """Return R_compete per sample, [B], which is small where both networks [B, K] disagree:

        1 - JS(p, q),  JS(p, q) = (KL(p || m) + KL(q || m)) / 2,  m = (p + q) / 2,  p, q = softmax(logits / temperature)

    (Yin et al., CVPR 2020, eq. 8: Adaptive DeepInversion). It lies between 1 - log 2 and 1. Computed in log space.
    """
    logs = [(logits.float() / temperature).log_softmax(1) for logits in (teacher_logits, student_logits)]
    middle = torch.logaddexp(*logs) - math.log(2)
    return 1 - sum((log.exp() * (log - middle)).sum(1) for log in logs) / 2


def contrastive_loss(anchors: Tensor, others: Tensor, temperature: float, counted: Tensor) -> Tensor:
    """Return InfoNCE per anchor, [N] (Fang et al., Contrastive Model Inversion, IJCAI 2021, as its code has it):

        -log( exp(a_i . o_i / temperature) / sum over j of counted_j exp(a_i . o_j / temperature) )

    anchors, others: [N, D], two views of each of N images, on the unit sphere; counted: [N] bool. What is not counted
    is nobody's negative, and has a loss without meaning.
    """
    scores = anchors @ others.T / temperature
    return scores.masked_fill(~counted, -math.inf).logsumexp(1) - scores.diagonal()
