"""`mlflow server` on PostgreSQL, as a team runs it: killed under a study, asked by fifty runs at once; and Optuna.

`make test-server` runs these: minutes, as root, with Debian's postgresql and psycopg2-binary; else they are skipped.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from conftest import PAIR, copy_project
from mlflow import MlflowClient
from mlflow_servers import Real, require_complete
from mlflow_store import Said, described, report, write_files
from postgres import PASSWORD, Postgres, missing
from tiny_search import TinySearch
from tiny_study import command_of, environment_of, write_study

from kd.integrations.store import Store
from kd.integrations.tracking import Tracker, sync

pytestmark = [pytest.mark.server, pytest.mark.skipif(bool(missing()), reason=missing())]
# What a long run does, in a short one: read by every Python of the study.
LIKE_LONG_RUNS = """
from kd.integrations import tracking
tracking.OPEN_AFTER_SECONDS, tracking.SEND_EVERY_SECONDS, tracking.LONGEST_PAUSE_SECONDS = 0.0, 0.5, 2.0
"""
ONLY = {"data": {"pairs": [PAIR], "methods": ["scratch", "kd"], "seeds": [0, 1]}, "scale": None}
SETTINGS = {"training": {"epochs": 25}, "teacher": {"training": {"epochs": 25}}}
RUNS = 5


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


def study(project: Path, **environment: str) -> subprocess.Popen:
    write_study(project, experiments=ONLY, settings=SETTINGS)
    (project / "patched").mkdir(exist_ok=True)
    (project / "patched/sitecustomize.py").write_text(LIKE_LONG_RUNS, encoding="utf-8")
    env = environment_of(**environment)
    env["PYTHONPATH"] = os.pathsep.join([str(project / "patched"), env["PYTHONPATH"]])
    with (project / "said.txt").open("w", encoding="utf-8") as said:
        return subprocess.Popen(command_of("--cores", "2"), cwd=project, env=env, stdout=said, stderr=said)


def runs_in(project: Path, state: str) -> list[Path]:
    return [file.parent for file in project.glob(f"results/runs/**/{state}")]


def wait_for(happened, seconds: float = 400.0) -> None:
    until = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.parametrize("back", ["during the study", "after it"])
def test_a_study_whose_server_is_killed(back: str, postgres, tmp_path: Path) -> None:
    project = copy_project(tmp_path)
    with Real(tmp_path, postgres.url()) as server:
        started = study(project, MLFLOW_TRACKING_URI=server.uri)
        wait_for(lambda: any('"rows": 0' not in file.read_text() for file in project.rglob("mlflow.json")))
        server.kill()
        wait_for(lambda: len(runs_in(project, "run.json")) >= 2)
        if back == "during the study":
            server.start()
        assert started.wait(600) == 0, (project / "said.txt").read_text("utf-8")
        said = (project / "said.txt").read_text("utf-8")
        assert 1 <= len(re.findall("is away", said)) <= 2, said  # a run's line once; the study's own at its end
        assert not re.search("Traceback", said)
        if back == "after it":
            assert re.search(r"tries\s+again\s+\(5\s+of\s+5\s+finished\s+runs\s+have\s+not\s+arrived\)", said), said
            server.start()
        for _ in range(2):
            command = [sys.executable, "-m", "kd", "sync", "tiny"]
            env = environment_of(MLFLOW_TRACKING_URI=server.uri)
            done = subprocess.run(command, cwd=project, env=env, capture_output=True, text=True, check=True)
        assert done.stdout.endswith("0 runs sent\n")
        folders = runs_in(project, "run.json")
        assert len(folders) == RUNS
        require_complete(MlflowClient(server.uri), "tiny", folders, models=True)
    quiet = copy_project(tmp_path / "quiet")
    write_study(quiet, experiments=ONLY, settings={**SETTINGS, "tracking": {"enabled": False}})
    subprocess.run(command_of("--cores", "2"), cwd=quiet, env=environment_of(), capture_output=True, check=True)
    for folder in folders:
        other = quiet / folder.relative_to(project)
        assert (folder / "metrics.json").read_bytes() == (other / "metrics.json").read_bytes()


def sends(folder: Path, uri: str, begin, ended) -> None:
    rows = [{"epoch": float(epoch), **{f"m{n}": epoch * n / 7 for n in range(12)}} for epoch in range(1, 61)]
    said, store = Said(), Store({"uri": uri, "models": False}, folder.parent)
    folder.mkdir(parents=True)
    tracker = Tracker(folder, store, described(folder.name, "many"), said)
    begin.wait()
    with tracker as sink:
        for number in (20, 40, 60):
            report(tracker, sink, rows[:number])
        write_files(folder, rows)
    ended.put(list(said))


def test_fifty_runs_send_at_once(postgres, tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    begin, ended, folders = fork.Event(), fork.Queue(), [tmp_path / f"runs/{number}" for number in range(50)]
    with Real(tmp_path, postgres.url()) as server:
        jobs = [fork.Process(target=sends, args=(folder, server.uri, begin, ended)) for folder in folders]
        for job in jobs:
            job.start()
        begin.set()
        said = [line for _ in jobs for line in ended.get(timeout=300)]
        for job in jobs:
            job.join()
        assert all("timed out" in line or "has not answered" in line for line in said), said
        for _ in range(2):
            sync(folders, Store({"uri": server.uri, "models": False}, tmp_path), said.append)
        client = MlflowClient(server.uri)
        number = client.get_experiment_by_name("many").experiment_id
        found = client.search_runs([number], "", max_results=1000)
        assert (len(found), {run.info.status for run in found}) == (50, {"FINISHED"})
        for run in found:
            for n in range(12):
                points = client.get_metric_history(run.info.run_id, f"m{n}")
                assert sorted((p.step, p.value) for p in points) == [(e, e * n / 7) for e in range(1, 61)]


def test_a_database_that_is_away_is_said_at_once_and_a_password_stays_hidden(postgres, tmp_path: Path) -> None:
    url = postgres.url()
    folder, said = tmp_path / "runs/x", Said()
    write_files(folder)
    store = Store({"uri": url, "models": False}, tmp_path)
    with Tracker(folder, store, described("x", "direct"), said):
        pass
    for address, words in ((url.replace(PASSWORD, "hidden-words"), "refuses"), (url, "away")):
        if words == "away":
            postgres.stop()
        start, before = time.monotonic(), len(said)
        sync([folder], Store({"uri": address, "models": False}, tmp_path), said)
        assert time.monotonic() - start < 15
        assert words in said[before]
    postgres.start()
    assert sync([folder], store, said) == 1
    assert PASSWORD not in "".join(said) + (folder / "mlflow.json").read_text("utf-8")
    assert len(said) == 2


def works(folder: Path, url: str, dies_at: int | None) -> None:
    from kd.integrations import trial_storage

    trial_storage.HEARTBEAT_SECONDS, trial_storage.DEAD_AFTER_SECONDS = 1, 3

    def objective(params, run, report_value):
        time.sleep(0.5)
        if dies_at is not None and len(list(folder.glob("trial*/trial.json"))) >= dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return params["x"]

    TinySearch(folder, trials=12, storage=url).work(objective)


def test_two_workers_search_in_a_database_and_one_is_killed(postgres, tmp_path: Path) -> None:
    url, fork, folder = postgres.url(), multiprocessing.get_context("fork"), tmp_path / "s"
    first, second = (fork.Process(target=works, args=(folder, url, dies)) for dies in (None, 4))
    first.start()
    second.start()
    second.join(300)
    assert second.exitcode == -signal.SIGKILL
    first.join(300)
    if first.exitcode or len(list(folder.glob("trial*/trial.json"))) < 12:  # as Snakemake starts a worker again
        works(folder, url, None)
    time.sleep(4)
    works(folder, url, None)
    search = TinySearch(folder, trials=12, storage=url)
    assert sorted(search.results()) == list(range(12))
    trials = optuna.load_study(study_name="s", storage=url).trials
    states = [trial.state.name for trial in trials]
    assert states.count("COMPLETE") == 12
    assert set(states) <= {"COMPLETE", "FAIL"}
    texts = [file.read_bytes() for file in folder.rglob("*") if file.is_file()]
    assert not any(PASSWORD.encode() in text for text in texts)
