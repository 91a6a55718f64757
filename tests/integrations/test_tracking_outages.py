"""MLflow as a view: runs that are killed and stores that are away lose nothing and send nothing twice."""

import re
import shutil
import time

import mlflow_store
import pytest
from mlflow_store import AWAY, ROWS, Said, Store, finished, report, write_files

from kd.integrations import store as stores
from kd.integrations import tracking
from kd.integrations.store import Store as KdStore
from kd.integrations.tracking import TRACKED
from kd.runtime.files import read_json, write_json
from kd.runtime.run_lock import RunLock

environment, folder, store = mlflow_store.environment, mlflow_store.folder, mlflow_store.fresh


def arrived_in(store, folder):
    return tracking.arrived(tracking.read_state(folder), store.store)


# ----------------------------------------------------------------------------------------------------- killed, resumed


def interrupted(tracker, rows, error):
    """A run that reports some rows and fails."""
    with tracker as sink:
        report(tracker, sink, rows)
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
        report(tracker, sink, ROWS[:1])  # the checkpoint was older than what was sent
        assert store.the_run("resumed").info.status == "RUNNING"
        report(tracker, sink, ROWS)
        write_files(folder)
    run = store.the_run("resumed")
    assert run.info.status == "FINISHED"
    assert store.curve(run, "loss") == [(1, 2.5), (2, 1.5), (3, 0.5)]


def test_a_run_that_was_killed_without_a_word_is_the_same_run_too(store, folder):
    """SIGKILL leaves no time to note anything at the end: what was sent is noted when it is sent."""
    tracker = store.tracker(folder, "sigkill")
    sink = tracker.__enter__()
    report(tracker, sink, ROWS[:2])
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
            report(tracker, sink, ROWS[:number])
        write_files(folder)
    assert time.monotonic() - start < 20
    assert len(said) == 1
    assert AWAY in said[0]
    assert "python -m kd sync" in said[0]
    assert read_json(folder / TRACKED)["sent"] == {AWAY: {**tracking.NOTHING, "begun": tracker._started}}
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
        patched.setattr(stores, "PAUSES", (0.0, 0.0))
        assert store.sync(tmp_path, said) == 0
    assert tried == ["one"] * 3
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


def test_results_of_an_earlier_training_are_not_sent_as_those_of_one_that_failed(store, folder):
    """The files of a run stay until there are others."""
    finished(store, folder, "earlier")
    with pytest.raises(FloatingPointError):
        interrupted(store.tracker(folder, "earlier"), ROWS[:1], FloatingPointError("nan"))
    write_json(folder / "ended.json", {"error": "nan"})
    assert store.sync(folder) == 0
    assert {run.info.status for run in store.runs("earlier")} == {"FINISHED", "KILLED"}
    (folder / "ended.json").unlink()
    with RunLock(folder):
        assert store.sync(folder) == 0
    finished(store, folder, "earlier")
    assert [run.info.status for run in store.runs("earlier")] == ["FINISHED", "FINISHED"]


def test_a_run_that_the_store_has_lost_is_sent_again(store, folder):
    with pytest.raises(KeyboardInterrupt):
        interrupted(store.tracker(folder, "lost"), ROWS[:2], KeyboardInterrupt())
    store.client.delete_run(store.the_run("lost").info.run_id)
    finished(store, folder, "lost")
    assert store.curve(store.the_run("lost"), "loss") == [(1, 2.5), (2, 1.5), (3, 0.5)]


# --------------------------------------------------------------------------------------------------- stores that refuse


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        (
            "htpp://me:secret@host",
            r"htpp://\*\*\*@host is of no kind that can be used; write tracking.uri or .* http://",
        ),
        ("server:5000", "server:5000 is of no kind that can be used"),
        ("sqlite://x.db", "sqlite://x.db is of no kind that can be used"),
        ("mysql://me:secret@host/base", r"mysql://\*\*\*@host/base needs .* `pip install mysqlclient`"),
        ("http://me:secret@127.0.0.1:9", r"http://\*\*\*@127.0.0.1:9 is away \(Connection refused\)"),
        ("sqlite:////proc/no/mlflow.db", r"refuses \(FileNotFoundError: .*look at tracking.uri"),
        (
            "deleted",
            "'gone' was deleted there; bring it back with `MLFLOW_TRACKING_URI=sqlite:.* mlflow experiments restore",
        ),
    ],
)
def test_a_store_that_refuses_says_why_and_what_to_do(store, folder, uri, expected):
    if uri == "deleted":
        uri = None
        store.client.delete_experiment(store.store.experiment(store.client, "gone"))
    said = Said()
    tracker = store.tracker(folder, "gone", said, uri)
    with tracker as sink:
        report(tracker, sink, ROWS)
        write_files(folder)
    [line] = said
    assert re.search(expected, line), line
    assert "the run goes on, `python -m kd sync` sends the rest later" in line
    assert "\n" not in line
    assert "secret" not in line + (folder / TRACKED).read_text()


# -------------------------------------------------------------------------------------------------------- moved, copied


def test_a_copied_store_keeps_its_files_next_to_it_and_leaves_other_experiments_alone(store, folder, tmp_path):
    finished(store, folder, "copied (100 %)")
    own = store.client.create_experiment("of the user", artifact_location=(tmp_path / "own").as_uri())
    copy = Store(shutil.copytree(store.results, tmp_path / "results"))
    copy.store.make_ready("any")
    run = copy.the_run("copied (100 %)")
    assert run.info.artifact_uri.startswith((tmp_path / "results/mlartifacts").as_uri())
    assert "run.json" in {file.path for file in copy.client.list_artifacts(run.info.run_id)}
    assert {file.path for file in copy.client.list_artifacts(copy.the_run("copied (100 %)").info.run_id)} >= {
        "run.json"
    }
    assert copy.client.get_experiment(own).artifact_location == (tmp_path / "own").as_uri()
    assert copy.sync(tmp_path / "results") == 0, "all is there"


def test_a_server_that_was_set_up_again_gets_what_it_lost(store, folder, monkeypatch):
    """Asked by experiment, as a server is: there nobody looks into the file."""
    finished(store, folder, "again-on-a-server")
    monkeypatch.setattr(store.store, "runs", store.store._runs_of_server)
    assert store.sync(folder) == 0
    monkeypatch.setattr(store.store, "_runs_of_server", lambda experiments: set())
    monkeypatch.setattr(store.store, "runs", store.store._runs_of_server)
    assert store.sync(folder) == 1
    assert len(store.runs("again-on-a-server")) == 2


@pytest.mark.parametrize("uri", ["sqlite:///{}?timeout=30", "sqlite+pysqlite:///{}"])
def test_an_sqlite_file_is_known_however_its_uri_is_written(tmp_path, uri):
    store = KdStore({"uri": uri.format(tmp_path / "x.db")}, tmp_path)
    assert (store.file, store.name) == (tmp_path / "x.db", "sqlite:x.db")


def test_a_password_is_not_printed_by_mlflow(store, folder, capsys):
    """It shows a run's address at its end."""
    finished(store, folder, "quiet")
    assert capsys.readouterr().out == ""


def test_an_empty_file_that_a_killed_start_left_becomes_a_store(tmp_path):
    (tmp_path / "mlflow.db").touch()
    store = KdStore({"uri": None}, tmp_path)
    store.settle()
    assert store.runs({"any"}) == set()
    store.make_ready("any")
    assert store.client().get_experiment_by_name("any") is not None
