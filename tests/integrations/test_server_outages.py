"""Runs whose MLflow server is killed, comes back, or gives no answer: no step waits, their numbers are the same."""

from __future__ import annotations

import time
from pathlib import Path

import pandas as pd
import pytest
from conftest import execute, tiny_run
from mlflow import MlflowClient
from mlflow_servers import ANSWERS, Forked, Useless, require_complete, within
from mlflow_store import ROWS, Said, described, write_files

from kd.integrations import store as stores
from kd.integrations import tracking
from kd.integrations.jobs import description
from kd.integrations.store import Store
from kd.integrations.tracking import Tracker, sync

EPOCHS = 10
NO_ROWS = pd.DataFrame({"path": [], "dataset": []})


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs; making one takes seconds."""
    results = tmp_path_factory.mktemp("database")
    Store({"uri": None}, results).make_ready("first")
    return results / "mlflow.db"


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of seconds send as long ones do."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(tracking, "OPEN_AFTER_SECONDS", 0.0)
    for name in ("SEND_EVERY_SECONDS", "LONGEST_PAUSE_SECONDS"):
        monkeypatch.setattr(tracking, name, 0.01)
    monkeypatch.setattr(stores, "PAUSES", (0.01, 0.01))


@pytest.fixture(scope="module")
def untracked(store: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("untracked")
    execute(run_of(), store, folder)
    return (folder / "metrics.json").read_bytes()


def run_of():
    return tiny_run("scratch", training__epochs=EPOCHS)


class Watched(Tracker):
    """A tracker that measures how long steps wait for it, and lets things happen after an epoch."""

    def __init__(self, *given, events=None):
        super().__init__(*given)
        self.waited, self.events = 0.0, events or {}

    def _sink(self, history):
        start = time.monotonic()
        super()._sink(history)
        self.waited = max(self.waited, time.monotonic() - start)
        if event := self.events.get(len(history)):
            assert self._ended(60)
            event()


def tracked(results: Path, store: Path, uri: str, said: Said, **given) -> Watched:
    """Make the run with a tracker; returns the tracker."""
    run = run_of()
    folder = results / run.path
    described = description("outage", NO_ROWS, run, run.path)
    tracker = Watched(folder, Store({"uri": uri, "models": False}, results), described, said, **given)
    execute(run, store, folder, tracker=tracker)
    return tracker


@pytest.mark.parametrize("back", ["during the run", "after it"])
def test_a_server_is_killed_in_mid_run(
    back: str, store: Path, untracked: bytes, database: Path, tmp_path: Path
) -> None:
    (tmp_path / "mlflow.db").write_bytes(database.read_bytes())
    said = Said()
    with Forked(tmp_path, f"sqlite:///{tmp_path}/mlflow.db") as server:
        events = {4: server.kill} | ({8: server.start} if back == "during the run" else {})
        tracker = tracked(tmp_path / "results", store, server.uri, said, events=events)
        assert (tracker.folder / "metrics.json").read_bytes() == untracked
        assert [line.partition(";")[0] for line in said] == [f"MLflow store {server.uri} is away (Connection refused)"]
        assert tracker.arrived["complete"] == (back == "during the run")
        if back == "after it":
            server.start()
        for _ in range(2):
            sync([tracker.folder], tracker.store, said)
        assert len(said) == 1
        require_complete(MlflowClient(server.uri), "outage", [tracker.folder])


def test_no_step_waits_for_a_server_that_is_silent(store: Path, untracked: bytes, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tracking, "WAIT_AT_END_SECONDS", 1.0)
    said = Said()
    with Useless("silence") as server:
        tracker = tracked(tmp_path, store, server.uri, said)
    assert server.asked == 1, "the run has something to wait for"
    assert tracker.waited < 0.5
    assert (tracker.folder / "metrics.json").read_bytes() == untracked
    [line] = said
    assert line.startswith(f"MLflow store {server.uri} has not answered in 1 s; the run goes on, `python -m kd sync`")


@pytest.mark.parametrize("answer", ANSWERS)
def test_whatever_a_server_says_the_end_comes_soon_and_with_one_line(answer: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(tracking, "WAIT_AT_END_SECONDS", 1.0)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    said, folder = Said(), tmp_path / "runs/x"
    folder.mkdir(parents=True)
    with Useless(answer) as server:
        address = server.uri.replace("//", "//me:hidden-word@")
        tracker = Tracker(folder, Store({"uri": address}, tmp_path), described("x", "useless"), said)

        def work() -> None:
            with tracker as sink:
                sink(ROWS[:1])
                write_files(folder)

        within(3.0, work)
        [line] = said
        assert line.endswith("; the run goes on, `python -m kd sync` sends the rest later")
        assert "HTTPConnectionPool" not in line
        if answer != "in drops":  # those of a user who waits for them
            assert within(6.0, lambda: sync([folder], tracker.store, said)) == 0
            assert said[1].endswith("`python -m kd sync` tries again (1 of 1 finished runs have not arrived)")
    words = "".join(said) + (folder / "mlflow.json").read_text("utf-8")
    assert "hidden-word" not in words
    assert words.count("MLflow store http://***@127.0.0.1:") == len(said)
