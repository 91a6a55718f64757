"""Runs without Snakemake: any number of processes work through one list; run locks keep them apart."""

from __future__ import annotations

import contextlib
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
from kd.runs.run import outcome, run_step
from kd.runs.together import Company, Stepping, alone
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
    together: int = 1,
) -> dict[str, str]:
    """Make all runs and the teachers and data sets they need; return what failed, path -> message.

    A run that another process is working on is left to it and looked at again later. One that fails holds up only its
    students; it is not tried twice, here or in a process started at the same time. A process whose GPU is lost leaves
    the rest to the others. `together` runs at a time share this process and its GPU (kd.runs.together).
    """
    work = _Work(runs, results, compute, source, say)
    if together == 1:
        work.go_on(alone, lambda: time.sleep(POLL_SECONDS))
    else:
        for run in {run.data_path: run for run in work.waiting.values()}.values():
            with contextlib.suppress(Exception):  # its runs will tell
                _prepare(run, results, source)  # now: nothing could be saved meanwhile
        company = Company(compute, say)
        company.work([lambda: work.go_on(company.stepping, company.pause)] * min(together, len(work.waiting)))
    return work.failed


class _Work:
    """What is left to do in this process."""

    def __init__(
        self, runs: list[Run], results: Path, compute: Compute, source: Source, say: Callable[[str], Any]
    ) -> None:
        self.results, self.compute, self.source, self.say = results, compute, source, say
        self.started = time.time()
        self.waiting = {run.path: run for wanted in runs for run in (*(wanted.teachers or ()), wanted)}  # in order
        self.taken: set[str] = set()  # by one of the runs that are made together here
        self.failed: dict[str, str] = {}

    def go_on(self, stepping: Stepping, pause: Callable[[], Any]) -> None:
        """Make one run after the other until none is left; pause while all that is left waits for others."""
        while self.waiting:
            before = len(self.waiting)
            for path in list(self.waiting):
                if path in self.waiting and path not in self.taken and not self._lacks_teacher(path):
                    self.taken.add(path)
                    try:
                        self._make(path, stepping)
                    except Busy:
                        continue
                    finally:
                        self.taken.discard(path)
                    if path in self.failed and _gpu_is_lost():
                        return
                    del self.waiting[path]
            if len(self.waiting) == before:
                pause()

    def _lacks_teacher(self, path: str) -> bool:
        """Whether another process, or another run made together with this one, is making its teacher."""
        return any(teacher.path in self.waiting for teacher in self.waiting[path].teachers or ())

    def _make(self, path: str, stepping: Stepping) -> None:
        """Make a run, or note why it failed. Raises Busy, Stopped."""
        run = self.waiting[path]
        try:
            if lost := [teacher.path for teacher in run.teachers or () if teacher.path in self.failed]:
                raise ConfigError(f"its teacher failed: {self.failed[lost[0]]}")
            if (note := _failed_since(self.results / path, self.started)) is not None:
                raise ConfigError(note)
            metrics = make(run, self.results, self.compute, self.source, stepping)
            self.say(f"{self.results / path}: {outcome(metrics)}")
        except Busy:
            raise
        except (ConfigError, FloatingPointError, TakenOver) as error:
            self.failed[path] = str(error)
        except Exception as error:
            self.failed[path] = disk_fault(error) or traceback.format_exc()


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


def make(run: Run, results: Path, compute: Compute, source: Source, stepping: Stepping = alone) -> dict[str, float]:
    """Make one run whose teacher is there; prepare its data set if it is missing. Raises as run_step, and Busy."""
    _prepare(run, results, source)
    data, teachers = inputs_of(run, results)
    return run_step(run, results / run.path, data, teachers, compute, wait=False, stepping=stepping)


def _prepare(run: Run, results: Path, source: Source) -> None:
    """Prepare a run's data set if it is missing; one process does, others wait for it."""
    data, _ = inputs_of(run, results)
    if not data.exists() or outdated_data(run.dataset, data):
        data.parent.mkdir(parents=True, exist_ok=True)
        with RunLock(data.parent, say=lambda text: None, name=data.stem):
            if not data.exists() or outdated_data(run.dataset, data):
                prepare_step(run.dataset, data, source)


def _failed_since(folder: Path, started: float) -> str | None:
    """Return why a run failed since this worker started, in whatever process; None where it did not."""
    try:
        fresh = (folder / ENDED).stat().st_mtime >= started
    except OSError:
        return None
    note = ended(folder) if fresh else None
    return note and note["error"]
