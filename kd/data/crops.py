"""One image file as a network sees it, and a process that makes many. Imports no torch: there are many such processes.

As torchvision's `RandomResizedCrop`, `RandomHorizontalFlip`, `Resize` and `CenterCrop` do on Pillow's images.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import mmap
import os
import pickle
import random
import signal
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from kd.data import decoding
from kd.data.decoding import upright
from kd.runtime.messages import ConfigError

AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)  # of a random crop: its share of the image, its width by its height
ATTEMPTS = 10
MARGIN = 256 / 224  # of what is scored: the shorter side, by the side of the square that is cut out of its middle

CODE = hashlib.sha256(b"".join(Path(file).read_bytes() for file in (__file__, decoding.__file__))).hexdigest()

# A file, and what its crop and flip are drawn from: the run's seed, the epoch, the image's place. None: to be scored.
Wanted = tuple[bytes, tuple[int, int, int] | None]
Box = tuple[int, int, int, int]  # left, top, right, bottom


def pixels(wanted: Wanted, size: int, flip: bool) -> np.ndarray:
    """Return an image as [size, size, 3] uint8: cropped, and with `flip` mirrored, at random; or its middle.

    Nothing but `wanted` decides which pixels these are. Raises ConfigError, which names the file.
    """
    file, key = wanted
    image = upright(Path(os.fsdecode(file)))
    if key is None:
        image = middle(image, size)
    else:
        draws = random.Random("{} {} {}".format(*key))
        image = image.crop(random_box(*image.size, draws)).resize((size, size), Image.BILINEAR)
        if flip and draws.random() < 0.5:
            image = image.transpose(Image.FLIP_LEFT_RIGHT)
    return np.asarray(image)


def random_box(width: int, height: int, draws: random.Random) -> Box:
    """Return a random part of an image, or, where none of ten has a place in it, its middle.

    Its area is uniform in AREA, its aspect uniform in ASPECT on a logarithmic scale, its place uniform.
    """
    lowest, highest = map(math.log, ASPECT)
    for _ in range(ATTEMPTS):
        area = width * height * (AREA[0] + (AREA[1] - AREA[0]) * draws.random())
        aspect = math.exp(lowest + (highest - lowest) * draws.random())
        wide, high = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < wide <= width and 0 < high <= height:
            left, top = (int(draws.random() * (free + 1)) for free in (width - wide, height - high))
            return left, top, left + wide, top + high
    wide, high = min(width, round(height * ASPECT[1])), min(height, round(width / ASPECT[0]))
    left, top = (width - wide) // 2, (height - high) // 2
    return left, top, left + wide, top + high


def middle(image: Image.Image, size: int) -> Image.Image:
    """Return the middle of an image as [size, size], its shorter side resized to `size * MARGIN`."""
    short, (width, height) = round(size * MARGIN), image.size
    shape = (short, short * height // width) if width <= height else (short * width // height, short)
    left, top = (round((side - size) / 2) for side in shape)
    return image.resize(shape, Image.BILINEAR).crop((left, top, left + size, top + size))


def shared_memory(file: int, slots: int, rows: int, size: int) -> np.ndarray:
    """Return the images [slots, rows, size, size, 3] uint8 that processes share in an open file."""
    shape = (slots, rows, size, size, 3)
    os.ftruncate(file, math.prod(shape))
    return np.frombuffer(mmap.mmap(file, math.prod(shape)), np.uint8).reshape(shape)


def _serve() -> None:
    """Make what is asked for, in turn, until nobody can ask any more; answer each time with None or a ConfigError.

    The first question is whether CODE is the same.
    """
    for number in (signal.SIGTERM, signal.SIGINT):  # for all processes of a job: the run decides when it stops
        signal.signal(number, signal.SIG_IGN)
    asked, answers = sys.stdin.buffer, sys.stdout.buffer
    with contextlib.suppress(EOFError, BrokenPipeError):
        pickle.dump(pickle.load(asked) == CODE, answers)
        answers.flush()
        file, slots, rows, size, flip = pickle.load(asked)
        memory = shared_memory(file, slots, rows, size)
        while True:
            slot, first, wanted = pickle.load(asked)
            answer = None
            try:
                for row, each in enumerate(wanted, first):
                    memory[slot, row] = pixels(each, size, flip)
            except ConfigError as error:
                answer = error
            pickle.dump(answer, answers)
            answers.flush()
    os._exit(0)  # without a word on a pipe that nobody reads


if __name__ == "__main__":
    _serve()
