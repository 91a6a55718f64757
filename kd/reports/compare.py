"""Compare runs side by side: means, paired differences with intervals, seconds. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from kd.reports.pairs_table import booktabs
from kd.reports.results import COLUMNS, NUMBER
from kd.reports.tables import plus_minus
from kd.runtime.messages import ConfigError, shown, suggest
from kd.studies.claims import CONFIDENCE, Interval, interval, markdown_row, paired_p

NAMED = ("study", "experiment", "dataset", "teacher", "student", "method", "ablation", "scale", "seed")
PLACE = ("dataset", "teacher", "student", "scale")  # differences are shown for each of these, then over all of them
APART = ("scale", "ablation", "dataset", "teacher", "student", "experiment", "study")  # what a side should name first
ALL = "all"


@dataclass(frozen=True)
class Side:
    """Runs that are compared: those that have these values in columns of NAMED, or lie in these folders."""

    label: str
    values: dict[str, Any]
    paths: frozenset[str] | None = None  # below the results folder; None: any


def side(text: str) -> Side:
    """Return what `METHOD[,ABLATION][,KEY=VALUE ...]` means, such as `ssdkd`, `ssdkd,none`, `fast,scale=1.0`.

    Without an ablation it is `full`. Raises ConfigError for an unknown key or a value that is no number where one is
    needed.
    """
    values: dict[str, Any] = {}
    for place, part in enumerate(text.split(",")):
        key, equals, value = part.strip().partition("=")
        if not equals and place < 2:
            key, value = ("method", "ablation")[place], key
        if key not in NAMED or not value:
            raise ConfigError(
                f"{shown(text)}: {shown(part)}; allowed: METHOD[,ABLATION][,KEY=VALUE ...], "
                f"{suggest(key, list(NAMED)) if equals else 'such as ssdkd,none,scale=0.1'}"
            )
        try:
            values[key] = float(value) if COLUMNS[key][0] != "string" else value
        except ValueError:
            raise ConfigError(f"{shown(text)}: {key}: got {shown(value)}; allowed: a number") from None
    return Side(text, {"ablation": "full", **values})


def rows_of(results: pd.DataFrame, chosen: Side) -> pd.DataFrame:
    """Return the runs of a side. Raises ConfigError, with what there is, where there is none."""
    rows = results if chosen.paths is None else results[results["path"].isin(chosen.paths)]
    if rows.empty:
        raise ConfigError(f"{shown(chosen.label)}: fits no finished run of the study")
    for key, value in chosen.values.items():
        fits = rows[key] == value if isinstance(value, str) else np.isclose(rows[key].astype(float), value)
        if not fits.any():
            known = [f"{known:g}" if isinstance(known, float) else str(known) for known in rows[key].dropna().unique()]
            hint = suggest(value, known) if isinstance(value, str) else f"allowed: {', '.join(known)}"
            raise ConfigError(f"{shown(chosen.label)}: {key}: no finished run has {shown(value)}; {hint}")
        rows = rows[fits]
    return rows


def compare(results: pd.DataFrame, sides: list[Side], measure: str = "accuracy") -> pd.DataFrame:
    """Return the first side's differences to each of the others: a row per place, and one over all of several.

    Columns: of, to: labels; dataset, teacher, student, scale: the place, `all` in the row over all, and where the sides
    name it; n: pairs of runs; of_mean, of_std, to_mean, to_std: of the paired runs; difference, low, high, p: the mean
    paired difference, its 95 % interval and the paired t-test; of_seconds, to_seconds; seconds_ratio, seconds_low,
    seconds_high: the geometric mean of the paired ratios, of those computed in the same way. Paired by dataset,
    teacher, student, scale and seed, except for what a side names, or, where sides are folders, tells them apart.

    results: of `load_results`, of one study or several. Raises ConfigError where nothing is paired, or several runs
    of one side fit one of the other.
    """
    if measure not in COLUMNS or COLUMNS[measure][0] != NUMBER:
        numbers = [name for name, (kind, _) in COLUMNS.items() if kind == NUMBER]
        raise ConfigError(f"--measure: got {shown(measure)}; {suggest(measure, numbers)}")
    first, *others = sides
    return pd.concat([_to(results, first, other, measure) for other in others], ignore_index=True)


def _to(results: pd.DataFrame, of: Side, to: Side, measure: str) -> pd.DataFrame:
    chosen = [(each, rows_of(results, each)) for each in (of, to)]
    named = {*of.values, *to.values, *(_told_apart(*(rows for _, rows in chosen)) if of.paths or to.paths else ())}
    keys = [key for key in (*PLACE, "seed") if key not in named]
    left, right = (_single(rows.dropna(subset=[measure]), each, keys) for each, rows in chosen)
    paired = left.merge(right, on=keys, suffixes=("_of", "_to"))
    if paired.empty:
        raise ConfigError(
            f"{shown(of.label)} against {shown(to.label)}: no two runs have the same {', '.join(keys)} and a value of "
            f"{measure}; name on each side what differs, such as scale=0.1"
        )
    places = [key for key in PLACE if key in keys]
    groups = list(paired.groupby(places, sort=False)) if places else []
    rows = [dict(zip(places, key, strict=True)) | _row(group, measure) for key, group in groups if len(groups) > 1]
    of_all = {key: paired[key].iloc[0] if key in places and paired[key].nunique() == 1 else ALL for key in PLACE}
    rows.append(of_all | _row(paired, measure))
    return pd.DataFrame([{"of": of.label, "to": to.label, **dict.fromkeys(PLACE, ALL), **row} for row in rows])


def _told_apart(left: pd.DataFrame, right: pd.DataFrame) -> list[str]:
    """Return what has one value on each side and another there: sides given by folders do not name it."""
    each = {key: (left[key].unique(), right[key].unique()) for key in PLACE}
    return [key for key, (a, b) in each.items() if len(a) == len(b) == 1 and a[0] != b[0]]


def _single(rows: pd.DataFrame, chosen: Side, keys: list[str]) -> pd.DataFrame:
    """Return the runs, each once for every place where it is compared: a student without a teacher with several."""
    rows = rows.drop_duplicates([*keys, "path"])
    if len(several := rows[rows.duplicated(keys, keep=False)]):
        [apart, *_] = [key for key in APART if several[key].nunique() > 1] or ["seed"]
        said = ", ".join(f"{apart}={value}" for value in several[apart].unique()[:4])
        raise ConfigError(f"{shown(chosen.label)}: several runs for one on the other side; say which: {said}")
    return rows


def _row(paired: pd.DataFrame, measure: str) -> dict[str, Any]:
    of, to = (paired[f"{measure}_{name}"].astype(float) for name in ("of", "to"))
    found = interval(of - to)
    alike = paired[paired["computed_of"].fillna("") == paired["computed_to"].fillna("")]
    logs = np.log(alike["seconds_total_of"].astype(float) / alike["seconds_total_to"].astype(float)).dropna()
    ratio = Interval(len(logs), *np.exp(interval(logs)[1:])) if len(logs) else Interval(0, *[float("nan")] * 3)
    row: dict[str, Any] = {"n": found.n}
    for name, values in (("of", of), ("to", to)):
        row |= {f"{name}_mean": values.mean(), f"{name}_std": values.std()}
        row[f"{name}_seconds"] = paired[f"seconds_total_{name}"].astype(float).mean()
    row |= {"difference": found.mean, "low": found.low, "high": found.high, "p": paired_p(of - to)}
    return row | {"seconds_ratio": ratio.mean, "seconds_low": ratio.low, "seconds_high": ratio.high}


def verdict(compared: pd.DataFrame, above: float) -> bool | None:
    """Return whether the last row of every comparison lies above a bound with its whole interval; None: not decided.

    True needs all of them, False one that lies below.
    """
    last = compared.groupby("to", sort=False).tail(1)
    if (last["high"] < above).any():
        return False
    return True if (last["low"] > above).all() else None


def as_text(compared: pd.DataFrame, measure: str) -> str:
    """Return a comparison in lines of at most 80 characters."""
    lines = [f"{measure}: differences paired by seed, {100 * CONFIDENCE:.0f} % intervals"]
    for row in compared.itertuples():
        lines += ["", *_wrapped(_place(row))]
        width = max(len("difference"), len(_cut(row.of)), len(_cut(row.to)))
        for label, mean, std, seconds in (
            (row.of, row.of_mean, row.of_std, row.of_seconds),
            (row.to, row.to_mean, row.to_std, row.to_seconds),
        ):
            lines.append(f"  {_cut(label):<{width}}  {plus_minus(mean, std):<16} {_seconds(seconds):>12}")
        lines.append(f"  {'difference':<{width}}  {_difference(row)}  n {row.n}{_p(row.p)}")
        if pd.notna(row.seconds_ratio):
            lines.append(f"  {'seconds':<{width}}  {_ratio(row)}")
    return "\n".join(lines) + "\n"


def as_markdown(compared: pd.DataFrame, measure: str) -> str:
    """Return a comparison as a Markdown table."""
    head, *rows = _grid(compared, measure)
    return "\n".join([markdown_row(head), "|---" * len(head) + "|", *map(markdown_row, rows)]) + "\n"


def as_latex(compared: pd.DataFrame, measure: str) -> str:
    """Return a comparison as a booktabs tabular."""
    return booktabs(_grid(compared, measure))


def as_csv(compared: pd.DataFrame, measure: str) -> str:
    """Return a comparison as CSV, with the columns of `compare`; numbers are not rounded."""
    return compared.assign(measure=measure).to_csv(index=False)


FORMATS = {"text": as_text, "markdown": as_markdown, "latex": as_latex, "csv": as_csv}


def _grid(compared: pd.DataFrame, measure: str) -> list[list[str]]:
    head = ["where", "of", "to", f"{measure} of", f"{measure} to", "difference (95 % interval)", "n", "p"]
    rows = [[*head, "seconds, ratio (95 % interval)"]]
    for row in compared.itertuples():
        values = (plus_minus(row.of_mean, row.of_std), plus_minus(row.to_mean, row.to_std), _difference(row))
        p = "" if pd.isna(row.p) else f"{row.p:.2g}"
        rows.append([_place(row), row.of, row.to, *values, str(row.n), p, _ratio(row)])
    return rows


def _place(row: Any) -> str:
    scale = row.scale if isinstance(row.scale, str) else f"{100 * row.scale:.4g} %"
    parts = {"dataset": row.dataset, "pair": f"{row.teacher} → {row.student}", "scale": scale}
    parts["pair"] = ALL if {row.teacher, row.student} == {ALL} else parts["pair"]
    return ", ".join(value for value in parts.values() if value != ALL) or ALL


def _difference(row: Any) -> str:
    spread = f" ({row.low:+.2f} to {row.high:+.2f})" if row.n > 1 else ""
    return f"{row.difference:+.2f}{spread}"


def _ratio(row: Any) -> str:
    if pd.isna(row.seconds_ratio):
        return ""
    spread = f" ({row.seconds_low:.2f} to {row.seconds_high:.2f})" if np.isfinite(row.seconds_high) else ""
    return f"x {row.seconds_ratio:.2f}{spread}"


def _p(value: float) -> str:
    return "" if pd.isna(value) else f"  p {value:.2g}"


def _seconds(value: float) -> str:
    return "" if pd.isna(value) else f"{value:.1f} s"


def _cut(label: str, most: int = 36) -> str:
    return label if len(label) <= most else f"{label[: most - 1]}…"


def _wrapped(text: str, most: int = 80) -> list[str]:
    return [text[at : at + most] for at in range(0, len(text), most)]
