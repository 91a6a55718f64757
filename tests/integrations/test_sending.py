"""MLflow as a view: whatever call fails, before or after it is done, nothing is lost and nothing is there twice."""

import time

import mlflow_store
import pytest
from mlflow_store import ROWS, Flaky, Said, finished, report, write_files

from kd.integrations import store as stores
from kd.runtime.run_lock import RunLock

environment, folder, store = mlflow_store.environment, mlflow_store.folder, mlflow_store.fresh


FAULTS = pytest.mark.parametrize(
    ("method", "number"),
    [
        ("create_run", 1),
        ("log_batch", 1),
        ("log_batch", 2),
        ("log_batch", 3),
        ("log_batch", 4),
        ("log_inputs", 1),
        ("log_artifact", 2),
        ("set_terminated", 1),
    ],
)
DOES = pytest.mark.parametrize("does", ["never", "before", "after"])
LONG_ROWS = [{"epoch": float(epoch), "loss": epoch / 7} for epoch in range(1, 1052)]


def is_complete(store, experiment):
    run = store.the_run(experiment)
    assert run.info.status == "FINISHED"
    assert run.data.params["training.lr"] == "0.1"
    assert run.data.metrics["final_accuracy"] == 87.5
    assert len(store.client.list_artifacts(run.info.run_id)) == 4
    assert len(run.inputs.dataset_inputs) == 1
    assert store.curve(run, "loss") == [(int(row["epoch"]), row["loss"]) for row in LONG_ROWS]
    assert [len(store.curve(run, name)) for name in ("final_accuracy", "seconds")] == [1, 1]


@DOES
@FAULTS
def test_an_outage_at_any_call_loses_nothing_and_doubles_nothing(store, folder, monkeypatch, method, number, does):
    experiment, said = f"flaky-{method}-{number}-{does}", Said()
    with store.tracker(folder, experiment, said):
        write_files(folder, LONG_ROWS)
    client = Flaky(store.client, method, number, does)
    monkeypatch.setattr(store.store, "client", lambda: client)
    with monkeypatch.context() as patched:
        patched.setattr(stores, "PAUSES", ())
        assert store.sync(folder, said) == 0
    [line] = said
    assert line.endswith("is away (gone); `python -m kd sync` tries again (1 of 1 finished runs have not arrived)")
    time.sleep(0.002)  # a row sent again has another time
    assert store.sync(folder, said) == 1
    assert len(said) == 1
    is_complete(store, experiment)


@DOES
@FAULTS
def test_nor_does_one_while_the_run_goes_on(store, folder, monkeypatch, method, number, does):
    """Its rows have the time at which they are sent."""
    experiment, said = f"going-{method}-{number}-{does}", Said()
    client = Flaky(store.client, method, number, does)
    monkeypatch.setattr(store.store, "client", lambda: client)
    monkeypatch.setattr(stores, "PAUSES", ())
    tracker = store.tracker(folder, experiment, said)
    with tracker as sink:
        for rows in (LONG_ROWS[:3], LONG_ROWS[:1005], LONG_ROWS[:1050]):
            report(tracker, sink, rows)
            time.sleep(0.002)
        write_files(folder, LONG_ROWS)
    assert [line.partition(";")[0] for line in said] == ["MLflow store sqlite:mlflow.db is away (gone)"]
    store.sync(folder, said)
    assert len(said) == 1
    is_complete(store, experiment)


def test_a_store_that_is_back_in_a_moment_is_asked_again(store, folder, monkeypatch):
    said, client = Said(), Flaky(store.client, "log_batch", 2, "before")
    with store.tracker(folder, "blink", said):
        write_files(folder, LONG_ROWS)
    monkeypatch.setattr(store.store, "client", lambda: client)
    monkeypatch.setattr(stores, "PAUSES", (0.0, 0.0))
    assert (store.sync(folder, said), said) == (1, [])
    is_complete(store, "blink")


@pytest.mark.parametrize("killed", ["silently", "stopped"])
def test_a_run_that_never_ends_does_not_stay_running(store, folder, monkeypatch, killed):
    experiment, said = f"never-{killed}", Said()
    tracker = store.tracker(folder, experiment, said)
    sink = tracker.__enter__()
    report(tracker, sink, ROWS[:2])
    if killed == "stopped":
        with monkeypatch.context() as patched:
            patched.setattr(store.store, "client", lambda: Flaky(store.client, "set_terminated", 1, "never"))
            tracker.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    with RunLock(folder):
        store.sync(folder)
        assert store.the_run(experiment).info.status == "RUNNING", "another process is at it"
    store.sync(folder)
    assert store.the_run(experiment).info.status == "KILLED"
    finished(store, folder, experiment)
    assert store.the_run(experiment).info.status == "FINISHED"
