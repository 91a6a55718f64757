"""A small watched study, and the files that its runs would leave behind."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import yaml
from conftest import PAIR, ROOT, TINY

from kd.runs.folder import files_of
from kd.runs.provenance import run_code
from kd.runtime.run_lock import _machine, _process
from kd.settings.merging import merge
from kd.settings.run import Run
from kd.studies import status as state
from kd.studies.estimates import Estimates, Records
from kd.studies.study import Study, load_study

SETTINGS = {key: value for key, value in TINY.items() if key != "methods"}
IMAGES = 1000  # in the training sets of fake runs


def content(**changes: Any) -> dict[str, Any]:
    """A teacher, two students with data, two without; `extra` shares one of them."""
    experiments = {
        "data": {"pairs": [PAIR], "methods": ["scratch", "kd"], "seeds": [0]},
        "free": {"pairs": [PAIR], "methods": ["ssdkd"], "scales": [0.5], "seeds": [0, 1]},
        "extra": {"pairs": [PAIR], "methods": ["ssdkd", "fast"], "scales": [0.5], "seeds": [1]},
    }
    return merge({"title": "Watched", "settings": SETTINGS, "experiments": experiments}, changes)


def loaded(folder: Path, *, given: dict[str, Any] | None = None, **changes: Any) -> Study:
    file = folder / "watched.yaml"
    file.write_text(yaml.safe_dump(content(**changes), sort_keys=False))
    chosen = {"study": str(file), "results": str(folder / "results"), **(given or {})}
    return load_study(ROOT / "config/config.yaml", ROOT / "workflow/schemas", chosen)


def find(study: Study, method: str, seed: int = 0) -> Run:
    if method == "teacher":
        [run] = {run.teacher.path: run.teacher for run in study.runs.values() if run.teacher}.values()
        return run
    rows = study.table[(study.table["method"] == method) & (study.table["seed"] == seed)]
    return study.runs[rows["path"].iloc[0]]


def fake_finished(study: Study, run: Run, phases: dict[str, float] | None = None, size: int = 0, **record: Any) -> Path:
    """The files of a finished run, 100 seconds in all unless `phases` says otherwise."""
    folder = study.root / run.path
    folder.mkdir(parents=True, exist_ok=True)
    phases = phases or {"training": 90.0, "evaluation": 10.0}
    written = {
        "settings": run.as_dict(),
        "digest": run.digest,
        "identity": fake_identity(run, record.get("code")),
        "code": run_code(run),
        "seconds": {**phases, "total": sum(phases.values())},
        "counts": {},
        "train_images": IMAGES,
        "finished": "2026-01-01T00:00:00Z",
        "peak_memory_mb": 100.0,
        "git": {"commit": "0" * 40, "diff": ""},
    }
    (folder / "run.json").write_text(json.dumps(written | record))
    (folder / "metrics.json").write_text(json.dumps({"accuracy": 50.0}))
    written_so_far = sum((folder / name).stat().st_size for name in ("run.json", "metrics.json"))
    (folder / "history.csv").write_bytes(bytes(max(0, size - written_so_far)))
    for name in set(files_of(run.kind)) - {"run.json", "metrics.json", "history.csv"}:
        (folder / name).touch()
    return folder


def fake_identity(run: Run, code: str | None = None) -> str:
    """The identity of a run whose data and teachers' weights are empty files."""
    empty = hashlib.sha256().hexdigest()[:16]
    return "-".join([run.digest, str(run.seed), code or run_code(run), empty, *(empty for _ in run.teachers or ())])


def fake_lock(study: Study, run: Run, *, number: int = 1, age: float = 0.0, **changed: Any) -> Path:
    """The lock that this very process would have on a run, but for what is `changed`."""
    folder = study.root / run.path
    folder.mkdir(parents=True, exist_ok=True)
    me = {"host": "here", "pid": os.getpid(), "process": _process(os.getpid()), "machine": _machine()}
    file = folder / f"lock.{number}.json"
    file.write_text(json.dumps({**me, "slurm_job": None, "beat": 1, "done": 3, "total": 12, "seconds": 30.0} | changed))
    os.utime(file, (time.time() - age,) * 2)
    return file


def fake_end(study: Study, run: Run, error: str | None, **position: Any) -> None:
    folder = study.root / run.path
    folder.mkdir(parents=True, exist_ok=True)
    note = {"error": error, "when": "2026-01-01T00:00:00Z", "done": 6, "total": 12, "seconds": 40.0}
    (folder / "ended.json").write_text(json.dumps(note | position))


def state_of(study: Study, run: Run) -> state.State:
    return state.states(study)[run.path]


def rows_of(text: str) -> dict[str, list[str]]:
    """The first table of `plan` or `status`: experiment -> its columns."""
    table = text.split("\n\n")[1].splitlines()[1:]
    return {line.split()[0].strip("()"): line.split()[1:] for line in table}


def counts(study: Study) -> dict[str, list[int]]:
    """done, running, failed, waiting per experiment."""
    return {name: [int(number) for number in row[:4]] for name, row in rows_of(state.status(study)).items()}


def left(study: Study, run: Run) -> float | None:
    records = Records(study.root)
    return state._left(study, state.states(study), Estimates(records, study.runs))[run.path]
