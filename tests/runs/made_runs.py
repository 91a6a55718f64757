"""A results folder that is made once, and helpers for the tests of several processes on the same runs."""

from __future__ import annotations

import dataclasses
import functools
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import COMPUTE, tiny_run

from kd.data.raw import Source
from kd.runs import worker
from kd.runs.prepared_data import prepare_step
from kd.runs.worker import work_through
from kd.runtime.checkpoint import Checkpoint

OFTEN = dataclasses.replace(COMPUTE, checkpoint_seconds=1e-9)
KD, SCRATCH = tiny_run("kd"), tiny_run("scratch")
STEPS = 2 * 22  # of KD's student: epochs times ceil(1,347 images / 64)


class Made(NamedTuple):
    """A results folder with KD, its teacher and SCRATCH, made by one undisturbed process."""

    results: Path
    said: list[str]
    prepared: list[Path]


@functools.cache
def made_by_one_process(results: Path) -> Made:
    """Make the runs once for all test files; tests only read this folder or copy from it."""
    said, prepared = [], []

    def counted(dataset: Any, path: Path, source: Source) -> None:
        prepared.append(path)
        prepare_step(dataset, path, source)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(worker, "prepare_step", counted)
        failed = work_through([KD, SCRATCH], results, COMPUTE, source(results), said.append)
    assert failed == {}
    return Made(results, said, prepared)


def source(results: Path) -> Source:
    """Return a source of raw data that never downloads."""
    return Source(None, results / "data/downloads", download=False)


def prepared_copy(made: Made, results: Path) -> Path:
    """Copy only the prepared data set into a results folder; return that folder."""
    shutil.copytree(made.results / "data", results / "data")
    return results


def same_numbers(folder: Path, other: Path) -> bool:
    return all((folder / name).read_bytes() == (other / name).read_bytes() for name in ("metrics.json", "history.csv"))


def state_of(file: Path) -> tuple[int, int]:
    """Return what changes when the file is written again."""
    return file.stat().st_ino, file.stat().st_mtime_ns


def until(happened: Callable[[], Any], seconds: float = 60.0) -> bool:
    """Wait until something has happened; return False if it has not within that many seconds."""
    deadline = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def at_boundary(number: int, act: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Call `act` when a run reaches its step of this number."""
    original, boundaries = Checkpoint.stop_or_save, []

    def stop_or_save(self: Checkpoint, parts: dict[str, Any]) -> None:
        boundaries.append(True)
        if len(boundaries) == number:
            act()
        original(self, parts)

    monkeypatch.setattr(Checkpoint, "stop_or_save", stop_or_save)
