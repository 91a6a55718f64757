"""MLflow as a view of a run's files.

The store is brought up to date from a run's files: for long runs during the run and at its end; for short runs when the
study ends, because opening MLflow takes seconds; or later by `python -m kd sync`. When the store is away, one line says
so, training goes on, and nothing is lost.

mlflow.json in the run's folder says what is sent (`experiment`, `name`, `tags`, `params`, `dataset`) and, by store, how
much has arrived there. It names no place on this machine, so that a copied results folder is a project of its own.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from kd.integrations.networks import Networks
from kd.integrations.store import EXPERIMENT, Store, quiet
from kd.integrations.summaries import milliseconds
from kd.runs.folder import HISTORY, METRICS, OF_ALL, RECORD, TRACKED, WEIGHTS, ended, with_results
from kd.runs.folder import metrics as run_metrics
from kd.runtime.files import read_json, refuse_links_of_others, write_json
from kd.runtime.run_lock import peek

OPEN_AFTER_SECONDS = 90.0  # shorter runs are sent at the end of the study: opening MLflow takes two seconds
SEND_EVERY_SECONDS = 15.0
WAIT_AT_END_SECONDS = 20.0  # for a store that others write to; after that the study's end sends the rest
WAIT_IN_SYNC_SECONDS = 600.0
METRICS_PER_BATCH = 1000  # the largest batch that MLflow accepts
NOTHING = {"run_id": None, "described": False, "rows": 0, "complete": False, "network": None}  # has arrived
DESCRIBED = ("experiment", "name", "tags", "params", "dataset")  # by kd.integrations.jobs.description


class Tracker:
    """Context manager around one run; entering returns the journal's sink.

    description: what the MLflow run is (DESCRIBED); later: the command that sends what is missing.
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
        self._started = now()

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
            with self.store.turn(0.0 if status == "RUNNING" else WAIT_AT_END_SECONDS) as mine:
                if mine:  # else a later send has these rows too
                    send(self.folder, self.store, self.state, self.arrived, history, status, self._started)
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
        named = EXPERIMENT.fullmatch(state["experiment"])  # else its files could be sent to any folder
        parts = [state[key] for key in ("tags", "params", "dataset", "sent")] + [*state["sent"].values()]
        return state if named and "name" in state and all(isinstance(part, dict) for part in parts) else {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
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
    started: int | None = None,
) -> None:
    """Bring a run in the store up to date with the rows and, when finished, the files.

    started: milliseconds since 1970, of a run that goes on; a finished one has its times in its record.
    Records in `arrived` at once what has arrived, so that nothing is sent twice. Raises what MLflow raises, and
    StoreFault.
    """
    from mlflow.entities import Metric, Param, RunTag

    record = read_json(folder / RECORD) if status == "FINISHED" else {}
    first, last = milliseconds(record.get("started")) or started, milliseconds(record.get("finished")) or now()
    with quiet():
        client = store.client()
        if arrived["run_id"] and not _is_there(client, arrived["run_id"]):
            arrived.update(NOTHING)
        if arrived["run_id"] is None:
            experiment = store.experiment(client, description["experiment"])
            run = client.create_run(experiment, first, description["tags"], description["name"])
            arrived["run_id"] = run.info.run_id
        run_id = arrived["run_id"]
        if not arrived["described"]:
            client.log_batch(run_id, params=[Param(key, str(value)) for key, value in description["params"].items()])
            arrived["described"] = True
        for stop, metrics in curves(history, arrived["rows"], first if record else None, last):
            client.log_batch(run_id, metrics=metrics)
            arrived["rows"] = stop
        if status == "FINISHED":
            step = int(history[-1]["epoch"]) if history else 0
            metrics = [Metric(name, value, last, step) for name, value in final_numbers(folder, record).items()]
            tags = {"commit": record["git"]["commit"], "finished": record.get("finished", "")}
            client.log_batch(run_id, metrics=metrics, tags=[RunTag(*item) for item in tags.items()])
            client.log_inputs(run_id, [_dataset(description["dataset"], record)])
            later = _as_model(store, description)  # by `sync`, because it takes a second or two
            for name in OF_ALL:
                if (folder / name).exists() and not (name == WEIGHTS and later):
                    client.log_artifact(run_id, str(folder / name))
            arrived["network"] = None if later else WEIGHTS
        if status == "RUNNING":
            client.update_run(run_id, status="RUNNING")
        else:
            client.set_terminated(run_id, status, last)
        arrived["complete"] = status == "FINISHED"


def _as_model(store: Store, description: dict[str, Any]) -> bool:
    """Whether a run's network is stored as a model: one of a study is, a trial's is not."""
    return store.models and description["tags"].get("path", "").startswith("runs/")


def curves(history: list[dict[str, float]], done: int, first: int | None, last: int) -> Iterator[tuple[int, list[Any]]]:
    """Yield the rows after the first `done` as batches of MLflow's metrics, each with the number of rows until then.

    first, last: when the run began and ended, in milliseconds; its rows are spread evenly between. first None: it goes
    on, and the rows are of `last`.
    """
    from mlflow.entities import Metric

    size = max(1, METRICS_PER_BATCH // max(map(len, history), default=1))
    for start in range(done, len(history), size):
        rows, metrics = history[start : start + size], []
        for place, row in enumerate(rows, start + 1):
            when = last if first is None else first + (last - first) * place // len(history)
            values = {name: value for name, value in row.items() if name != "epoch" and math.isfinite(value)}
            metrics += [Metric(name, value, when, int(row["epoch"])) for name, value in values.items()]
        yield start + len(rows), metrics


def final_numbers(folder: Path, record: dict[str, Any]) -> dict[str, float]:
    """Return a finished run's numbers as MLflow shows them: `accuracy` (%), `seconds`, and final_<name> for each."""
    final = run_metrics(folder)
    numbers = {key: value for key, value in final.items() if isinstance(value, int | float)}
    numbers |= {f"seconds_{key}": value for key, value in record["seconds"].items()}
    numbers |= record["counts"] | {"peak_memory_mb": record["peak_memory_mb"]}
    named = {f"final_{name}": float(value) for name, value in numbers.items()}
    shown = {"accuracy": named.get("final_accuracy"), "seconds": named["final_seconds_total"]}
    return named | {name: value for name, value in shown.items() if value is not None}


def _dataset(described: dict[str, str], record: dict[str, Any]) -> Any:
    """Return the data set as an MLflow input: what the run learnt from, or, without data, what it was scored on."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    digest = str(record.get("identity", "")).split("-")[3:4] or ["unknown"]  # settings, seed, code, data, teachers
    profile = {"train_images": record.get("train_images"), "classes": len(record.get("classes", ()))}
    source = json.dumps({"uri": described["source"]})
    dataset = Dataset(described["name"], digest[0], "local", source, profile=json.dumps(profile))
    return DatasetInput(dataset, [InputTag("mlflow.data.context", described["context"])])


def now() -> int:
    """Return the milliseconds since 1970, MLflow's unit of time."""
    return int(time.time() * 1000)


def _is_there(client: Any, run_id: str) -> bool:
    """Whether the store still has a run: a server may have been set up again, a run may have been deleted."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


def sync(
    folders: Iterable[Path], store: Store, say: Callable[[str], None] = print, later: str = "python -m kd sync"
) -> int:
    """Send what the store lacks of the finished runs in `folders`; return how many were brought up to date.

    A store that fails is tried and reported once; `later` is the command that goes on.
    """
    states = {folder: state for folder in folders if (state := read_state(folder))}
    begun = {state["experiment"] for state in states.values() if arrived(state, store)["run_id"]}
    try:
        store.settle()
        with quiet():
            known = store.runs(begun) if begun else set()
    except Exception as error:
        say(f"{store.trouble(error)}; `{later}` tries again")
        return 0
    sent, no_models, networks = 0, [], Networks()
    for folder, state in states.items():
        has = arrived(state, store, known)
        if (has["complete"] and has["network"]) or not _may_be_sent(folder, say):
            continue
        try:
            with store.turn(WAIT_IN_SYNC_SECONDS):
                if not has["complete"]:
                    send(folder, store, state, has, read_history(folder), "FINISHED")
                if not has["network"]:
                    has["network"], reason = networks.log_weights(store.client(), has["run_id"], folder)
                    no_models += [reason] if reason else []
            sent += 1
        except Exception as error:
            say(f"{store.trouble(error)}; `{later}` tries again")
            break
        finally:
            noted = read_state(folder) or state  # another process may have sent it elsewhere in the meantime
            note(folder, noted | {"sent": noted["sent"] | {store.name: has}}, say)
    if no_models:
        say(f"networks in MLflow as {WEIGHTS}, not as models: {len(no_models)}; the first: {no_models[0]}")
    return sent


def _may_be_sent(folder: Path, say: Callable[[str], None]) -> bool:
    """Whether a run is finished and its files are whole; says so where they are not."""
    if not (folder / METRICS).exists():
        return False  # METRICS is written shortly before the run is finished: without it there is nothing to report
    if ended(folder) is not None or peek(folder)[0] is not None:
        return False  # what is there is of an earlier training, and what was noted of the one that did not finish
    try:
        refuse_links_of_others([folder, *(folder / name for name in OF_ALL)])
        if with_results(folder) is None:
            raise ValueError("record or numbers cannot be read")
        read_history(folder)
    except (OSError, ValueError) as error:
        say(f"{folder}: not sent to MLflow, its files are not whole ({type(error).__name__}: {error})")
        return False
    return True


def read_history(folder: Path) -> list[dict[str, float]]:
    """Return the rows of history.csv without their empty cells."""
    import csv

    with (folder / HISTORY).open(encoding="utf-8") as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
