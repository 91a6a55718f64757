"""One experiment's part of the page: its answer, tables that can be sorted and narrowed, its figure, what differs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from kd.reports import pairs_table
from kd.reports.page.answers import label
from kd.reports.page.markup import Cell, Html, anchor, folded, table, tag
from kd.reports.page.settings import differing, shared
from kd.reports.tables import GROUP, computed_note, plus_minus, scored_note, summarise

AXES = {"method": "Methods", "ablation": "Ablations", "scale": "Data scales", "pair": "Pairs of networks"}
COUNTS = {"student_steps": "student steps", "images": "images made", "generator_steps": "inversion steps"}
LONG = 30  # rows of a table that is folded where one by pairs stands above it
WIDTH, HEIGHT, EDGE = 150, 20, 8  # of the small plot of each row's seeds, in pixels


def section(
    name: str,
    experiment: dict[str, Any],
    rows: pd.DataFrame,
    results: pd.DataFrame,
    records: dict[str, dict[str, Any]],
    figure: Html | None,
) -> Html:
    """Return an experiment's section.

    rows: its runs, of `results`; records: path -> run.json; figure: drawn, with its caption.
    """
    variants = {
        variant: [records[path] for path in group["path"] if path in records]
        for variant, group in ((label(row, False), rows[_same(rows, row)]) for row in _variants(rows))
    }
    differ, common = differing(variants), shared(variants)
    return tag(
        "section",
        tag("h2", experiment["title"]),
        tag("p", _constants(rows), class_="note"),
        filters(rows),
        tables(rows, results, experiment["view"], experiment["note"]),
        figure,
        [tag("h3", "Settings that differ"), differ] if differ else None,
        folded(
            f"{len(common)} settings that all methods here share", table(["setting", "value"], common, sortable=False)
        ),
        id=anchor(name),
    )


def tables(rows: pd.DataFrame, results: pd.DataFrame, view: str, note: str = "") -> Html:
    """Return the table of an experiment and, with the view `pairs`, that of methods by pairs, with the lines below."""
    whole = summary(rows)
    if view == "pairs":
        long = len(rows.drop_duplicates(GROUP)) > LONG
        parts = [*by_pair(rows), folded("Every method and pair, with seeds and differences", whole) if long else whole]
    else:
        parts = [whole]
    notes = [" ".join(text.split()) for text in (note, scored_note(rows, results), computed_note(rows)) if text]
    return tag("div", parts, [tag("p", text, class_="note") for text in notes])


def summary(rows: pd.DataFrame) -> Html:
    """Return the table of an experiment: a row per group, with every seed's score, differences, seconds, counts."""
    groups = summarise(rows)
    score = groups.attrs["score"]
    columns = dict(_columns(groups, rows, score))
    lines = [list(cells) for cells in zip(*columns.values(), strict=True)]
    attributes = [_data(row) for row in groups.itertuples()]
    caption = (
        f"{score[0].upper()}{score[1:]} in %: mean ± standard deviation; a ring per seed and a bar for their mean, "
        f"from {rows['accuracy'].min():.2f} to {rows['accuracy'].max():.2f} %"
        + ("; differences paired by seed (95 % interval)" if "difference" in groups else "")
    )
    return table(list(columns), lines, caption, attributes)


def _columns(groups: pd.DataFrame, rows: pd.DataFrame, score: str) -> Iterator[tuple[str, list[Any]]]:
    """Yield the head of a column and its cells."""
    listed = list(groups.itertuples())
    by_group = dict(list(rows.groupby(GROUP, sort=False, dropna=False)))
    seeds = [by_group[tuple(getattr(row, name) for name in GROUP)] for row in listed]
    low, high = rows["accuracy"].min(), rows["accuracy"].max()
    first = listed[0]
    yield "method", [row.method for row in listed]
    if groups["ablation"].nunique() > 1:
        yield "ablation", [row.ablation for row in listed]
    if groups["scale"].nunique() > 1:
        yield "scale", [Cell(f"{100 * row.scale:.4g} %", row.scale) for row in listed]
    if len(groups[["teacher", "student"]].drop_duplicates()) > 1:
        yield "pair", [f"{row.teacher} → {row.student}" for row in listed]
    yield (
        f"{score} %",
        [
            Cell(plus_minus(row.accuracy, row.accuracy_std), row.accuracy, each_seed(own))
            for row, own in zip(listed, seeds, strict=True)
        ],
    )
    yield "seeds", [Cell(strip(own, low, high), row.accuracy) for row, own in zip(listed, seeds, strict=True)]
    yield "n", [Cell(row.n, row.n) for row in listed]
    if "quoted" in groups:
        yield "quoted %", [_number(row.quoted, ".2f") for row in listed]
    if "difference" in groups:
        yield f"difference to {label(first, False)}", [_difference(row) for row in listed]
        yield "p", [_number(row.difference_p, ".2g") for row in listed]
    yield "seconds", [_number(row.seconds, ".1f", phases(row)) for row in listed]
    for column, head in COUNTS.items():
        if column in groups and groups[column].nunique(dropna=False) > 1:
            yield head, [_number(getattr(row, column), ",.0f") for row in listed]


def each_seed(runs: pd.DataFrame) -> str:
    """Return what each seed reached."""
    return "; ".join(f"seed {row.seed}: {row.accuracy:.2f} %" for row in runs.sort_values("seed").itertuples())


def strip(runs: pd.DataFrame, low: float, high: float) -> Html:
    """Return a small plot, from `low` to `high`: a ring for each seed, a bar for their mean."""

    def place(value: float) -> str:
        share = (value - low) / (high - low) if high > low else 0.5
        return f"{EDGE + share * (WIDTH - 2 * EDGE):.1f}"

    middle = HEIGHT // 2
    mean = place(runs["accuracy"].mean())
    rings = [
        tag("circle", cx=place(row.accuracy), cy=middle, r=4, data_tip=f"seed {row.seed}: {row.accuracy:.2f} %")
        for row in runs.sort_values("seed").itertuples()
    ]
    axis = tag("line", x1=EDGE, x2=WIDTH - EDGE, y1=middle, y2=middle, class_="axis")
    bar = tag("line", x1=mean, x2=mean, y1=2, y2=HEIGHT - 2, class_="mean")
    size = {"width": WIDTH, "height": HEIGHT, "viewBox": f"0 0 {WIDTH} {HEIGHT}"}
    return tag("svg", axis, bar, rings, class_="strip", role="img", aria_label=each_seed(runs), **size)


def phases(row: Any) -> str:
    """Return the seconds of a row of `summarise` by phase."""
    parts = {name: getattr(row, f"seconds_{name}", None) for name in ("inversion", "distillation", "training")}
    return "; ".join(f"{name}: {value:.1f} s" for name, value in parts.items() if pd.notna(value))


def by_pair(rows: pd.DataFrame) -> list[Html]:
    """Return the tables of methods by pairs of networks, and of what methods add to KD."""
    cells = pairs_table.accuracy_by_pair(rows)
    lines = cells.drop_duplicates("label")
    attributes = [{key: value for key, value in _data(row).items() if key != "data_pair"} for row in lines.itertuples()]
    head, *body = pairs_table.grid(cells)
    caption = "By pairs of networks: mean ± standard deviation; ↑ above KD, ↓ below it"
    found = [table(head, body, caption, attributes, of_heads=[{}, *({"data_pair": pair} for pair in head[1:])])]
    if shares := pairs_table.shares_grid(cells):
        found.append(folded(pairs_table.SHARES, table(shares[0], shares[1:])))
    return found


def filters(rows: pd.DataFrame) -> Html | None:
    """Return boxes to tick: which methods, ablations, scales and pairs the tables below them show."""
    data = [_data(row) for row in rows.itertuples()]
    fields = []
    for axis, title in AXES.items():
        values = list(dict.fromkeys(each[f"data_{axis}"] for each in data))
        if len(values) > 1:
            boxes = [
                tag(
                    "label",
                    tag("input", type="checkbox", name=axis, value=value, checked=True),
                    f" {_said(axis, value)}",
                )
                for value in values
            ]
            words = ("all", "none") if len(values) > 3 else ()
            both = [tag("button", word, type="button", data_all=word) for word in words]
            fields.append(tag("fieldset", tag("legend", title), boxes, both))
    return tag("form", fields, class_="filters", autocomplete="off") if fields else None


def _said(axis: str, value: str) -> str:
    return f"{100 * float(value):.4g} %" if axis == "scale" else value


def _constants(rows: pd.DataFrame) -> str:
    """Return what all rows of the table have in common."""
    pairs = rows[["teacher", "student"]].drop_duplicates()
    parts = [", ".join(sorted(set(rows["dataset"])))]
    parts.append(" → ".join(pairs.iloc[0]) if len(pairs) == 1 else f"{len(pairs)} pairs of networks")
    parts += [f"data scale {100 * rows['scale'].iloc[0]:.4g} %"] if rows["scale"].nunique() == 1 else []
    parts += [f"{len(rows)} runs, seeds {', '.join(map(str, sorted(set(rows['seed']))))}"]
    for column, head in COUNTS.items():
        if column in rows and rows[column].nunique(dropna=False) == 1 and pd.notna(rows[column].iloc[0]):
            parts.append(f"{rows[column].iloc[0]:,.0f} {head} each")
    return "; ".join(parts)


def _variants(rows: pd.DataFrame) -> Iterator[Any]:
    yield from rows.drop_duplicates(["method", "ablation"]).itertuples()


def _same(rows: pd.DataFrame, row: Any) -> pd.Series:
    return (rows["method"] == row.method) & (rows["ablation"] == row.ablation)


def _data(row: Any) -> dict[str, str]:
    """Return the attributes by which a row of a table is hidden."""
    pair = f"{row.teacher} → {row.student}"
    return {"data_method": row.method, "data_ablation": row.ablation, "data_scale": f"{row.scale:g}", "data_pair": pair}


def _difference(row: Any) -> Cell:
    if pd.isna(row.difference):
        return Cell("", float("nan"))
    spread = f" ({row.difference_low:+.2f} to {row.difference_high:+.2f})" if row.difference_n > 1 else ""
    return Cell(f"{row.difference:+.2f}{spread}", row.difference, f"n = {row.difference_n:.0f} pairs of runs")


def _number(value: float, form: str, tip: str = "") -> Cell:
    return Cell("", float("nan")) if pd.isna(value) else Cell(format(value, form), value, tip)
