"""Write a study's tables and figures: those that the workflow ends with, or those of the runs finished so far.

Imports no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from kd.reports import networks_table, pairs_table
from kd.reports.figures import OF_RUNS, VIEWS
from kd.reports.figures.drawing import save
from kd.reports.page import answers, background, experiment
from kd.reports.page.document import document, page_of, write_page
from kd.reports.page.hover import name_points
from kd.reports.page.markup import Html, tag
from kd.reports.plan import ANSWERS, PlannedFigure, PlannedTable, plan_figures, plan_tables
from kd.reports.results import finished
from kd.reports.tables import computed_note, markdown, scored_note, study_markdown, summarise
from kd.runtime.files import refuse_links_of_others, write_atomically
from kd.studies.claims import claims_markdown, judge
from kd.studies.study import Study


def publish(study: Study, folder: Path, figures: bool = True) -> int:
    """Write results.csv, tables and, if wanted, figures and report.html of the runs that are finished.

    Returns the number of these runs.
    Raises ConfigError where there is none. Runs made by other code than today's count: the tables name their commits.
    """
    results = finished(study)
    done = set(results["path"])
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "results.csv", lambda file: results.to_csv(file, index=False))
    write_tables(results, study.title, study.experiments, study.claims, folder)
    if figures:
        planned = plan_figures(study, done)
        for figure in planned:
            draw(figure, study.root, results, folder / f"figures/{figure.name}.png")
        write_page(page_of(study), results, planned, study.root, folder)
    return len(done)


def draw(figure: PlannedFigure, root: Path, results: pd.DataFrame | None, png: Path) -> None:
    """Draw a planned figure into `png` and the .svg next to it.

    root: the results folder, in which the files of single runs lie; results: the frame of results.csv, which only
    figures of experiments need.
    """
    if figure.experiment is None:
        folders = {label: root / path for label, path in figure.runs.items()}
        drawn = OF_RUNS[figure.kind].draw(folders, figure.title, figure.note)
    else:
        rows = results[results["experiment"] == figure.experiment]
        drawn = VIEWS[figure.kind](summarise(rows), rows, figure.title)
        name_points(drawn)
    save(drawn, png)


def write_tables(
    results: pd.DataFrame,
    title: str,
    experiments: dict[str, dict[str, Any]],
    claims: dict[str, dict[str, Any]],
    folder: Path,
) -> None:
    """Write table.md, the files of all planned tables, the answers and, if there are claims, claims.csv.

    Experiments without a run in `results` are left out; a claim's test without one is not decided.
    """
    parts = []
    (folder / "tables").mkdir(parents=True, exist_ok=True)
    refuse_links_of_others([folder, folder / "tables"])
    for table in plan_tables(experiments):
        rows = results[results["experiment"].isin(table.experiments)]
        if rows.empty:
            continue
        file = folder / "tables" / f"{table.name}.csv"
        _write_html(file.with_name(table.shown), table.heading, _shown(table, rows, results, experiments))
        if table.networks:
            cells = networks_table.networks(rows)
            _write(file, cells.to_csv(index=False))
            parts += filter(None, [networks_table.markdown(cells)])
            continue
        if table.by_pair:
            rows = pairs_table.merge_experiments(rows) if len(table.experiments) > 1 else rows
            cells = pairs_table.accuracy_by_pair(rows)
            _write(file, cells.to_csv(index=False))
            _write(file.with_suffix(".tex"), pairs_table.latex(cells))
            text = pairs_table.markdown(cells, table.title)
        else:
            summary = summarise(rows)
            _write(file, summary.to_csv(index=False))
            text = markdown(summary, table.title)
        parts.append(text + table.note + scored_note(rows, results) + computed_note(rows))
    if claims:
        judged = judge(claims, results)
        _write(folder / "claims.csv", judged.to_csv(index=False))
        parts.append(claims_markdown(judged))
    said = answers.summary(experiments, claims, results, links=False)
    _write_html(folder / ANSWERS, title, [said])
    _write(folder / "table.md", study_markdown(title, parts, results))


def _shown(
    table: PlannedTable, rows: pd.DataFrame, results: pd.DataFrame, experiments: dict[str, dict[str, Any]]
) -> list[Html | None]:
    """Return a table as it is shown in a browser."""
    if table.networks:
        return [background.networks(rows)]
    if table.by_pair:
        rows = pairs_table.merge_experiments(rows) if len(table.experiments) > 1 else rows
        return [experiment.filters(rows), *experiment.by_pair(rows)]
    return [experiment.filters(rows), experiment.tables(rows, results, "", table.note)]


def _write_html(file: Path, title: str, parts: list[Html | None]) -> None:
    _write(file, document(title, tag("main", tag("h1", title), parts)))


def _write(file: Path, text: str) -> None:
    write_atomically(file, lambda opened: opened.write(text.encode()))
