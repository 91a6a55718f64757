"""MLflow as a view: what arrives in a store, once, although runs are killed and stores are away."""

import json
import multiprocessing
import subprocess
import sys
from pathlib import Path

import mlflow_store
import pytest
from mlflow_store import AWAY, ROWS, TAGS, Said, Store, finished, report, write_files

from kd.integrations.store import Store as KdStore
from kd.integrations.tracking import TRACKED, read_history
from kd.runtime.files import read_json

NEW_YEAR = 1_767_225_600_000  # 2026, in milliseconds: when the runs of mlflow_store begin


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A fresh store, made as the workflow makes it: by a process of its own."""
    results = tmp_path_factory.mktemp("results")
    program = "import sys; from pathlib import Path; from kd.integrations.store import Store\n"
    program += "Store({'uri': None}, Path(sys.argv[1])).make_ready('first')"
    done = subprocess.run([sys.executable, "-c", program, str(results)], capture_output=True, text=True)
    return results, done


@pytest.fixture(scope="module")
def store(made):
    results, done = made
    assert done.returncode == 0, done.stderr
    return Store(results)


environment, folder = mlflow_store.environment, mlflow_store.folder


# -------------------------------------------------------------------------------------------------------- end to end


def test_the_store_is_made_without_a_word(made):
    """Alembic and MLflow would print twenty lines about tables."""
    _, done = made
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
    [data] = run.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest, data.tags[0].value) == ("digits", "data", "training")
    assert run.data.tags["commit"] == "abc123"
    assert store.curve(run, "loss") == [(1, 2.5), (2, 1.5), (3, 0.5)]
    assert store.curve(run, "accuracy") == [(2, 50.0), (3, 87.5)], "the last one is the run's number"
    final = {name: value for name, value in run.data.metrics.items() if name.startswith("final_")}
    assert (run.data.metrics["accuracy"], run.data.metrics["seconds"]) == (87.5, 2.0)
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
        "weights.pt",
    }
    copy = store.client.download_artifacts(run.info.run_id, "metrics.json")
    assert json.loads(Path(copy).read_text()) == read_json(folder / "metrics.json")
    assert run.info.artifact_uri.startswith((store.results / "mlartifacts").as_uri())
    [has] = read_json(folder / TRACKED)["sent"].values()
    arrived = {"run_id": run.info.run_id, "begun": run.info.start_time, "described": True, "rows": 3, "tried": []}
    assert has == {**arrived, "complete": True, "network": "weights.pt"}


def test_rows_arrive_while_the_run_goes_on_but_not_each_at_once(store, folder):
    tracker = store.tracker(folder, "live")
    with tracker as sink:
        sink(ROWS[:1])
        assert store.runs("live") == []
        report(tracker, sink, ROWS[:2])
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
    store.sync(folder)
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
    assert (store.sync(folder, said), said) == (1, [])
    run = store.the_run("short")
    assert store.curve(run, "loss") == [(1, 2.5), (2, 1.5), (3, 0.5)]
    assert (run.info.start_time, run.info.end_time) == (NEW_YEAR, NEW_YEAR + 8000), "the run's own times"
    times = [metric.timestamp for metric in store.client.get_metric_history(run.info.run_id, "loss")]
    assert sorted(times) == [NEW_YEAR + 8000 * row // 3 for row in (1, 2, 3)]


def job_of(folder, results, begin, ended):
    """A job, as one of many at the same time: it reports twice and ends."""
    said = Said()
    try:
        tracker = Store(results).tracker(folder, "many", said)
        begin.wait()
        with tracker as sink:
            for number in (1, 2):
                report(tracker, sink, ROWS[:number])
            write_files(folder)
    except BaseException as error:
        said.append(repr(error))
    ended.put(said)


def test_many_jobs_at_once_fail_at_no_lock(store):
    """SQLite's own queue fails some of 200: each waits for a lock until its time is over."""
    fork = multiprocessing.get_context("fork")
    begin, ended, folder = fork.Event(), fork.Queue(), store.results / "runs/many"
    jobs = [fork.Process(target=job_of, args=(folder / str(n), store.results, begin, ended)) for n in range(24)]
    for job in jobs:
        job.start()
    begin.set()
    assert [line for _ in jobs for line in ended.get(timeout=300)] == []
    for job in jobs:
        job.join()
    said = Said()
    store.sync(folder, said)
    runs = store.runs("many")
    assert (len(runs), {run.info.status for run in runs}, said) == (24, {"FINISHED"}, [])
    assert all(store.curve(run, "loss") == [(1, 2.5), (2, 1.5), (3, 0.5)] for run in runs)


def test_who_writes_to_the_store_keeps_others_waiting_and_a_running_job_goes_on(store, folder):
    tracker = store.tracker(folder, "waits")
    with Store(store.results).store.turn(0) as mine:
        assert mine
        with store.store.turn(0.1) as second:
            assert not second
        with tracker as sink:
            report(tracker, sink, ROWS[:1])
            assert store.runs("waits") == []
            write_files(folder)
    assert store.sync(folder) == 1
    assert store.curve(store.the_run("waits"), "loss") == [(1, 2.5), (2, 1.5), (3, 0.5)]


def test_an_experiment_is_found_in_a_local_store_without_mlflow(store, monkeypatch):
    monkeypatch.setattr(KdStore, "client", lambda self: pytest.fail("a link needs no client"))
    assert store.store.number("first") == "1"
    assert store.store.number("never") is None
    assert KdStore({"uri": AWAY}, store.results).number("first") is None


def test_which_store(tmp_path, monkeypatch):
    assert KdStore({"uri": None}, tmp_path).uri == f"sqlite:///{tmp_path}/mlflow.db"
    assert KdStore({"uri": None}, tmp_path).name == "sqlite:mlflow.db", "also where the folder is moved to"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server")
    assert KdStore({"uri": None}, tmp_path).uri == "http://server"
    mine = KdStore({"uri": "http://me:secret@mine"}, tmp_path)
    assert (mine.uri, mine.name) == ("http://me:secret@mine", "http://***@mine")


def test_only_a_local_store_that_is_missing_is_made(store, monkeypatch):
    assert store.client.get_experiment_by_name("first") is not None
    monkeypatch.setattr(KdStore, "client", lambda self: pytest.fail("nothing is to be done"))
    for uri in (None, AWAY, "postgresql://server/base"):
        KdStore({"uri": uri}, store.results).make_ready("other")
    assert store.client.get_experiment_by_name("other") is None


# -------------------------------------------------------------------------------------------------------------- files


def test_history_is_read_without_its_gaps(tmp_path):
    (tmp_path / "history.csv").write_text("epoch,loss,accuracy\n1.0,0.5,\n2.0,,7.0\n")
    assert read_history(tmp_path) == [{"epoch": 1.0, "loss": 0.5}, {"epoch": 2.0, "accuracy": 7.0}]
