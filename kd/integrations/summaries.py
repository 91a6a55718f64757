"""Names, texts and numbers with which MLflow shows a study's rows and experiments."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import pandas as pd

from kd.studies.claims import CONFIDENCE, markdown_row
from kd.studies.labels import in_full, variant

SUMMARY = {  # column of tables/<experiment>.csv -> metric of the experiment's run, a value per row of the table
    "n": "n",
    "accuracy": "accuracy_mean",
    "accuracy_std": "accuracy_std",
    "seconds": "seconds_mean",
    "seconds_std": "seconds_std",
    "difference": "difference",
    "difference_low": "difference_low",
    "difference_high": "difference_high",
    "difference_n": "difference_n",
    "difference_p": "difference_p",
}


def milliseconds(text: str | None) -> int | None:
    """Return the milliseconds since 1970 of a time in a record; None without one."""
    return int(datetime.fromisoformat(text).timestamp() * 1000) if text else None


def span(records: Iterable[dict[str, Any]]) -> tuple[int | None, int | None]:
    """Return when the first of some runs began and the last one ended, in milliseconds since 1970."""
    records = list(records)
    began = filter(None, (milliseconds(record.get("started")) for record in records))
    ended = filter(None, (milliseconds(record.get("finished")) for record in records))
    return min(began, default=None), max(ended, default=None)


def row_name(row: dict[str, Any], table: pd.DataFrame, with_seed: bool = True) -> str:
    """Return what MLflow calls a row: `ssdkd (full), 10 %, seed 0`; with pair and data set if the study has several."""
    parts = [in_full(SimpleNamespace(**row))]
    parts += [f"seed {row['seed']}"] if with_seed else []
    if table[["teacher", "student"]].drop_duplicates().shape[0] > 1:
        parts.append(f"{row['teacher']} → {row['student']}")
    if table["dataset"].nunique() > 1:
        parts.append(row["dataset"])
    return ", ".join(parts)


def labels(summary: pd.DataFrame) -> list[str]:
    """Return what an experiment calls the rows of its summary: method, ablation if any, and what else differs."""
    pairs = [f"{row.teacher} - {row.student}" for row in summary.itertuples()]
    names = []
    for row, pair in zip(summary.itertuples(), pairs, strict=True):
        parts = [variant(row, " ")]
        parts += [f"{row.scale:g}"] if summary["scale"].nunique() > 1 else []
        names.append(" ".join(parts + ([pair] if len(set(pairs)) > 1 else [])))
    return names


def metrics(summary: pd.DataFrame) -> dict[str, float]:
    """Return the numbers of an experiment's summary as MLflow metrics, such as `difference_low/ssdkd`."""
    found = {}
    for label, row in zip(labels(summary), summary.to_dict("records"), strict=True):
        allowed = re.sub(r"[^\w\-. :]", "_", label)  # in the name of a metric
        found |= {f"{name}/{allowed}": float(row[key]) for key, name in SUMMARY.items() if key in row}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def compared(summary: pd.DataFrame) -> str:
    """Return what an experiment compares, in one line: differences to its first row, else the means."""
    names, rows = labels(summary), list(summary.itertuples())
    if "difference" in summary:
        first = variant(rows[0], " ")
        said = [f"{name} - {first}: {_difference(row)}" for name, row in zip(names, rows, strict=True) if _differs(row)]
    else:
        said = [
            f"{name}: {_mean(row.accuracy, row.accuracy_std)}, n {row.n}" for name, row in zip(names, rows, strict=True)
        ]
    return "; ".join(said)


def note(summary: pd.DataFrame) -> str:
    """Return an experiment's description, in Markdown: its table of means, differences, intervals and seconds."""
    interval = f"{100 * CONFIDENCE:.0f} % interval"
    head = ["", f"{summary.attrs.get('score', 'accuracy')} %", "n"]
    head += [f"difference to {variant(summary.iloc[0], ' ')} ({interval})", "p"] if "difference" in summary else []
    lines = [markdown_row([*head, "seconds"]), "|---" * (len(head) + 1) + "|"]
    for name, row in zip(labels(summary), summary.itertuples(), strict=True):
        cells = [name, _mean(row.accuracy, row.accuracy_std), str(row.n)]
        if "difference" in summary:
            known = _differs(row)
            cells += [_interval(row) if known else "", _p(row) if known else ""]
        lines.append(markdown_row([*cells, f"{row.seconds:.1f}"]))
    text = "Mean ± standard deviation over n seeds; differences are paired by seed."
    return "\n".join([*lines, "", text])


def _differs(row: Any) -> bool:
    return pd.notna(row.difference)


def _mean(mean: float, std: float) -> str:
    return f"{mean:.2f}" + ("" if pd.isna(std) else f" ± {std:.2f}")


def _interval(row: Any) -> str:
    if not math.isfinite(row.difference_low):
        return f"{row.difference:+.2f}"
    return f"{row.difference:+.2f} ({row.difference_low:+.2f} to {row.difference_high:+.2f})"


def _p(row: Any) -> str:
    return "" if pd.isna(row.difference_p) else f"{row.difference_p:.2g}"


def _difference(row: Any) -> str:
    p = f", p {_p(row)}" if _p(row) else ""
    return f"{_interval(row)}, n {row.difference_n:.0f}{p}"
