"""A worker of a search: its trials are runs, made one after the other in this process."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from kd.integrations.trial_storage import TrialStorage
from kd.integrations.tuning import Report, begin, work
from kd.runs.folder import HISTORY, finished, inputs_of
from kd.runs.provenance import outdated, run_code
from kd.runtime.messages import ConfigError
from kd.runtime.run_lock import RunLock
from kd.settings.run import Run
from kd.settings.shapes import Compute
from kd.settings.validation import validate_run
from kd.studies.files import project
from kd.studies.search import Tuning, Unfit, folder_of
from kd.studies.trials import current_results, is_complete

HELD_OUT, IMAGES = "held-out", "images.npz"  # folder and file of what judges the trials of the objective agreement


def search(
    tuning: Tuning,
    study: str,
    results: Path,
    compute: Compute,
    tracker: Callable[[Run, Path], AbstractContextManager],
    log: Path | None,
    say: Callable[[str], Any],
) -> list[int]:
    """Run trials of a study's search until its budget is used; return the numbers of those that were run here.

    Any number of processes may do so at once. `tracker` returns what follows a run, as kd.runs.run.run_step takes it.
    Raises ConfigError, and Stopped after SIGTERM: the next start goes on.
    """
    from kd.runs.run import run_step
    from kd.runs.watch import Scores

    folder = folder_of(results, study, tuning.name)
    begin(folder, tuning, say)
    storage = TrialStorage(tuning, folder, f"{study}/{tuning.name}", say)

    def objective(params: dict[str, Any], where: Path, report: Report) -> float:
        run = tuning.run(params)
        try:
            validate_run(run, project(), "trial")
        except ConfigError as error:
            raise Unfit(str(error)) from None
        scores = Scores(run, tuning.objective, tuning.looks_every, report, folder / HELD_OUT / IMAGES)
        done = run_step(run, where, *inputs_of(run, results), compute, tracker(run, where), log, watch=scores)
        return done["accuracy"] if tuning.objective == "accuracy" else _last(where / HISTORY)

    def current() -> dict[int, dict[str, Any]]:
        return current_results(folder, tuning, results, compute.freeze_code)

    if tuning.objective == "agreement" and not is_complete(folder, tuning, current()):
        make_held_out(tuning, folder / HELD_OUT, results, compute, log, say)
    return work(storage, objective, current, say, lambda params: run_code(tuning.run(params)))


def make_held_out(
    tuning: Tuning, folder: Path, results: Path, compute: Compute, log: Path | None, say: Callable[[str], Any]
) -> None:
    """Make the images that judge the trials, unless they are there: what the method as it is shows its student.

    It is a run with another seed; no trial sees its images. Who comes second waits.
    """
    from kd.runs.run import run_step
    from kd.runs.watch import HeldOut

    run = tuning.held_out_run
    data, teachers = inputs_of(run, results)
    folder.mkdir(parents=True, exist_ok=True)
    with RunLock(folder, say):
        record = finished(folder / "run")
        made = record is not None and not outdated(record, run, data, teachers, compute.freeze_code)
        if made and (folder / IMAGES).exists():
            return
        say("a run with the method's own settings makes the images that all trials are judged on")
        shutil.rmtree(folder / "run", ignore_errors=True) if made else None
        run_step(run, folder / "run", data, teachers, compute, log=log, watch=HeldOut(run, teachers, folder / IMAGES))


def _last(history: Path) -> float:
    """Return the agreement on held-out images after the last epoch."""
    from kd.runs.watch import SCORES

    with history.open(encoding="utf-8") as file:
        return float([row for row in csv.DictReader(file)][-1][SCORES["agreement"]])
