"""MLflow servers that can be killed and come back, and servers that answer nothing of use."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from mlflow import MlflowClient

from kd.runtime.files import read_json


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Server:
    """A server on a port that stays the same; `database` and the artifacts in `folder` outlive it."""

    def __init__(self, folder: Path, database: str):
        self.folder, self.database, self.port = folder, database, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._pid = 0

    def start(self) -> None:
        self._pid = self._started()
        for _ in range(1200):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{self.uri}/health", timeout=1).close()
                return
            time.sleep(0.1)
        raise TimeoutError(f"no MLflow server at {self.uri}")

    def kill(self) -> None:
        """As the out-of-memory killer does: without a word, whatever it is at."""
        if self._pid:
            os.killpg(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
        self._pid = 0

    def _started(self) -> int:
        """Start a process with a group of its own and return its id."""
        raise NotImplementedError

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


class Forked(Server):
    """MLflow's own application in a fork of this process: there in a moment; `mlflow server` takes ten seconds."""

    def _started(self) -> int:
        import mlflow.server  # noqa: F401  (once for all forks)

        child = multiprocessing.get_context("fork").Process(target=self._serve)
        child.start()
        return child.pid

    def _serve(self) -> None:
        from mlflow.server import app, constants, handlers
        from werkzeug.serving import make_server

        os.setpgid(0, 0)
        os.environ[constants.BACKEND_STORE_URI_ENV_VAR] = self.database
        os.environ[constants.ARTIFACT_ROOT_ENV_VAR] = "mlflow-artifacts:/"
        os.environ[constants.ARTIFACTS_DESTINATION_ENV_VAR] = str(self.folder / "artifacts")
        os.environ[constants.SERVE_ARTIFACTS_ENV_VAR] = "true"
        handlers._tracking_store = handlers._artifact_repo = None
        logging.disable(logging.CRITICAL)
        make_server("127.0.0.1", self.port, app, threaded=True).serve_forever()


class Real(Server):
    """`mlflow server`, as a team runs it."""

    def _started(self) -> int:
        command = [str(Path(sys.executable).with_name("mlflow")), "server", "--port", str(self.port)]
        command += ["--artifacts-destination", str(self.folder / "artifacts"), "--workers", "2"]
        environment = {**os.environ, "MLFLOW_BACKEND_STORE_URI": self.database}
        with (self.folder / "server.txt").open("a", encoding="utf-8") as log:
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True).pid


ANSWERS = {  # what a server may say that is none
    "silence": b"",
    "hang up": b"",
    "500": b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n",
    "429": b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 3600\r\nContent-Length: 0\r\n\r\n",
    "503": b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 3600\r\nContent-Length: 0\r\n\r\n",
    "no HTTP": b"\x16\x03\x01 hello\r\n\r\n",
    "a page": b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 14\r\n\r\n<html>Log in!\n",
    "other JSON": b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 7\r\n\r\n[1, {}]",
    "in drops": b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n",
}


class Useless:
    """Context manager: a server that accepts connections and gives one of ANSWERS to each request."""

    def __init__(self, answer: str):
        self.answer, self.asked, self.socket = answer, 0, socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self._ended = threading.Event()

    def __enter__(self) -> Useless:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.socket.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while not self._ended.is_set():
                connection, _ = self.socket.accept()
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.recv(65536)
            self.asked += 1
            connection.sendall(ANSWERS[self.answer])
            while self.answer in ("silence", "in drops") and not self._ended.wait(0.2):
                connection.sendall(b" " if self.answer == "in drops" else b"")


def require_complete(client: MlflowClient, experiment: str, folders: list[Path], models: bool = False) -> None:
    """Assert that an experiment has each finished run once and whole: every number of its files, and only once."""
    number = client.get_experiment_by_name(experiment).experiment_id
    found = client.search_runs([number], "", max_results=10000)
    assert {run.info.status for run in found} == {"FINISHED"}
    own = [run for run in found if run.data.tags.get("kind") not in ("study", "experiment", None)]
    firsts = {run.data.tags["path"]: run for run in own if "copy_of" not in run.data.tags}
    assert len(firsts) == sum("copy_of" not in run.data.tags for run in own), "a run is there twice"
    for folder in folders:
        [run] = [run for path, run in firsts.items() if folder.as_posix().endswith(path)]
        history = pd.read_csv(folder / "history.csv")
        for name in history.columns.drop("epoch"):
            sent = sorted((point.step, point.value) for point in client.get_metric_history(run.info.run_id, name))
            rows = history[["epoch", name]].dropna()
            assert sent == [(int(epoch), value) for epoch, value in rows.itertuples(index=False)], (folder, name)
        once = ("accuracy", "seconds", *(name for name in run.data.metrics if name.startswith("final_")))
        assert len(once) > 8
        assert all(len(client.get_metric_history(run.info.run_id, name)) == 1 for name in once)
        assert run.data.metrics["accuracy"] == read_json(folder / "metrics.json")["accuracy"]
        assert run.data.params["seed"] == run.data.tags["seed"]
        assert len(run.inputs.dataset_inputs) == 1
        files = {file.path for file in client.list_artifacts(run.info.run_id)}
        assert files >= {"metrics.json", "run.json", "history.csv"}
        if models:
            [output] = run.outputs.model_outputs
            [model] = client.search_logged_models([number], f"source_run_id = '{run.info.run_id}'")
            assert (model.model_id, model.status.value) == (output.model_id, "READY")
            assert [metric.key for metric in model.metrics] == ["accuracy"]


def within(seconds: float, call: Callable[[], object]) -> object:
    """Return what `call` returns; fails if that takes longer."""
    start = time.monotonic()
    answer = call()
    assert time.monotonic() - start < seconds
    return answer
