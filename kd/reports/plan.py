"""Which figures and tables a study has. The workflow's rules and `python -m kd tables` both follow this plan.

Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from kd.reports.figures import OF_RUNS, VIEW_CAPTION
from kd.runs.folder import RECORD, Records
from kd.runs.provenance import report_code
from kd.runtime.files import read_json
from kd.runtime.messages import ConfigError
from kd.settings.run import digest
from kd.studies.study import Study

ANSWERS = "answers.html"  # next to table.md: what a study found, in words
PANELS = 24  # most panels in a figure with one run per panel
MADE_OF = "report.json"  # next to results.csv: what the tables and figures were made of


@dataclass(frozen=True)
class PlannedFigure:
    """One figure, figures/<name>.png and .svg, of an experiment's results or of the files of some runs."""

    name: str
    kind: str  # a view of kd.reports.figures.VIEWS where `experiment` is set, else a key of OF_RUNS
    caption: str  # reStructuredText
    experiment: str | None = None
    title: str = ""  # of the experiment
    runs: dict[str, str] = field(default_factory=dict)  # label -> path below the results folder
    inputs: tuple[str, ...] = ()  # files of `runs` that must exist, below the results folder

    @property
    def heading(self) -> str:
        """The experiment's title, or what the figure is called."""
        return self.title or self.name.replace("-", " ").capitalize()


@dataclass(frozen=True)
class PlannedTable:
    """One table, tables/<name> with each of the endings, of one or several experiments."""

    name: str
    title: str
    experiments: tuple[str, ...]
    by_pair: bool = False  # methods by pairs of networks, as CRD's paper prints them
    networks: bool = False  # what the networks cost
    note: str = ""  # below it

    @property
    def heading(self) -> str:
        """The title, with what is shown of the experiments."""
        return f"{self.title}, by pairs" if self.by_pair else self.title

    @property
    def files(self) -> list[str]:
        endings = ("csv", "tex") if self.by_pair else ("csv",)
        return [f"{self.name}.{ending}" for ending in endings] + [self.shown]

    @property
    def shown(self) -> str:
        """The file for a browser. Snakemake's report can name no file that begins with `_`."""
        return f"{self.name.replace('_', 'study.', 1) if self.name.startswith('_') else self.name}.html"


def text_of(study: Study) -> str:
    """Return a digest of what tables and figures are made of apart from the runs: the study's text, and code."""
    text = [study.table.to_csv(index=False), study.title, study.experiments, study.claims, report_code()]
    return digest(text)


def made_of(text: str, records: Iterable[dict[str, Any] | None]) -> str:
    """Return a digest of `text_of` a study and of which runs its tables are made, by their records."""
    return digest([text, *(record and [record.get("identity"), record.get("finished")] for record in records)])


def outdated_report(study: Study, records: Records) -> bool:
    """Whether the study's tables are there, but made of another text, by other code or of other runs."""
    folder = study.root / "studies" / study.name
    try:
        now = made_of(text_of(study), (records[path] for path in study.students))
        return (folder / "results.csv").exists() and read_json(folder / MADE_OF) != now
    except (OSError, ValueError):
        return True


def plan_figures(study: Study, finished: set[str] | None = None) -> list[PlannedFigure]:
    """Return the figures of a study: one per experiment, and those of OF_RUNS that have runs to show.

    With `finished`, paths of runs whose files are there, the plan shows these runs only. Those that lack a file that a
    figure is drawn from (older runs, kept teachers) are left out of that figure.
    Raises ConfigError where an experiment has the name of another figure.
    """
    compared = set(study.students) if finished is None else finished
    with_runs = set(study.table.loc[study.table["path"].isin(compared), "experiment"])
    figures = [
        PlannedFigure(
            name, experiment["view"], f"{_literal(experiment['title'])}. {VIEW_CAPTION}", name, experiment["title"]
        )
        for name, experiment in study.experiments.items()
        if name in with_runs
    ]
    for name, entry in OF_RUNS.items():
        shown = example_runs(study, entry.kind, finished)
        if finished is not None:
            shown = {label: path for label, path in shown.items() if _has(study, path, entry.files)}
        if not shown:
            continue
        if name in study.experiments:
            raise ConfigError(f"experiments.{name}: a figure of the study has this name; choose another one")
        inputs = [f"{path}/{file}" for path in shown.values() for file in entry.files]
        if entry.with_scratch:
            scratch = student_without_teacher(study, next(iter(shown.values())))
            scratch = {label: path for label, path in scratch.items() if path in compared}
            shown = scratch | shown
            inputs += [f"{path}/{RECORD}" for path in scratch.values()]  # the one file that every such run has
        figures.append(PlannedFigure(name, name, entry.caption, runs=shown, inputs=tuple(inputs)))
    return figures


def _literal(text: str) -> str:
    """Return the reStructuredText that shows a text as it is."""
    return re.sub(r"([^\w\s]|_)", r"\\\1", text)


def _has(study: Study, path: str, files: tuple[str, ...]) -> bool:
    return all((study.root / path / file).exists() for file in files)


def example_runs(study: Study, kind: str, among: set[str] | None = None) -> dict[str, str]:
    """Return the first run of each method and ablation of a kind, at most PANELS: label -> path.

    `among` are the paths that may be chosen, such as those of finished runs; all by default.
    """
    rows = study.table[study.table["kind"] == kind]
    rows = rows if among is None else rows[rows["path"].isin(among)]
    return _labelled(rows.drop_duplicates(["method", "ablation"]).drop_duplicates("path").head(PANELS))


def student_without_teacher(study: Study, path: str) -> dict[str, str]:
    """Return the student trained on labels that matches a distilled run: label -> path, empty if there is none.

    Both belong to the same experiment and have the same pair, scale and seed.
    """
    same = ["experiment", "teacher", "student", "scale", "seed"]
    table = study.table
    rows = table[table["kind"] == "train"].merge(table.loc[table["path"] == path, same])
    return _labelled(rows.head(1))


def _labelled(rows: pd.DataFrame) -> dict[str, str]:
    """Map what figures call runs to their paths."""
    return {f"{row.method} ({row.ablation}), {100 * row.scale:.4g} %": row.path for row in rows.itertuples()}


def plan_tables(experiments: dict[str, dict[str, Any]]) -> list[PlannedTable]:
    """Return the tables of a study's experiments (name -> title and view), in the order of table.md.

    Each has a summary; those with the view `pairs` also have methods by pairs; where there are several of them, one
    more table shows them together. The last one says what the networks cost. No experiment's name begins with `_`.
    """
    tables = []
    by_pair = [name for name, experiment in experiments.items() if experiment["view"] == "pairs"]
    for name, experiment in experiments.items():
        title, note = experiment["title"], experiment["note"]
        tables.append(PlannedTable(name, title, (name,), note=note))
        if name in by_pair:
            tables.append(PlannedTable(f"{name}-by-pair", title, (name,), by_pair=True, note=note))
    if len(by_pair) > 1:
        note = "".join(experiments[name]["note"] for name in by_pair)
        tables.append(PlannedTable("_all-by-pair", "All experiments", tuple(by_pair), by_pair=True, note=note))
    tables.append(PlannedTable("_networks", "Networks", tuple(experiments), networks=True))
    return tables
