"""A study's tables and figures: the files that the workflow ends with, or those of the runs that are finished so far.

Imports no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kd.reports import pairs_table as paper
from kd.reports.figures import correlations, course, figure, histograms, image_grid, save
from kd.reports.tables import collect, markdown, study_markdown, summarise
from kd.runtime.files import read_json, write_atomically
from kd.runtime.messages import ConfigError
from kd.studies.claims import claims_markdown, judge
from kd.studies.study import Study

FINISHED = ("metrics.json", "run.json")


def publish(study: Study, folder: Path, figures: bool = True) -> int:
    """results.csv, table.md and, if wanted, figures of the runs that are finished; gives their number.

    Raises ConfigError where there is none. Which code made a run is in the tables; whether it is today's is not asked.
    """
    done = {path for path in study.students if all((study.root / path / name).exists() for name in FINISHED)}
    if not done:
        raise ConfigError(f"{study.name}: no run is finished in {study.root}; `python -m kd status` says what is")
    folder.mkdir(parents=True, exist_ok=True)
    results = collect(study.table[study.table["path"].isin(done)], study.root)
    write_atomically(folder / "results.csv", lambda file: results.to_csv(file, index=False))
    write_tables(results, study.title, study.experiments, study.claims, folder)
    if figures:
        _figures(study, results, folder / "figures")
    return len(done)


def _figures(study: Study, results: pd.DataFrame, folder: Path) -> None:
    for name, rows in results.groupby("experiment", sort=False):
        experiment = study.experiments[name]
        save(figure(experiment["view"], summarise(rows), rows, experiment["title"]), folder / f"{name}.png")
    done = set(results["path"])
    for kind, file in (("distill", "correlations.npz"), ("datafree", "synthetic.npz")):
        shown = study.examples(kind, done)
        files = {label: study.root / path / file for label, path in shown.items()}
        if files := {label: path for label, path in files.items() if path.exists()}:
            if kind == "datafree":
                synthetic_figures({label: path.parent for label, path in files.items()}, folder)
            else:
                first = shown[next(iter(files))]
                beside = {label: path for label, path in study.alone(first).items() if path in done}
                alone = {label: study.root / path / file for label, path in beside.items()}
                correlations_figure(files, folder / "correlations.png", alone)


def write_tables(
    results: pd.DataFrame,
    title: str,
    experiments: dict[str, dict[str, Any]],
    claims: dict[str, dict[str, Any]],
    folder: Path,
) -> None:
    """table.md; per experiment tables/<name>.csv and, methods by pairs, -by-pair.csv and .tex; claims.csv.

    Where several experiments are shown by pairs, also tables/_all-by-pair.csv and .tex (no
    experiment's name begins so).
    Experiments without a run in `results` are left out; a claim's test without one is not decided.
    """
    parts, tables = [], folder / "tables"
    tables.mkdir(parents=True, exist_ok=True)
    for name, rows in results.groupby("experiment", sort=False):
        experiment = experiments[name]
        summary = summarise(rows)
        summary.to_csv(tables / f"{name}.csv", index=False)
        parts.append(markdown(summary, experiment["title"]))
        if experiment["view"] == "pairs":
            parts.append(_by_pair(rows, experiment["title"], tables / f"{name}-by-pair"))
    shown = [name for name, experiment in experiments.items() if experiment["view"] == "pairs"]
    if len(shown) > 1 and not (rows := paper.together(results, shown)).empty:
        parts.append(_by_pair(rows, "All experiments", tables / "_all-by-pair"))
    if claims:
        judged = judge(claims, results)
        judged.to_csv(folder / "claims.csv", index=False)
        parts.append(claims_markdown(judged))
    (folder / "table.md").write_text(study_markdown(title, parts, results))


def _by_pair(rows: pd.DataFrame, title: str, file: Path) -> str:
    """Write the .csv and .tex; give the Markdown."""
    table = paper.by_pair(rows)
    table.to_csv(file.with_suffix(".csv"), index=False)
    file.with_suffix(".tex").write_text(paper.latex(table))
    return paper.markdown(table, title)


def correlations_figure(files: dict[str, Path], png: Path, alone: dict[str, Path]) -> None:
    """From the correlations.npz of distilled runs, by label.

    `alone` is that of the student without a teacher beside the first of them, whose teacher it is compared with; it is
    left out where one of the two was made before runs kept what that takes, or the run was taken from those kept.
    """
    taught = {label: dict(np.load(file)) for label, file in files.items()}
    teacher = next(iter(taught.values())).get("teacher")
    differences = {
        label: np.load(file)["student"].astype(float) - teacher
        for label, file in alone.items()
        if teacher is not None and file.exists()
    }
    differences |= {label: matrices["difference"].astype(float) for label, matrices in taught.items()}
    save(correlations(differences), png)


def synthetic_figures(folders: dict[str, Path], figures: Path) -> None:
    """From the folders of data-free runs, by label: synthetic-images, -histograms and -course."""
    sets = {label: dict(np.load(folder / "synthetic.npz")) for label, folder in folders.items()}
    histories = {label: pd.read_csv(folder / "history.csv") for label, folder in folders.items()}
    classes = read_json(next(iter(folders.values())) / "run.json")["classes"]
    save(image_grid(sets), figures / "synthetic-images.png")
    save(histograms(sets, classes), figures / "synthetic-histograms.png")
    save(course(sets, histories), figures / "synthetic-course.png")
