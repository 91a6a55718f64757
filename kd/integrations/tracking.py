"""MLflow as a view of a run's files. The only module that imports mlflow.

The store is brought up to date from a run's files: for long runs during the run and at its end; for short runs when the
study ends, because opening MLflow takes seconds; or later by `python -m kd sync`. When the store is away, one line says
so, training goes on, and nothing is lost.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kd.runs.folder import HISTORY, METRICS, OF_ALL, RECORD, TRACKED, with_results
from kd.runs.folder import metrics as run_metrics
from kd.runtime.files import read_json, write_json

OPEN_AFTER_SECONDS = 60.0  # shorter runs are sent at the end of the study
SEND_EVERY_SECONDS = 15.0
METRICS_PER_BATCH = 1000  # the largest batch that MLflow accepts

SHOWN_AS = {"mlflow.experimentKind": "custom_model_development"}  # MLflow's page opens at the runs, not at chat traces

# A store that is away must not hang a run for minutes; these are MLflow's own settings, unless the user chose others.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")


def store_uri(settings: dict[str, Any], results: Path) -> str:
    """Return tracking.uri, else $MLFLOW_TRACKING_URI, else the URI of an SQLite file in the results folder."""
    local = f"sqlite:///{(results / 'mlflow.db').resolve()}"
    return settings["uri"] or os.environ.get("MLFLOW_TRACKING_URI") or local


def create_local_store(uri: str, experiment: str, results: Path) -> None:
    """Create the tables of a missing SQLite store, before parallel jobs would all try to."""
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        with _quiet():
            _experiment(_client(uri), experiment, results)


class Tracker:
    """Context manager around one run; entering returns the journal's sink.

    Nothing here raises because of the store: a failure is reported through `say`, and what it concerned is sent later.
    """

    def __init__(
        self,
        folder: Path,
        uri: str,
        experiment: str,
        results: Path,
        name: str,
        tags: dict[str, str],
        params: dict[str, Any],
        say: Callable[[str], None] = print,
    ):
        self.folder, self.uri, self.say = folder, uri, say
        self.state = {
            "uri": uri,
            "experiment": experiment,
            "results": str(results),
            "name": name,
            "tags": tags,
            "params": flatten(params),
            "run_id": None,
            "described": False,
            "rows": 0,
            "complete": False,
        }
        self._away = False
        self._next = time.monotonic() + OPEN_AFTER_SECONDS

    def __enter__(self) -> Callable[[list[dict[str, float]]], None]:
        before = self.folder / TRACKED
        if before.exists() and (old := read_json(before))["uri"] == self.uri and not old["complete"]:
            self.state |= {key: old[key] for key in ("run_id", "described", "rows")}
        return self._sink

    def _sink(self, history: list[dict[str, float]]) -> None:
        if not self._away and time.monotonic() >= self._next:
            self._send(history, "RUNNING")
            self._next = time.monotonic() + SEND_EVERY_SECONDS

    def __exit__(self, kind: type | None, error: BaseException | None, _trace: object) -> None:
        if self.state["run_id"] and kind is None:
            self._send(read_history(self.folder), "FINISHED")
        elif self.state["run_id"]:
            self._send([], "KILLED")
        write_json(self.folder / TRACKED, self.state)

    def _send(self, history: list[dict[str, float]], status: str) -> None:
        try:
            send(self.folder, self.state, history, status)
        except Exception as error:
            if not self._away:
                self.say(
                    f"MLflow store {self.uri} is away ({type(error).__name__}); the run goes on, "
                    "`python -m kd sync` sends the rest later"
                )
            self._away = True
        finally:
            write_json(self.folder / TRACKED, self.state)


def send(folder: Path, state: dict[str, Any], history: list[dict[str, float]], status: str) -> None:
    """Bring the MLflow run that `state` names up to date with the rows and, when finished, the files.

    Records in `state` at once what has arrived, so that nothing is sent twice. Raises what MLflow raises.
    """
    from mlflow.entities import Metric, Param, RunTag

    with _quiet():
        client = _client(state["uri"])
        if state["run_id"] is None:
            experiment = _experiment(client, state["experiment"], Path(state["results"]))
            state["run_id"] = client.create_run(experiment, run_name=state["name"], tags=state["tags"]).info.run_id
        run_id = state["run_id"]
        if not state["described"]:
            client.log_batch(run_id, params=[Param(key, str(value)) for key, value in state["params"].items()])
            state["described"] = True
        now = int(time.time() * 1000)
        while rows := history[state["rows"] : state["rows"] + _rows_per_batch(history)]:
            values = [(int(row["epoch"]), *item) for row in rows for item in row.items() if item[0] != "epoch"]
            metrics = [Metric(name, value, now, epoch) for epoch, name, value in values if math.isfinite(value)]
            client.log_batch(run_id, metrics=metrics)
            state["rows"] += len(rows)
        if status == "FINISHED":
            final, record = run_metrics(folder), read_json(folder / RECORD)
            numbers = {key: value for key, value in final.items() if isinstance(value, int | float)}
            numbers |= {f"seconds_{key}": value for key, value in record["seconds"].items()}
            numbers |= record["counts"] | {"peak_memory_mb": record["peak_memory_mb"]}
            metrics = [Metric(f"final_{name}", float(value), now, 0) for name, value in numbers.items()]
            client.log_batch(run_id, metrics=metrics, tags=[RunTag("commit", record["git"]["commit"])])
            for name in OF_ALL:
                if (folder / name).exists():
                    client.log_artifact(run_id, str(folder / name))
        if status == "RUNNING":
            client.update_run(run_id, status="RUNNING")
        else:
            client.set_terminated(run_id, status=status)
        state["complete"] = status == "FINISHED"


def _rows_per_batch(history: list[dict[str, float]]) -> int:
    return max(1, METRICS_PER_BATCH // max(map(len, history), default=1))


def log_study(uri: str, experiment: str, results: Path, folder: Path) -> None:
    """Store the study's tables and figures as artifacts of one MLflow run named after it, over earlier ones."""
    with _quiet():
        client = _client(uri)
        experiment_id = _experiment(client, experiment, results)
        found = client.search_runs([experiment_id], filter_string="tags.kind = 'study'", max_results=1)
        run = found[0] if found else client.create_run(experiment_id, run_name=experiment, tags={"kind": "study"})
        for name in ("table.md", "results.csv", "runs.csv"):
            if (folder / name).exists():
                client.log_artifact(run.info.run_id, str(folder / name))
        for name in ("tables", "figures"):
            if (folder / name).is_dir():
                client.log_artifacts(run.info.run_id, str(folder / name), name)
        client.set_terminated(run.info.run_id)


def sync(results: Path, say: Callable[[str], None] = print) -> int:
    """Send what the store lacks of every finished run below `results`; return the number of runs brought up to date.

    A store that is away is tried and reported only once.
    """
    sent, away = 0, set()
    for file in sorted(results.glob(f"**/{TRACKED}")):
        state, folder = read_json(file), file.parent
        if state["complete"] or state["uri"] in away or not (folder / METRICS).exists():
            continue  # METRICS is written shortly before the run is finished: without it there is nothing to report
        try:
            if with_results(folder) is None:
                raise ValueError("record or numbers cannot be read")
            history = read_history(folder)
        except (OSError, ValueError) as error:
            say(f"{folder}: not sent to MLflow, its files are not whole ({type(error).__name__}: {error})")
            continue
        try:
            send(folder, state, history, "FINISHED")
            sent += 1
        except Exception as error:
            away.add(state["uri"])
            say(f"MLflow store {state['uri']} is away ({type(error).__name__}); `python -m kd sync` tries again")
        write_json(file, state)
    return sent


def read_history(folder: Path) -> list[dict[str, float]]:
    """Return the rows of history.csv without their empty cells."""
    import csv

    with (folder / HISTORY).open(encoding="utf-8") as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values under dotted names: {"a": {"b": 1}} -> {"a.b": 1}."""
    flat = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def _experiment(client: Any, name: str, results: Path) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is not None:
        return found.experiment_id
    local = client.tracking_uri.startswith("sqlite:")  # a server keeps artifacts where it likes
    place = (results / "mlartifacts" / name).resolve().as_uri() if local else None
    try:
        return client.create_experiment(name, artifact_location=place, tags=SHOWN_AS)
    except MlflowException:  # another job was faster
        return client.get_experiment_by_name(name).experiment_id


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the lines that Alembic and MLflow print about tables and migrations."""
    import mlflow  # noqa: F401  (its import sets the levels of its loggers)

    names = ("mlflow", "mlflow.store.db.utils", "alembic", "alembic.runtime.migration")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
