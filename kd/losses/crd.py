"""Contrastive representation distillation (CRD).

Tian, Krishnan, Isola, Contrastive Representation Distillation, ICLR 2020, section 3.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from kd.batch import Batch, LossContext, Output

EPS = 1e-7  # of the NCE equation


def nce_loss(positive_score: Tensor, negative_scores: Tensor, num_negatives: int, num_samples: int) -> Tensor:
    """Noise-contrastive estimation of one side: [B], [B, K] -> [B].

    With scores P = exp(g_T.g_S / tau) / Z, K negatives and the noise density Pn = 1/M over M samples:

        L = - log( P_pos / (P_pos + K Pn + eps) ) - sum_k log( K Pn / (P_k + K Pn + eps) )

    which is the paper's - log h(pos) - sum_k log(1 - h(neg_k)). A negative's term is of order 1/K, so the logarithms
    are taken as log1p of a ratio; the literal form loses its digits in float32.
    """
    noise = num_negatives / num_samples
    positive = torch.log1p((noise + EPS) / positive_score)
    negatives = torch.log1p((negative_scores + EPS).div_(noise))
    return positive + negatives.sum(1)


def infonce_loss(positive_logit: Tensor, negative_logits: Tensor) -> Tensor:
    """InfoNCE of one side, cross entropy of the positive among K + 1 logits g_T.g_S / tau: [B], [B, K] -> [B].

    van den Oord, Li, Vinyals, Representation Learning with Contrastive Predictive Coding, 2018.
    """
    return F.softplus(negative_logits.logsumexp(1) - positive_logit)


class CRD(nn.Module):
    """Contrast of student and teacher, summed over both sides as anchor: [B].

    The penultimate features pass a linear embedding and L2 normalisation; both embeddings are trainable and belong to
    the student's optimiser. An anchor is scored against rows of the *other* side's memory bank [M, feat_dim],
    row i of which stands for training sample i; afterwards the batch's rows of both banks move towards its embeddings.

    Args:
        context: feature widths, the class of each of the M training samples, the generator of every random draw.
        feat_dim: width of the embeddings.
        negatives: K per anchor, drawn with replacement, so K may exceed M.
        tau: temperature of the scores.
        momentum: share that a bank row keeps in an update.
        negatives_from: `other_classes` (supervised) or `other_indices` (unsupervised).
        positive: `exact`, the same sample; `relax`, a random one of its class (with `other_classes` only).
        estimator: `nce` (the paper's) or `infonce`.

    Raises:
        ValueError: a setting is out of range, or the training samples leave no negative to draw.
    """

    def __init__(
        self,
        context: LossContext,
        *,
        feat_dim: int = 128,
        negatives: int = 16384,
        tau: float = 0.07,
        momentum: float = 0.5,
        negatives_from: Literal["other_classes", "other_indices"] = "other_classes",
        positive: Literal["exact", "relax"] = "exact",
        estimator: Literal["nce", "infonce"] = "nce",
    ) -> None:
        super().__init__()
        _require(feat_dim >= 1, "feat_dim", feat_dim, "at least 1")
        _require(negatives >= 1, "negatives", negatives, "at least 1")
        _require(tau > 0, "tau", tau, "above 0")
        _require(0 <= momentum < 1, "momentum", momentum, "at least 0 and below 1")
        _require_one_of("negatives_from", negatives_from, "other_classes", "other_indices")
        _require_one_of("positive", positive, "exact", "relax")
        _require_one_of("estimator", estimator, "nce", "infonce")
        if (
            negatives_from == "other_indices"
        ):  # negatives may share the class, so a relaxed positive could be one of them
            _require(positive == "exact", "positive", positive, "exact when negatives_from is other_indices")

        self.negatives = negatives
        self.tau = tau
        self.momentum = momentum
        self.positive = positive
        self.estimator = estimator
        self.generator = context.generator
        self.num_samples = len(context.labels)

        def uniform(*size: int, bound: float) -> Tensor:
            empty = torch.empty(size, device=context.labels.device)
            return empty.uniform_(-bound, bound, generator=context.generator)

        for side, width in (("student", context.student_dim), ("teacher", context.teacher_dim)):
            embedding = nn.Linear(width, feat_dim, device="meta")  # the global random state stays untouched
            embedding.weight = nn.Parameter(uniform(feat_dim, width, bound=1 / math.sqrt(width)))
            embedding.bias = nn.Parameter(uniform(feat_dim, bound=1 / math.sqrt(width)))
            self.add_module(f"{side}_embedding", embedding)
            self.register_buffer(f"{side}_bank", uniform(self.num_samples, feat_dim, bound=1 / math.sqrt(feat_dim / 3)))
            unset = torch.zeros((), device=context.labels.device)
            self.register_buffer(f"{side}_normaliser", unset)  # Z, 0 until the first batch sets it

        # A sample's negatives are all samples outside its group: its class, or itself alone. Sorted by group and read
        # in a circle, they are one run that begins where the group ends.
        group = context.labels
        if negatives_from == "other_indices":
            group = torch.arange(self.num_samples, device=group.device)
        count = torch.bincount(group)
        if count.max() == self.num_samples:
            raise ValueError(
                f"crd: negatives_from: {negatives_from} finds no negatives: the training set ({self.num_samples} "
                "samples) must hold at least two " + negatives_from.removeprefix("other_")
            )
        order = group.argsort(stable=True)
        self.register_buffer("order", torch.cat([order, order]), persistent=False)  # [2M], the circle unrolled
        self.register_buffer("group_end", count.cumsum(0)[group], persistent=False)  # [M], place after its group
        self.register_buffer("group_count", count[group], persistent=False)  # [M]

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        """Loss per sample, [B]; also updates the memory banks (and, on the first batch, the normalisers Z)."""
        with torch.autocast(batch.index.device.type, enabled=False):  # exp(dot / tau) needs float32
            student_anchor, teacher_anchor = self.project(student, teacher)
            positive, negatives = self.draw(batch.index)
            student_loss = self.contrast(
                student_anchor, self.teacher_bank, self.student_normaliser, positive, negatives
            )
            teacher_loss = self.contrast(
                teacher_anchor, self.student_bank, self.teacher_normaliser, positive, negatives
            )
            self.update(self.student_bank, student_anchor, batch.index)
            self.update(self.teacher_bank, teacher_anchor, batch.index)
        return student_loss + teacher_loss

    def project(self, student: Output, teacher: Output) -> tuple[Tensor, Tensor]:
        """Both penultimate features [B, D] embedded on the unit sphere: [B, feat_dim] each."""
        dtype = self.student_bank.dtype
        return (
            F.normalize(self.student_embedding(student.feature.to(dtype))),
            F.normalize(self.teacher_embedding(teacher.feature.to(dtype))),
        )

    def draw(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Training samples that serve as positive [B] and negatives [B, K] of the samples `index` [B]."""
        end, count = self.group_end[index], self.group_count[index]
        positive = index
        if self.positive == "relax":
            positive = self.order[end - 1 - self._random_below(count, 1).squeeze(1)]
        place = self._random_below(self.num_samples - count, self.negatives).add_(end[:, None])
        return positive, self.order.index_select(0, place.view(-1)).view_as(place)

    def _random_below(self, high: Tensor, num: int) -> Tensor:
        """`num` uniform integers in [0, high) for each entry of `high` [B]: [B, num].

        The remainder of a 62-bit draw, whose bias of high / 2^62 is negligible.
        """
        size = (len(high), num)
        return torch.randint(2**62, size, generator=self.generator, device=high.device).remainder_(high[:, None])

    def contrast(self, anchor: Tensor, bank: Tensor, normaliser: Tensor, positive: Tensor, negatives: Tensor) -> Tensor:
        """Loss [B] of the anchors [B, d] against rows `positive` [B] and `negatives` [B, K] of the bank [M, d].

        All scores come from one [B, d] x [d, M] product. So does the gradient: the loss is differentiated down to the
        K + 1 dot products, whose weights are summed per bank row for a [B, M] x [M, d] product. This happens at once
        rather than in backward, so nothing of size K or M outlives the call and the bank may change after it.
        """
        dots = anchor.detach() @ bank.T  # [B, M]
        with torch.enable_grad():
            positive_logit = (dots.gather(1, positive[:, None]).squeeze(1) / self.tau).requires_grad_()
            negative_logits = dots.gather(1, negatives).div_(self.tau).requires_grad_()
            if self.estimator == "nce":
                positive_score, negative_scores = positive_logit.exp(), negative_logits.exp()
                self._set_normaliser(normaliser, positive_score, negative_scores)
                loss = nce_loss(
                    positive_score / normaliser, negative_scores / normaliser, self.negatives, self.num_samples
                )
            else:
                loss = infonce_loss(positive_logit, negative_logits)
            positive_grad, negative_grad = torch.autograd.grad(loss.sum(), (positive_logit, negative_logits))
        weights = dots.zero_().scatter_add_(1, negatives, negative_grad)  # in the place of the dots
        weights.scatter_add_(1, positive[:, None], positive_grad[:, None])
        return _AttachGradient.apply(anchor, loss.detach(), (weights @ bank).div_(self.tau))

    @torch.no_grad()
    def _set_normaliser(self, normaliser: Tensor, positive_score: Tensor, negative_scores: Tensor) -> None:
        """Z = M * mean score over the first batch, positives included; a constant ever after."""
        total = positive_score.sum() + negative_scores.sum()
        mean = total / (positive_score.numel() + negative_scores.numel())
        normaliser.copy_(torch.where(normaliser > 0, normaliser, mean * self.num_samples))

    @torch.no_grad()
    def update(self, bank: Tensor, embedding: Tensor, index: Tensor) -> None:
        """Move the bank's rows `index` [B] towards the embeddings [B, d] and normalise them again, in place.

        A sample that the batch holds several times takes its last embedding: each of its entries writes that same
        row, so the result does not depend on the order of the writes.
        """
        batch_range = torch.arange(len(index), device=index.device)
        last = torch.where(index[:, None] == index, batch_range, -1).amax(1)
        moved = self.momentum * bank[index] + (1 - self.momentum) * embedding[last]
        bank.index_copy_(0, index, F.normalize(moved))


class _AttachGradient(torch.autograd.Function):
    """The loss [B], with its known gradient [B, d] with respect to the anchors [B, d]."""

    @staticmethod
    def forward(ctx, anchor: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return grad_loss[:, None] * gradient, None, None


def _require(holds: bool, key: str, value: object, allowed: str) -> None:
    if not holds:
        raise ValueError(f"crd: {key} must be {allowed}; got {value!r}")


def _require_one_of(key: str, value: str, *allowed: str) -> None:
    _require(value in allowed, key, value, "one of " + ", ".join(allowed))
