"""A local MLflow store, and what runs would send to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from kd.integrations import store as stores
from kd.integrations.tracking import Tracker, sync
from kd.runtime.files import write_json
from kd.studies.search import flatten

AWAY = "http://127.0.0.1:9"
ROWS = [{"epoch": 1.0, "loss": 2.5}, {"epoch": 2.0, "loss": 1.5, "accuracy": 50.0}, {"epoch": 3.0, "loss": 0.5}]
PARAMS = {"kind": "train", "training": {"lr": 0.1, "milestones": [1, 2], "schedule": None}}
TAGS = {"method": "kd", "teacher": "", "seed": "0"}


def described(name, experiment):
    data = {"name": "digits", "source": "data/digits.pt", "context": "training"}
    return {"experiment": experiment, "name": name, "tags": TAGS, "params": flatten(PARAMS), "dataset": data}


class Said(list):
    def __call__(self, text):
        self.append(text)


class Store:
    """A store in a folder, its client, and runs below it."""

    def __init__(self, results, uri=None):
        self.results, self.store = results, stores.Store({"uri": uri}, results)
        self.client = self.store.client()

    def tracker(self, folder, experiment, say=None, uri=None):
        folder.mkdir(parents=True, exist_ok=True)
        store = stores.Store({"uri": uri}, self.results) if uri else self.store
        return Tracker(folder, store, described(folder.name, experiment), Said() if say is None else say)

    def sync(self, folder, say=print):
        """Send everything below a folder."""
        return sync(sorted(file.parent for file in Path(folder).glob("**/mlflow.json")), self.store, say)

    def runs(self, experiment):
        found = self.client.get_experiment_by_name(experiment)
        return self.client.search_runs([found.experiment_id]) if found else []

    def the_run(self, experiment):
        [run] = self.runs(experiment)
        return run

    def curve(self, run, name):
        history = self.client.get_metric_history(run.info.run_id, name)
        return sorted((metric.step, metric.value) for metric in history)


def write_files(folder, rows=ROWS, accuracy=87.5):
    """What a finished run leaves."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [",".join(columns), *(",".join(str(row.get(name, "")) for name in columns) for row in rows)]
    (folder / "history.csv").write_text("\n".join(lines) + "\n")
    write_json(folder / "metrics.json", {"accuracy": accuracy, "parameters": 123, "scored": "test"})
    record = {"seconds": {"training": 1.5, "total": 2.0}, "counts": {"student_steps": 7}, "peak_memory_mb": 64.0}
    record |= {
        "started": "2026-01-01T00:00:00Z",
        "finished": "2026-01-01T00:00:08Z",
        "identity": "set-0-code-data-teacher",
    }
    (folder / "weights.pt").write_bytes(b"weights")
    write_json(folder / "run.json", {**record, "settings": {"kind": "train"}, "git": {"commit": "abc123", "diff": ""}})


def report(tracker, sink, rows):
    """Report rows and send them, without the seconds between two sends."""
    tracker._next = 0.0
    sink(rows)
    assert tracker._ended(60)


def finished(store, folder, experiment, say=None, rows=ROWS):
    """A run without a disturbance, which reports now and then."""
    tracker = store.tracker(folder, experiment, say)
    with tracker as sink:
        for number in range(1, len(rows) + 1):
            report(tracker, sink, rows[:number])
        write_files(folder, rows)


class Flaky:
    """The client of a store that fails at the n-th call of one method, and does what was asked `never`, `before` it
    fails, or long `after`: when the next call of that method is done.
    """

    def __init__(self, client, method, number, does):
        self.client, self.method, self.left, self.does, self.late = client, method, number, does, None

    def __getattr__(self, name):
        if name != self.method:
            return getattr(self.client, name)

        def call(*arguments, **keywords):
            def done():
                return getattr(self.client, name)(*arguments, **keywords)

            self.left -= 1
            if self.left == 0:
                if self.does == "before":
                    done()
                self.late = done if self.does == "after" else None
                raise ConnectionError("gone")
            answer = done()
            if self.late is not None:
                self.late()
                self.late = None
            return answer

        return call


# Fixtures, for modules that name them: `environment, folder = mlflow_store.environment, mlflow_store.folder`


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    results = tmp_path_factory.mktemp("results")
    stores.Store({"uri": None}, results).make_ready("first")
    return Store(results)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def folder(store, request):
    """A folder for the run of a test."""
    return store.results / "runs" / request.node.name.replace("[", "-").strip("]")
