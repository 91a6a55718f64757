"""What a study's networks cost: parameters, multiply-adds of an image, bytes in float32. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from kd.registry.models import entry
from kd.runs.folder import metrics
from kd.settings.run import Run
from kd.studies.claims import markdown_row

PAIR = ["dataset", "teacher", "student"]
COSTS = ["parameters", "multiply_adds", "weights_bytes"]  # of the student; those of the teachers have teacher_ in front
BYTES = 4  # of a parameter in float32: the same wherever the files are
ALL = "all"


def costs(record: dict[str, Any], folder: Path, root: Path) -> dict[str, float]:
    """Return a run's columns for this table but for the student's parameters, which metrics.json has.

    multiply_adds: in millions, of one image, about (kd.registry.models, scaled by the image's area). Those of several
    teachers are added up. What is not known is left out: networks without an entry, files that were removed.
    """
    settings = record.get("settings", {})
    try:
        run = Run.from_dict(settings)
    except (ValueError, KeyError, TypeError):  # of another version of kd
        return {}
    own = _parameters(folder)
    found = {"multiply_adds": _multiply_adds([run]), "weights_bytes": own and BYTES * own}
    if run.teachers:
        folders = [root / teacher.path for teacher in run.teachers]
        parameters = _sum(_parameters(place) for place in folders)
        found |= {
            "teacher_parameters": parameters,
            "teacher_multiply_adds": _multiply_adds(run.teachers),
            "teacher_weights_bytes": parameters and BYTES * parameters,
        }
    return {name: value for name, value in found.items() if value is not None}


def networks(results: pd.DataFrame) -> pd.DataFrame:
    """Return a row per data set and pair, and one more for methods whose student has more parameters (SimKD's).

    Columns: dataset, teacher, student, methods (`all` where there is one row), COSTS, and the same with teacher_.
    """
    columns = [*COSTS, *(f"teacher_{name}" for name in COSTS)]
    known = results.reindex(columns=[*PAIR, "method", *columns])
    teachers = known.groupby(PAIR, sort=False)[columns[3:]].first()  # a student without a teacher says nothing of it
    rows = []
    for key, pair in known.dropna(subset=["parameters"]).groupby(PAIR, sort=False):
        groups = list(pair.groupby("parameters"))
        for _, group in groups:
            methods = ALL if len(groups) == 1 else ", ".join(dict.fromkeys(group["method"]))
            rows.append(
                dict(zip(PAIR, key, strict=True))
                | {"methods": methods}
                | group[COSTS].iloc[0].to_dict()
                | teachers.loc[key].to_dict()
            )
    return pd.DataFrame(rows, columns=[*PAIR, "methods", *columns])


def markdown(table: pd.DataFrame) -> str:
    """Return the table in Markdown, teacher → student in each cell; empty without a row."""
    if table.empty:
        return ""
    head = ["data set", "teacher → student", "methods", "parameters, M", "multiply-adds, M", "float32, MB"]
    lines = ["### Networks", "", markdown_row(head), "|---" * len(head) + "|"]
    for row in table.to_dict("records"):
        cells = [row["dataset"], f"{row['teacher']} → {row['student']}", row["methods"]]
        for name, unit in zip(COSTS, (1e6, 1, 1e6), strict=True):
            cells.append(f"{_shown(row[f'teacher_{name}'], unit)} → {_shown(row[name], unit)}")
        lines.append(markdown_row(cells))
    lines += ["", "Multiply-adds of one image, about. `python -m kd export RUN --latency` measures seconds."]
    return "\n".join(lines) + "\n"


def _shown(value: float, unit: float) -> str:
    return "?" if pd.isna(value) else f"{value / unit:.3g}"


def _sum(values: Any) -> float | None:
    """Return the sum; None where one of them is unknown."""
    listed = list(values)
    return None if None in listed else sum(listed)


def _multiply_adds(runs: Any) -> float | None:
    found = [(entry(run.model), run.dataset.image_size) for run in runs]
    return _sum(model and model.multiply_adds and model.multiply_adds * (size / 32) ** 2 for model, size in found)


def _parameters(folder: Path) -> float | None:
    try:
        return metrics(folder).get("parameters")
    except (OSError, ValueError):
        return None
