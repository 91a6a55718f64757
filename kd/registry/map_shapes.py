"""Shapes of the networks' intermediate maps by family, known without building them. This file imports no torch: with it
a study whose losses cannot relate two networks is refused before any job starts.

The function of a family accepts the image's size and the arguments that the network is built from, and returns
(C, H, W) of each map, from the stem's to the last stage's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Shapes = tuple[tuple[int, int, int], ...]


def halved(size: int, widths: Sequence[int], halvings: Sequence[int], by_pools: bool = False) -> Shapes:
    """Return square maps of these widths, the image halved that often; pools round odd sizes down, convolutions up."""
    sizes = [size]
    for _ in range(max(halvings)):
        sizes.append(sizes[-1] // 2 if by_pools else -(-sizes[-1] // 2))
    return tuple((width, sizes[often], sizes[often]) for width, often in zip(widths, halvings, strict=True))


def resnet(size: int, *, depth: int) -> Shapes:
    expansion = 4 if depth == 50 else 1
    return halved(size, [64, *(expansion * width for width in (64, 128, 256, 512))], [0, 0, 1, 2, 3])


def resnet_cifar(size: int, *, stem: int = 16, widths: Sequence[int] = (16, 32, 64), **_: Any) -> Shapes:
    return halved(size, [stem, *widths], [0, 0, 1, 2])


def wrn(size: int, *, width: int, **_: Any) -> Shapes:
    return halved(size, [16, 16 * width, 32 * width, 64 * width], [0, 0, 1, 2])


def vgg(size: int, **_: Any) -> Shapes:
    return halved(size, [64, 128, 256, 512, 512], [0, 1, 2, 3, 4 if size >= 64 else 3], by_pools=True)


def mobilenetv2(size: int, *, width: float, strides: Sequence[int], **_: Any) -> Shapes:
    halvings = [sum(stride == 2 for stride in strides[:end]) for end in (1, 3, 4, 6, 8)]
    return halved(size, [int(channels * width) for channels in (32, 24, 32, 96, 320)], halvings)


def shufflenetv1(size: int) -> Shapes:
    return halved(size, [24, 240, 480, 960], [0, 1, 2, 3])


def shufflenetv2(size: int) -> Shapes:
    return halved(size, [24, 116, 232, 464], [0, 1, 2, 3])
