"""What people read for a run of a study: in terminals, tables, figures, reports and MLflow. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pandas as pd

from kd.studies.expansion import FULL
from kd.studies.study import Study

ELLIPSIS = "…"
ALSO = " (= "  # before the other names of a run that serves several rows


def variant(row: Any, separator: str = ", ") -> str:
    """Return a row's method, and its ablation unless it is `full`: ssdkd, no-priority."""
    return row.method if row.ablation == FULL else f"{row.method}{separator}{row.ablation}"


def in_percent(scale: float) -> str:
    """Return a data scale as people read it: 12.5 %."""
    return f"{100 * float(scale):.4g} %"


def in_full(row: Any) -> str:
    """Return a row's method, ablation and scale, whatever the others have: ssdkd (full), 10 %."""
    return f"{row.method} ({row.ablation}), {in_percent(row.scale)}"


def run_labels(study: Study) -> dict[str, str]:
    """Return a label, without the seed, for each run of a study by path, such as `fast, 10 % (= ssdkd, neither)`."""
    names: dict[str, dict[str, str]] = {}  # path -> name -> what differs
    for path, name, place in zip(study.table["path"], *zip(*_named(study.table), strict=True), strict=True):
        names.setdefault(path, {}).setdefault(name, place)
    labels = {path: f"teacher {run.model}" for path, run in study.runs.items()}
    for path, found in names.items():
        (first, place), *others = found.items()
        labels[path] = f"{first}{place}" + (f"{ALSO}{'; '.join(name for name, _ in others)})" if others else "")
    return labels


def row_labels(rows: pd.DataFrame, scale: bool | None = None) -> list[str]:
    """Return a label for each row of a study's table, its results or their summary, by what differs within these rows.

    scale: whether the data scale is part of it; None: where it differs.
    """
    return [name + place for name, place in _named(rows, scale)]


def _named(rows: pd.DataFrame, scale: bool | None = None) -> Iterator[tuple[str, str]]:
    """Yield method with ablation, and what else differs within the rows, of each of them."""
    several = {name for name in ("dataset", "teacher", "student", "scale") if name in rows and rows[name].nunique() > 1}
    if scale is not None:
        several = several - {"scale"} | ({"scale"} if scale else set())
    for row in rows.itertuples():
        place = [row.dataset] if "dataset" in several else []
        place += [f"{row.teacher} → {row.student}"] if several & {"teacher", "student"} else []
        place += [in_percent(row.scale)] if "scale" in several else []
        yield variant(row), "".join(f", {part}" for part in place)


def fitted(label: str, most: int) -> str:
    """Return a label of at most `most` characters: without its other names, then without its middle."""
    text = label if len(label) <= most else label.partition(ALSO)[0]
    if len(text) <= most:
        return text
    kept = max(most - len(ELLIPSIS), 0)
    return text[: kept - kept // 2] + ELLIPSIS[:most] + text[len(text) - kept // 2 :]


def widest(labels: Iterable[str], most: int) -> int:
    """Return the width of a column of labels that are fitted to `most` characters."""
    return max((len(fitted(label, most)) for label in labels), default=0)
