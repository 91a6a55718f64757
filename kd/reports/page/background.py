"""What stands behind the numbers: seconds, machines, versions, code, files, every run, and how to make them again."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from kd.reports import networks_table
from kd.reports.page.answers import label
from kd.reports.page.markup import Cell, Html, folded, table, tag
from kd.reports.tables import RGB, teacher_accuracies
from kd.studies.claims import score_of

PHASES = ("inversion", "distillation", "training", "compiling", "evaluation", "monitoring", "total")


def teachers(results: pd.DataFrame) -> Html | None:
    """Return a line per teacher with its accuracy; None where no run has one."""
    rows = []
    for row in teacher_accuracies(results).itertuples():
        spread = f"{row.min:.2f}" if row.min == row.max else f"{row.min:.2f} to {row.max:.2f}"
        view = "" if row.teacher_view == RGB else f" ({row.teacher_view})"
        rows.append(tag("li", f"Teacher {row.teacher}{view} on {row.dataset}: {spread} %"))
    return tag("ul", rows) if rows else None


def seconds(results: pd.DataFrame) -> Html:
    """Return the section on computing time: mean seconds of each group of runs by phase, and all together."""
    runs = results.drop_duplicates("path")
    known = [phase for phase in PHASES if f"seconds_{phase}" in runs and runs[f"seconds_{phase}"].notna().any()]
    names, rows = _names(results), []
    for _, group in runs.groupby(["teacher", "student", "method", "ablation", "scale"], sort=False):
        row = group.iloc[0]
        means = [group[f"seconds_{phase}"].mean() for phase in known]
        cells = [Cell("" if pd.isna(mean) else f"{mean:.1f}", mean) for mean in means]
        rows.append([names[row.path], f"{row.teacher} → {row.student}", Cell(len(group), len(group)), *cells])
    total = runs["seconds_total"].sum()
    return tag(
        "section",
        tag("h2", "Where the time went"),
        tag(
            "p",
            f"{len(runs)} students took {_duration(total)} of computing, without start-up and the teachers' training.",
        ),
        folded("Mean seconds by phase", table(["method", "pair", "n", *known], rows)),
        id="_seconds",
    )


def _names(results: pd.DataFrame) -> dict[str, str]:
    """Return what each run is called, by its path: all its names where methods share a run."""
    found: dict[str, dict[str, None]] = {}
    for row in results.itertuples():
        found.setdefault(row.path, {})[label(row, True)] = None
    return {path: " = ".join(names) for path, names in found.items()}


def _duration(value: float) -> str:
    if value < 600:
        return f"{value:.0f} seconds"
    return f"{value / 60:.0f} minutes" if value < 7200 else f"{value / 3600:.1f} hours"


def networks(results: pd.DataFrame) -> Html | None:
    """Return the section on what the networks cost; None where that is not known."""
    cells = networks_table.networks(results)
    if cells.empty:
        return None
    head, *rows = networks_table.grid(cells)
    below = tag("p", networks_table.note(cells).replace("`", ""), class_="note")
    return tag("section", tag("h2", "Networks"), table(head, rows), below, id="_networks")


def environment(records: dict[str, dict[str, Any]], results: pd.DataFrame) -> Html:
    """Return the section on machines, versions and commits, each with its number of runs."""
    counted: dict[str, Counter[str]] = {}
    for record in records.values():
        about = {key: value for key, value in record.get("environment", {}).items() if key != "host"}
        git = record.get("git", {})
        changed = " with changes that are in its run.json" if git.get("diff") else ""
        about = {"device": record.get("device", "?"), **about, "commit": f"{git.get('commit', '?')}{changed}"}
        for key, value in about.items():
            counted.setdefault(key, Counter())[str(value)] += 1
    rows = []
    for key, values in counted.items():
        lines = [value if len(values) == 1 else f"{value} ({count} runs)" for value, count in sorted(values.items())]
        rows.append([key, Cell([tag("div", line) for line in lines])])
    computed = sorted(set(results["computed"].dropna())) if "computed" in results else []
    return tag(
        "section",
        tag("h2", "Machines and code"),
        tag("p", f"Computed on: {'; '.join(computed)}.") if computed else None,
        table(["what", "of the runs"], rows, sortable=False),
        id="_environment",
    )


def rerun(command: str) -> Html:
    """Return the section on how the study is made again."""
    return tag(
        "section",
        tag("h2", "Make it again"),
        tag("p", "From the project's folder; what is finished and unchanged is not made again:"),
        tag("pre", tag("code", command), class_="scroll", tabindex="0"),
        id="_again",
    )


def every_run(results: pd.DataFrame, root: Path, folder: Path) -> Html:
    """Return the section with a row for every run, and links to their folders.

    root: the results folder; folder: where the page lies.
    """
    above = Path(os.path.relpath(root, folder)).as_posix()
    names, rows = _names(results), []
    for row in results.drop_duplicates("path").itertuples():
        pair = f"{row.teacher} → {row.student}"
        numbers = [Cell(f"{value:.2f}", value) for value in (row.accuracy, row.seconds_total)]
        link = tag("a", "files", href=f"{quote(f'{above}/{row.path}')}/")
        rows.append([names[row.path], pair, Cell(row.seed, row.seed), *numbers, row.commit, link])
    heads = ["method", "pair", "seed", f"{score_of(results)} %", "seconds", "commit", "folder"]
    return tag("section", tag("h2", "Every run"), folded(f"{len(rows)} runs", table(heads, rows)), id="_runs")


def files(folder: Path, tables: list[str]) -> Html:
    """Return the section with links to those of the study's other files that are there; tables: names in `tables`."""
    names = ["table.md", "results.csv", "claims.csv", "runs.csv", *(f"tables/{name}" for name in tables)]
    links = [tag("li", tag("a", name, href=quote(name))) for name in names if (folder / name).is_file()]
    return tag("section", tag("h2", "Files"), tag("ul", links, class_="files"), id="_files")
