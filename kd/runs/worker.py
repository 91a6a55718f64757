"""Runs without Snakemake: any number of processes work through one list; leases keep them apart."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from kd.data.prepare import prepare
from kd.data.raw import Source
from kd.runs.run import run_step
from kd.runtime.files import read_json
from kd.runtime.messages import ConfigError, disk_fault
from kd.runtime.run_lock import Busy, Lease, TakenOver
from kd.settings.run import Run
from kd.settings.shapes import Compute

POLL_SECONDS = 1.0


def work_through(
    runs: list[Run], results: Path, compute: Compute, source: Source, say: Callable[[str], None] = print
) -> dict[str, str]:
    """Make all runs and the teachers and data sets they need; gives what failed, path -> message.

    A run that another process has at that moment is left to it and looked at again later. One that fails does not
    hold up the others, except its students; it is not tried twice, here or in a process started at the same time. A
    process whose GPU is lost leaves the rest to the others.
    """
    started = time.time()
    waiting = {run.path: run for wanted in runs for run in (*(wanted.teachers or ()), wanted)}  # teachers come first
    failed: dict[str, str] = {}
    while waiting:
        before = len(waiting)
        for path, run in list(waiting.items()):
            teachers = [teacher.path for teacher in run.teachers or ()]
            if any(teacher in waiting for teacher in teachers):
                continue  # another process is making it
            try:
                if lost := [teacher for teacher in teachers if teacher in failed]:
                    raise ConfigError(f"its teacher failed: {failed[lost[0]]}")
                if (note := _failed_since(results / path, started)) is not None:
                    raise ConfigError(note)
                metrics = make(run, results, compute, source)
                say(f"{results / path}: accuracy {metrics['accuracy']:.2f} %")
            except Busy:
                continue
            except (ConfigError, FloatingPointError, TakenOver) as error:
                failed[path] = str(error)
            except Exception as error:
                failed[path] = disk_fault(error) or traceback.format_exc()
                if _gpu_is_lost():
                    return failed
            del waiting[path]
        if len(waiting) == before:
            time.sleep(POLL_SECONDS)
    return failed


def _gpu_is_lost() -> bool:
    """Whether this process can do nothing more on its GPU, after an illegal access for example: all further runs would
    fail, and are left to other processes."""
    try:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def make(run: Run, results: Path, compute: Compute, source: Source) -> dict[str, float]:
    """One run, whose teacher is there; its data set is prepared if it is missing. Raises Busy and as run_step does."""
    data = results / run.data_path
    if not data.exists():
        data.parent.mkdir(parents=True, exist_ok=True)
        with Lease(data.parent, say=lambda text: None, name=data.stem):
            if not data.exists():
                prepare(run.dataset, data, source)
    teachers = [results / teacher.path / "weights.pt" for teacher in run.teachers or ()]
    return run_step(run, results / run.path, data, teachers, compute, wait=False)


def _failed_since(folder: Path, started: float) -> str | None:
    note = folder / "ended.json"
    try:
        return read_json(note)["error"] if note.stat().st_mtime >= started else None
    except (OSError, ValueError):
        return None
