"""Shapes of the networks' intermediate maps, known without building them. This file imports no torch: with it a study
whose losses cannot relate two networks is refused before any job starts."""

from __future__ import annotations

from kd.registry.models import entry

Shapes = tuple[tuple[int, int, int], ...]

SHUFFLENETS = {"ShuffleNetV1": (24, 240, 480, 960), "ShuffleNetV2": (24, 116, 232, 464)}


def map_shapes(name: str, image_size: int) -> Shapes | None:
    """(C, H, W) of each of the maps that `Classifier.map_shapes` gives; None for networks from outside of kd."""
    known = None if ":" in name else entry(name)
    if known is None:
        return None
    kind, settings = known[0].split(":")[1], known[1]
    widths, halvings = _stages(kind, settings, image_size)
    sizes = [image_size]
    for _ in range(max(halvings)):
        sizes.append(sizes[-1] // 2 if kind == "VGG" else -(-sizes[-1] // 2))  # pools round down, convolutions up
    return tuple((width, sizes[halved], sizes[halved]) for width, halved in zip(widths, halvings, strict=True))


def _stages(kind: str, settings: dict, image_size: int) -> tuple[list[int], list[int]]:
    """Channels of each map, and how often the image has been halved by then."""
    if kind == "ResNetCifar":
        return [settings.get("stem", 16), *settings.get("widths", (16, 32, 64))], [0, 0, 1, 2]
    if kind == "WideResNet":
        return [16, *(channels * settings["width"] for channels in (16, 32, 64))], [0, 0, 1, 2]
    if kind == "ResNet":
        expansion = 4 if settings["depth"] == 50 else 1
        return [64, *(channels * expansion for channels in (64, 128, 256, 512))], [0, 0, 1, 2, 3]
    if kind == "VGG":
        return [64, 128, 256, 512, 512], [0, 1, 2, 3, 4 if image_size >= 64 else 3]
    if kind == "MobileNetV2":
        halved = [sum(stride == 2 for stride in settings["strides"][:end]) for end in (1, 3, 4, 6, 8)]
        return [int(channels * settings["width"]) for channels in (32, 24, 32, 96, 320)], halved
    return list(SHUFFLENETS[kind]), [0, 1, 2, 3]
