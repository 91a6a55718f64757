"""MLflow as a view: what arrives in a store, once, although runs are killed and stores are away."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kd.integrations import tracking
from kd.integrations.tracking import (
    STATE,
    Tracker,
    create_local_store,
    flatten,
    log_study,
    read_history,
    store_uri,
    sync,
)
from kd.runtime.files import read_json, write_json

AWAY = "http://127.0.0.1:9"
ROWS = [{"epoch": 1.0, "loss": 2.5}, {"epoch": 2.0, "loss": 1.5, "accuracy": 50.0}, {"epoch": 3.0, "loss": 0.5}]
PARAMS = {"kind": "train", "training": {"lr": 0.1, "milestones": [1, 2], "schedule": None}}
TAGS = {"method": "kd", "teacher": "", "seed": "0"}


class Said(list):
    def __call__(self, text):
        self.append(text)


class Store:
    """A store in a folder, its client, and runs below it."""

    def __init__(self, results, uri):
        from mlflow import MlflowClient

        self.results, self.uri, self.client = results, uri, MlflowClient(tracking_uri=uri)

    def tracker(self, folder, experiment, say=None, uri=None):
        folder.mkdir(parents=True, exist_ok=True)
        say = Said() if say is None else say
        return Tracker(folder, uri or self.uri, experiment, self.results, folder.name, TAGS, PARAMS, say)

    def runs(self, experiment):
        found = self.client.get_experiment_by_name(experiment)
        return self.client.search_runs([found.experiment_id]) if found else []

    def the_run(self, experiment):
        [run] = self.runs(experiment)
        return run

    def curve(self, run, name):
        history = self.client.get_metric_history(run.info.run_id, name)
        return sorted((metric.step, metric.value) for metric in history)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A fresh store, made as the workflow makes it: by a process of its own."""
    results = tmp_path_factory.mktemp("results")
    uri = store_uri({"uri": None}, results)
    program = "import sys; from pathlib import Path; from kd.integrations.tracking import create_local_store\n"
    program += "create_local_store(sys.argv[1], 'first', Path(sys.argv[2]))"
    done = subprocess.run([sys.executable, "-c", program, uri, str(results)], capture_output=True, text=True)
    return results, uri, done


@pytest.fixture(scope="module")
def store(made):
    results, uri, done = made
    assert done.returncode == 0, done.stderr
    return Store(results, uri)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def folder(store, request):
    return store.results / "runs" / request.node.name.replace("[", "-").strip("]")


def write_files(folder, rows=ROWS, accuracy=87.5):
    """What a finished run leaves."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [",".join(columns), *(",".join(str(row.get(name, "")) for name in columns) for row in rows)]
    (folder / "history.csv").write_text("\n".join(lines) + "\n")
    write_json(folder / "metrics.json", {"accuracy": accuracy, "parameters": 123, "scored": "test"})
    record = {"seconds": {"training": 1.5, "total": 2.0}, "counts": {"student_steps": 7}, "peak_memory_mb": 64.0}
    write_json(folder / "run.json", {**record, "git": {"commit": "abc123", "diff": ""}})


def send_at_once(tracker):
    """Do not wait the seconds between two sends."""
    tracker._next = 0.0


def finished(store, folder, experiment, say=None, rows=ROWS):
    """A run without a disturbance, which reports now and then."""
    tracker = store.tracker(folder, experiment, say)
    with tracker as sink:
        for number in range(1, len(rows) + 1):
            send_at_once(tracker)
            sink(rows[:number])
        write_files(folder, rows)


# -------------------------------------------------------------------------------------------------------- end to end


def test_the_store_is_made_without_a_word(made):
    """Alembic and MLflow would print twenty lines about tables."""
    _, _, done = made
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_everything_of_a_run_arrives(store, folder):
    said = Said()
    finished(store, folder, "complete", said)
    assert said == []
    run = store.the_run("complete")
    assert (run.info.status, run.info.run_name) == ("FINISHED", folder.name)
    assert run.data.params == {
        "kind": "train",
        "training.lr": "0.1",
        "training.milestones": "[1, 2]",
        "training.schedule": "None",
    }
    assert {key: run.data.tags[key] for key in TAGS} == TAGS
    assert run.data.tags["commit"] == "abc123"
    assert store.curve(run, "loss") == [(1, 2.5), (2, 1.5), (3, 0.5)]
    assert store.curve(run, "accuracy") == [(2, 50.0)]
    final = {name: value for name, value in run.data.metrics.items() if name.startswith("final_")}
    assert final == {
        "final_accuracy": 87.5,
        "final_parameters": 123.0,
        "final_seconds_training": 1.5,
        "final_seconds_total": 2.0,
        "final_student_steps": 7.0,
        "final_peak_memory_mb": 64.0,
    }
    assert {file.path for file in store.client.list_artifacts(run.info.run_id)} == {
        "metrics.json",
        "run.json",
        "history.csv",
    }
    copy = store.client.download_artifacts(run.info.run_id, "metrics.json")
    assert json.loads(Path(copy).read_text()) == read_json(folder / "metrics.json")
    assert run.info.artifact_uri.startswith((store.results / "mlartifacts").as_uri())
    assert read_json(folder / STATE)["complete"]


def test_rows_arrive_while_the_run_goes_on_but_not_each_at_once(store, folder):
    tracker = store.tracker(folder, "live")
    with tracker as sink:
        sink(ROWS[:1])
        assert store.runs("live") == []
        send_at_once(tracker)
        sink(ROWS[:2])
        run = store.the_run("live")
        assert run.info.status == "RUNNING"
        assert store.curve(run, "loss") == [(1, 2.5), (2, 1.5)]
        sink(ROWS)
        assert store.curve(run, "loss") == [(1, 2.5), (2, 1.5)]
        write_files(folder)
    assert store.curve(store.the_run("live"), "loss") == [(1, 2.5), (2, 1.5), (3, 0.5)]


def test_long_histories_and_gaps_arrive(store, folder, monkeypatch):
    """A server takes 1000 metrics at once; an SQLite file takes more, so the sizes are looked at here."""
    sizes, log_batch = [], type(store.client).log_batch

    def noted(self, run_id, metrics=(), **rest):
        sizes.append(len(metrics))
        return log_batch(self, run_id, metrics, **rest)

    monkeypatch.setattr(type(store.client), "log_batch", noted)
    rows = [{"epoch": float(epoch), "loss": epoch / 7} for epoch in range(1, 1052)]
    rows[3]["loss"] = float("nan")
    with store.tracker(folder, "long"):
        write_files(folder, rows)
    sync(folder)
    assert max(sizes) <= 1000
    curve = store.curve(store.the_run("long"), "loss")
    assert curve == [(int(row["epoch"]), row["loss"]) for row in rows if row["epoch"] != 4.0]


def test_a_short_run_waits_for_the_end_of_the_study(store, folder):
    tracker = store.tracker(folder, "short")
    with tracker as sink:
        sink(ROWS[:1])
        write_files(folder)
    assert store.runs("short") == []
    said = Said()
    assert (sync(folder, said), said) == (1, [])
    assert store.curve(store.the_run("short"), "loss") == [(1, 2.5), (2, 1.5), (3, 0.5)]


def test_names_of_the_store(tmp_path, monkeypatch):
    assert store_uri({"uri": None}, tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server")
    assert store_uri({"uri": None}, tmp_path) == "http://server"
    assert store_uri({"uri": "http://mine"}, tmp_path) == "http://mine"


def test_only_a_local_store_that_is_missing_is_made(store, tmp_path, monkeypatch):
    assert store.client.get_experiment_by_name("first") is not None
    monkeypatch.setattr(tracking, "_client", lambda uri: pytest.fail("nothing is to be done"))
    for uri in (store.uri, AWAY, "postgresql://server/base"):
        create_local_store(uri, "other", tmp_path)
    assert store.client.get_experiment_by_name("other") is None


def test_a_studys_tables_are_one_run_that_is_replaced(store, tmp_path):
    for text in ("old", "new"):
        (tmp_path / "table.md").write_text(text)
        log_study(store.uri, "tables", store.results, tmp_path)
    run = store.the_run("tables")
    assert run.data.tags["kind"] == "study"
    assert Path(store.client.download_artifacts(run.info.run_id, "table.md")).read_text() == "new"


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
    assert not read_json(folder / STATE)["complete"]


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
    state = read_json(folder / STATE)
    assert (state["rows"], state["complete"], state["run_id"]) == (0, False, None)
    # the store comes back
    write_json(folder / STATE, {**state, "uri": store.uri})
    assert sync(folder, said) == 1
    assert len(said) == 1
    run = store.the_run("away")
    assert run.info.status == "FINISHED"
    assert run.data.params["training.lr"] == "0.1"
    assert run.data.tags["method"] == "kd"
    assert store.curve(run, "loss") == [(1, 2.5), (2, 1.5), (3, 0.5)]
    assert run.data.metrics["final_accuracy"] == 87.5
    assert "metrics.json" in {file.path for file in store.client.list_artifacts(run.info.run_id)}
    assert sync(folder, said) == 0
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
    monkeypatch.setattr(tracking, "_client", lambda uri: client)
    assert sync(folder, said) == 0
    assert len(said) == 1
    assert "ConnectionError" in said[0]
    time.sleep(0.002)  # a row sent again has another time
    assert sync(folder, said) == 1
    assert len(said) == 1
    run = store.the_run(experiment)
    assert run.info.status == "FINISHED"
    assert run.data.params["training.lr"] == "0.1"
    assert run.data.metrics["final_accuracy"] == 87.5
    assert len(store.client.list_artifacts(run.info.run_id)) == 3
    assert store.curve(run, "loss") == [(int(row["epoch"]), row["loss"]) for row in rows]


def test_sync_leaves_unfinished_runs_alone_and_tries_a_store_that_is_away_once(tmp_path, store, monkeypatch):
    tried, send = [], tracking.send

    def failing(folder, *arguments):
        tried.append(folder.name)
        if folder.name.startswith("away"):
            raise ConnectionError("gone")
        return send(folder, *arguments)

    monkeypatch.setattr(tracking, "send", failing)
    for name in ("away-1", "away-2", "good", "unfinished"):
        folder = tmp_path / "runs/x" / name
        uri = AWAY if name.startswith("away") else store.uri
        write_json(folder / STATE, store.tracker(folder, "sync", uri=uri).state)
        if name != "unfinished":
            write_files(folder)
    said = Said()
    assert sync(tmp_path, said) == 1
    assert tried == ["away-1", "good"]
    assert len(said) == 1
    assert AWAY in said[0]
    assert [run.info.run_name for run in store.runs("sync")] == ["good"]


def test_a_run_with_a_damaged_file_does_not_hold_up_the_others(tmp_path, store):
    for name in ("damaged", "good"):
        folder = tmp_path / "runs/x" / name
        write_json(folder / STATE, store.tracker(folder, "damaged").state)
        write_files(folder)
    (tmp_path / "runs/x/damaged/run.json").unlink()
    said = Said()
    assert sync(tmp_path, said) == 1
    assert len(said) == 1
    assert str(tmp_path / "runs/x/damaged") in said[0]


# -------------------------------------------------------------------------------------------------------------- files


def test_history_is_read_without_its_gaps(tmp_path):
    (tmp_path / "history.csv").write_text("epoch,loss,accuracy\n1.0,0.5,\n2.0,,7.0\n")
    assert read_history(tmp_path) == [{"epoch": 1.0, "loss": 0.5}, {"epoch": 2.0, "accuracy": 7.0}]


def test_flat_names():
    assert flatten({"a": {"b": {"c": 1}, "d": [1]}, "e": None}) == {"a.b.c": 1, "a.d": [1], "e": None}
    assert flatten({}) == {}
