"""What the losses on intermediate maps [B, C, H, W] share."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d, nn.ConvTranspose2d)


def at_least_float32(x: Tensor) -> Tensor:
    """Return half-precision values raised to float32, float32 and float64 as they are.

    Autocast would lower them again in a matrix product: a loss that has one runs it with autocast off.
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))


def pool_to_smaller(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return maps [B, C, H, W] and [B, C', H', W'] averaged to the smaller height and width of the two."""
    size = (min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3]))
    a, b = (x if x.shape[2:] == size else F.adaptive_avg_pool2d(x, size) for x in (a, b))
    return a, b


def linear(
    in_features: int, out_features: int, *, generator: torch.Generator, device: torch.device, bias: bool = True
) -> nn.Linear:
    """Return `nn.Linear` with torch's default initial weights, drawn only from `generator`."""
    return _draw(nn.Linear(in_features, out_features, bias, device="meta"), generator, device)


def conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    generator: torch.Generator,
    device: torch.device,
    stride: int = 1,
    padding: int = 0,
    bias: bool = True,
    transposed: bool = False,
) -> nn.Conv2d | nn.ConvTranspose2d:
    """Return `nn.Conv2d` or `nn.ConvTranspose2d` with torch's default initial weights, drawn only from `generator`."""
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    layer = kind(in_channels, out_channels, kernel_size, stride, padding, bias=bias, device="meta")
    return _draw(layer, generator, device)


def _draw(layer: Layer, generator: torch.Generator, device: torch.device) -> Layer:
    """Return a layer of the meta device, its weight and bias now uniform in ±1/sqrt(fan in), torch's default."""
    bound = 1 / math.sqrt(layer.weight[0].numel())  # torch computes a transposed layer's fan in from dimension 1, too
    for name in ("weight", "bias"):
        if (like := getattr(layer, name)) is not None:
            drawn = torch.empty(like.shape, device=device).uniform_(-bound, bound, generator=generator)
            setattr(layer, name, nn.Parameter(drawn))
    return layer


def connection(student_map: tuple[int, int, int], teacher_map: tuple[int, int, int]) -> dict[str, Any]:
    """Return the settings of the convolution that brings a student's map to the size of a teacher's, (C, H, W) each.

    3x3 of stride 2 where the student's map is twice as large, transposed 4x4 of stride 2 where it is half as large,
    and otherwise unpadded with a kernel of 1 + the difference of the sizes, so 1x1 for equal ones.

    Raises:
        ValueError: no such convolution relates the sizes. `kd.registry.loss_pairs.connectable` says so without torch.
    """
    (_, *size), (_, *teacher_size) = student_map, teacher_map
    cut = size[0] - teacher_size[0]
    if size == [2 * n for n in teacher_size]:
        return {"kernel_size": 3, "stride": 2, "padding": 1}
    if teacher_size == [2 * n for n in size]:
        return {"kernel_size": 4, "stride": 2, "padding": 1, "transposed": True}
    if cut >= 0 and size[1] - teacher_size[1] == cut:
        return {"kernel_size": 1 + cut}
    raise ValueError(f"no convolution brings a map {student_map} to the size of {teacher_map}")


def connector(
    student_map: tuple[int, int, int],
    teacher_map: tuple[int, int, int],
    *,
    generator: torch.Generator,
    device: torch.device,
) -> nn.Sequential:
    """Return the convolution of `connection` and batch normalisation, from a student's map to a teacher's shape.

    Raises:
        ValueError: no such convolution relates the sizes.
    """
    settings = connection(student_map, teacher_map)
    drawn = {"generator": generator, "device": device}
    return nn.Sequential(
        conv(student_map[0], teacher_map[0], **settings, **drawn), nn.BatchNorm2d(teacher_map[0], device=device)
    )
