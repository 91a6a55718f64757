"""Image files to arrays, by as many processes as pay: Pillow holds Python's lock for most of a small image."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from kd.data.listing import readable
from kd.runtime.messages import ConfigError, bearable

# Whatever a file's ending: Pillow runs Ghostscript for EPS and opens other containers that are no pictures.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
WORTH_A_PROCESS = 1000  # images; fewer are decoded before another process has started
AT_ONCE = 250  # images that a process decodes before it hands them over


def decode(files: list[Path], size: int, cores: int | None = None) -> np.ndarray:
    """Return images [N, size, size, 3] uint8 in the order of `files`, decoded on that many cores, by default all.

    Raises ConfigError for the first file that cannot be decoded.
    """
    processes = min(cores or _usable_cores(), len(files) // WORTH_A_PROCESS)
    return _in_turn(files, size) if processes < 2 else _together(files, size, processes)


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _in_turn(files: list[Path], size: int) -> np.ndarray:
    images = np.empty((len(files), size, size, 3), np.uint8)
    for place, file in enumerate(files):
        images[place] = _square(file, size)
    return images


def _together(files: list[Path], size: int, processes: int) -> np.ndarray:
    """Let a fresh Python fork the processes: this one may have threads or a GPU, and its main file may be a script."""
    images = np.empty((len(files), size, size, 3), np.uint8)
    with fresh_python("kd.data.decoding") as child:
        try:
            with child.stdin:
                pickle.dump((files, size, processes), child.stdin)
            for start in range(0, len(files), AT_ONCE):
                part = pickle.load(child.stdout)
                if isinstance(part, ConfigError):
                    raise part
                images[start : start + AT_ONCE] = part
        except (EOFError, OSError, pickle.UnpicklingError):
            raise RuntimeError("a process that decodes images was killed; is there enough memory?") from None
        finally:
            os.killpg(child.pid, signal.SIGKILL)
    return images


def fresh_python(module: str, files: tuple[int, ...] = ()) -> subprocess.Popen:
    """Start a module of kd in another process, which reads our pickles and writes its own; it inherits open `files`.

    It has one thread, and a group of its own: Ctrl-C is not its business.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    root = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    command, pipe = [sys.executable, "-P", "-W", "ignore", "-m", module], subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment, process_group=0, pass_fds=files)


def _serve() -> None:
    """Read what to decode from stdin and write it to stdout, part by part, or the first ConfigError."""
    files, size, processes = pickle.load(sys.stdin.buffer)
    parts = [files[start : start + AT_ONCE] for start in range(0, len(files), AT_ONCE)]
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        try:
            for images in pool.imap(partial(_in_turn, size=size), parts):
                pickle.dump(images, sys.stdout.buffer)
        except ConfigError as error:
            pickle.dump(error, sys.stdout.buffer)
        sys.stdout.flush()


def _square(file: Path, size: int) -> Image.Image:
    image = upright(file)
    return image if image.size == (size, size) else ImageOps.fit(image, (size, size), Image.BILINEAR)


def upright(file: Path) -> Image.Image:
    """Return the first frame of an image file, upright, as RGB. Raises ConfigError, which names the file."""
    with opened(file) as image:
        return _rgb(image)


@contextmanager
def opened(file: Path) -> Iterator[Image.Image]:
    """Open an image. Raises ConfigError, a line with the path, where it cannot be read or decoded in the block."""
    place = bearable(str(file))
    with readable(file):
        try:
            with Image.open(file, formats=FORMATS) as image:
                yield image
        except ConfigError:
            raise
        except UnidentifiedImageError:
            raise ConfigError(f"dataset.root: {place} is no {', '.join(FORMATS)} image; remove it") from None
        except OSError:  # of the disk, or a file that is cut off
            raise
        except Exception as error:  # Pillow's readers raise anything for a broken file
            why = " ".join(str(error).split()) or type(error).__name__
            raise ConfigError(f"dataset.root: {place} cannot be decoded ({why}); mend or remove it") from None


def _rgb(image: Image.Image) -> Image.Image:
    """Return the first frame, upright, as RGB. Raises ValueError for pixels whose range is not known."""
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        raise ValueError("its pixels are of 32 bits, of which nothing says what is white: save it with 8 or 16")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit grey, where Pillow's own conversion turns all above 255 white
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:  # Pillow warns of the direct way
        image = image.convert("RGBA")
    return image.convert("RGB")


if __name__ == "__main__":
    _serve()
