"""What a study ends with on the terminal: a table of its results and where the rest is. Imports no torch."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

import pandas as pd

from kd.reports.compare import compare, side
from kd.reports.results import finished, typed
from kd.reports.tables import plus_minus, summarise
from kd.runtime.messages import ConfigError
from kd.studies.claims import judge, score_of
from kd.studies.command_line import command_for
from kd.studies.labels import fitted, row_labels, widest
from kd.studies.study import Study

MOST_ROWS = 60  # of all experiments; what is left out is named
Cells = tuple[str, str, str, str, str]  # label, score, n, difference, seconds


def closing(study: Study, width: int = 80) -> str:
    """Return a table of a study's finished runs in lines of at most `width` characters, and what to look at next.

    Means over seeds ± standard deviation; differences are paired by seed, to the first row of an experiment, with 95 %
    intervals. Raises ConfigError where no run is finished.
    """
    results = finished(study)
    tables = {name: _cells(rows) for name, rows in results.groupby("experiment", sort=False)}
    scores = {score_of(rows) for _, rows in results.groupby("experiment", sort=False)}
    compared = any(cells[3] for table in tables.values() for cells in table)
    head = ("", f"{scores.pop() if len(scores) == 1 else 'score'} %", "n", _HEAD if compared else "", "seconds")
    widths = _widths([head, *(cells for table in tables.values() for cells in table)], width)
    lines, left = [_aligned(head, widths)], MOST_ROWS
    for name, cells in tables.items():
        shown = max(min(left, len(cells)), 3)
        left -= shown
        lines += textwrap.wrap(study.experiments[name]["title"], width)
        lines += [_aligned(row, widths) for row in cells[:shown]]
        if shown < len(cells):
            lines.append(f"  and {len(cells) - shown} rows more, in table.md")
    note = "mean ± std over n seeds" + ("; differences are paired by seed, to the first row" if compared else "")
    return "\n".join([*lines, note, *_verdicts(study, results, width), "", *links(study, results)]) + "\n"


_HEAD = "difference, 95 % interval"


def _cells(rows: pd.DataFrame) -> list[Cells]:
    """Return the cells of each group of an experiment; the first one has no difference."""
    summary, cells = summarise(rows), []
    for label, row in zip(row_labels(summary), summary.itertuples(), strict=True):
        difference, gap = "", getattr(row, "difference", None)
        if pd.notna(gap):
            spread = f" ({row.difference_low:+.2f} to {row.difference_high:+.2f})" if row.difference_n > 1 else ""
            difference = f"{gap:+.2f}{spread}"
        score = plus_minus(row.accuracy, row.accuracy_std)
        cells.append((label, score, str(row.n), difference, f"{row.seconds:,.1f}"))
    return cells


def _widths(table: list[Cells], width: int) -> list[int]:
    """Return the widths of the columns; labels get what the numbers leave of `width`."""
    numbers = [max(len(row[place]) for row in table) for place in range(1, 5)]
    gaps = 2 * (1 + sum(number > 0 for number in numbers))
    return [widest((row[0] for row in table), max(width - sum(numbers) - gaps, 8)), *numbers]


def _aligned(cells: Cells, widths: list[int]) -> str:
    label, score, n, difference, seconds = cells
    parts = [f"  {fitted(label, widths[0]):<{widths[0]}}", f"{score:<{widths[1]}}", f"{n:>{widths[2]}}"]
    parts += [f"{difference:<{widths[3]}}"] if widths[3] else []
    return "  ".join([*parts, f"{seconds:>{widths[4]}}"]).rstrip()


def _verdicts(study: Study, results: pd.DataFrame, width: int) -> list[str]:
    """Return the verdicts on the study's claims; what is claimed, and the numbers, are in table.md."""
    if not study.claims:
        return []
    judged = judge(study.claims, results).drop_duplicates("claim")
    said = "; ".join(f"{row.claim}: {row.claim_verdict}" for row in judged.itertuples())
    return textwrap.wrap(f"claims: {said}", width, break_on_hyphens=False)


def links(study: Study, results: pd.DataFrame) -> list[str]:
    """Return where a study's results are, and the commands that show more of them."""
    folder = study.root / "studies" / study.name
    named = {"table": folder / "table.md", "figures": folder / "figures", "report": folder / "report.html"}
    found = {name: str(path) for name, path in named.items() if path.exists()}
    if question := obvious_question(study, results):
        found["compare"] = question
    return [f"{name:<9} {text}" for name, text in found.items()]


def obvious_question(study: Study, results: pd.DataFrame) -> str:
    """Return the command that compares two methods, or two ablations, that the study was made for; empty without."""
    results = typed(results, study.name)
    for of, to in _questions(results):
        try:
            compare(results, [side(of), side(to)])
        except ConfigError:  # not paired, or several runs on one side
            continue
        return command_for(study.settings, f"compare {of} {to}", "--study")
    return ""


def _questions(results: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """Yield pairs of sides for `kd compare`: within an experiment, the newest method against the others first."""
    for by in ("method", "ablation"):
        for _, rows in results.groupby("experiment", sort=False):
            names = list(dict.fromkeys(rows.loc[rows["ablation"] == "full", "method"] if by == "method" else rows[by]))
            if len(names) < 2:
                continue
            if by == "ablation":
                method = rows["method"].iloc[0]
                yield method, f"{method},{names[1]}"
                continue
            first = "ssdkd" if "ssdkd" in names else names[-1]
            yield first, next(name for name in names if name != first)
