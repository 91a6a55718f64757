"""Which figures and tables a study has. The workflow's rules and `python -m kd tables` both follow this plan.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from kd.registry.datasets import SEGMENTATION
from kd.reports.figures import OF_RUNS, VIEW_CAPTIONS
from kd.runs.folder import RECORD, Records
from kd.runs.provenance import report_code
from kd.runtime.files import read_json
from kd.runtime.messages import ConfigError
from kd.settings.run import digest
from kd.studies.labels import in_full
from kd.studies.study import Study

ANSWERS = "answers.html"  # next to table.md: what a study found, in words
PANELS = 24  # most panels in a figure with one run per panel
MADE_OF = "report.json"  # next to results.csv: what the tables and figures were made of


@dataclass(frozen=True)
class PlannedFigure:
    """One figure, figures/<name>.png and .svg, of an experiment's results or of the files of some runs."""

    name: str
    kind: str  # a view of kd.reports.figures.VIEWS where `experiment` is set, else a key of OF_RUNS
    title: str  # of the experiment, or of this kind of figure
    caption: str  # plain sentences: what is shown, what to look at, what bars mean
    experiment: str | None = None
    runs: dict[str, str] = field(default_factory=dict)  # label -> path below the results folder
    note: str = ""  # a sentence: what these runs have in common of data set, pair and seed
    inputs: tuple[str, ...] = ()  # files of `runs` that must exist, below the results folder


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
        PlannedFigure(name, experiment["view"], experiment["title"], VIEW_CAPTIONS[experiment["view"]], name)
        for name, experiment in study.experiments.items()
        if name in with_runs
    ]
    for name, entry in OF_RUNS.items():
        rows = example_runs(study, entry.kinds, finished)
        if entry.of_maps:
            rows = rows.loc[[study.runs[path].dataset.name in SEGMENTATION for path in rows["path"]]]
        if finished is not None:
            rows = rows.loc[[_has(study, path, entry.files) for path in rows["path"]]]
        if rows.empty:
            continue
        if name in study.experiments:
            raise ConfigError(f"experiments.{name}: a figure of the study has this name; choose another one")
        inputs = [f"{path}/{file}" for path in rows["path"] for file in entry.files]
        if entry.with_scratch:
            scratch = student_without_teacher(study, rows["path"].iloc[0])
            scratch = scratch[scratch["path"].isin(compared)]
            rows = pd.concat([scratch, rows])
            inputs += [f"{path}/{RECORD}" for path in scratch["path"]]  # the one file that every such run has
        runs, note = _named(rows)
        figures.append(PlannedFigure(name, name, entry.title, entry.caption, None, runs, note, tuple(inputs)))
    return figures


def _has(study: Study, path: str, files: tuple[str, ...]) -> bool:
    return all((study.root / path / file).exists() for file in files)


def example_runs(study: Study, kinds: tuple[str, ...], among: set[str] | None = None) -> pd.DataFrame:
    """Return the rows of the first run of each method and ablation of these kinds, at most PANELS.

    `among` are the paths that may be chosen, such as those of finished runs; all by default.
    """
    rows = study.table[study.table["kind"].isin(kinds)]
    rows = rows if among is None else rows[rows["path"].isin(among)]
    return rows.drop_duplicates(["method", "ablation"]).drop_duplicates("path").head(PANELS)


def student_without_teacher(study: Study, path: str) -> pd.DataFrame:
    """Return the row of the student trained on labels that matches a distilled run; none if there is none.

    Both belong to the same experiment and have the same pair, scale and seed.
    """
    same = ["experiment", "teacher", "student", "scale", "seed"]
    table = study.table
    return table[table["kind"] == "train"].merge(table.loc[table["path"] == path, same]).head(1)


def _named(rows: pd.DataFrame) -> tuple[dict[str, str], str]:
    """Return what a figure calls runs -> their paths, and a sentence with what they have in common.

    Data set, pair of networks and seed are part of a run's name where they differ.
    """
    common, differing = [], []
    for texts in (
        rows["dataset"].map(str),
        rows["teacher"] + " → " + rows["student"],
        rows["seed"].map("seed {}".format),
    ):
        (differing if texts.nunique() > 1 else common).append(texts)
    names = [in_full(row) for row in rows.itertuples()]
    names = [", ".join(parts) for parts in zip(names, *differing, strict=True)]
    note = ", ".join(texts.iloc[0] for texts in common)
    return dict(zip(names, rows["path"], strict=True)), f"{note}." if note else ""


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
