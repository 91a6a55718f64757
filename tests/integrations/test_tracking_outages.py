"""MLflow as a view: runs that are killed and stores that are away lose nothing and send nothing twice."""

import time

import pytest
from mlflow_store import AWAY, ROWS, Said, Store, finished, send_at_once, write_files

from kd.integrations import tracking
from kd.integrations.store import Store as KdStore
from kd.integrations.tracking import TRACKED
from kd.runtime.files import read_json, write_json


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    results = tmp_path_factory.mktemp("results")
    KdStore({"uri": None}, results).open("first")
    return Store(results)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def folder(store, request):
    return store.results / "runs" / request.node.name.replace("[", "-").strip("]")


def arrived_in(store, folder):
    return tracking.arrived(tracking.read_state(folder), store.store)


# ----------------------------------------------------------------------------------------------------- killed, resumed


def interrupted(tracker, rows, error):
    """A run that reports some rows and fails."""
    with tracker as sink:
        send_at_once(tracker)
        sink(rows)
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError])
def test_an_exception_passes_and_the_run_is_marked_killed(store, folder, error):
    experiment = f"killed-{error.__name__}"
    with pytest.raises(error, match="on purpose"):
        interrupted(store.tracker(folder, experiment), ROWS[:1], error("on purpose"))
    run = store.the_run(experiment)
    assert run.info.status == "KILLED"
    assert store.curve(run, "loss") == [(1, 2.5)]
    assert not arrived_in(store, folder)["complete"]


def test_a_resumed_run_is_the_same_run_and_sends_no_row_twice(store, folder):
    with pytest.raises(KeyboardInterrupt):
        interrupted(store.tracker(folder, "resumed"), ROWS[:2], KeyboardInterrupt())
    tracker = store.tracker(folder, "resumed")
    with tracker as sink:
        send_at_once(tracker)
        sink(ROWS[:1])  # the checkpoint was older than what was sent
        assert store.the_run("resumed").info.status == "RUNNING"
        send_at_once(tracker)
        sink(ROWS)
        write_files(folder)
    run = store.the_run("resumed")
    assert run.info.status == "FINISHED"
    assert store.curve(run, "loss") == [(1, 2.5), (2, 1.5), (3, 0.5)]


def test_a_run_that_was_killed_without_a_word_is_the_same_run_too(store, folder):
    """SIGKILL leaves no time to note anything at the end: what was sent is noted when it is sent."""
    tracker = store.tracker(folder, "sigkill")
    sink = tracker.__enter__()
    send_at_once(tracker)
    sink(ROWS[:2])
    del tracker, sink
    finished(store, folder, "sigkill")
    assert store.curve(store.the_run("sigkill"), "loss") == [(1, 2.5), (2, 1.5), (3, 0.5)]


def test_a_run_made_again_after_its_end_is_another_run(store, folder):
    finished(store, folder, "again")
    finished(store, folder, "again")
    assert [store.curve(run, "loss") for run in store.runs("again")] == [[(1, 2.5), (2, 1.5), (3, 0.5)]] * 2


# ---------------------------------------------------------------------------------------------------------- store away


def test_a_store_that_is_away_is_said_once_and_costs_seconds(store, folder):
    said, start = Said(), time.monotonic()
    tracker = store.tracker(folder, "away", said, AWAY)
    with tracker as sink:
        for number in (1, 2, 3):
            send_at_once(tracker)
            sink(ROWS[:number])
        write_files(folder)
    assert time.monotonic() - start < 20
    assert len(said) == 1
    assert AWAY in said[0]
    assert "python -m kd sync" in said[0]
    assert read_json(folder / TRACKED)["sent"] == {AWAY: tracking.NOTHING}
    # another store is there
    assert store.sync(folder, said) == 1
    assert len(said) == 1
    run = store.the_run("away")
    assert run.info.status == "FINISHED"
    assert run.data.params["training.lr"] == "0.1"
    assert run.data.tags["method"] == "kd"
    assert store.curve(run, "loss") == [(1, 2.5), (2, 1.5), (3, 0.5)]
    assert run.data.metrics["final_accuracy"] == 87.5
    assert "metrics.json" in {file.path for file in store.client.list_artifacts(run.info.run_id)}
    assert store.sync(folder, said) == 0
    assert len(store.runs("away")) == 1


class Flaky:
    """The client of a store that fails once, at the n-th call of one method."""

    def __init__(self, client, method, number):
        self.client, self.method, self.left = client, method, number

    def __getattr__(self, name):
        if not callable(getattr(self.client, name)):
            return getattr(self.client, name)

        def call(*arguments, **keywords):
            if name == self.method:
                self.left -= 1
                if self.left == 0:
                    raise ConnectionError("gone")
            return getattr(self.client, name)(*arguments, **keywords)

        return call


@pytest.mark.parametrize(
    ("method", "number"),
    [
        ("create_run", 1),
        ("log_batch", 1),
        ("log_batch", 2),
        ("log_batch", 3),
        ("log_artifact", 2),
        ("set_terminated", 1),
    ],
)
def test_an_outage_at_any_call_loses_nothing_and_doubles_nothing(store, folder, monkeypatch, method, number):
    experiment = f"flaky-{method}-{number}"
    rows = [{"epoch": float(epoch), "loss": epoch / 7} for epoch in range(1, 1052)]
    said, client = Said(), Flaky(store.client, method, number)
    with store.tracker(folder, experiment, said):
        write_files(folder, rows)
    monkeypatch.setattr(store.store, "client", lambda: client)
    assert store.sync(folder, said) == 0
    assert len(said) == 1
    assert "is away (gone)" in said[0]
    time.sleep(0.002)  # a row sent again has another time
    assert store.sync(folder, said) == 1
    assert len(said) == 1
    run = store.the_run(experiment)
    assert run.info.status == "FINISHED"
    assert run.data.params["training.lr"] == "0.1"
    assert run.data.metrics["final_accuracy"] == 87.5
    assert len(store.client.list_artifacts(run.info.run_id)) == 4
    assert store.curve(run, "loss") == [(int(row["epoch"]), row["loss"]) for row in rows]


def test_sync_leaves_unfinished_runs_and_tries_a_store_that_is_away_once(tmp_path, store, monkeypatch):
    tried = []

    def failing(folder, *_):
        tried.append(folder.name)
        raise ConnectionError("gone")

    for name in ("one", "two", "unfinished"):
        folder = tmp_path / "runs/x" / name
        write_json(folder / TRACKED, store.tracker(folder, "sync").state)
        if name != "unfinished":
            write_files(folder)
    said = Said()
    with monkeypatch.context() as patched:
        patched.setattr(tracking, "send", failing)
        assert store.sync(tmp_path, said) == 0
    assert tried == ["one"]
    assert len(said) == 1
    assert "sqlite:mlflow.db is away (gone); `python -m kd sync` tries again" in said[0]
    assert store.sync(tmp_path, said) == 2
    assert {run.info.run_name for run in store.runs("sync")} == {"one", "two"}


def test_a_run_with_a_damaged_file_does_not_hold_up_the_others(tmp_path, store):
    for name in ("damaged", "good"):
        folder = tmp_path / "runs/x" / name
        write_json(folder / TRACKED, store.tracker(folder, "damaged").state)
        write_files(folder)
    (tmp_path / "runs/x/damaged/run.json").unlink()
    said = Said()
    assert store.sync(tmp_path, said) == 1
    assert len(said) == 1
    assert str(tmp_path / "runs/x/damaged") in said[0]
