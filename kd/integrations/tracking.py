"""MLflow as a view of a run's files.

The store is brought up to date from a run's files: for long runs during the run and at its end; for short runs when the
study ends, because opening MLflow takes seconds; or later by `python -m kd sync`. When the store is away, one line says
so, training goes on, and nothing is lost.

mlflow.json in the run's folder says what is sent (`experiment`, `name`, `tags`, `params`) and, by store, how much has
arrived there. It names no place on this machine, so that a copied results folder is a project of its own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from kd.integrations.store import Store, quiet
from kd.runs.folder import HISTORY, METRICS, OF_ALL, RECORD, TRACKED, ended, with_results
from kd.runs.folder import metrics as run_metrics
from kd.runtime.files import read_json, write_json
from kd.runtime.run_lock import peek

OPEN_AFTER_SECONDS = 60.0  # shorter runs are sent at the end of the study
SEND_EVERY_SECONDS = 15.0
METRICS_PER_BATCH = 1000  # the largest batch that MLflow accepts
NOTHING = {"run_id": None, "described": False, "rows": 0, "complete": False}  # has arrived


class Tracker:
    """Context manager around one run; entering returns the journal's sink.

    description: experiment, name, tags and params of the MLflow run; later: the command that sends what is missing.
    Nothing here raises because of the store: a failure is reported through `say`, and what it concerned is sent later.
    """

    def __init__(
        self,
        folder: Path,
        store: Store,
        description: dict[str, Any],
        say: Callable[[str], None] = print,
        later: str = "python -m kd sync",
    ):
        self.folder, self.store, self.say, self.later = folder, store, say, later
        self.arrived = dict(NOTHING)
        self.state = {**description, "sent": {store.name: self.arrived}}  # of another training nothing counts
        self._away = False
        self._next = time.monotonic() + OPEN_AFTER_SECONDS

    def __enter__(self) -> Callable[[list[dict[str, float]]], None]:
        before = arrived(read_state(self.folder), self.store)
        if not before["complete"]:
            self.arrived.update(before)
        return self._sink

    def _sink(self, history: list[dict[str, float]]) -> None:
        if not self._away and time.monotonic() >= self._next:
            self._send(history, "RUNNING")
            self._next = time.monotonic() + SEND_EVERY_SECONDS

    def __exit__(self, kind: type | None, error: BaseException | None, _trace: object) -> None:
        if self.arrived["run_id"]:
            self._send(*((read_history(self.folder), "FINISHED") if kind is None else ([], "KILLED")))
        elif kind is None:  # else what was noted of an earlier training stays, as its results do
            self._note()

    def _send(self, history: list[dict[str, float]], status: str) -> None:
        try:
            send(self.folder, self.store, self.state, self.arrived, history, status)
        except Exception as error:
            if not self._away:
                self.say(f"{self.store.trouble(error)}; the run goes on, `{self.later}` sends the rest later")
            self._away = True
        finally:
            self._note()

    def _note(self) -> None:
        note(self.folder, self.state, self.say)


def note(folder: Path, state: dict[str, Any], say: Callable[[str], None]) -> None:
    """Write what was sent into mlflow.json; a full disk costs this note only: what only informs ends no run."""
    try:
        write_json(folder / TRACKED, state)
    except OSError as error:
        say(f"{folder / TRACKED} not written ({error}); what was sent may be sent again")


def read_state(folder: Path) -> dict[str, Any]:
    """Return what mlflow.json of a run says; {} where it is missing, torn or of another version."""
    try:
        state = read_json(folder / TRACKED)
        return state if {"experiment", "name", "tags", "params", "sent"} <= set(state) else {}
    except (OSError, ValueError, TypeError):
        return {}


def arrived(state: dict[str, Any], store: Store, known: set[str] | None = None) -> dict[str, Any]:
    """Return what has arrived in a store; nothing if its run is not among the `known` ones (None: all are)."""
    found = NOTHING | state.get("sent", {}).get(store.name, {})
    return dict(found if known is None or found["run_id"] in known else NOTHING)


def send(
    folder: Path,
    store: Store,
    description: dict[str, Any],
    arrived: dict[str, Any],
    history: list[dict[str, float]],
    status: str,
) -> None:
    """Bring a run in the store up to date with the rows and, when finished, the files.

    Records in `arrived` at once what has arrived, so that nothing is sent twice. Raises what MLflow raises, and
    StoreFault.
    """
    from mlflow.entities import Metric, Param, RunTag

    with quiet():
        client = store.client()
        if arrived["run_id"] and not _is_there(client, arrived["run_id"]):
            arrived.update(NOTHING)
        if arrived["run_id"] is None:
            experiment = store.experiment(client, description["experiment"])
            run = client.create_run(experiment, run_name=description["name"], tags=description["tags"])
            arrived["run_id"] = run.info.run_id
        run_id = arrived["run_id"]
        if not arrived["described"]:
            client.log_batch(run_id, params=[Param(key, str(value)) for key, value in description["params"].items()])
            arrived["described"] = True
        now = int(time.time() * 1000)
        while rows := history[arrived["rows"] : arrived["rows"] + _rows_per_batch(history)]:
            values = [(int(row["epoch"]), *item) for row in rows for item in row.items() if item[0] != "epoch"]
            metrics = [Metric(name, value, now, epoch) for epoch, name, value in values if math.isfinite(value)]
            client.log_batch(run_id, metrics=metrics)
            arrived["rows"] += len(rows)
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
        arrived["complete"] = status == "FINISHED"


def _is_there(client: Any, run_id: str) -> bool:
    """Whether the store still has a run: a server may have been set up again, a run may have been deleted."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


def _rows_per_batch(history: list[dict[str, float]]) -> int:
    return max(1, METRICS_PER_BATCH // max(map(len, history), default=1))


def log_study(store: Store, experiment: str, folder: Path) -> None:
    """Store the study's tables and figures as artifacts of one MLflow run named after it, over earlier ones."""
    with quiet():
        client = store.client()
        number = store.experiment(client, experiment)
        found = client.search_runs([number], filter_string="tags.kind = 'study'", max_results=1)
        run = found[0] if found else client.create_run(number, run_name=experiment, tags={"kind": "study"})
        for name in ("table.md", "results.csv", "runs.csv"):
            if (folder / name).exists():
                client.log_artifact(run.info.run_id, str(folder / name))
        for name in ("tables", "figures"):
            if (folder / name).is_dir():
                client.log_artifacts(run.info.run_id, str(folder / name), name)
        client.set_terminated(run.info.run_id)


def sync(
    folders: Iterable[Path], store: Store, say: Callable[[str], None] = print, later: str = "python -m kd sync"
) -> int:
    """Send what the store lacks of the finished runs in `folders`; return how many were brought up to date.

    A store that fails is tried and reported once; `later` is the command that goes on.
    """
    sent, states = 0, {folder: read_state(folder) for folder in folders}
    begun = {state["experiment"] for state in states.values() if arrived(state, store)["run_id"]}
    try:
        store.settle()
        with quiet():
            known = store.runs(begun) if begun else set()
    except Exception as error:
        say(f"{store.trouble(error)}; `{later}` tries again")
        return 0
    for folder, state in states.items():
        has = arrived(state, store, known)
        if not state or has["complete"] or not (folder / METRICS).exists():
            continue  # METRICS is written shortly before the run is finished: without it there is nothing to report
        if ended(folder) is not None or peek(folder)[0] is not None:
            continue  # what is there is of an earlier training, and what was noted of the one that did not finish
        try:
            if with_results(folder) is None:
                raise ValueError("record or numbers cannot be read")
            history = read_history(folder)
        except (OSError, ValueError) as error:
            say(f"{folder}: not sent to MLflow, its files are not whole ({type(error).__name__}: {error})")
            continue
        try:
            send(folder, store, state, has, history, "FINISHED")
            sent += 1
        except Exception as error:
            say(f"{store.trouble(error)}; `{later}` tries again")
            break
        finally:
            now = read_state(folder) or state  # another process may have sent it elsewhere in the meantime
            note(folder, now | {"sent": now["sent"] | {store.name: has}}, say)
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
