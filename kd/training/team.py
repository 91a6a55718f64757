"""Several processes that share each step of one run, every one on a device of its own.

Each process draws the same batch, passes its own part of it through the networks, and then has the outputs of all
parts. So every loss sees the whole batch, also those that relate its samples, and memory banks stay equal in all
processes. Batch normalisation uses the statistics of the whole batch. The numbers are those of one process with that
batch, but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map


class Team:
    """The processes of one run; number 0 leads: it alone writes files, sends curves and scores.

    Without torch.distributed, or outside `init_process_group`, it is one process, and nothing here does anything.
    """

    def __init__(self, number: int = 0, size: int = 1):
        self.number, self.size = number, size

    def share(self, network: Callable[..., Any]) -> Callable[..., Any]:
        """Return a network that computes its part of a batch and returns the outputs of the whole batch.

        Gradients flow to the own part only; `synchronise` lets the optimiser add those of the others.
        """
        if self.size == 1:
            return network

        def answer(images: Tensor, **asked: bool) -> Any:
            start, end = self.part(len(images))
            own = network(images[start:end], **asked)
            return tree_map(lambda part: _Whole.apply(part, start, len(images)) if part.numel() else part, own)

        return answer

    def part(self, count: int) -> tuple[int, int]:
        """Return begin and end of this process' part of so many samples; parts differ by one sample at most."""
        return self.number * count // self.size, (self.number + 1) * count // self.size

    def synchronise(self, student: nn.Module, objective: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Let batch normalisation of the student see the whole batch, and the optimiser the gradient of all parts.

        The objective's own gradients are computed from the whole batch in every process; those of the leader count,
        since kernels of a GPU may round in another order.
        """
        if self.size == 1:
            return
        for module in student.modules():
            if isinstance(module, _BatchNorm):
                module.forward = _Normalisation(module)
        summed, led = list(student.parameters()), list(objective.parameters())

        def together(*_: Any) -> None:
            _in_one(summed, dist.all_reduce)
            _in_one(led, lambda flat: dist.broadcast(flat, 0))

        optimizer.register_step_pre_hook(together)

    def release(self, student: nn.Module) -> None:
        """Give the student's batch normalisation its own forward pass back: it is scored, copied and saved as it is."""
        for module in student.modules():
            if isinstance(module.__dict__.get("forward"), _Normalisation):
                del module.forward

    def told(self, value: Any) -> Any:
        """Return the leader's value in every process."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, 0)
        return values[0]


def _in_one(parameters: list[nn.Parameter], exchange: Callable[[Tensor], Any]) -> None:
    """Exchange the gradients of the parameters that have one, in one message."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if gradients:
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        exchange(flat)
        for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))


class _Whole(torch.autograd.Function):
    """The outputs of all parts, [B, ...], from the own one, [b, ...], which belongs at `start`.

    The loss is computed in every process, so the own part's gradient is a cut of what arrives and is not summed.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor, start: int, count: int) -> Tensor:
        ctx.start, ctx.own = start, len(own)
        whole = own.new_zeros((count, *own.shape[1:]))
        whole[start : start + len(own)] = own
        dist.all_reduce(whole)  # zeros but for one part each: parts may differ in size
        return whole

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient[ctx.start : ctx.start + ctx.own], None, None


class _Normalisation:
    """The forward pass of a layer of batch normalisation, in train mode with the statistics of the whole batch."""

    def __init__(self, layer: _BatchNorm):
        self.layer = layer

    def __call__(self, x: Tensor) -> Tensor:
        layer = self.layer
        if not layer.training:
            return type(layer).forward(layer, x)
        count, mean, variance = _statistics(x.detach())
        if layer.track_running_stats:
            layer.num_batches_tracked += 1
            share = 1 / layer.num_batches_tracked if layer.momentum is None else layer.momentum
            layer.running_mean.lerp_(mean.to(layer.running_mean.dtype), share)
            layer.running_var.lerp_((variance * count / (count - 1)).to(layer.running_var.dtype), share)
        return _Normalised.apply(x, layer.weight, layer.bias, count, mean, torch.rsqrt(variance + layer.eps))


def _statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return count [], mean [C] and biased variance [C] over the parts of all processes, for the own one [b, C, ...].

    Chan, Golub, LeVeque, Updating Formulae and a Pairwise Algorithm for Computing Sample Variances, 1979: no
    difference of large squares.
    """
    x, dims = _exact(x), [0, *range(2, x.dim())]
    mean = x.mean(dims)
    own = torch.stack([mean, x.var(dims, correction=0), torch.full_like(mean, x.numel() / len(mean))])
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, own)
    means, variances, counts = torch.stack(parts, 1).double()
    count = counts[:, 0].sum()
    mean = (counts * means).sum(0) / count
    variance = (counts * (variances + (means - mean) ** 2)).sum(0) / count
    return count.to(x.dtype), mean.to(x.dtype), variance.to(x.dtype)


def _exact(x: Tensor) -> Tensor:
    """Return a tensor in float32, or more where it has more: sums of 16 bits would lose digits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _Normalised(torch.autograd.Function):
    """(x - mean) / std * weight + bias, where mean and std are those of the whole batch and depend on x."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, count: Tensor, mean: Tensor, inverse: Tensor
    ) -> Tensor:
        shape = [1, -1, *[1] * (x.dim() - 2)]
        normalised = (_exact(x) - mean.view(shape)) * inverse.view(shape)
        ctx.shape, ctx.kind = shape, x.dtype
        ctx.save_for_backward(normalised, weight, count, inverse)
        scaled = normalised if weight is None else normalised * weight.view(shape)
        return (scaled if bias is None else scaled + bias.view(shape)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        normalised, weight, count, inverse = ctx.saved_tensors
        gradient, dims = _exact(gradient), [0, *range(2, gradient.dim())]
        own = torch.stack([gradient.sum(dims), (gradient * normalised).sum(dims)])
        whole = own.clone()
        dist.all_reduce(whole)
        mean, along = (part.view(ctx.shape) / count for part in whole)
        scale = inverse if weight is None else inverse * weight
        back = (gradient - mean - normalised * along) * scale.view(ctx.shape)
        to_weight, to_bias = (own[1], own[0]) if weight is not None else (None, None)
        return back.to(ctx.kind), to_weight, to_bias, None, None, None
