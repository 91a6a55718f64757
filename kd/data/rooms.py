"""Small indoor scenes, drawn on the spot: colours, the 13 classes of NYUv2 per pixel, and depth.

Synthetic: rooms of boxes, seen through a camera with perspective. They have NYUv2's classes and the kind of their
layout (beds stand on floors, pictures hang on walls), so that a study of segmentation runs in minutes without a
download. A score on them says nothing of real rooms.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from kd.data.raw import RawData, Source
from kd.registry.datasets import NYU_13
from kd.settings.shapes import Dataset

TRAIN, TEST = 1_600, 400
SEED = 0  # the scenes belong to the data set, not to a run
FARTHEST = 8.0  # metres, of a depth of 255
NOISE = 3.0  # grey levels, of the camera
LABEL = {name: label for label, name in enumerate(NYU_13)}


class Boxes(NamedTuple):
    """What stands in a room: N boxes along the axes (x right, y up, z away from the camera), in metres."""

    low: np.ndarray  # [N, 3]
    high: np.ndarray  # [N, 3]
    label: np.ndarray  # [N]
    colour: np.ndarray  # [N, 3], 0 to 1
    stripe: np.ndarray  # [N, 2]: width in metres, 0 without stripes; how much darker each other one is


def load(dataset: Dataset, source: Source) -> RawData:
    """Return 1,600 training and 400 test scenes of `dataset.image_size`, with labels [N, S, S] uint8.

    Images are RGB; with `dataset.channels: 4` the fourth channel is the depth, 255 at 8 metres.
    """
    parts = []
    for split, count in enumerate((TRAIN, TEST)):
        images = np.empty((count, dataset.image_size, dataset.image_size, 4), np.uint8)
        labels = np.empty(images.shape[:3], np.uint8)
        for number in range(count):
            images[number], labels[number] = scene(np.random.default_rng([SEED, split, number]), dataset.image_size)
        parts += [images if dataset.channels == 4 else images[..., :3], labels]
    return RawData(*parts, list(NYU_13))


def scene(random: Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw one room: RGB and depth [size, size, 4] uint8, labels [size, size] uint8."""
    room = np.array([random.uniform(2.8, 4.2), random.uniform(2.2, 2.7), random.uniform(3.0, 4.6)])
    boxes = _furnished(random, room)
    eye = np.array([random.uniform(0.3, 0.7) * room[0], random.uniform(1.2, 1.7), 0.15])
    rays = _rays(random, size)
    hit, depth = _nearest(eye, rays, boxes, room)
    place = eye + rays * depth[:, None]  # a ray goes one metre in depth
    label, colour = _seen(place, hit, boxes, room)
    lamp = np.array([random.uniform(0.3, 0.7) * room[0], room[1] - 0.1, random.uniform(0.3, 0.7) * room[2]])
    lit = colour * _light(place, hit, boxes, room, lamp)[:, None] * random.uniform(0.85, 1.1)
    rgb = 255 * lit.clip(0, 1) + random.normal(0, NOISE, lit.shape)
    image = np.concatenate([rgb, 255 * depth[:, None] / FARTHEST], axis=1).round().clip(0, 255).astype(np.uint8)
    return image.reshape(size, size, 4), label.astype(np.uint8).reshape(size, size)


def _rays(random: Generator, size: int) -> np.ndarray:
    """Return the direction of each pixel's ray, [P, 3], row by row; one unit of it is a metre in depth."""
    turn, tilt = random.uniform(-0.35, 0.35), random.uniform(0.05, 0.3)  # radians, to the right and down
    reach = np.tan(random.uniform(0.5, 0.62))  # of half the view
    line = ((np.arange(size) + 0.5) / size * 2 - 1) * reach
    right, down = np.meshgrid(line, line)
    x, y, z = right.ravel(), -down.ravel(), np.ones(size * size)
    y, z = y * np.cos(tilt) - z * np.sin(tilt), y * np.sin(tilt) + z * np.cos(tilt)
    x, z = x * np.cos(turn) + z * np.sin(turn), -x * np.sin(turn) + z * np.cos(turn)
    return np.stack([x, y, z], axis=1)


def _nearest(eye: np.ndarray, rays: np.ndarray, boxes: Boxes, room: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what each ray meets first, [P]: a box, or len(boxes.label) for the room itself; and its depth [P]."""
    steps = np.where(np.abs(rays) < 1e-9, 1e-9, rays)[:, None]  # [P, 1, 3]
    one, other = (boxes.low - eye) / steps, (boxes.high - eye) / steps  # [P, N, 3]
    enter, leave = np.minimum(one, other).max(2), np.maximum(one, other).min(2)
    met = np.where((enter < leave) & (enter > 0), enter, np.inf)
    shell = np.maximum((0 - eye) / steps[:, 0], (room - eye) / steps[:, 0]).min(1)
    every = np.concatenate([met, shell[:, None]], axis=1)
    hit = every.argmin(1)
    return hit, np.take_along_axis(every, hit[:, None], 1)[:, 0]


def _side(place: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return on which axis's side of its box each point lies, [P], and whether it is the upper one."""
    gaps = np.stack([np.abs(place - low), np.abs(place - high)], axis=2).reshape(len(place), 6)
    nearest = gaps.argmin(1)
    return nearest // 2, nearest % 2 == 1


def _seen(place: np.ndarray, hit: np.ndarray, boxes: Boxes, room: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return label [P] and colour [P, 3] of the points where rays end; the last three boxes are the room's surfaces."""
    count = len(boxes.label) - 3  # ceiling, floor, wall: never met as boxes, they lend colours to the room's shell
    axis, upper = _side(place, np.zeros(3), room)
    surface = np.where(axis == 1, np.where(upper, 0, 1), 2)
    which = np.where(hit >= count, count + surface, hit)
    width, darker = boxes.stripe[which].T
    along = np.where(boxes.label[which] == LABEL["floor"], place[:, 2], place[:, 0] + place[:, 1] + place[:, 2])
    odd = (np.floor(along / np.where(width > 0, width, 1)) % 2 == 1) & (width > 0)
    return boxes.label[which], boxes.colour[which] * np.where(odd, 1 - darker, 1.0)[:, None]


def _light(place: np.ndarray, hit: np.ndarray, boxes: Boxes, room: np.ndarray, lamp: np.ndarray) -> np.ndarray:
    """Return how bright each point is, [P]: surfaces that face the lamp and are near it are brighter."""
    inside = hit < len(boxes.label) - 3
    which = np.where(inside, hit, 0)
    low = np.where(inside[:, None], boxes.low[which], 0.0)
    high = np.where(inside[:, None], boxes.high[which], room)
    axis, _ = _side(place, low, high)
    towards = lamp - place
    far = np.linalg.norm(towards, axis=1)
    facing = np.abs(np.take_along_axis(towards, axis[:, None], 1)[:, 0]) / np.maximum(far, 1e-6)
    glows = boxes.label[np.where(inside, hit, 0)] == LABEL["window"]
    return np.where(inside & glows, 1.0, 0.45 + 0.45 * facing + 0.25 / (1 + far**2))


class _Room:
    """Collects the boxes of one room."""

    def __init__(self, random: Generator, size: np.ndarray):
        self.random, self.size = random, size
        self.rows: list[tuple] = []

    def put(self, name: str, low: tuple, extent: tuple, colour: np.ndarray, stripe: tuple = (0.0, 0.0)) -> None:
        """Add a box of a class from its lower corner and its extent."""
        low = np.asarray(low, float)
        self.rows.append((low, low + extent, LABEL[name], colour, stripe))

    def colour(self, low: tuple, high: tuple) -> np.ndarray:
        return self.random.uniform(low, high)

    def spot(self, extent: tuple) -> tuple[float, float, float]:
        """Return a place on the floor for something of that extent, away from the camera."""
        x = self.random.uniform(0.05, max(0.06, self.size[0] - extent[0] - 0.05))
        return x, 0.0, self.random.uniform(min(1.4, self.size[2] - extent[2] - 0.05), self.size[2] - extent[2])

    def boxes(self) -> Boxes:
        return Boxes(*(np.array(column) for column in zip(*self.rows, strict=True)))


def _furnished(random: Generator, size: np.ndarray) -> Boxes:
    """Return the boxes of a room; ceiling, floor and wall come last, as boxes that no ray meets."""
    room = _Room(random, size)
    pieces = [_bed, _sofa, _table, _chair, _furniture, _furniture, _tv, _picture, _window, _objects]
    for piece, chance in zip(pieces, (0.45, 0.45, 0.6, 0.8, 0.8, 0.5, 0.6, 0.7, 0.6, 0.8), strict=True):
        if random.random() < chance:
            piece(room)
    nowhere, nothing = (0.0, -9.0, -9.0), (0.0, 0.0, 0.0)
    tone = room.colour((0.6,) * 3, (0.9,) * 3)
    wood = random.random() < 0.6
    ground = np.array([0.55, 0.38, 0.22]) if wood else room.colour((0.3,) * 3, (0.55,) * 3)
    room.put("ceiling", nowhere, nothing, room.colour((0.85,) * 3, (0.98,) * 3))
    room.put("floor", nowhere, nothing, ground * random.uniform(0.7, 1.2), (0.15, 0.2) if wood else (0.0, 0.0))
    paper = random.random() < 0.3
    room.put("wall", nowhere, nothing, tone, (0.3, 0.1) if paper else (0.0, 0.0))
    return room.boxes()


def _wood(room: _Room) -> np.ndarray:
    return np.array([0.45, 0.28, 0.15]) * room.random.uniform(0.6, 1.5)


def _bed(room: _Room) -> None:
    extent = room.random.uniform((1.0, 0.3, 1.7), (1.7, 0.5, 2.0))
    x, y, z = room.spot(tuple(extent))
    sheet = room.colour((0.3, 0.3, 0.5), (0.9, 0.7, 1.0))
    room.put("bed", (x, y, z), extent, sheet, (0.25, 0.15) if room.random.random() < 0.4 else (0.0, 0.0))
    room.put("bed", (x + 0.1, extent[1], z + extent[2] - 0.5), (extent[0] - 0.2, 0.15, 0.4), np.array([0.9, 0.9, 0.88]))


def _sofa(room: _Room) -> None:
    wide, colour = room.random.uniform(1.3, 2.1), room.colour((0.35, 0.1, 0.1), (0.75, 0.35, 0.35))
    x, _, z = room.spot((wide, 0.9, 0.9))
    room.put("sofa", (x, 0, z), (wide, 0.42, 0.9), colour)
    room.put("sofa", (x, 0.42, z + 0.65), (wide, 0.45, 0.25), colour * 0.9)
    for side in (x, x + wide - 0.18):
        room.put("sofa", (side, 0.42, z), (0.18, 0.2, 0.65), colour * 0.95)


def _table(room: _Room) -> None:
    wide, high, deep = room.random.uniform((0.8, 0.55, 0.6), (1.5, 0.8, 1.0))
    x, _, z = room.spot((wide, high, deep))
    colour = _wood(room)
    room.put("table", (x, high - 0.05, z), (wide, 0.05, deep), colour)
    for dx in (0, wide - 0.07):
        for dz in (0, deep - 0.07):
            room.put("table", (x + dx, 0, z + dz), (0.07, high - 0.05, 0.07), colour * 0.8)
    for _ in range(room.random.integers(0, 4)):
        _small(room, x, high, z, wide, deep)


def _chair(room: _Room) -> None:
    wide, colour = room.random.uniform(0.45, 0.6), room.colour((0.1, 0.3, 0.1), (0.4, 0.65, 0.4))
    x, _, z = room.spot((wide, 0.95, wide))
    room.put("chair", (x, 0.42, z), (wide, 0.1, wide), colour)
    behind = z + wide - 0.1 if room.random.random() < 0.5 else z
    room.put("chair", (x, 0.52, behind), (wide, 0.5, 0.1), colour * 0.9)
    for dx in (0, wide - 0.09):
        for dz in (0, wide - 0.09):
            room.put("chair", (x + dx, 0, z + dz), (0.09, 0.42, 0.09), colour * 0.7)


def _furniture(room: _Room) -> None:
    """A cupboard or a shelf against a wall, perhaps with books on it."""
    wide, high, deep = room.random.uniform((0.5, 0.7, 0.35), (1.3, 2.0, 0.5))
    z = room.size[2] - deep
    x = room.random.uniform(0, room.size[0] - wide)
    if room.random.random() < 0.4:  # along a side wall
        wide, deep = deep, wide
        x = 0.0 if room.random.random() < 0.5 else room.size[0] - wide
        z = room.random.uniform(1.5, room.size[2] - deep)
    colour = _wood(room) if room.random.random() < 0.6 else room.colour((0.7,) * 3, (0.85,) * 3)
    room.put("furniture", (x, 0, z), (wide, high, deep), colour, (0.35, 0.12))
    for _ in range(room.random.integers(0, 3)):
        _small(room, x, high, z, wide, deep)


def _small(room: _Room, x: float, y: float, z: float, wide: float, deep: float) -> None:
    """A row of books, or another object, on top of something."""
    at = (x + room.random.uniform(0, 0.6) * wide, y, z + room.random.uniform(0, 0.6) * deep)
    if room.random.random() < 0.5:
        for number in range(room.random.integers(3, 6)):
            tall, tint = room.random.uniform(0.25, 0.4), room.colour((0.1, 0.05, 0.05), (1.0, 0.9, 0.5))
            room.put("books", (at[0] + 0.1 * number, y, at[2]), (0.09, tall, 0.25), tint)
    else:
        extent = room.random.uniform((0.2,) * 3, (0.4,) * 3)
        room.put("objects", at, extent, room.colour((0.1, 0.5, 0.5), (0.6, 1.0, 1.0)))


def _objects(room: _Room) -> None:
    for _ in range(room.random.integers(1, 4)):
        extent = tuple(room.random.uniform((0.3,) * 3, (0.6,) * 3))
        room.put("objects", room.spot(extent), extent, room.colour((0.1, 0.5, 0.5), (0.6, 1.0, 1.0)))


def _on_wall(room: _Room, wide: float, high: float, y: float) -> tuple[tuple, tuple]:
    """Return corner and extent of something flat on the far wall or a side wall."""
    if room.random.random() < 0.6:
        return (room.random.uniform(0, room.size[0] - wide), y, room.size[2] - 0.04), (wide, high, 0.04)
    x = 0.0 if room.random.random() < 0.5 else room.size[0] - 0.04
    return (x, y, room.random.uniform(1.0, room.size[2] - wide)), (0.04, high, wide)


def _tv(room: _Room) -> None:
    wide = room.random.uniform(0.9, 1.5)
    room.put("tv", *_on_wall(room, wide, 0.6 * wide, 1.0), room.colour((0.02,) * 3, (0.1,) * 3))


def _picture(room: _Room) -> None:
    for _ in range(room.random.integers(1, 4)):
        wide, high = room.random.uniform((0.4, 0.4), (0.9, 0.8))
        tint = room.colour((0.5, 0.2, 0.0), (1.0, 0.6, 0.3))
        room.put("picture", *_on_wall(room, wide, high, room.random.uniform(1.2, 1.6)), tint, (0.15, 0.3))


def _window(room: _Room) -> None:
    wide, high = room.random.uniform((0.8, 0.9), (1.5, 1.2))
    room.put("window", *_on_wall(room, wide, high, 1.0), room.colour((0.7, 0.85, 0.95), (0.85, 0.95, 1.0)), (0.5, 0.1))
