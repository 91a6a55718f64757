"""work_through: each run is made once, in order; a failure holds up only the students of the run that failed."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import COMPUTE, tiny_run
from made_runs import KD, SCRATCH, Made, made_by_one_process, prepared_copy, same_numbers, source

from kd.data.raw import Source
from kd.runs import run as run_module
from kd.runs import worker
from kd.runs.worker import work_through
from kd.runtime import run_lock as lock
from kd.runtime.checkpoint import Stopped
from kd.runtime.files import write_json
from kd.runtime.run_lock import Busy
from kd.settings.run import Run


@pytest.fixture
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made_by_one_process(tmp_path_factory.getbasetemp() / "made")


def test_a_process_whose_gpu_is_lost_leaves_the_rest_to_others(tmp_path: Path, monkeypatch) -> None:
    def illegal(*_: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(worker, "make", illegal)
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    monkeypatch.setattr("torch.cuda.synchronize", illegal)
    two = [SCRATCH, dataclasses.replace(SCRATCH, seed=1)]
    assert list(work_through(two, tmp_path, COMPUTE, source(tmp_path))) == [SCRATCH.path]
    monkeypatch.setattr("torch.cuda.synchronize", lambda: None)
    assert len(work_through(two, tmp_path, COMPUTE, source(tmp_path))) == 2, "a failure of one run is not that"


def test_teachers_come_first_and_data_is_prepared_once(made: Made) -> None:
    paths = [KD.teacher.path, KD.path, SCRATCH.path]
    assert [line.split(": ")[0] for line in made.said] == [str(made.results / path) for path in paths]
    assert all(re.fullmatch(r"accuracy \d+\.\d\d % on the test images", line.split(": ")[1]) for line in made.said)
    assert made.prepared == [made.results / KD.data_path]
    assert not list(made.results.rglob("*lock*"))


def test_processes_that_need_the_same_data_at_the_same_time_prepare_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared, started = [], []

    def slow(dataset: Any, path: Path, source: Source) -> None:
        prepared.append(path)
        time.sleep(0.3)
        path.write_bytes(b"images")

    monkeypatch.setattr(worker, "prepare_step", slow)
    monkeypatch.setattr(
        worker, "run_step", lambda run, folder, data, *_, **__: started.append(data.read_bytes()) or {"accuracy": 1.0}
    )
    threads = [
        threading.Thread(target=worker.make, args=(tiny_run("scratch", seed), tmp_path, COMPUTE, source(tmp_path)))
        for seed in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert prepared == [tmp_path / SCRATCH.data_path]
    assert started == [b"images"] * 4
    assert [path.name for path in (tmp_path / "data").iterdir()] == [Path(SCRATCH.data_path).name]


def test_a_run_that_fails_holds_up_nothing_but_its_students(made: Made, tmp_path: Path) -> None:
    results, said = prepared_copy(made, tmp_path), []
    orphan = tiny_run("kd", teacher__training__lr=1e30)
    diverging = tiny_run("scratch", training__lr=1e30)
    failed = work_through([orphan, diverging, SCRATCH], results, COMPUTE, source(results), said.append)
    assert list(failed) == [orphan.teacher.path, orphan.path, diverging.path]
    assert re.match(
        r"epoch 1: loss is (nan|inf); the student's weights are not finite .*; lower training.lr",
        failed[orphan.teacher.path],
    )
    assert failed[orphan.path] == f"its teacher failed: {failed[orphan.teacher.path]}"
    assert failed[diverging.path].startswith("epoch 1: loss is ")
    assert [line.split(": ")[0] for line in said] == [str(results / SCRATCH.path)]
    assert same_numbers(results / SCRATCH.path, made.results / SCRATCH.path)
    assert not (results / orphan.path).exists()


def test_an_error_in_the_code_comes_with_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(run: Run, *_: Any) -> dict[str, float]:
        if run.seed == 0:
            raise ZeroDivisionError("on purpose")
        return {"accuracy": 50.0}

    monkeypatch.setattr(worker, "make", broken)
    failed = work_through([SCRATCH, tiny_run("scratch", 1)], tmp_path, COMPUTE, source(tmp_path), lambda text: None)
    assert list(failed) == [SCRATCH.path]
    assert failed[SCRATCH.path].startswith("Traceback")
    assert "ZeroDivisionError: on purpose" in failed[SCRATCH.path]


def test_a_busy_run_is_left_alone_and_looked_at_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, students = [], [KD, tiny_run("kd", 1)]

    def busy_at_first(run: Run, *_: Any) -> dict[str, float]:
        calls.append(run.path)
        if run.path == KD.teacher.path and calls.count(run.path) < 3:
            raise Busy("another process has it")
        return {"accuracy": 50.0}

    monkeypatch.setattr(worker, "make", busy_at_first)
    monkeypatch.setattr(worker, "POLL_SECONDS", 0.01)
    assert work_through([*students, SCRATCH], tmp_path, COMPUTE, source(tmp_path), lambda text: None) == {}
    teacher = KD.teacher.path
    assert calls == [teacher, SCRATCH.path, teacher, teacher, *(run.path for run in students)]


def test_a_wish_to_stop_that_comes_after_the_last_step_is_not_forgotten(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a run is scored, for example: that run is finished, but no other is begun."""
    results, begun = prepared_copy(made, tmp_path), []

    def late(run: Run, *_: Any) -> dict[str, float]:
        begun.append(run)
        os.kill(os.getpid(), signal.SIGTERM)
        return {"accuracy": 50.0}

    monkeypatch.setattr(run_module, "_make", late)
    with pytest.raises(Stopped) as stopped:
        work_through([SCRATCH, tiny_run("scratch", 1)], results, COMPUTE, source(results), lambda text: None)
    assert stopped.value.code == 143
    assert begun == [SCRATCH]
    assert list((results / SCRATCH.path).iterdir()) == []


def test_what_failed_in_another_process_meanwhile_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped, old = tiny_run("scratch", 1), tiny_run("scratch", 2)
    notes = ((SCRATCH, "FloatingPointError: nan", 60), (stopped, None, 60), (old, "FloatingPointError: nan", -60))
    for run, error, age in notes:
        note = tmp_path / run.path / "ended.json"
        note.parent.mkdir(parents=True)
        write_json(note, {"error": error, "when": "now"})
        os.utime(note, (time.time() + age, time.time() + age))
    tried = []
    monkeypatch.setattr(worker, "make", lambda run, *_: tried.append(run) or {"accuracy": 50.0})
    failed = work_through([SCRATCH, stopped, old], tmp_path, COMPUTE, source(tmp_path), lambda text: None)
    assert failed == {SCRATCH.path: "FloatingPointError: nan"}
    assert tried == [stopped, old]


def test_a_run_whose_owner_on_another_machine_is_silent_is_taken_over(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut too: the restarted machine knows nothing of its earlier processes."""
    results = prepared_copy(made, tmp_path)
    (results / SCRATCH.path).mkdir(parents=True)
    content = {"host": "far", "pid": 1, "process": 1, "machine": "far away", "slurm_job": None, "beat": 7}
    write_json(results / SCRATCH.path / "lock.1.json", content)
    monkeypatch.setattr(lock, "DEAD_AFTER_SECONDS", 0.5)
    monkeypatch.setattr(worker, "POLL_SECONDS", 0.05)
    deadline, sleep = time.monotonic() + 5, time.sleep

    def impatient(seconds: float) -> None:
        assert time.monotonic() < deadline, "it waits for ever for an owner that is silent"
        sleep(seconds)

    monkeypatch.setattr(time, "sleep", impatient)
    assert work_through([SCRATCH], results, COMPUTE, source(results), lambda text: None) == {}
    assert same_numbers(results / SCRATCH.path, made.results / SCRATCH.path)
