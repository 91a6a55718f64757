"""A study as MLflow shows it: a run per experiment with its rows below, means, differences, tables and figures.

Everything is read from the study's folder (runs.csv, tables, figures) and from what its runs have sent. In the store,
tags say what an MLflow run is: `kind` (study, experiment, or a run's), `row` (its place in the study; without it, it is
none of the study's any more), `experiment`, `method`, `ablation`. A run that serves several rows has an MLflow run in
each, so that each is found by its names; files and network are with the first, which `copy_of` names in the others.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from glob import escape
from pathlib import Path
from typing import Any

import pandas as pd

from kd.integrations import summaries
from kd.integrations.sending import METRICS_PER_BATCH, curves, final_numbers, now
from kd.integrations.store import EXPERIMENT, VIEW, Store, quiet
from kd.integrations.tracking import arrived, read_history, read_state
from kd.runs.folder import RECORD
from kd.runtime.files import read_json, refuse_links_of_others, write_json

NAMES = ("experiment", "method", "ablation")  # tags of a row that a run may have several of
TITLES = "titles.json"  # in a study's folder: study, title, experiments (name -> title)
FOLDERS = ("tables", "figures")
COLUMNS = {  # of the saved view, with their width in pixels
    "metrics.`accuracy`": 80,
    "metrics.`seconds`": 70,
    "tags.`method`": 70,
    "tags.`ablation`": 100,
    "tags.`scale`": 50,
    "tags.`seed`": 50,
    "tags.`compared`": 330,
}
SETTING = "setting"  # tag of a row: its experiment and what its seeds have in common
NAME = "attributes.`Run Name`"  # the column that is always first
LONGEST = 5000  # characters of a tag


def note_study(folder: Path, study: str, title: str, experiments: dict[str, str]) -> None:
    """Write a study's titles (experiments: name -> title) where `log_study` finds them."""
    write_json(folder / TITLES, {"study": study, "title": title, "experiments": experiments})


def read_titles(folder: Path) -> dict[str, Any]:
    """Return what `note_study` wrote; {} where it is missing or torn."""
    try:
        titles = read_json(folder / TITLES)
        return titles if {"title", "experiments"} <= set(titles) and EXPERIMENT.fullmatch(titles["study"]) else {}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def log_study(store: Store, folder: Path, results: Path) -> str:
    """Bring a study's view in a store up to date and return its address. Its runs were sent before.

    folder: results/studies/<study>. Raises what MLflow raises, StoreFault, and OSError or KeyError for files that are
    not there.
    """
    titles = read_titles(folder)
    shown = [*folder.glob("*.*"), *(path for name in FOLDERS for path in (folder / name, *folder.glob(f"{name}/*")))]
    refuse_links_of_others(shown)  # a server would show what only this user may read
    with quiet():
        client = store.client()
        number = store.experiment(client, titles["study"])
        View(store, client, number, folder, results, titles).update()
    return store.link(number)


class View:
    """One update of a study's view."""

    def __init__(self, store: Store, client: Any, number: str, folder: Path, results: Path, titles: dict[str, Any]):
        self.store, self.client, self.number, self.folder, self.results = store, client, number, folder, results
        self.titles = titles
        self.table = pd.read_csv(folder / "runs.csv", keep_default_na=False)
        self.found = {run.info.run_id: run for run in _all_runs(client, number)}
        self.parents = {
            (run.data.tags["kind"], run.data.tags.get("experiment")): run
            for run in self.found.values()
            if run.data.tags.get("kind") in ("study", "experiment") and run.data.tags.get("row")
        }
        self.copies = {_key(run): run for run in self.found.values() if "copy_of" in run.data.tags}
        self.shown: set[str] = set()  # ids of the runs that the study consists of now
        self.compared: dict[str, str] = {}  # experiment -> what it compares, in a line
        self.spans: list[tuple[int | None, int | None]] = []  # of the experiments

    def update(self) -> None:
        """Send what has changed. Each run that is shown has a tag `row`, by which the view is sorted."""
        for place, (name, rows) in enumerate(self.table.groupby("experiment", sort=False), 1):
            sent = [(row, first) for row in rows.to_dict("records") if (first := self._first_run(row["path"]))]
            if sent:
                self._experiment(f"{place:02d}", name, self.titles["experiments"].get(name, name), sent)
        others = sorted(set(self._paths_of_others()))
        for place, path in enumerate(others, 1):
            if first := self._first_run(path):
                self._tag(first, {"row": f"99.{place:04d}"})
        self._study()
        for number, run in self.found.items():
            if number not in self.shown and "row" in run.data.tags:  # of an earlier training, or of another study file
                self.client.delete_tag(number, "row")
        self._save_views()

    def _first_run(self, path: str) -> str | None:
        """Return the id of the MLflow run that a run has sent everything to, in whichever study's experiment."""
        has = arrived(read_state(self.results / path), self.store)
        return has["run_id"] if has["complete"] else None

    def _paths_of_others(self) -> Iterator[str]:
        """Yield the paths of teachers and trials: runs in this experiment of the store that are no row of the study."""
        rows = set(self.table["path"])
        for number, run in self.found.items():
            path = run.data.tags.get("path")
            if path and path not in rows and self._first_run(path) == number:
                yield path

    def _experiment(self, place: str, name: str, title: str, sent: list[tuple[dict[str, Any], str]]) -> None:
        """Show an experiment: its own run, the rows below it, numbers and files."""
        records = {row["path"]: read_json(self.results / row["path"] / RECORD) for row, _ in sent}
        first, last = summaries.span(records.values())
        self.spans.append((first, last))
        tags = {"kind": "experiment", "experiment": name, "row": place}
        parent = self._parent(tags, f"{name}: {title}"[:250], first)
        for number, (row, first_run) in enumerate(sent, 1):
            tags = {key: str(row[key]) for key in NAMES}
            tags[SETTING] = f"{name}: {summaries.row_name(row, self.table, with_seed=False)}"
            tags |= {"row": f"{place}.{number:04d}", "mlflow.parentRunId": parent}
            own = self.found.get(first_run)
            if own is not None and all(own.data.tags.get(key) == tags[key] for key in NAMES):
                self._tag(first_run, tags)
            else:
                self._copy(row, first_run, tags, records[row["path"]])
        file = self.folder / "tables" / f"{name}.csv"
        if file.exists():
            summary = pd.read_csv(file)
            self._numbers(parent, summaries.metrics(summary), last)
            self.compared[name] = summaries.compared(summary)
            texts = {"compared": self.compared[name], "mlflow.note.content": summaries.note(summary)}
            self._tag(parent, {key: text[:LONGEST] for key, text in texts.items()})
        for pattern in (f"tables/{escape(name)}.csv", f"tables/{escape(name)}-by-pair.*", f"figures/{escape(name)}.*"):
            for path in sorted(self.folder.glob(pattern)):
                self.client.log_artifact(parent, str(path))
        self.client.set_terminated(parent, end_time=last)

    def _copy(self, row: dict[str, Any], first_run: str, tags: dict[str, str], record: dict[str, Any]) -> None:
        """Show a run in one more row, with its curves and numbers; what it wrote and its network are not sent again."""
        from mlflow.entities import DatasetInput, LoggedModelOutput, Param

        names = tuple(tags[key] for key in NAMES)
        copy = self.copies.get((first_run, *names))
        if copy is not None and copy.info.status == "FINISHED":
            self._tag(copy.info.run_id, tags)
            return
        if self.client.get_run(first_run).info.lifecycle_stage != "active":
            return  # deleted by the user
        if copy is not None:  # half of it was sent when that was killed
            self.client.delete_run(copy.info.run_id)
        folder, original = self.results / row["path"], self.client.get_run(first_run)
        first, last = summaries.span([record])
        own = {key: value for key, value in original.data.tags.items() if not key.startswith("mlflow.")} | tags
        name = summaries.row_name(row, self.table)
        run = self.client.create_run(self.number, first, {**own, "copy_of": first_run}, name).info.run_id
        self.client.log_batch(run, params=[Param(*item) for item in original.data.params.items()])
        history = read_history(folder)
        for metrics in curves(history, 0, first or now(), last or now()):
            self.client.log_batch(run, metrics=metrics)
        self._numbers(run, final_numbers(folder, record), last, int(history[-1]["epoch"]) if history else 0)
        inputs = original.inputs.dataset_inputs if original.inputs else []
        self.client.log_inputs(run, [DatasetInput(each.dataset, each.tags) for each in inputs])
        if original.outputs and original.outputs.model_outputs:
            models = [LoggedModelOutput(each.model_id, 0) for each in original.outputs.model_outputs]
            self.client.log_outputs(run, models)
        self.client.set_terminated(run, end_time=last)
        self.shown.add(run)

    def _parent(self, tags: dict[str, str], name: str, first: int | None) -> str:
        """Return the id of the study's or an experiment's own run, made if it is missing."""
        run = self.parents.get((tags["kind"], tags.get("experiment")))
        if run is None:
            number = self.client.create_run(self.number, first, tags, name).info.run_id
            self.shown.add(number)
            return number
        if run.info.run_name != name:
            self.client.update_run(run.info.run_id, name=name)
        self._tag(run.info.run_id, tags)
        return run.info.run_id

    def _study(self) -> None:
        """Keep the study's tables and figures as files of one run."""
        first = min((first for first, _ in self.spans if first), default=None)
        last = max((last for _, last in self.spans if last), default=None)
        name = f"{self.titles['study']}: {self.titles['title']}"[:250]
        run = self._parent({"kind": "study", "row": "00"}, name, first)
        for name in ("table.md", "results.csv", "runs.csv", "claims.csv", "report.html"):
            if (self.folder / name).exists():
                self.client.log_artifact(run, str(self.folder / name))
        for name in FOLDERS:
            if (self.folder / name).is_dir():
                self.client.log_artifacts(run, str(self.folder / name), name)
        self.client.set_terminated(run, end_time=last)

    def _numbers(self, number: str, values: dict[str, float], when: int | None, step: int = 0) -> None:
        """Store numbers of a run that has ended then, in milliseconds."""
        from mlflow.entities import Metric

        metrics = [Metric(name, value, when or now(), step) for name, value in values.items()]
        for start in range(0, len(metrics), METRICS_PER_BATCH):
            self.client.log_batch(number, metrics=metrics[start : start + METRICS_PER_BATCH])

    def _tag(self, number: str, tags: dict[str, str]) -> None:
        """Set those tags that a run does not have yet, and count it among those that are shown."""
        self.shown.add(number)
        has = self.found[number].data.tags if number in self.found else {}
        for key, value in tags.items():
            if has.get(key) != value:
                self.client.set_tag(number, key, value)

    def _save_views(self) -> None:
        """Save columns, order and filter in the experiment, and a link to them in its description."""
        several = [key for key in ("dataset", "teacher", "student") if self.table[key].nunique() > 1]
        columns = COLUMNS | {f"tags.`{key}`": 100 for key in several}
        state = {
            "searchFilter": "tags.row LIKE '%'",
            "orderByKey": "tags.`row`",  # sorted by another key than the time, rows are not folded into their parents
            "orderByAsc": True,
            "startTime": "ALL",
            "lifecycleFilter": "Active",
            "datasetsFilter": [],
            "modelVersionFilter": "All Runs",
            "selectedColumns": list(columns),
            "columnOrder": [NAME, *columns],
            "columnWidths": {NAME: 360 if several else 250, **columns},
        }
        key = {"mode": "tag", "groupByData": SETTING}
        grouped = {"groupBy": {"aggregateFunction": "average", "groupByKeys": [key]}}
        grouped |= {
            "searchFilter": f"tags.{SETTING} LIKE '%'",
            "columnWidths": {NAME: 400 if several else 320, **columns},
        }
        self._save_view(VIEW, "kd: the study's tables", state)
        self._save_view(f"{VIEW}-seeds", "kd: means over seeds", {**state, **grouped})
        link = self.store.link(self.number).partition("/#")[2]
        lines = [f"{self.titles['title']}: [runs, with accuracy and differences](#{link})", ""]
        lines += [f"- {name}: {compared}" for name, compared in self.compared.items()]
        self.client.set_experiment_tag(self.number, "mlflow.note.content", "\n".join(lines)[:LONGEST])

    def _save_view(self, key: str, name: str, state: dict[str, Any]) -> None:
        """Save a view as MLflow's own pages do, which list it under Views."""
        saved = {"name": name, "createdAt": 0, "updatedAt": 0, "state": json.dumps(state)}
        self.client.set_experiment_tag(self.number, f"mlflow.sharedViewState.{key}", json.dumps(saved))


def _all_runs(client: Any, number: str) -> Iterator[Any]:
    token: str | None = ""
    while token is not None:
        page = client.search_runs([number], "", max_results=1000, page_token=token or None)
        yield from page
        token = page.token or None


def _key(run: Any) -> tuple[str, ...]:
    return (run.data.tags["copy_of"], *(run.data.tags.get(key, "") for key in NAMES))
