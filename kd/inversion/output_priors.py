"""What a generator may optimise in the outputs of teacher and student: confidence, activation, balance, divergence.

Pure formulas: teacher and student [B, K] logits, or the teacher's penultimate features, to a loss [].
"""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional as F

from kd.losses.kd import kl_divergence


def confidence_loss(teacher_logits: Tensor) -> Tensor:
    """Return the one-hot loss, []: cross entropy of the teacher's logits [B, K] against its own predictions

        L_oh = mean over samples of -log max_k p_k

    (Chen et al., Data-Free Learning of Student Networks, ICCV 2019).
    """
    return -F.log_softmax(teacher_logits.float(), 1).amax(1).mean()


def activation_loss(features: Tensor) -> Tensor:
    """Return the activation loss, []: minus the mean absolute value of the teacher's penultimate features [B, D]

        L_a = -1 / (B D) * sum over samples and features of |f|

    (Chen et al., ICCV 2019, divided by D as in the paper's code).
    """
    return -features.float().abs().mean()


def balance_loss(teacher_logits: Tensor) -> Tensor:
    """Return the information-entropy loss, []: minus the entropy, in nats, of the batch's mean prediction

        L_ie = sum over k of m_k log m_k,    m = mean over samples of softmax(logits [B, K])

    (Chen et al., ICCV 2019; Choi et al., Data-Free Network Quantization with Adversarial Knowledge Distillation, CVPRW
    2020). It lies between -log K, where all classes are predicted equally often, and 0. Computed in log space, so that
    a class of probability 0 gives no NaN.
    """
    log_mean = F.log_softmax(teacher_logits.float(), 1).logsumexp(0) - math.log(len(teacher_logits))
    return (log_mean.exp() * log_mean).sum()


def divergence_loss(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """Return minus the divergence of the student from the teacher, []; logits [B, K]

        L_adv = -mean over samples of KL(teacher || student) at temperature 1

    (Micaelli and Storkey, Zero-shot Knowledge Transfer via Adversarial Belief Matching, NeurIPS 2019). All samples
    count, also those on which both disagree about the class; `priors.adversarial_loss` leaves these out.
    """
    return -kl_divergence(teacher_logits, student_logits, 1.0).mean()
