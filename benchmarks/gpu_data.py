"""Data sets of gpu_evidence.py: unpacked as they arrive, prepared as soon as there is enough for some runs."""

from __future__ import annotations

import argparse
import sys
import tarfile
import time
from importlib.util import find_spec
from pathlib import Path

if find_spec("kd") is None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.append(str(Path(__file__).resolve().parent))

import gpu_test_images
from gpu_plan import Queue

from kd.data.raw import Source
from kd.runs.prepared_data import prepare_step
from kd.runtime.messages import ConfigError
from kd.settings.run import Run

SIZES = {"cifar10": (50_000, 10_000), "cifar100": (50_000, 10_000)}  # training and test images
ENDINGS = (".webp", ".png")


def unpack(archives: list[Path], data: Path) -> None:
    """Unpack each archive once, over what is there."""
    for archive in archives:
        mark = data / f".{archive.name}.unpacked"
        if mark.exists():
            continue
        data.mkdir(parents=True, exist_ok=True)
        try:
            with tarfile.open(archive) as tar:
                tar.extractall(data, filter="data")
        except (OSError, EOFError, tarfile.TarError) as error:
            raise ConfigError(f"--archives: {archive} cannot be unpacked ({error})") from None
        mark.touch()
        say(f"{archive.name} unpacked to {data}")


def prepare(queue: Queue, options: argparse.Namespace, done: set[str]) -> dict[str, bool]:
    """Prepare the data sets that are needed; return those that are there, and whether they have training images.

    One that becomes whole is prepared again. Finished runs stay what they are: those that read no training image would
    end with the same numbers.
    """
    there = {}
    for data_path, run in {run.data_path: run for run in queue.left(done)}.items():  # counting files takes time
        state = _prepared(run, options.results / data_path, options.data)
        if state is not None:
            there[run.dataset.name] = state
    return there


def _prepared(run: Run, file: Path, data: Path) -> bool | None:
    """Prepare a data set as far as it is there; return whether it has training images, None where none of it is."""
    name, root = run.dataset.name, data / run.dataset.name
    if file.exists() and not gpu_test_images.lacks_training(file):
        return True
    if name not in SIZES or images_in(root) >= sum(SIZES[name]):
        file.parent.mkdir(parents=True, exist_ok=True)
        prepare_step(run.dataset, file, Source(root if name in SIZES else None, data, False))
        say(f"{name} prepared")
        return True
    if not file.exists() and gpu_test_images.is_there(root, run.dataset, SIZES[name][1]):
        gpu_test_images.prepare_without_training(root, run.dataset, file)
        say(f"{name}: test images prepared")
    return False if file.exists() else None


def images_in(root: Path) -> int:
    """Return the number of images at any depth."""
    return sum(1 for file in root.rglob("*") if file.suffix in ENDINGS)


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)
