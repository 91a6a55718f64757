"""What a study's networks cost: parameters, multiply-adds of an image, bytes in float32, and, where measured, seconds.

Imports no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from kd.registry.models import entry
from kd.runs.folder import LATENCY, RECORD, metrics
from kd.runtime.files import read_json
from kd.settings.run import Run
from kd.studies.claims import markdown_row

PAIR = ["dataset", "teacher", "student"]
LATENCIES = ["milliseconds", "images_per_second"]  # for one image, and in batches of 64
COSTS = [
    "parameters",
    "multiply_adds",
    "weights_bytes",
    *LATENCIES,
]  # of the student; the teachers' have teacher_ in front
HEADS = [
    "parameters, M",
    "multiply-adds, M",
    "float32, MB",
    "ms for one image",
    "images/s in batches of 64",
]  # of COSTS
UNITS = {"parameters": 1e6, "weights_bytes": 1e6}
BYTES = 4  # of a parameter in float32: the same wherever the files are
ALL = "all"


def costs(record: dict[str, Any], folder: Path, root: Path) -> dict[str, float]:
    """Return a run's columns for this table but for the student's parameters, which metrics.json has.

    multiply_adds: in millions, of one image, about (kd.registry.models, scaled by the image's area). What several
    teachers cost is added up. What is not known is left out: networks without an entry, files that were removed, and
    seconds (with `measured_on`) that nobody has measured.
    """
    settings = record.get("settings", {})
    try:
        run = Run.from_dict(settings)
    except (ValueError, KeyError, TypeError):  # of another version of kd
        return {}
    own = _parameters(folder)
    found = {"multiply_adds": _multiply_adds([run]), "weights_bytes": own and BYTES * own, **_latency([folder])}
    if run.teachers:
        folders = [root / teacher.path for teacher in run.teachers]
        parameters = _sum(_parameters(place) for place in folders)
        found |= {
            "teacher_parameters": parameters,
            "teacher_multiply_adds": _multiply_adds(run.teachers),
            "teacher_weights_bytes": parameters and BYTES * parameters,
            **{f"teacher_{name}": value for name, value in _latency(folders).items()},
        }
    return {name: value for name, value in found.items() if value is not None}


def networks(results: pd.DataFrame) -> pd.DataFrame:
    """Return a row per data set and pair, and one more for methods whose student has more parameters (SimKD's).

    Columns: dataset, teacher, student, methods (`all` where there is one row), COSTS and measured_on, and the same with
    teacher_.
    """
    own = [*COSTS, "measured_on"]
    columns = [*own, *(f"teacher_{name}" for name in own)]
    known = results.reindex(columns=[*PAIR, "method", *columns])
    teachers = known.groupby(PAIR, sort=False)[columns[len(own) :]].first()  # a student may be without a teacher
    rows = []
    for key, pair in known.dropna(subset=["parameters"]).groupby(PAIR, sort=False):
        groups = list(pair.groupby("parameters"))
        for _, group in groups:
            methods = ALL if len(groups) == 1 else ", ".join(dict.fromkeys(group["method"]))
            rows.append(
                dict(zip(PAIR, key, strict=True))
                | {"methods": methods}
                | group[own].bfill().iloc[0].to_dict()
                | teachers.loc[key].to_dict()
            )
    return pd.DataFrame(rows, columns=[*PAIR, "methods", *columns])


def markdown(table: pd.DataFrame) -> str:
    """Return the table in Markdown, teacher → student in each cell; empty without a row."""
    if table.empty:
        return ""
    head, *rows = grid(table)
    lines = ["### Networks", "", markdown_row(head), "|---" * len(head) + "|", *map(markdown_row, rows)]
    return "\n".join([*lines, "", note(table)]) + "\n"


def grid(table: pd.DataFrame) -> list[list[str]]:
    """Return the rows of cells of a table, the first of them the head."""
    head = ["data set", "teacher → student", "methods", *HEADS[: None if _measured(table) else -len(LATENCIES)]]
    rows = [head]
    for row in table.to_dict("records"):
        cells = [row["dataset"], f"{row['teacher']} → {row['student']}", row["methods"]]
        for name in COSTS[: len(head) - 3]:
            cells.append(f"{_shown(row[f'teacher_{name}'], name)} → {_shown(row[name], name)}")
        rows.append(cells)
    return rows


def note(table: pd.DataFrame) -> str:
    """Return the line under a table: what multiply-adds are, and where seconds were measured."""
    measured = _measured(table)
    seconds = f"Seconds: {'; '.join(measured)}" if measured else "`python -m kd tables --latency` measures seconds"
    return f"Multiply-adds of one image, about. {seconds}."


def _measured(table: pd.DataFrame) -> list[str]:
    return sorted(set(table["measured_on"].dropna()) | set(table["teacher_measured_on"].dropna()))


def representatives(results: pd.DataFrame, root: Path) -> list[Path]:
    """Return folders of runs, one for each network of the table: students first, then their teachers."""
    rows = results.dropna(subset=["parameters"]).drop_duplicates([*PAIR, "parameters"])
    folders = [root / path for path in rows["path"]]
    runs = [Run.from_dict(read_json(folder / RECORD)["settings"]) for folder in folders]
    return list(dict.fromkeys([*folders, *(root / teacher.path for run in runs for teacher in run.teachers or ())]))


def _shown(value: float, name: str) -> str:
    shown = value / UNITS.get(name, 1)
    return "?" if pd.isna(value) else f"{shown:,.0f}" if shown >= 1000 else f"{shown:.3g}"


def _sum(values: Any) -> float | None:
    """Return the sum; None where one of them is unknown."""
    listed = list(values)
    return None if None in listed else sum(listed)


def _multiply_adds(runs: Any) -> float | None:
    found = [(entry(run.model), run.dataset.image_size) for run in runs]
    return _sum(model and model.multiply_adds and model.multiply_adds * (size / 32) ** 2 for model, size in found)


def _latency(folders: list[Path]) -> dict[str, Any]:
    """Return what was measured of networks that answer one after the other; {} where one of them was not."""
    try:
        found = [read_json(folder / LATENCY) for folder in folders]
        milliseconds = sum(each["milliseconds"] for each in found)
        per_second = 1 / sum(1 / each["images_per_second"] for each in found)
        measured_on = " and ".join(dict.fromkeys(each["measured_on"] for each in found))
        return {"milliseconds": milliseconds, "images_per_second": per_second, "measured_on": measured_on}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _parameters(folder: Path) -> float | None:
    try:
        return metrics(folder).get("parameters")
    except (OSError, ValueError):
        return None
