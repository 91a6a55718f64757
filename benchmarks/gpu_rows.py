"""What is finished of the queue of gpu_evidence.py: results.csv, a row per run."""

from __future__ import annotations

import argparse
import csv
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

if find_spec("kd") is None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.append(str(Path(__file__).resolve().parent))

import pandas as pd
from gpu_plan import Queue

from kd.reports.tables import collect, read_results
from kd.runtime.files import read_json


def finished(queue: Queue, results: Path) -> set[str]:
    """Return the paths of runs whose record is there; a teacher counts only when it is kept as well."""
    return {
        path
        for path, run in queue.runs.items()
        if (results / path / "run.json").exists() and (results / path / "metrics.json").exists()
        if path not in queue.teachers or "taken_from" in read_json(results / path / "run.json")
    }


def append_results(queue: Queue, options: argparse.Namespace) -> bool:
    """Append a row for each finished run that has none yet; return whether there was one."""
    file = options.out / "results.csv"
    rows = read_results(file) if file.exists() else pd.DataFrame(columns=["path"])
    without = finished(queue, options.results) - set(rows["path"])
    new = [path for path in queue.runs if path in without]
    if not new:
        return False
    found = [_row(queue, path, options.results) for path in new]
    columns = list(rows) if len(rows) else list(COLUMNS)
    with file.open("a", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, restval="", extrasaction="ignore", lineterminator="\n")
        if not len(rows):
            writer.writeheader()
        writer.writerows(found)
    return True


COLUMNS = [
    *("section", "study", "dataset", "teacher", "student", "method", "ablation", "scale", "seed", "precision"),
    *("accuracy", "teacher_accuracy", "agreement"),
    *("seconds_total", "seconds_inversion", "seconds_distillation", "seconds_training"),
    *("images", "generator_steps", "student_steps", "peak_memory_mb"),
    *("started", "finished", "device", "computed", "commit", "path"),
]


def _row(queue: Queue, path: str, results: Path) -> dict[str, Any]:
    run, record = queue.runs[path], read_json(results / path / "run.json")
    names = {
        "dataset": run.dataset.label,
        "teacher": run.teacher_names,
        "student": run.model,
        "method": "teacher",
        "ablation": "full",
    }
    for key, paths in queue.asked.items():
        if path in paths:
            table = queue.studies[key].table
            names |= {
                "study": key,
                **table[table["path"] == path].iloc[0][["teacher", "student", "method", "ablation"]],
            }
            break
    one = pd.DataFrame([{"path": path, "scale": run.scale, "seed": run.seed}])
    times = {key: record.get(key) for key in ("started", "finished")}
    rest = {"section": queue.section_of(run), "precision": run.precision, **times, **names}
    return {**collect(one, results).iloc[0].to_dict(), **rest}
