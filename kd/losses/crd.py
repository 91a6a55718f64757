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
from kd.losses.base import Loss

EPS = 1e-7  # of the NCE equation
FULL_PRODUCT = 2**28  # dot products held at once (1 GiB); above, only those of the drawn rows are computed
CHUNK = 2**24  # numbers of drawn rows held at once (64 MiB)
NEVER = -1e9  # logit of a queue's entry that is no negative: its score is 0, and gradients stay finite


def nce_loss(positive_score: Tensor, negative_scores: Tensor, num_negatives: int | Tensor, num_samples: int) -> Tensor:
    """Return the noise-contrastive estimation of one side: [B], [B, K] -> [B].

    With scores P = exp(g_T.g_S / tau) / Z, K negatives and the noise density Pn = 1/M over M samples:

        L = - log( P_pos / (P_pos + K Pn + eps) ) - sum_k log( K Pn / (P_k + K Pn + eps) )

    which is the paper's - log h(pos) - sum_k log(1 - h(neg_k)). A negative's term is of order 1/K, so the logarithms
    are computed as log1p of a ratio; the literal form loses its digits in float32. With `num_negatives` [B], each row
    has that many negatives, and its scores of 0 are none.
    """
    noise = num_negatives / num_samples
    positive = torch.log1p((noise + EPS) / positive_score)
    if isinstance(noise, float):
        return positive + torch.log1p((negative_scores + EPS).div_(noise)).sum(1)
    negatives = torch.log1p((negative_scores + EPS) / noise.clamp_min(EPS)[:, None])
    return positive + torch.where(negative_scores > 0, negatives, 0.0).sum(1)


def infonce_loss(positive_logit: Tensor, negative_logits: Tensor) -> Tensor:
    """Return InfoNCE of one side, cross entropy of the positive among K + 1 logits g_T.g_S / tau: [B], [B, K] -> [B].

    van den Oord, Li, Vinyals, Representation Learning with Contrastive Predictive Coding, 2018.
    """
    return F.softplus(negative_logits.logsumexp(1) - positive_logit)


class CRD(Loss):
    """The contrast of student and teacher, summed over both sides as anchor: [B].

    The penultimate features pass a linear embedding and L2 normalisation; both embeddings are trainable and belong to
    the student's optimiser. An anchor is scored against rows of the *other* side's memory bank [M, feat_dim],
    whose row i belongs to training sample i; afterwards the batch's rows of both banks move towards its embeddings.

    With `memory: queue` each side keeps the last `negatives` embeddings instead, whatever the size of the data. The
    batch enters first: the positive is a sample's embedding on the other side, negatives are all entries of other
    classes (or samples), at first only those of the batch. So every score, and Z, is one of two embeddings.

    `logged` holds `bound`, log K - L with L the mean loss of a side and K the mean number of negatives. With negatives
    of other indices and an optimal critic, teacher and student share at least that much information, in nats (the
    paper's eq. 10). Negatives of other classes are not drawn from the product of the marginals: then it is no bound.

    Args:
        context: feature widths, the class of each of the M training samples, the generator of every random draw.
        embedding: `linear`, or `none`: the features themselves, which must be equally wide.
        feat_dim: width of the linear embeddings.
        negatives: K per anchor, drawn with replacement, so K may exceed M; with a queue, its length.
        tau: temperature of the scores.
        momentum: share that a bank row keeps in an update; a queue has none.
        memory: `bank`, a row per training sample, or `queue`.
        negatives_from: `other_classes` (supervised) or `other_indices` (unsupervised).
        positive: `exact`, the same sample; `relax`, a random one of its class (with `other_classes` only).
        estimator: `nce` (the paper's) or `infonce`.

    Raises:
        ValueError: features of unlike widths have no embedding, or the training samples leave no negative to draw.
    """

    def __init__(
        self,
        context: LossContext,
        *,
        embedding: Literal["linear", "none"] = "linear",
        feat_dim: int = 128,
        negatives: int = 16384,
        tau: float = 0.07,
        momentum: float = 0.5,
        negatives_from: Literal["other_classes", "other_indices"] = "other_classes",
        positive: Literal["exact", "relax"] = "exact",
        estimator: Literal["nce", "infonce"] = "nce",
        memory: Literal["bank", "queue"] = "bank",
    ) -> None:
        super().__init__()
        self.negatives = negatives
        self.tau = tau
        self.momentum = momentum
        self.positive = positive
        self.estimator = estimator
        self.generator = context.generator
        self.num_samples = len(context.labels)
        self.memory = memory
        self.logged: dict[str, Tensor] = {"bound": torch.zeros((), device=context.labels.device)}

        def uniform(*size: int, bound: float) -> Tensor:
            empty = torch.empty(size, device=context.labels.device)
            return empty.uniform_(-bound, bound, generator=context.generator)

        widths = {"student": context.student_dim, "teacher": context.teacher_dim}
        if embedding == "none":
            feat_dim, other = widths.values()
            if feat_dim != other:
                raise ValueError(f"crd: embedding must be linear for features of unlike widths ({feat_dim}, {other})")
        for side, width in widths.items():
            layer: nn.Module = nn.Identity()
            if embedding == "linear":
                layer = nn.Linear(width, feat_dim, device="meta")  # the global random state stays untouched
                layer.weight = nn.Parameter(uniform(feat_dim, width, bound=1 / math.sqrt(width)))
                layer.bias = nn.Parameter(uniform(feat_dim, bound=1 / math.sqrt(width)))
            self.add_module(f"{side}_embedding", layer)
            bank = torch.zeros(negatives, feat_dim, device=context.labels.device)
            if memory == "bank":
                bank = uniform(self.num_samples, feat_dim, bound=1 / math.sqrt(feat_dim / 3))
            self.register_buffer(f"{side}_bank", bank)
            unset = torch.zeros((), device=context.labels.device)
            self.register_buffer(f"{side}_normaliser", unset)  # Z, 0 until the first batch sets it

        # A sample's negatives are all samples outside its group: its class, or only itself. Sorted by group and read in
        # a circle, they are one run that begins where the group ends.
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
        self.register_buffer("group", group, persistent=False)  # [M]
        if memory == "queue":
            self.register_buffer("queue_group", torch.full((negatives,), -1, device=group.device))  # [K], -1: none yet
            self.register_buffer("queue_next", torch.zeros((), dtype=torch.int64, device=group.device))

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        """Return the loss per sample, [B]; also update the memories (and, on the first batch, the normalisers Z)."""
        with torch.autocast(batch.index.device.type, enabled=False):  # exp(dot / tau) needs float32
            anchors = dict(zip(("student", "teacher"), self.project(student, teacher), strict=True))
            if self.memory == "bank":
                positive, drawn = self.draw(batch.index)
            else:
                self.update(anchors, batch.index)
                others = self.queue_group != self.group[batch.index][:, None]
                positive, drawn = None, others & (self.queue_group >= 0)
            loss = torch.zeros(len(batch.index), device=batch.index.device)
            for side, other in (("student", "teacher"), ("teacher", "student")):
                bank = getattr(self, f"{other}_bank")
                positive_row = anchors[other].detach() if positive is None else bank[positive]
                loss = loss + self.contrast(
                    anchors[side], positive_row, bank, getattr(self, f"{side}_normaliser"), drawn
                )
            if self.memory == "bank":
                self.update(anchors, batch.index)
            offered = drawn.sum(1).float().mean().clamp_min(1).log() if positive is None else math.log(self.negatives)
            self.logged["bound"] = offered - loss.detach().mean() / 2
        return loss

    def project(self, student: Output, teacher: Output) -> tuple[Tensor, Tensor]:
        """Return both penultimate features [B, D] embedded on the unit sphere: [B, feat_dim] each."""
        dtype = self.student_bank.dtype
        return (
            F.normalize(self.student_embedding(student.feature.to(dtype))),
            F.normalize(self.teacher_embedding(teacher.feature.to(dtype))),
        )

    def draw(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return the training samples that serve as positive [B] and negatives [B, K] of the samples `index` [B]."""
        end, count = self.group_end[index], self.group_count[index]
        positive = index
        if self.positive == "relax":
            positive = self.order[end - 1 - self._random_below(count, 1).squeeze(1)]
        place = self._random_below(self.num_samples - count, self.negatives).add_(end[:, None])
        return positive, self.order.index_select(0, place.view(-1)).view_as(place)

    def _random_below(self, high: Tensor, num: int) -> Tensor:
        """Return `num` uniform integers in [0, high) for each entry of `high` [B]: [B, num].

        They are remainders of 62-bit draws, whose bias of high / 2^62 is negligible.
        """
        size = (len(high), num)
        return torch.randint(2**62, size, generator=self.generator, device=high.device).remainder_(high[:, None])

    def contrast(self, anchor: Tensor, positive: Tensor, bank: Tensor, normaliser: Tensor, drawn: Tensor) -> Tensor:
        """Return the loss [B] of anchors [B, d] against positives [B, d] and negatives among the bank's rows [M, d].

        drawn: the negatives' rows [B, K] int64, or which rows are negatives, [B, M] bool. All scores come from one
        [B, d] x [d, M] product. So does the gradient: the loss is differentiated down to the K + 1 dot products, whose
        weights are summed per bank row for a [B, M] x [M, d] product. This happens at once rather than in backward, so
        nothing of size K or M outlives the call and the bank may change after it. For a bank so large that the product
        does not fit, the drawn rows are gathered piece by piece.
        """
        rows = _Rows(anchor.detach(), bank, drawn)
        with torch.enable_grad():
            positive_logit = ((anchor.detach() * positive).sum(1) / self.tau).requires_grad_()
            negative_logits = rows.dots().div_(self.tau).requires_grad_()
            count: int | Tensor = self.negatives
            logits = negative_logits
            if drawn.dtype == torch.bool:
                count, logits = drawn.sum(1), logits.masked_fill(~drawn, NEVER)
            if self.estimator == "nce":
                positive_score, negative_scores = positive_logit.exp(), logits.exp()
                self._set_normaliser(normaliser, positive_score, negative_scores, count)
                loss = nce_loss(positive_score / normaliser, negative_scores / normaliser, count, self.num_samples)
            else:
                loss = infonce_loss(positive_logit, logits)
            positive_grad, negative_grad = torch.autograd.grad(loss.sum(), (positive_logit, negative_logits))
        gradient = (rows.weighted(negative_grad) + positive_grad[:, None] * positive).div_(self.tau)
        return _AttachGradient.apply(anchor, loss.detach(), gradient)

    @torch.no_grad()
    def _set_normaliser(
        self, normaliser: Tensor, positive_score: Tensor, negative_scores: Tensor, count: int | Tensor
    ) -> None:
        """Set Z = M * mean score over the first batch, positives included; later batches leave it as it is."""
        total = positive_score.sum() + negative_scores.sum()
        scores = len(positive_score) + (count.sum() if isinstance(count, Tensor) else negative_scores.numel())
        mean = total / scores
        normaliser.copy_(torch.where(normaliser > 0, normaliser, mean * self.num_samples))

    @torch.no_grad()
    def update(self, embeddings: dict[str, Tensor], index: Tensor) -> None:
        """Write the embeddings [B, d] of the samples `index` [B], by side, into both memories, in place.

        A bank's rows move towards them and are normalised again. For a sample that occurs several times in the batch,
        the last embedding counts: each occurrence writes that same row, so the result does not depend on the order of
        the writes. In a queue they replace the oldest entries.
        """
        batch_range = torch.arange(len(index), device=index.device)
        if self.memory == "queue":
            recent = batch_range[-self.negatives :]
            places = (self.queue_next + recent) % self.negatives
            for side, embedding in embeddings.items():
                getattr(self, f"{side}_bank").index_copy_(0, places, embedding.detach()[recent])
            self.queue_group.index_copy_(0, places, self.group[index[recent]])
            self.queue_next.copy_((self.queue_next + len(index)) % self.negatives)
            return
        last = torch.where(index[:, None] == index, batch_range, -1).amax(1)
        for side, embedding in embeddings.items():
            bank = getattr(self, f"{side}_bank")
            moved = self.momentum * bank[index] + (1 - self.momentum) * embedding[last]
            bank.index_copy_(0, index, F.normalize(moved))


class _Rows:
    """The negatives' rows of a bank [M, d], for their dot products with the anchors [B, d]."""

    def __init__(self, anchor: Tensor, bank: Tensor, drawn: Tensor):
        self.anchor, self.bank, self.drawn = anchor, bank, drawn
        self.all = drawn.dtype == torch.bool
        self.full: Tensor | None = None
        if self.all or len(anchor) * len(bank) <= FULL_PRODUCT:
            self.full = anchor @ bank.T  # [B, M]
        self.step = max(1, CHUNK // anchor.numel())  # drawn rows per anchor at a time

    def dots(self) -> Tensor:
        """Return the dot products [B, K], or [B, M] of all rows."""
        if self.full is not None:
            return self.full.clone() if self.all else self.full.gather(1, self.drawn)
        return torch.cat([torch.einsum("bkd,bd->bk", self.bank[rows], self.anchor) for rows in self._pieces()], 1)

    def weighted(self, weight: Tensor) -> Tensor:
        """Return the sum of the rows weighted by [B, K] (or [B, M]): [B, d]."""
        if self.all:
            return weight @ self.bank
        if self.full is not None:  # reuses the memory of the dots
            return self.full.zero_().scatter_add_(1, self.drawn, weight) @ self.bank
        pieces = zip(self._pieces(), weight.split(self.step, 1), strict=True)
        return sum(torch.einsum("bkd,bk->bd", self.bank[rows], part) for rows, part in pieces)

    def _pieces(self) -> tuple[Tensor, ...]:
        return self.drawn.split(self.step, 1)


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
