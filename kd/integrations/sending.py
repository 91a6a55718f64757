"""What MLflow has of one run: begun once, brought up to date as often as need be, with nothing missing or doubled.

A store may take something and die before it says so, or do so long after. So what may have arrived is looked up before
it is sent again, and is sent again as it was: what comes twice is then one and the same.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from kd.integrations.store import Store, quiet
from kd.integrations.summaries import milliseconds
from kd.runs.folder import OF_ALL, RECORD, WEIGHTS
from kd.runs.folder import metrics as run_metrics
from kd.runtime.files import read_json

METRICS_PER_BATCH = 1000  # the largest batch that MLflow accepts
# What has arrived. `begun`: the run's start, ms; `tried`: [[rows, ms], ...] of what was sent and not answered.
NOTHING = {
    "begun": None,
    "run_id": None,
    "described": False,
    "rows": 0,
    "tried": [],
    "complete": False,
    "network": None,
}


def send(
    folder: Path,
    store: Store,
    description: dict[str, Any],
    arrived: dict[str, Any],
    history: list[dict[str, float]],
    status: str,
    started: int | None = None,
    note: Callable[[], bool] = lambda: True,
) -> None:
    """Bring a run in the store up to date with the rows and, when finished, the files.

    started: milliseconds since 1970, of a run that goes on; a finished one has its times in its record.
    Records in `arrived` at once what has arrived, and what is about to be sent, which `note` keeps: so it may be called
    again after a failure at any point, in another process too. Raises what MLflow raises, and StoreFault.
    """
    from mlflow.entities import Metric, Param, RunTag

    record = read_json(folder / RECORD) if status == "FINISHED" else {}
    first, last = milliseconds(record.get("started")), milliseconds(record.get("finished")) or now()
    with quiet():
        client = store.client()
        experiment = _experiment_of(client, arrived["run_id"]) if arrived["run_id"] else None
        if experiment is None:
            arrived.update({**NOTHING, "begun": arrived["begun"] or started or first or now()})
            if not note():
                return  # after a kill nobody would know that it was begun
            experiment = store.experiment(client, description["experiment"])
            [run_id, *_] = _open_runs(client, experiment, description, arrived) or [None]
            if run_id is None:
                tags, name = description["tags"], description["name"]
                run_id = client.create_run(experiment, arrived["begun"], tags, name).info.run_id
            arrived["run_id"] = run_id
        run_id = arrived["run_id"]
        if not arrived["described"]:
            client.log_batch(run_id, params=[Param(key, _text(value)) for key, value in description["params"].items()])
            arrived["described"] = True
        if history:
            there = _points(client, run_id, history) if arrived["tried"] else set()
            if status == "RUNNING":
                arrived["tried"] = [*arrived["tried"], [len(history), now()]]
                if not note():
                    return  # nor with which times its rows were sent
            for metrics in curves(history, arrived["rows"], first or last, last, arrived["tried"]):
                client.log_batch(run_id, metrics=[each for each in metrics if (each.key, each.step) not in there])
            arrived.update(rows=max(arrived["rows"], len(history)), tried=[])
        if status == "FINISHED":
            step = int(history[-1]["epoch"]) if history else 0
            metrics = [Metric(name, value, last, step) for name, value in final_numbers(folder, record).items()]
            tags = {"commit": record["git"]["commit"], "finished": record.get("finished", "")}
            client.log_batch(run_id, metrics=metrics, tags=[RunTag(*item) for item in tags.items()])
            data = [_dataset(description["dataset"], record)]
            store.patiently(lambda: client.log_inputs(run_id, data))  # where two note the same data, one is refused
            later = _as_model(store, description)  # by `sync`, because it takes a second or two
            for name in OF_ALL:
                if (folder / name).exists() and not (name == WEIGHTS and later):
                    client.log_artifact(run_id, str(folder / name))
            arrived["network"] = None if later else WEIGHTS
            for other in _open_runs(client, experiment, description, arrived):
                if other != run_id:  # made by an overloaded server long after it was asked, and asked again
                    client.delete_run(other)
        if status == "RUNNING":
            client.update_run(run_id, status="RUNNING")
        else:
            client.set_terminated(run_id, status, last)
        arrived["complete"] = status == "FINISHED"


def _text(value: Any) -> str:
    """Return a param as MLflow shows it, whatever the order of keys: it refuses to be told the same in other words."""
    return json.dumps(value, sort_keys=True) if isinstance(value, dict | list | tuple) else str(value)


def _open_runs(client: Any, experiment: str, description: dict[str, Any], arrived: dict[str, Any]) -> list[str]:
    """Return the ids of what the store has of a run that has not ended: more than one if answers were lost."""
    found = client.search_runs([experiment], f"attributes.start_time = {arrived['begun']} AND status = 'RUNNING'")
    name, tags = description["name"], description["tags"].items()
    return [run.info.run_id for run in found if run.info.run_name == name and tags <= run.data.tags.items()]


def _points(client: Any, run_id: str, history: list[dict[str, float]]) -> set[tuple[str, int]]:
    """Return (name, step) of what a run in the store has of the curves."""
    names = dict.fromkeys(name for row in history for name in row if name != "epoch")
    return {(name, point.step) for name in names for point in client.get_metric_history(run_id, name)}


def _experiment_of(client: Any, run_id: str) -> str | None:
    """Return the experiment of a run; None where the store has lost it: it was set up again, or the run deleted."""
    from mlflow.exceptions import MlflowException

    try:
        info = client.get_run(run_id).info
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return info.experiment_id if info.lifecycle_stage == "active" else None


def _as_model(store: Store, description: dict[str, Any]) -> bool:
    """Whether a run's network is stored as a model: one of a study is, a trial's is not."""
    return store.models and description["tags"].get("path", "").startswith("runs/")


def curves(
    history: list[dict[str, float]], done: int, first: int, last: int, tried: Iterable[tuple[int, int]] = ()
) -> Iterator[list[Any]]:
    """Yield the rows after the first `done` as batches of MLflow's metrics.

    Their times are spread between first and last, in milliseconds. Rows that were `tried` keep theirs (rows until then,
    time): a store that gets a number twice with the same time keeps it once, whichever comes first.
    """
    from mlflow.entities import Metric

    size = max(1, METRICS_PER_BATCH // max(map(len, history), default=1))
    for start in range(done, len(history), size):
        metrics = []
        for place, row in enumerate(history[start : start + size], start + 1):
            spread = first + (last - first) * place // len(history)
            when = next((when for stop, when in tried if place <= stop), spread)
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
