"""One run from its settings to its files: what the workflow's scripts and `python -m kd run` call."""

from __future__ import annotations

import contextlib
import csv
import importlib
import io
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kd.data.dataset import WHOLE, Data
from kd.registry.datasets import SYNTHETIC
from kd.registry.kinds import KINDS
from kd.runs import devices
from kd.runs.compiler_cache import compiler_cache
from kd.runs.folder import ENDED, HISTORY, METRICS, RECORD, WEIGHTS, array_file, finished, sealed
from kd.runs.folder import metrics as metrics_of
from kd.runs.followers import leading
from kd.runs.kept_teachers import fill_from_kept
from kd.runs.prepared_data import reading, reads_training_images
from kd.runs.provenance import environment, git_state, identity_of, outdated, run_code
from kd.runs.staged_data import staged
from kd.runs.together import Stepping, alone
from kd.runs.watch import Watch, looking
from kd.runtime.checkpoint import Checkpoint, Stopped
from kd.runtime.files import on_the_way, refuse_links_of_others, write_atomically, write_json
from kd.runtime.journal import Journal, Sink
from kd.runtime.messages import ConfigError
from kd.runtime.progress import Progress
from kd.runtime.run_lock import RunLock, TakenOver
from kd.settings.run import Run
from kd.settings.shapes import Compute
from kd.training.stepper import Stepper


def run_step(
    run: Run,
    folder: Path,
    data_file: Path,
    teacher_weights: list[Path],
    compute: Compute,
    tracker: AbstractContextManager[Sink | None] | None = None,
    log: Path | None = None,
    wait: bool = True,
    stepping: Stepping = alone,
    watch: Watch | None = None,
) -> dict[str, float]:
    """Train, score once, and write the run's files into `folder`; a killed run goes on from its checkpoint there.

    kd/runs/folder.py names the files. Returns the content of metrics.json. One process works on a folder at a time;
    another one waits (raises Busy with `wait=False`) and adopts what it then finds complete. `stepping` reserves the
    device and returns what runs the steps there. `watch` looks at the student after each epoch; it changes no number.

    Raises ConfigError for a device that is not there, or for a link that another user has put in the folder's way,
    FloatingPointError when a loss is not finite, Stopped after SIGTERM, TakenOver when another process has the run;
    ended.json says what went wrong until the next start.
    """
    refuse_links_of_others(on_the_way(folder, data_file.parent.parent))
    folder.mkdir(parents=True, exist_ok=True)
    compute = compute.for_kind(run.kind)
    with (
        closing(Progress(run.path, log)) as progress,
        RunLock(folder, progress.say, lambda: progress.position, wait) as lock,
    ):
        record = finished(folder, thorough=True)
        done = record is not None and not outdated(record, run, data_file, teacher_weights, compute.freeze_code)
        file = data_file if done else staged(data_file, compute.stage, progress.say)
        identity = record["identity"] if done else identity_of(run, file, teacher_weights)
        checkpoint = Checkpoint(folder, identity, compute.checkpoint_seconds, progress.say, lock.check)
        if done:
            metrics = _announced(metrics_of(folder), "already complete", progress)
        elif compute.pretrained and (kept := fill_from_kept(run, folder, identity)) is not None:
            metrics = _announced(kept, "taken from the teachers that are kept", progress)
        else:
            with (
                _end_noted(folder, progress),
                stepping(compute, progress.say) as stepper,
                leading(run, data_file if run.dataset.stream else file, teacher_weights, compute, stepper, checkpoint),
                checkpoint,
                tracker or nullcontext() as sink,
                reading(
                    *(run.dataset, data_file, stepper.device, compute.workers),
                    *(stepper.team.part, stepper.graphs.common, file),
                ) as data,
            ):
                journal = Journal(progress, sink, stepper.clock)
                if stepper.compile != "off":
                    stepper.cache = compiler_cache(data_file.parent.parent)
                metrics = _make(run, folder, data, data_file, teacher_weights, stepper, checkpoint, journal, watch)
        checkpoint.remove()
        with contextlib.suppress(OSError):  # of an attempt before it was complete, or while a file was damaged
            (folder / ENDED).unlink(missing_ok=True)
    if checkpoint.stopping and not wait:  # after the last step: this run is complete, but no other may begin
        raise Stopped(checkpoint.stopping)
    return metrics


def _announced(metrics: dict[str, float], where_from: str, progress: Progress) -> dict[str, float]:
    """Say that a run need not be trained, and return its metrics."""
    progress.say(f"{where_from}: {outcome(metrics)}")
    return metrics


def outcome(metrics: dict[str, Any]) -> str:
    """Say what a finished run scored, and on what."""
    if "accuracy" not in metrics:
        return "used as it is; there are no images to score it on"
    scored = metrics.get("scored", "test")
    if scored == SYNTHETIC:
        return f"agrees with its teacher on {metrics['accuracy']:.2f} % of the held-out synthetic images"
    score = "mean IoU" if "pixel_accuracy" in metrics else "accuracy"
    return f"{score} {metrics['accuracy']:.2f} % on the {scored} images"


@contextmanager
def _end_noted(folder: Path, progress: Progress) -> Iterator[None]:
    """Note how far a run came that did not finish, and why, for `kd status`."""
    note = folder / ENDED
    with contextlib.suppress(OSError):  # what only informs ends no run, and hides no error
        note.unlink(missing_ok=True)
    try:
        yield
    except TakenOver:  # the folder is another's now
        raise
    except BaseException as error:
        failure = None if isinstance(error, Stopped | KeyboardInterrupt) else f"{type(error).__name__}: {error}"
        with contextlib.suppress(OSError):
            write_json(note, {"error": failure, "when": _time(time.time()), **progress.position})
        raise


def _make(
    run: Run,
    folder: Path,
    data: Data,
    data_file: Path,
    teacher_weights: list[Path],
    stepper: Stepper,
    checkpoint: Checkpoint,
    journal: Journal,
    watch: Watch | None,
) -> dict[str, float]:
    """Compute a run's numbers and write its files, the record last of all."""
    started, progress = time.time(), journal.progress
    progress.title = f"{run.path} on {stepper.device}"
    if reads_training_images(run) and not len(data.train):
        raise ConfigError(f"run: it learns from training images, and {data_file} holds test images alone; {WHOLE}")
    if watch is not None:
        journal.look = looking(watch, data, checkpoint, journal)
    compute = importlib.import_module(KINDS[run.kind].loop).compute
    student, metrics, arrays = compute(run, data, teacher_weights, stepper, journal, checkpoint)
    metrics |= {"parameters": sum(parameter.numel() for parameter in student.parameters()), "scored": data.scored}
    checkpoint.guard()
    for name, content in arrays.items():
        write_atomically(folder / array_file(name), lambda file, content=content: np.savez_compressed(file, **content))
    weights = {name: value.cpu() for name, value in student.state_dict().items()}
    write_atomically(folder / WEIGHTS, lambda file: torch.save(weights, file))
    write_atomically(folder / HISTORY, lambda file: file.write(_csv(journal.history).encode()))
    write_json(folder / METRICS, metrics)
    record = _record(run, journal, stepper, started, data)
    write_json(folder / RECORD, sealed(folder, {"identity": checkpoint.identity, **record}))
    progress.say(f"done: {outcome(metrics)}")
    return metrics


def _record(run: Run, journal: Journal, stepper: Stepper, started: float, data: Data) -> dict[str, Any]:
    seconds = {name: round(value, 3) for name, value in journal.seconds.items()}
    return {
        "settings": run.as_dict(),
        "digest": run.digest,
        "code": run_code(run),
        "git": git_state(),
        "environment": environment(),
        "device": devices.describe(stepper.device),
        "computed": stepper.computed,
        "seconds": {**seconds, "total": round(sum(journal.seconds.values()), 3)},
        "counts": dict(journal.counts),
        "train_images": len(data.train) or data.full_size,
        "classes": data.classes,
        "peak_memory_mb": round(devices.peak_memory_mb(stepper.device), 1),
        "started": _time(started),
        "finished": _time(time.time()),
    }


def _csv(history: list[dict[str, float]]) -> str:
    columns = list(dict.fromkeys(name for row in history for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
