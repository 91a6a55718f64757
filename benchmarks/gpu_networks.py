"""Candidates for a faster student step, each a function of networks, for gpu_steps.py to time: BatchNorm, ReLU and
casts are more than half of the GPU's time. Predictions stand in docs/gpu.md. None of them is used by runs.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from kd.models.classifier import Classifier


def folded(teacher: Classifier) -> Classifier:
    """Return a copy of a frozen teacher in eval mode: BatchNorm that only follows a convolution is part of it.

    Exact up to rounding: W' = W g / s and b' = b + beta - m g / s, with s = sqrt(variance + eps). In a wide residual
    network that is bn2 of each block; its other normalisations come after a sum, which nothing can take over.
    Raises NameError for networks that torch.fx cannot trace (VGG, MobileNetV2).
    """
    copied = copy.deepcopy(teacher).eval().requires_grad_(False)
    graph = fx.Tracer().trace(copied, {"maps": True, "signed": True})  # a map that is asked for stays what it is
    modules = dict(copied.named_modules())
    for node in graph.nodes:
        if node.op != "call_module" or not isinstance(modules[node.target], nn.BatchNorm2d):
            continue
        (before,) = node.all_input_nodes
        single = before.op == "call_module" and len(before.users) == 1
        if single and isinstance(modules[before.target], nn.Conv2d):
            copied.set_submodule(before.target, fuse_conv_bn_eval(modules[before.target], modules[node.target]))
            copied.set_submodule(node.target, nn.Identity())
    return copied


def cast_once(teacher: Classifier) -> Classifier:
    """Return a copy of a frozen teacher whose convolutions and linear layers are in bf16: autocast casts them no more.

    Statistics and factors of BatchNorm stay float32, as under autocast, so the answers are the same bits.
    """
    copied = copy.deepcopy(teacher).eval().requires_grad_(False)
    for module in copied.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.to(torch.bfloat16)
    return copied


class HalfBatchNorm(nn.BatchNorm2d):
    """BatchNorm of bf16 maps as float16, which torch gives to cuDNN; bf16 it computes by kernels of its own.

    A map beyond 65,504 becomes infinite, so this is right only for maps that stay below, as those of convolutions with
    sound weights do.
    """

    def forward(self, input: Tensor) -> Tensor:
        return (
            super().forward(input.half()).to(input.dtype) if input.dtype == torch.bfloat16 else super().forward(input)
        )


class FullBatchNorm(nn.BatchNorm2d):
    """BatchNorm of bf16 maps as float32, by cuDNN: twice the bytes, but its kernels."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.float()).to(input.dtype)


def with_batchnorm(network: nn.Module, kind: type[nn.BatchNorm2d]) -> nn.Module:
    """Return a copy of a network with another BatchNorm, with the same state dict."""
    copied = copy.deepcopy(network)
    for module in copied.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = kind
    return copied


def backend(maps: Tensor, norm: nn.BatchNorm2d) -> str:
    """Return which kernels torch chooses for BatchNorm of these maps in training: Native, Cudnn, Miopen."""
    given: tuple[Any, ...] = (maps, norm.weight, norm.bias, norm.running_mean, norm.running_var, True, norm.eps)
    return torch._C._select_batch_norm_backend(*given).name
