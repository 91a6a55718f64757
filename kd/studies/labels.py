"""What people call a run of a study: method, ablation, scale, networks, as far as these tell its runs apart."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from kd.settings.run import Run
from kd.studies.expansion import FULL
from kd.studies.study import Study

ELLIPSIS = "…"


def run_labels(study: Study) -> dict[str, str]:
    """Return a label, without the seed, for each run of a study by path; the names of a run that serves several rows
    are joined by `=`.
    """
    labels = {path: teacher_label(run) for path, run in study.runs.items()}
    for path, rows in study.table.groupby("path", sort=False):
        labels[path] = " = ".join(dict.fromkeys(row_labels(rows, study.table)))
    return labels


def teacher_label(run: Run) -> str:
    return f"teacher {run.model}"


def row_labels(rows: pd.DataFrame, among: pd.DataFrame) -> list[str]:
    """Return a label for each row of a study's table: its method, and what differs within the rows `among`."""
    named = {
        "dataset": lambda row: row.dataset,
        "teacher": lambda row: f"{row.teacher} → {row.student}",
        "scale": lambda row: f"{100 * row.scale:.4g} %",
    }
    differing = [name for name in named if among[name].nunique() > 1]
    if "teacher" not in differing and among["student"].nunique() > 1:
        differing.append("teacher")
    return [
        " ".join(
            [row.method, *([] if row.ablation == FULL else [row.ablation]), *(named[name](row) for name in differing)]
        )
        for row in rows.itertuples()
    ]


def shortened(text: str, most: int) -> str:
    """Return a text of at most `most` characters: what is too much is left out of its middle."""
    if len(text) <= most:
        return text
    kept = max(most - len(ELLIPSIS), 0)
    return text[: kept - kept // 2] + ELLIPSIS[:most] + text[len(text) - kept // 2 :]


def in_columns(names: Iterable[str], most: int) -> int:
    """Return the width of a column that holds these names, `most` characters at the most."""
    return min(max(map(len, names), default=0), most)
