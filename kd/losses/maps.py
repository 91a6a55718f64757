"""What the losses on intermediate maps [B, C, H, W] share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd.registry.loss_pairs import connection

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d, nn.ConvTranspose2d)


def at_least_float32(x: Tensor) -> Tensor:
    """Half-precision values raised to float32; float32 and float64 as they are.

    Autocast would lower them again in a matrix product: a loss that has one runs it with autocast off.
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))


def pool_to_smaller(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Maps [B, C, H, W] and [B, C', H', W'] averaged to the smaller height and width of the two; channels stay."""
    size = (min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3]))
    a, b = (x if x.shape[2:] == size else F.adaptive_avg_pool2d(x, size) for x in (a, b))
    return a, b


def map_shapes(maps: Sequence[Tensor]) -> tuple[tuple[int, ...], ...]:
    """(C, H, W) of each of the maps [B, C, H, W]."""
    return tuple(tuple(map_.shape[1:]) for map_ in maps)


def linear(
    in_features: int, out_features: int, *, generator: torch.Generator, device: torch.device, bias: bool = True
) -> nn.Linear:
    """`nn.Linear` with torch's default initial weights, drawn from `generator` alone."""
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
    """`nn.Conv2d`, or `nn.ConvTranspose2d`, with torch's default initial weights, drawn from `generator` alone."""
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    layer = kind(in_channels, out_channels, kernel_size, stride, padding, bias=bias, device="meta")
    return _draw(layer, generator, device)


def _draw(layer: Layer, generator: torch.Generator, device: torch.device) -> Layer:
    """A layer of the meta device, its weight and bias made uniform in ±1/sqrt(fan in), as torch's default is."""
    bound = 1 / math.sqrt(layer.weight[0].numel())  # torch takes dimension 1 as fan in of a transposed one too
    for name in ("weight", "bias"):
        if (like := getattr(layer, name)) is not None:
            drawn = torch.empty(like.shape, device=device).uniform_(-bound, bound, generator=generator)
            setattr(layer, name, nn.Parameter(drawn))
    return layer


def connector(
    name: str,
    student_map: tuple[int, int, int],
    teacher_map: tuple[int, int, int],
    *,
    generator: torch.Generator,
    device: torch.device,
) -> nn.Sequential:
    """Convolution, as `kd.registry.loss_pairs.connection` has it, and batch normalisation from a student's map to the
    shape of a teacher's, given as (C, H, W) each.

    Raises:
        ValueError: no such convolution relates the sizes.
    """
    settings = connection(name, student_map, teacher_map)
    drawn = {"generator": generator, "device": device}
    return nn.Sequential(
        conv(student_map[0], teacher_map[0], **settings, **drawn), nn.BatchNorm2d(teacher_map[0], device=device)
    )
