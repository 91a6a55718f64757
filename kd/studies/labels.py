"""What people call a run of a study: method, ablation, networks, scale, as far as these tell its runs apart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pandas as pd

from kd.studies.expansion import FULL
from kd.studies.study import Study

ELLIPSIS = "…"
ALSO = " (= "  # before the other names of a run that serves several rows


def run_labels(study: Study) -> dict[str, str]:
    """Return a label, without the seed, for each run of a study by path, such as `fast 10 % (= ssdkd neither)`."""
    names: dict[str, dict[str, str]] = {}  # path -> name -> what differs
    for path, name, place in zip(study.table["path"], *zip(*_named(study.table), strict=True), strict=True):
        names.setdefault(path, {}).setdefault(name, place)
    labels = {path: f"teacher {run.model}" for path, run in study.runs.items()}
    for path, found in names.items():
        (first, place), *others = found.items()
        labels[path] = f"{first}{place}" + (f"{ALSO}{', '.join(name for name, _ in others)})" if others else "")
    return labels


def row_labels(rows: pd.DataFrame) -> list[str]:
    """Return a label for each row of a study's table or of its results, by what differs within these rows."""
    return [name + place for name, place in _named(rows)]


def _named(rows: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """Yield method with ablation, and what else differs within the rows, of each of them."""
    several = {name for name in ("dataset", "teacher", "student", "scale") if rows[name].nunique() > 1}
    for row in rows.itertuples():
        place = [row.dataset] if "dataset" in several else []
        place += [f"{row.teacher} → {row.student}"] if several & {"teacher", "student"} else []
        place += [f"{100 * row.scale:.4g} %"] if "scale" in several else []
        yield row.method if row.ablation == FULL else f"{row.method} {row.ablation}", "".join(f" {p}" for p in place)


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
