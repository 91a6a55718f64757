"""What the losses on intermediate maps [B, C, H, W] share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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


def require_as_many_stages(
    name: str, student_maps: Sequence[tuple[int, ...]], teacher_maps: Sequence[tuple[int, ...]], at_least: int = 1
) -> None:
    """Refuse networks whose maps, given as (C, H, W) each, cannot be paired one to one.

    Raises:
        ValueError: the numbers of maps differ, or there are fewer than `at_least`.
    """
    if len(student_maps) != len(teacher_maps):
        raise ValueError(
            f"{name}: {len(student_maps)} stages of the student {_list(student_maps)} do not pair with "
            f"{len(teacher_maps)} of the teacher {_list(teacher_maps)}; choose networks with as many stages"
        )
    if len(student_maps) < at_least:
        raise ValueError(
            f"{name}: needs at least {at_least} stages, student {_list(student_maps)}, teacher {_list(teacher_maps)}; "
            "choose networks that give the maps of their stages"
        )


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


def _list(shapes: Sequence[tuple[int, ...]]) -> str:
    """Shapes in words, such as "16x32x32, 32x16x16", in brackets."""
    return "[" + ", ".join("x".join(map(str, shape)) for shape in shapes) + "]"


def connector(
    name: str,
    student_map: tuple[int, int, int],
    teacher_map: tuple[int, int, int],
    *,
    generator: torch.Generator,
    device: torch.device,
) -> nn.Sequential:
    """Convolution and batch normalisation from a student's map, given as (C, H, W), to the shape of a teacher's.

    The convolution is 3x3 of stride 2 where the student's map is twice as large, transposed 4x4 of stride 2 where it is
    half as large, and otherwise unpadded with a kernel of 1 + the difference of the sizes, so 1x1 for equal ones.

    Raises:
        ValueError: the sizes allow none of these.
    """
    (channels, *size), (teacher_channels, *teacher_size) = student_map, teacher_map
    cut = size[0] - teacher_size[0]
    if size == [2 * n for n in teacher_size]:
        settings = {"kernel_size": 3, "stride": 2, "padding": 1}
    elif teacher_size == [2 * n for n in size]:
        settings = {"kernel_size": 4, "stride": 2, "padding": 1, "transposed": True}
    elif cut >= 0 and size[1] - teacher_size[1] == cut:
        settings = {"kernel_size": 1 + cut}
    else:
        raise ValueError(
            f"{name}: no convolution brings the student's map {_list([student_map])} to the size of the teacher's "
            f"{_list([teacher_map])}; choose networks whose maps are of equal size, or the student's larger or half"
        )
    convolution = conv(channels, teacher_channels, **settings, generator=generator, device=device)
    return nn.Sequential(convolution, nn.BatchNorm2d(teacher_channels, device=device))
