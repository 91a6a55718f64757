"""A look ahead and a look at the state of a study, from its files alone. Imports no torch."""

from __future__ import annotations

import math
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd

from kd.runs.provenance import run_code
from kd.runtime.files import read_json
from kd.runtime.run_lock import owner, peek
from kd.settings.run import Run
from kd.studies.study import Study, Tuning

STATES = ("done", "running", "failed", "waiting")
RECENT = 5  # finished runs that an estimate is the mean of


@dataclass(frozen=True)
class State:
    """Where one run stands."""

    name: str  # one of STATES
    seconds: float = 0.0  # spent so far
    share: float = 0.0  # of its epochs that is done
    note: str = ""  # why it failed, who runs it, that other code made it


@dataclass(frozen=True)
class Finished:
    """What is left of a run of any study: settings, seconds by phase, size."""

    run: Run
    seconds: dict[str, float]
    images: int  # in its training set
    bytes: int
    when: str


def states(study: Study) -> dict[str, State]:
    """The state of every run of a study by path, teachers included, but for those that only searches need.

    A run whose code has changed since, or whose teacher will be made again, waits: it will be made again, too.
    """
    compared = {path: study.runs[path] for path in study.students}
    teachers = {teacher.path: teacher for run in compared.values() for teacher in run.teachers or ()}
    found = {
        path: _state(run, study.root / path, study.compute.freeze_code) for path, run in (teachers | compared).items()
    }
    wanted = {
        teacher.path for path, run in compared.items() if found[path].name != "done" for teacher in run.teachers or ()
    }
    for path in teachers:
        if path not in compared and path not in wanted and not (study.root / path / "weights.pt").exists():
            del found[path]  # gone, and all its students are there: nothing needs it
    for path, run in compared.items():
        teachers = [found[teacher.path] for teacher in run.teachers or () if teacher.path in found]
        if found[path].name == "done" and any(teacher.name != "done" for teacher in teachers):
            found[path] = State("waiting", note="its teacher will be made again")
    return found


def _state(run: Run, folder: Path, freeze_code: bool) -> State:
    if not folder.is_dir():
        return State("waiting")
    lease, alive = peek(folder)
    if lease is not None:
        if alive:
            return _part("running", lease, owner(lease))
        return _part("waiting", lease, f"{owner(lease)} died; goes on from its checkpoint")
    try:
        record = read_json(folder / "run.json")
        spent = record["seconds"]["total"]
    except (OSError, ValueError, KeyError, TypeError):  # not whole, or no record at all
        record = None
    if record is not None and (folder / "metrics.json").exists():
        if freeze_code or record.get("code") == run_code(run):
            return State("done", spent, 1.0)
        return State("waiting", note="made by other code; will be made again")
    try:
        ended = read_json(folder / "ended.json")
        failure = ended["error"]
    except (OSError, ValueError, KeyError, TypeError):
        return State("waiting")
    if failure is None:
        return _part("waiting", ended, "stopped; goes on from its checkpoint")
    return _part("failed", ended, failure)


def _part(name: str, position: dict[str, Any], note: str) -> State:
    done, total = position.get("done", 0), position.get("total", 0)
    return State(name, position.get("seconds", 0.0), done / total if total else 0.0, note)


# ------------------------------------------------------------------------------------------------------------ estimates


class Estimates:
    """Seconds and bytes of runs still to be made, from the finished runs of all studies in a results folder.

    From runs with the same settings (other seeds); else from runs of the same kind, data set and networks, or of the
    same kind and data set, by the images that pass through the networks.
    """

    def __init__(self, root: Path):
        self._by: dict[tuple, list[Finished]] = defaultdict(list)
        found = sorted(_finished(root), key=lambda item: item.when)
        self.count = len(found)
        for item in found:
            for key in _likenesses(item.run):
                self._by[key].append(item)

    def seconds(self, run: Run) -> float | None:
        """Of a whole run; None where no finished run is like it."""
        for alike in filter(None, (self._by[key] for key in _likenesses(run))):
            return _mean(_scaled_seconds(run, item) for item in alike[-RECENT:])
        return None

    def bytes(self, run: Run) -> float | None:
        """On the disk; None where no finished run is like it."""
        for alike in filter(None, (self._by[key] for key in _likenesses(run)[:2])):
            return _mean(item.bytes for item in alike[-RECENT:])
        return None


def _finished(root: Path) -> Iterator[Finished]:
    for folder, names in _folders(root / "runs", depth=4):
        if "run.json" not in names or "metrics.json" not in names:
            continue
        try:
            record = read_json(folder / "run.json")
            size = sum(entry.stat().st_size for entry in os.scandir(folder) if entry.is_file())
            run = Run.from_dict(record["settings"])
            seconds = {name: float(value) for name, value in record["seconds"].items()}
            if "total" in seconds:
                yield Finished(run, seconds, int(record["train_images"]), size, str(record["finished"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # another version's, or not whole: no help
            continue


def _folders(root: Path, depth: int) -> Iterator[tuple[Path, set[str]]]:
    """Folders exactly so deep below `root`, with the names in them."""
    if not root.is_dir():
        return
    entries = list(os.scandir(root))
    if depth == 0:
        yield root, {entry.name for entry in entries}
    else:
        for entry in entries:
            if entry.is_dir():
                yield from _folders(root / entry.name, depth - 1)


def _likenesses(run: Run) -> list[tuple]:
    """Keys that alike runs share, the closest first."""
    kind = (run.kind, run.dataset.label, run.dataset.image_size)
    return [("settings", run.digest), ("networks", *kind, run.model, run.teacher_names, run.precision), ("kind", *kind)]


def _scaled_seconds(run: Run, item: Finished) -> float:
    """An image costs in each phase what it cost there."""
    mine, theirs = _images(run, item.images), _images(item.run, item.images)
    fixed = item.seconds["total"] - sum(item.seconds.get(phase, 0.0) for phase in theirs)
    return fixed + sum(item.seconds.get(phase, 0.0) * mine[phase] / theirs[phase] for phase in theirs)


def _images(run: Run, training_set: int) -> dict[str, float]:
    """Images that pass through the networks in each phase."""
    if run.kind != "datafree":
        return {"training": run.training.epochs * run.scale * training_set}
    epochs, full = run.distillation.training.epochs, run.replay.full_size or training_set
    batch = run.distillation.training.batch_size
    return {
        "inversion": (run.inversion.warmup + epochs) * run.inversion.steps * run.inversion.batch_size,
        "distillation": epochs * batch * math.ceil(run.distillation.passes * run.scale * full / batch),
    }


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)


# --------------------------------------------------------------------------------------------------------------- views


def status(study: Study) -> str:
    """done / running / failed / waiting per experiment, seconds spent and left; then what there is to say of a run."""
    found = states(study)
    left = _left(study, found)
    rows = [
        {
            "experiment": name,
            **{state: sum(found[path].name == state for path in paths) for state in STATES},
            "spent": _duration(sum(found[path].seconds for path in paths)),
            "left": _sum(left[path] for path in paths),
        }
        for name, paths in _groups(study, found).items()
    ]
    lines = [f"{study.title} ({study.name})", "", _table(rows)]
    for name, tuning in study.tunings.items():
        lines += ["", f"search {name}: {_trials_done(study, tuning)} of {tuning.trials} trials done"]
    for state in STATES[1:]:
        noted = [(path, item) for path, item in found.items() if item.name == state and item.note]
        lines += ["", f"{state}:"] if noted else []
        lines += [f"  {path}: {f'{100 * item.share:.0f} %, ' if item.share else ''}{item.note}" for path, item in noted]
    return "\n".join(lines)


def plan(study: Study) -> str:
    """Runs, jobs, hours estimated from finished runs, and disk: before anything is started."""
    found, estimates = states(study), Estimates(study.root)
    left = _left(study, found, estimates)
    rows = [
        {
            "experiment": name,
            "runs": len(paths),
            "to do": sum(found[path].name != "done" for path in paths),
            "time": _sum(left[path] for path in paths),
        }
        for name, paths in _groups(study, found).items()
    ]
    todo = to_do(study, found)
    jobs = Counter(run.kind for run in todo)
    searches = [tuning.run({}) for tuning in study.tunings.values() if _trials_done(study, tuning) < tuning.trials]
    needed = {run.data_path for run in [*todo, *searches]}
    jobs["prepare_data"] = sum(not (study.root / path).exists() for path in needed)
    jobs["trial (`snakemake tune`)"] = sum(t.trials - _trials_done(study, t) for t in study.tunings.values())
    sizes = [estimates.bytes(run) for run in todo]
    disk = f"{sum(size for size in sizes if size is not None) / 1e6:,.1f} MB"
    summary = {
        "runs": f"{len(found)}, {len(found) - len(todo)} of them done; experiments share equal ones",
        "jobs": ", ".join(f"{count} {name}" for name, count in jobs.items() if count) or "none",
        "GPU-hours": f"{_sum(left.values(), _hours)}, estimated from {estimates.count} finished runs",
        "disk": disk + (f" + {sizes.count(None)} runs unknown" if None in sizes else ""),
    }
    lines = [f"{study.title} ({study.name})", "", _table(rows), ""]
    return "\n".join([*lines, *(f"{name:<9} {text}" for name, text in summary.items())])


def to_do(study: Study, found: dict[str, State] | None = None) -> list[Run]:
    """Runs that are not done, teachers first."""
    found = found or states(study)
    return [study.runs[path] for path, state in found.items() if state.name != "done"]


def _groups(study: Study, found: dict[str, State]) -> dict[str, list[str]]:
    """Paths per experiment; first the teachers that no experiment compares, last all runs. One may be in several."""
    compared = set(study.students)
    groups = {"(teachers)": [path for path in found if path not in compared]}
    groups |= {name: list(dict.fromkeys(rows["path"])) for name, rows in study.table.groupby("experiment", sort=False)}
    return {name: paths for name, paths in groups.items() if paths} | {"(together)": list(found)}


def _left(study: Study, found: dict[str, State], estimates: Estimates | None = None) -> dict[str, float | None]:
    """Seconds still to come per run: by its own pace where it has one, else by finished runs; None: unknown."""
    estimates = estimates or Estimates(study.root)
    return {
        path: state.seconds * (1 - state.share) / state.share if state.share else estimates.seconds(study.runs[path])
        for path, state in found.items()
    }


def _trials_done(study: Study, tuning: Tuning) -> int:
    folder = study.root / "studies" / study.name / "tune" / tuning.folder
    return sum((folder / f"trial{number}/trial.json").exists() for number in range(tuning.trials))


def _table(rows: list[dict[str, Any]]) -> str:
    return pd.DataFrame(rows).to_string(index=False)


def _sum(seconds: Iterable[float | None], shown: Callable[[float], str] | None = None) -> str:
    seconds = list(seconds)
    known, unknown = sum(value for value in seconds if value is not None), seconds.count(None)
    text = (shown or _duration)(known)
    if unknown == len(seconds) > 0:
        return f"{unknown} runs unknown"
    return f"{text} + {unknown} runs unknown" if unknown else text


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.2f}"


def _duration(seconds: float) -> str:
    """0:00:05, 13:20:00."""
    return str(timedelta(seconds=round(seconds)))
