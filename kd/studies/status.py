"""What a study would run, and where it stands, read from files only. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd

from kd.runs.folder import WEIGHTS, Records, ended, inputs_of, is_whole
from kd.runs.gpu_slots import visible_gpus
from kd.runs.prepared_data import changed_folder, outdated_data
from kd.runs.provenance import outdated
from kd.runtime.run_lock import owner, peek
from kd.settings.run import Run
from kd.settings.shapes import Dataset
from kd.studies.estimates import Estimates
from kd.studies.gpu_steps import CARD, gpu_seconds
from kd.studies.search import Tuning, folder_of
from kd.studies.study import Study
from kd.studies.trials import Results, best_is_outdated, current_results, is_complete, read_results, told

AGAIN = "will be made again"
STATES = ("done", "running", "failed", "waiting")


@dataclass(frozen=True)
class State:
    """Where one run stands."""

    name: str  # one of STATES
    seconds: float = 0.0  # spent so far
    share: float = 0.0  # of its epochs that are done
    note: str = ""  # why it failed, who runs it, or why it will be made again


def states(study: Study, records: Records | None = None, with_searches: bool = False) -> dict[str, State]:
    """Return the state of every run of a study by path, teachers included; those of searches only if wanted.

    A run waits when what it was made from has changed since, or when its teacher or its data will be made again.
    """
    records = Records(study.root) if records is None else records
    compared, teachers = {path: study.runs[path] for path in study.students}, teachers_of(study)
    needed = study.runs if with_searches else teachers | compared
    found = {path: _state(study, run, records, path in teachers) for path, run in needed.items()}
    wanted = {
        teacher.path for path, run in compared.items() if found[path].name != "done" for teacher in run.teachers or ()
    }
    for path in teachers:
        if path not in compared and path not in wanted and not (study.root / path / WEIGHTS).exists():
            del found[path]  # removed, and all its students are there: nothing needs it
    for path, run in compared.items():
        teachers = [found[teacher.path] for teacher in run.teachers or () if teacher.path in found]
        if found[path].name == "done" and any(teacher.name != "done" for teacher in teachers):
            found[path] = State("waiting", note=f"its teacher {AGAIN}")
    return found


def teachers_of(study: Study) -> dict[str, Run]:
    """Return the teachers of the runs that a study's tables compare, by path."""
    return {teacher.path: teacher for path in study.students for teacher in study.runs[path].teachers or ()}


def _state(study: Study, run: Run, records: Records, teaches: bool) -> State:
    """Return the state of one run by the files in its folder; the weights of one that teaches are read."""
    folder, reason = records.root / run.path, ""
    lock, alive = peek(folder)
    if lock is not None and alive:
        return _part("running", lock, owner(lock))
    if lock is not None:
        return _part("waiting", lock, f"{owner(lock)} died; goes on from its checkpoint")
    if (record := records[run.path]) is not None and is_whole(folder, record, thorough=teaches):
        reason = _outdated(study, run, record)
        if not reason:
            return State("done", record["seconds"]["total"], 1.0)
    if (note := ended(folder)) is None:
        return State("waiting", note=reason)
    if note["error"] is None:
        return _part("waiting", note, "stopped; goes on from its checkpoint")
    return _part("failed", note, note["error"])


def _outdated(study: Study, run: Run, record: dict[str, Any]) -> str:
    """Say why a finished run will be made again; empty where it will not."""
    (data, teachers), freeze = inputs_of(run, study.root), study.compute.freeze_code
    if reason := outdated(record, run, data, teachers, freeze):
        return f"{reason}; {AGAIN}"
    return f"its data {AGAIN}" if outdated_data(run.dataset, data, freeze) else ""


def trials_done(study: Study, tuning: Tuning) -> Results:
    """Return the results of a search's trials that need not be run again, by their number."""
    folder = folder_of(study.root, study.name, tuning.name)
    return current_results(folder, tuning, study.root, study.compute.freeze_code)


def search_is_done(study: Study, tuning: Tuning) -> bool:
    """Whether nothing is left to run for a search."""
    return is_complete(folder_of(study.root, study.name, tuning.name), tuning, trials_done(study, tuning))


def outdated_best(study: Study, tuning: Tuning) -> bool:
    """Whether a search's best settings are there, but were chosen among other results than those that are there now."""
    folder = folder_of(study.root, study.name, tuning.name)
    return best_is_outdated(folder, tuning, read_results(folder, tuning))


def search_line(study: Study, tuning: Tuning) -> str:
    """Say in a line how far a search is."""
    results, budget = trials_done(study, tuning), []
    if tuning.trials is not None:
        budget.append(f"{sum(number < tuning.trials for number in results)} of {tuning.trials} trials done")
    if tuning.seconds is not None:
        spent = sum(result["seconds"] for result in results.values())
        budget.append(f"{spent:.0f} of {tuning.seconds:.0f} seconds spent")
    ends = f" ({told(results)})" if results else ""
    return f"search {tuning.name}: {', '.join(budget)}{ends}"


def share_done(folder: Path) -> float:
    """Return the share of its epochs that a run which is being made has done, by its lock; 0 without one."""
    lock, alive = peek(folder)
    return _part("running", lock, "").share if lock is not None and alive else 0.0


def _part(name: str, position: dict[str, Any], note: str) -> State:
    """Return the state of a run that is partly done."""
    given = (position.get(key, 0) for key in ("done", "total", "seconds"))
    done, total, seconds = (value if type(value) in (int, float) and abs(value) < 1e12 else 0 for value in given)
    return State(name, float(seconds), min(max(done / total, 0.0), 1.0) if total else 0.0, note)


# --------------------------------------------------------------------------------------------------------------- views


def status(study: Study) -> str:
    """Return a table of how many runs are done, running, failed and waiting, and the notes on single runs."""
    records = Records(study.root)
    found = states(study, records)
    left = _left(study, found, Estimates(records, study.runs))
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
    for tuning in study.tunings.values():
        lines += ["", search_line(study, tuning)]
    for state in STATES[1:]:
        noted = [(path, item) for path, item in found.items() if item.name == state and item.note]
        lines += ["", f"{state}:"] if noted else []
        lines += [f"  {path}: {f'{100 * item.share:.0f} %, ' if item.share else ''}{item.note}" for path, item in noted]
    if hints := data_hints(study):
        lines += ["", *hints]
    return "\n".join(lines)


def again_hints(found: dict[str, State]) -> list[str]:
    """Return a line per reason for which finished runs will be made again."""
    reasons = Counter(state.note for state in found.values() if state.name == "waiting" and state.note.endswith(AGAIN))
    return [f"{count} finished runs: {reason}" for reason, count in reasons.items()]


def data_hints(study: Study) -> list[str]:
    """Return a line per prepared data set whose folder has other files now."""
    hints = []
    for path in study.datasets:
        root, file = study.roots[path], study.root / path
        if root and file.exists() and changed_folder(file, Path(root)):
            hints.append(f"{root} has changed since it was prepared; delete {file}, and its runs are made again")
    return hints


def plan(study: Study) -> str:
    """Return the numbers of runs and jobs, and the hours and the disk space that finished runs let expect.

    Where runs would use a GPU, or might on another machine, steps that were measured on one tell more.
    """
    records = Records(study.root)
    found, estimates = states(study, records), Estimates(records, study.runs)
    left = _left(study, found, estimates)
    hours = _hours_left(study, found, estimates, left)
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
    open_searches = [tuning for tuning in study.tunings.values() if not search_is_done(study, tuning)]
    searches = [tuning.run({}) for tuning in open_searches]
    needed = {run.data_path: run.dataset for run in [*todo, *searches]}
    jobs["prepare_data"] = sum(needs_preparing(study, path, dataset) for path, dataset in needed.items())
    jobs["worker (`snakemake tune`)"] = sum(tuning.workers for tuning in open_searches)
    sizes = [estimates.bytes(run) for run in todo]
    disk = f"{sum(size for size in sizes if size is not None) / 1e6:,.1f} MB"
    summary = {
        "runs": f"{len(found)}, {len(found) - len(todo)} of them done; experiments share equal ones",
        "jobs": ", ".join(f"{count} {name}" for name, count in jobs.items() if count) or "none",
        **hours,
        "disk": disk + (f" + {sizes.count(None)} runs unknown" if None in sizes else ""),
    }
    lines = [f"{study.title} ({study.name})", "", _table(rows), ""]
    lines += [f"{name:<9} {text}" for name, text in summary.items()]
    return "\n".join([*lines, *(search_line(study, tuning) for tuning in open_searches)])


def _hours_left(
    study: Study, found: dict[str, State], estimates: Estimates, left: dict[str, float | None]
) -> dict[str, str]:
    """Return a plan's lines on hours. Where runs would use a GPU, fill what is unknown in `left` by measured steps.

    Without a GPU here such steps tell nothing about this machine: they have a line of their own, for others.
    """
    steps = {
        path: None if seconds is None else seconds * (1 - state.share)
        for path, state in found.items()
        if state.name != "done" and study.compute.device != "cpu"
        for seconds in [gpu_seconds(study.runs[path], estimates.training_images(study.runs[path]))]
    }
    finished = f"estimated from {estimates.count} finished runs"
    finished += f" ({'; '.join(estimates.devices)})" if estimates.devices else ""
    if steps and visible_gpus():
        filled = [path for path, seconds in steps.items() if left[path] is None and seconds is not None]
        left.update({path: steps[path] for path in filled})
        measured = f" and, for {len(filled)} runs, from steps measured on an {CARD}" if filled else ""
        return {"GPU-hours": f"{_sum(left.values(), _hours)}, {finished}{measured}"}
    lines = {"hours": f"{_sum(left.values(), _hours)}, {finished}"}
    if any(seconds is not None for seconds in steps.values()):
        lines["GPU-hours"] = f"{_sum(steps.values(), _hours)} on an {CARD}, estimated from steps measured there"
    return lines


def expected_seconds(study: Study, found: dict[str, State], estimates: Estimates) -> dict[str, float | None]:
    """Return the seconds still to come of each run that is not done, as `plan` expects them here, None if unknown."""
    left = {path: seconds for path, seconds in _left(study, found, estimates).items() if found[path].name != "done"}
    _hours_left(study, found, estimates, left)
    return left


def needs_preparing(study: Study, path: str, dataset: Dataset) -> bool:
    """Whether a data set is not prepared, or was prepared by other code."""
    file = study.root / path
    return not file.exists() or bool(outdated_data(dataset, file, study.compute.freeze_code))


def to_do(study: Study, found: dict[str, State] | None = None) -> list[Run]:
    """Return the runs that are not done, teachers first."""
    found = found or states(study)
    return [study.runs[path] for path, state in found.items() if state.name != "done"]


def _groups(study: Study, found: dict[str, State]) -> dict[str, list[str]]:
    """Return paths per experiment: first the teachers that no experiment compares, last all runs.

    A run may be in several experiments.
    """
    compared = set(study.students)
    groups = {"(teachers)": [path for path in found if path not in compared]}
    groups |= {name: list(dict.fromkeys(rows["path"])) for name, rows in study.table.groupby("experiment", sort=False)}
    return {name: paths for name, paths in groups.items() if paths} | {"(together)": list(found)}


def _left(study: Study, found: dict[str, State], estimates: Estimates) -> dict[str, float | None]:
    """Return the seconds still to come per run: by its own pace, else by finished runs; None where unknown."""
    left = {}
    for path, state in found.items():
        own_pace = state.seconds * (1 - state.share) / state.share if state.share else None
        left[path] = estimates.seconds(study.runs[path]) if own_pace is None else own_pace
    return left


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
    return "under 0.01" if 0 < seconds < 36 else f"{seconds / 3600:.2f}"


def _duration(seconds: float) -> str:
    """Write seconds as 0:00:05 or 13:20:00."""
    return str(timedelta(seconds=round(seconds)))
