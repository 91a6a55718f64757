"""What MLflow has of one run: begun once, brought up to date as often as need be, with nothing missing or doubled.

A store may take something and die before it says so. So what may have arrived is looked up before it is sent again.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kd.integrations.store import Store, quiet
from kd.integrations.summaries import milliseconds
from kd.runs.folder import OF_ALL, RECORD, WEIGHTS
from kd.runs.folder import metrics as run_metrics
from kd.runtime.files import read_json

METRICS_PER_BATCH = 1000  # the largest batch that MLflow accepts
# What has arrived. `begun`: when the run began, in ms, noted before anything is sent; `rows`: None where unknown.
NOTHING = {"begun": None, "run_id": None, "described": False, "rows": 0, "complete": False, "network": None}


def send(
    folder: Path,
    store: Store,
    description: dict[str, Any],
    arrived: dict[str, Any],
    history: list[dict[str, float]],
    status: str,
) -> None:
    """Bring a run in the store up to date with the rows and, when finished, the files.

    Records in `arrived` at once what has arrived, so that nothing is sent twice, and may be called again after a
    failure at any point. Raises what MLflow raises, and StoreFault.
    """
    from mlflow.entities import Metric, Param, RunTag

    record = read_json(folder / RECORD) if status == "FINISHED" else {}
    first, last = milliseconds(record.get("started")), milliseconds(record.get("finished")) or now()
    with quiet():
        client = store.client()
        if arrived["run_id"] and not _is_there(client, arrived["run_id"]):
            arrived.update(NOTHING)
        if arrived["run_id"] is None:
            arrived["begun"] = arrived["begun"] or first
            arrived.update(
                _begun(client, store.experiment(client, description["experiment"]), description, arrived["begun"])
            )
        run_id = arrived["run_id"]
        if not arrived["described"]:
            client.log_batch(run_id, params=[Param(key, str(value)) for key, value in description["params"].items()])
            arrived["described"] = True
        if history:
            done, arrived["rows"] = arrived["rows"], None  # unknown, should what follows fail
            there = _points(client, run_id, history) if done is None else set()
            for metrics in curves(history, done or 0, first, last):
                client.log_batch(run_id, metrics=[each for each in metrics if (each.key, each.step) not in there])
            ahead = len({step for _, step in there}) > len(history)  # of a checkpoint, from which the run goes on
            arrived["rows"] = None if ahead else max(done or 0, len(history))
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


def _begun(client: Any, experiment: str, description: dict[str, Any], first: int | None) -> dict[str, Any]:
    """Return the id of the run in the store, made if it is missing, and what is known of what it has."""
    made = f"attributes.start_time = {first} AND attributes.status = 'RUNNING'"  # by a try whose answer was lost
    for run in client.search_runs([experiment], made) if first else ():
        if run.info.run_name == description["name"] and description["tags"].items() <= run.data.tags.items():
            return {"run_id": run.info.run_id, "rows": None}
    run = client.create_run(experiment, first, description["tags"], description["name"])
    return {"run_id": run.info.run_id}


def _points(client: Any, run_id: str, history: list[dict[str, float]]) -> set[tuple[str, int]]:
    """Return (name, step) of what a run in the store has of the curves."""
    names = dict.fromkeys(name for row in history for name in row if name != "epoch")
    return {(name, point.step) for name in names for point in client.get_metric_history(run_id, name)}


def curves(history: list[dict[str, float]], done: int, first: int | None, last: int) -> Iterator[list[Any]]:
    """Yield the rows after the first `done` as batches of MLflow's metrics.

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
        yield metrics


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
