"""Distillation of feature maps compressed by singular value decomposition (KD-SVD).

Lee, Kim, Song, Self-supervised Knowledge Distillation Using Singular Value Decomposition, ECCV 2018, without its
self-supervised branch, as in the study of Tian, Krishnan, Isola (CRD), ICLR 2020.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kd.batch import Batch, Output
from kd.losses.maps import at_least_float32

SPARE = 3  # singular vectors that the student offers beyond the teacher's k
DAMPING = 1e-5  # of the gradient, as a share of the largest squared singular value


def kdsvd(student: Output, teacher: Output, batch: Batch, *, k: int = 1) -> Tensor:
    """Return the difference in how the leading singular vectors of successive stages (not the stem) correlate: [B].

    Each sample's map [C, H, W] is read as a matrix HW x C. V_l [C_l, k] holds the teacher's first k right singular
    vectors of stage l; the student's are those of its first k + 3 that are nearest to them, up to sign. Both are scaled
    by the teacher's singular values, divided by their L2 norm (1 at k = 1). Then, with
    r(V)_abj = exp(-(V_l[a, j] - V_l-1[b, j])^2 / 8):

        L = sum over l >= 2, a, b, j of  (r(V_student) - r(V_teacher))^2

    The sign of a singular vector is arbitrary, but L depends on the signs of a stage and its neighbour: the teacher's
    vectors are turned so that their components sum to at least 0, as they do wherever a map follows a ReLU.

    The derivative of a singular vector has the poles 1 / (s_i^2 - s_j^2). They are damped to x / (x^2 + d^2) with
    d = 1e-5 s_1^2, so that equal singular values, or a map of zeros, leave the gradient finite. It is a gradient of
    first order only. The decomposition makes the host wait for the GPU.
    """
    student_maps, teacher_maps = student.maps[1:], teacher.maps[1:]
    with torch.autocast(student.logits.device.type, enabled=False):
        stages = [_aligned(s, t, k) for s, t in zip(student_maps, teacher_maps, strict=True)]
        total = 0
        for (s, t), (s_before, t_before) in zip(stages[1:], stages, strict=False):
            total = total + (_correlation(s, s_before) - _correlation(t, t_before)).square().sum((1, 2, 3))
    return total


def right_singular_vectors(x: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """Return the largest `num` singular values and their right vectors: [B, N, C] -> [B, num], [B, C, num].

    The vectors have arbitrary signs. At most N or C are returned: the rest is the null space. Only the vectors carry a
    gradient, the damped one.
    """
    num = min(num, *x.shape[1:])
    wide = x.shape[2] > x.shape[1]
    with torch.no_grad():
        squares, vectors = torch.linalg.eigh(x @ x.mT if wide else x.mT @ x)  # s^2, ascending
        squares, vectors = squares.flip(1).clamp(min=0), vectors.flip(2)
        scale = squares[:, :1, None].clamp(min=torch.finfo(squares.dtype).tiny)
        if wide:  # from left to right vectors; those of (nearly) no length belong to the null space
            known = squares[:, None] > torch.finfo(squares.dtype).eps * scale
            vectors = torch.where(known, F.normalize(x.mT @ vectors, dim=1), 0.0)
        top = vectors[:, :, :num]
        response = _damped((squares[:, None, :num] - squares[:, :, None]) / scale) / scale  # [B, number of v, num]
        beyond = _damped(squares[:, None, :num] / scale) / scale  # [B, 1, num], in the null space
    # First-order perturbation: dv_j = sum over i of v_i (v_i^T d(x^T x) v_j) / (s_j^2 - s_i^2). `change` is 0.
    change = x.mT @ (x @ top)
    change = change - change.detach()
    along = vectors.mT @ change
    moved = vectors @ (response * along)
    if wide:  # the null space needs no basis: its part of the change is what the vectors leave
        moved = moved + beyond * (change - vectors @ along)
    return squares[:, :num].sqrt(), top + moved


def _damped(gaps: Tensor) -> Tensor:
    """Return 1 / gaps without its pole."""
    return gaps / (gaps.square() + DAMPING**2)


def _aligned(student: Tensor, teacher: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the scaled singular vectors of student and teacher, [B, C, k] each, of one stage's maps [B, C, H, W]."""
    with torch.no_grad():
        values, t = right_singular_vectors(_matrix(teacher), k)
        t = torch.where(t.sum(1, keepdim=True) < 0, -t, t)
        weight = F.normalize(values)[:, None]
    _, s = right_singular_vectors(_matrix(student), k + SPARE)
    cosine = s.detach().mT @ t  # [B, k + 3, k]
    nearest = cosine.abs().argmax(1, keepdim=True)  # [B, 1, k]
    s = s.gather(2, nearest.expand(-1, s.shape[1], -1)) * cosine.gather(1, nearest).sign()
    return s * weight, t * weight


def _matrix(map_: Tensor) -> Tensor:
    """Return [B, C, H, W] as matrices [B, HW, C]."""
    return at_least_float32(map_).flatten(2).mT


def _correlation(vectors: Tensor, before: Tensor) -> Tensor:
    """Return the radial basis function of two stages' vectors: [B, C, k], [B, C', k] -> [B, C, C', k]."""
    return torch.exp(-(vectors[:, :, None] - before[:, None]).square() / 8)
