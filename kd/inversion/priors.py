"""What inversion optimises: BatchNorm statistics, classes, disagreement. Pure formulas, and the hooks for them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from kd.batch import per_sample
from kd.losses.kd import kl_divergence
from kd.runtime.messages import ConfigError

Statistics = list[tuple[Tensor, Tensor]]  # per BatchNorm layer: mean [C] and biased variance [C]


class _ChannelStatistics(torch.autograd.Function):
    """Uses BatchNorm's own kernel and a backward pass of one operation: both are many times faster than var_mean's."""

    @staticmethod
    def forward(ctx, maps: Tensor) -> tuple[Tensor, Tensor]:
        # GPUs return the statistics of bf16 maps in float32; CPUs would round them
        values = maps.float() if maps.dtype == torch.bfloat16 and not maps.is_cuda else maps
        mean, variance = torch.batch_norm_update_stats(values, None, None, 0.0)
        ctx.save_for_backward(maps, mean)
        return mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_mean: Tensor, grad_variance: Tensor) -> Tensor:
        """Return (grad_mean + 2 grad_variance (x - mean)) / n, computed as x * slope + offset."""
        maps, mean = ctx.saved_tensors
        count = maps.numel() / len(mean)
        slope = grad_variance * (2 / count)
        offset = grad_mean / count - slope * mean
        gradient = torch.empty_like(maps)  # rounded to bf16 only here, without a float32 copy
        return torch.addcmul(offset[:, None, None], maps, slope[:, None, None], out=gradient)


def channel_statistics(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean [C] and biased variance [C] of maps [B, C, H, W] over all but the channels.

    Those of bf16 maps are float32.
    """
    return _ChannelStatistics.apply(maps)


class BatchStatistics:
    """Context manager that notes mean and biased variance of the input of every BatchNorm2d layer of a network.

    The hooks exist only inside the `with` block and cost nothing elsewhere. Raises ConfigError for a network that has
    no such layer.
    """

    def __init__(self, network: nn.Module):
        self.layers = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
        if not self.layers:
            name = getattr(network, "known_as", type(network).__name__)
            raise ConfigError(
                f"teacher.model: {name} has no BatchNorm2d layer; data-free methods learn from its statistics what the "
                "training images were like: take another teacher"
            )
        self._noted: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def __enter__(self) -> BatchStatistics:
        self._handles = [layer.register_forward_pre_hook(self._note) for layer in self.layers]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _note(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._noted[layer] = channel_statistics(inputs[0])

    def collect(self) -> Statistics:
        """Return the statistics of the last forward pass, in the order of `layers`, and forget them."""
        noted, self._noted = self._noted, {}
        return [noted[layer] for layer in self.layers]


def blend(past: Statistics, batch: Statistics, momentum: Tensor | float) -> Statistics:
    """Return momentum * past + (1 - momentum) * batch (Fang et al., AAAI 2022), with the gradients of the batch.

    At momentum 0, while there is no past yet, these are the batch's own.
    """
    return [
        tuple(momentum * old + (1 - momentum) * new for old, new in zip(before, now, strict=True))
        for before, now in zip(past, batch, strict=True)
    ]


def batchnorm_loss(layers: list[nn.BatchNorm2d], statistics: Statistics) -> Tensor:
    """Return the distance of statistics (m, v) to the running ones, []:

        L_BN = sum over layers of ||running_mean - m||_2 + ||running_var - v||_2

    (Yin et al., Dreaming to Distill, CVPR 2020, eq. 4).
    """
    total = torch.zeros((), device=statistics[0][0].device)
    for layer, (mean, variance) in zip(layers, statistics, strict=True):
        total = total + torch.linalg.vector_norm(layer.running_mean - mean)
        total = total + torch.linalg.vector_norm(layer.running_var - variance)
    return total


def class_loss(teacher_logits: Tensor, targets: Tensor) -> Tensor:
    """Return L_Task: cross entropy of the teacher's logits [B, K] against the classes asked for [B], per sample [B].

    Of segmentation, [B, K, H, W] against [B, H, W], it is the mean over an image's pixels.
    """
    return per_sample(F.cross_entropy(teacher_logits.float(), targets, reduction="none"))


def adversarial_loss(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """Return L_adv = -KL(teacher || student) at temperature 1 where both agree on the class, else 0, per sample [B].

    Of segmentation (logits [B, K, H, W]) it is the mean over an image's pixels.
    """
    agree = teacher_logits.argmax(1) == student_logits.argmax(1)
    return per_sample(-kl_divergence(teacher_logits, student_logits, 1.0) * agree)
