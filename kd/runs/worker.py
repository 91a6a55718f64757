"""Runs without Snakemake: any number of processes work through one list; run locks keep them apart."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from kd.data.raw import Source
from kd.runs.folder import ENDED, ended, inputs_of
from kd.runs.prepared_data import outdated_data, prepare_step
from kd.runs.run import run_step
from kd.runtime.messages import ConfigError, disk_fault
from kd.runtime.progress import inform
from kd.runtime.run_lock import Busy, RunLock, TakenOver
from kd.settings.run import Run
from kd.settings.shapes import Compute

POLL_SECONDS = 1.0


def work_through(
    runs: list[Run],
    results: Path,
    compute: Compute,
    source: Source,
    say: Callable[[str], Any] = lambda text: inform(text, sys.stdout),
) -> dict[str, str]:
    """Make all runs and the teachers and data sets they need; return what failed, path -> message.

    A run that another process is working on is left to it and looked at again later. One that fails holds up only its
    students; it is not tried twice, here or in a process started at the same time. A process whose GPU is lost leaves
    the rest to the others.
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
    """Whether this process can do nothing more on its GPU, for example after an illegal access.

    All further runs would fail here, so they are left to other processes.
    """
    try:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def make(run: Run, results: Path, compute: Compute, source: Source) -> dict[str, float]:
    """Make one run whose teacher is there; prepare its data set if it is missing. Raises as run_step, and Busy."""
    data, teachers = inputs_of(run, results)
    if not data.exists() or outdated_data(run.dataset, data):
        data.parent.mkdir(parents=True, exist_ok=True)
        with RunLock(data.parent, say=lambda text: None, name=data.stem):
            if not data.exists() or outdated_data(run.dataset, data):
                prepare_step(run.dataset, data, source)
    return run_step(run, results / run.path, data, teachers, compute, wait=False)


def _failed_since(folder: Path, started: float) -> str | None:
    """Return why a run failed since this worker started, in whatever process; None where it did not."""
    try:
        fresh = (folder / ENDED).stat().st_mtime >= started
    except OSError:
        return None
    note = ended(folder) if fresh else None
    return note and note["error"]
