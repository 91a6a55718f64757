"""Optimisers and their learning rates."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from kd.settings.run import Training


def sgd(modules: Iterable[nn.Module], training: Training) -> torch.optim.SGD:
    """SGD over all parameters of the modules; the learning rate is set by `set_lr` at each epoch."""
    parameters = [parameter for module in modules for parameter in module.parameters()]
    options = {"momentum": training.momentum, "nesterov": training.nesterov, "weight_decay": training.weight_decay}
    return torch.optim.SGD(parameters, lr=training.lr, fused=True, **options)


def adam(groups: list[dict[str, Any]], betas: tuple[float, float]) -> torch.optim.Adam:
    """Adam over parameter groups, each with its own `lr`."""
    return torch.optim.Adam(groups, betas=betas, fused=True)


def learning_rate(training: Training, epoch: int) -> float:
    """Learning rate of an epoch (from 0): a function of the epoch alone, so that nothing of it needs saving."""
    if training.schedule == "steps":
        return training.lr * training.gamma ** sum(epoch >= milestone for milestone in training.milestones)
    cosine = 0.5 * (1 + math.cos(math.pi * epoch / training.epochs))
    return training.final_lr + (training.lr - training.final_lr) * cosine


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def _leave_dynamo_out() -> None:
    """Spare every job the 2 seconds in which torch's first optimiser imports torch._dynamo.

    These methods are marked as not to be compiled, and the mark is set up on their first call. kd compiles no
    optimiser, so each may stand for its own unmarked self. Where torch is built otherwise, nothing happens.
    """
    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
        original = getattr(getattr(torch.optim.Optimizer, name), "__wrapped__", None)
        if original is not None and not hasattr(original, "__dynamo_disable"):
            original.__dynamo_disable = original


_leave_dynamo_out()
