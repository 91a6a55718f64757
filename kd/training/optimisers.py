"""Optimisers and their learning rates."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

import kd.runtime.quick_optimisers  # noqa: F401
from kd.settings.shapes import Training


def sgd(modules: Iterable[nn.Module], training: Training) -> torch.optim.SGD:
    """Return SGD over all parameters of the modules; `set_lr` sets its learning rate, a tensor [], at each epoch."""
    parameters = [parameter for module in modules for parameter in module.parameters()]
    options = {"momentum": training.momentum, "nesterov": training.nesterov, "weight_decay": training.weight_decay}
    on_gpu = parameters[0].device.type == "cuda"  # whose fused kernel reads float32; the CPU's takes all digits
    lr = torch.tensor(training.lr, dtype=torch.float32 if on_gpu else torch.float64, device=parameters[0].device)
    return torch.optim.SGD(parameters, lr=lr, fused=True, **options)


def learning_rate(training: Training, epoch: int) -> float:
    """Return the learning rate of an epoch (from 0): a function of the epoch only, so that no checkpoint needs it."""
    if training.schedule == "steps":
        return training.lr * training.gamma ** sum(epoch >= milestone for milestone in training.milestones)
    done = epoch / training.epochs
    left = (1 - done) ** 0.9 if training.schedule == "poly" else 0.5 * (1 + math.cos(math.pi * done))
    return training.final_lr + (training.lr - training.final_lr) * left


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all parameters, in place: a captured step goes on with it."""
    for group in optimizer.param_groups:
        group["lr"] = group["lr"].to(group["params"][0].device)  # a checkpoint's is on the CPU
        group["lr"].fill_(lr)
