"""Several processes on the same runs: each run is made once, whoever is killed; mistakes by hand end in one line."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from conftest import ROOT, tiny_run

from kd import __main__ as command_line
from kd.data.prepare import prepare
from kd.data.raw import Source
from kd.runs import run as run_module
from kd.runs import worker
from kd.runs.run import run_step
from kd.runs.worker import work_through
from kd.runtime import run_lock as lock
from kd.runtime.checkpoint import Checkpoint, Stopped
from kd.runtime.files import read_json, write_json
from kd.runtime.run_lock import Busy, TakenOver
from kd.settings.run import Run
from kd.settings.shapes import Compute
from kd.training import with_data

COMPUTE = Compute.by_hand(device="cpu", checkpoint_seconds=3600.0)
OFTEN = dataclasses.replace(COMPUTE, checkpoint_seconds=1e-9)
KD, SCRATCH = tiny_run("kd"), tiny_run("scratch")
STEPS = 2 * 22  # of KD's student: epochs times ceil(1,347 images / 64)


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


class Made(NamedTuple):
    """A results folder with KD, its teacher and SCRATCH, made by one process, alone."""

    results: Path
    said: list[str]
    prepared: list[Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    results, said, prepared = tmp_path_factory.mktemp("results"), [], []

    def counted(dataset: Any, path: Path, source: Source) -> None:
        prepared.append(path)
        prepare(dataset, path, source)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(worker, "prepare", counted)
        failed = work_through([KD, SCRATCH], results, COMPUTE, source(results), said.append)
    assert failed == {}
    return Made(results, said, prepared)


def source(results: Path) -> Source:
    return Source(None, results / "data/downloads", download=False)


def execute(run: Run, made: Made, folder: Path, compute: Compute = COMPUTE, **given: Any) -> dict[str, float]:
    teachers = [made.results / teacher.path / "weights.pt" for teacher in run.teachers or ()]
    return run_step(run, folder, made.results / run.data_path, teachers, compute, **given)


def prepared_copy(made: Made, results: Path) -> Path:
    """A results folder with nothing but the data set."""
    shutil.copytree(made.results / "data", results / "data")
    return results


def same_numbers(folder: Path, other: Path) -> bool:
    return all((folder / name).read_bytes() == (other / name).read_bytes() for name in ("metrics.json", "history.csv"))


def state_of(file: Path) -> tuple[int, int]:
    """Changes when the file is written again."""
    return file.stat().st_ino, file.stat().st_mtime_ns


def until(happened: Callable[[], Any], seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def at_boundary(number: int, act: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Do something when a run comes to its so-manieth step."""
    original, boundaries = Checkpoint.stop_or_save, []

    def stop_or_save(self: Checkpoint, parts: dict[str, Any]) -> None:
        boundaries.append(True)
        if len(boundaries) == number:
            act()
        original(self, parts)

    monkeypatch.setattr(Checkpoint, "stop_or_save", stop_or_save)


# ---------------------------------------------------------------------------------------------- two on the same folder

# Makes a run in a folder, slowly; says when it has begun.
SLOWLY = """
import json, sys, time
from pathlib import Path
from kd.runtime.checkpoint import Checkpoint
from kd.settings.run import Run
from kd.settings.shapes import Compute
from kd.runs.run import run_step
original = Checkpoint.stop_or_save
def stop_or_save(self, parts):
    original(self, parts)
    print("step", flush=True)
    time.sleep(0.02)
Checkpoint.stop_or_save = stop_or_save
data, teacher, folder = map(Path, sys.argv[1:4])
run, compute = Run.from_dict(json.loads(sys.argv[4])), Compute(**json.loads(sys.argv[5]))
run_step(run, folder, data, [teacher], compute)
"""


def slowly(made: Made, folder: Path, compute: Compute) -> subprocess.Popen:
    """A process that has begun to make KD in `folder`."""
    files = [made.results / KD.data_path, made.results / KD.teacher.path / "weights.pt", folder]
    settings = [json.dumps(content) for content in (KD.as_dict(), dataclasses.asdict(compute))]
    command = [sys.executable, "-c", SLOWLY, *map(str, files), *settings]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
    lines = iter(process.stdout.readline, "")
    assert "step\n" in lines, "it ended before its first step"
    return process


def test_one_who_finds_the_run_in_work_waits_and_takes_what_it_finds(made: Made, tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "log.txt"
    first = slowly(made, folder, COMPUTE)
    metrics = execute(KD, made, folder, log=log)
    weights = state_of(folder / "weights.pt")
    output, _ = first.communicate(timeout=60)
    assert first.returncode == 0, output
    assert state_of(folder / "weights.pt") == weights
    assert metrics == read_json(folder / "metrics.json")
    assert same_numbers(folder, made.results / KD.path)
    assert output.count("step\n") == STEPS - 1, "all steps are the first one's"
    assert read_json(folder / "run.json")["counts"]["student_steps"] == STEPS
    said = [line.split(": ", 1)[1] for line in log.read_text().splitlines()]
    assert said[0].startswith(f"process {first.pid} on ")
    assert said[0].endswith("is working on this run; waiting for it")
    assert [line.split(":")[0] for line in said[1:]] == ["already complete"]
    assert not [path.name for path in folder.iterdir() if "lock" in path.name or "checkpoint" in path.name]


def test_one_who_waits_goes_on_where_a_killed_one_was(made: Made, tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "log.txt"
    first = slowly(made, folder, OFTEN)

    def kill() -> None:
        until(lambda: log.exists() and "waiting for it" in log.read_text())
        until((folder / "checkpoint.previous.pt").exists)
        first.kill()  # and nobody waits for it: a zombie

    killer = threading.Thread(target=kill)
    killer.start()
    execute(KD, made, folder, log=log)
    killer.join()
    output, _ = first.communicate(timeout=60)
    assert first.returncode == -signal.SIGKILL
    assert "done:" not in output
    text = log.read_text()
    order = ("waiting for it", "taking over from process", "resumed from checkpoint", "done: accuracy")
    assert [text.count(part) for part in order] == [1, 1, 1, 1]
    assert sorted(order, key=text.index) == list(order)
    assert same_numbers(folder, made.results / KD.path)
    assert read_json(folder / "run.json")["counts"]["student_steps"] == STEPS
    assert not [path.name for path in folder.iterdir() if "lock" in path.name or "checkpoint" in path.name]


def test_one_that_was_taken_over_stops_and_touches_nothing(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = {"host": "far", "pid": 1, "process": 1, "machine": "far away", "beat": 0}
    at_boundary(10, lambda: write_json(tmp_path / "lock.2.json", other), monkeypatch)
    with pytest.raises(TakenOver, match="process 1 on far has taken over"):
        execute(SCRATCH, made, tmp_path, OFTEN)
    assert read_json(tmp_path / "lock.2.json") == other
    assert not {"ended.json", "metrics.json", "weights.pt"} & {path.name for path in tmp_path.iterdir()}


def test_one_that_was_taken_over_at_the_very_end_writes_no_results(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = {"host": "far", "pid": 1, "process": 1, "machine": "far away", "beat": 0}
    evaluate = with_data.evaluate

    def evaluated(*given: Any) -> dict[str, float]:
        write_json(tmp_path / "lock.2.json", other)
        return evaluate(*given)

    monkeypatch.setattr(with_data, "evaluate", evaluated)
    with pytest.raises(TakenOver):
        execute(SCRATCH, made, tmp_path)
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith("lock")] == []


# ------------------------------------------------------------------------------------------------------ how runs ended


def test_a_diverged_run_leaves_a_note_until_it_succeeds(made: Made, tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError):
        execute(tiny_run("scratch", training__lr=1e30), made, tmp_path)
    note = read_json(tmp_path / "ended.json")
    assert note["error"].startswith("Unhealthy: epoch 1: loss is ")
    assert (note["done"], note["total"]) == (1, 2)
    assert note["seconds"] > 0
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", note["when"])
    execute(SCRATCH, made, tmp_path)
    assert not (tmp_path / "ended.json").exists()


def test_a_stopped_run_leaves_a_note_without_an_error(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        at_boundary(30, lambda: os.kill(os.getpid(), signal.SIGTERM), patched)
        with pytest.raises(Stopped) as stopped:
            execute(SCRATCH, made, tmp_path)
    assert stopped.value.code == 143
    note = read_json(tmp_path / "ended.json")
    assert (note["error"], note["done"], note["total"]) == (None, 1, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", "ended.json"]
    execute(SCRATCH, made, tmp_path)
    assert not (tmp_path / "ended.json").exists()
    assert same_numbers(tmp_path, made.results / SCRATCH.path)


def test_a_device_that_is_not_there_is_noted_too(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match=r"compute\.device"):
        execute(SCRATCH, made, tmp_path, dataclasses.replace(COMPUTE, device="cuda:7"))
    assert read_json(tmp_path / "ended.json")["error"].startswith("ConfigError: compute.device: got 'cuda:7'")


# -------------------------------------------------------------------------------------------------------- what is done


def test_a_complete_run_is_not_repeated(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shutil.copytree(made.results / SCRATCH.path, tmp_path / "run")
    before = {path.name: state_of(path) for path in folder.iterdir()}
    (folder / "checkpoint.pt").write_bytes(b"of one who was killed after its last file")
    monkeypatch.setattr(run_module, "_make", None)
    assert execute(SCRATCH, made, folder) == read_json(folder / "metrics.json")
    assert {path.name: state_of(path) for path in folder.iterdir()} == before


@pytest.mark.parametrize("what", ["settings", "code", "teacher", "data", "no metrics", "torn record", "odd record"])
def test_a_run_that_something_else_was_made_from_is_made_again(
    what: str, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(made.results / KD.path, tmp_path / "run")
    run, data = KD, made.results / KD.data_path
    teacher = made.results / KD.teacher.path / "weights.pt"
    if what == "settings":
        run = tiny_run("kd", training__lr=0.2)
    elif what == "code":
        monkeypatch.setattr(run_module, "run_code", lambda run: "0123456789")
    elif what == "teacher":
        teacher = made.results / SCRATCH.path / "weights.pt"
    elif what == "data":
        data = tmp_path / "data.pt"
        data.write_bytes(b"other images")
    elif what == "no metrics":
        (folder / "metrics.json").unlink()
    else:
        (folder / "run.json").write_text('{"identity": "' if what == "torn record" else "[]")
    begun = []
    monkeypatch.setattr(run_module, "_make", lambda run, *_: begun.append(run) or {"accuracy": 1.0})
    assert run_step(run, folder, data, [teacher], COMPUTE) == {"accuracy": 1.0}
    assert begun == [run]


@pytest.mark.parametrize("name", ["weights.pt", "history.csv"])
def test_a_run_that_has_lost_a_file_is_made_again(
    name: str, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Students would not find their teacher's weights, Snakemake not its output."""
    folder = shutil.copytree(made.results / SCRATCH.path, tmp_path / "run")
    (folder / name).unlink()
    begun = []
    monkeypatch.setattr(run_module, "_make", lambda run, *_: begun.append(run) or {"accuracy": 1.0})
    execute(SCRATCH, made, folder)
    assert begun == [SCRATCH]


# -------------------------------------------------------------------------------------------------- work_through, alone


def test_teachers_come_first_and_data_is_prepared_once(made: Made) -> None:
    paths = [KD.teacher.path, KD.path, SCRATCH.path]
    assert [line.split(": ")[0] for line in made.said] == [str(made.results / path) for path in paths]
    assert all(re.fullmatch(r"accuracy \d+\.\d\d %", line.split(": ")[1]) for line in made.said)
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

    monkeypatch.setattr(worker, "prepare", slow)
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
    assert re.match(r"epoch 1: loss is (nan|inf); lower training.lr", failed[orphan.teacher.path])
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
    """While a run is scored, for example: that one is made to its end, but no other is begun."""
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


def test_what_failed_in_a_process_that_works_beside_this_one_is_not_tried_again(
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
    """After a power cut, too: the machine has started anew and knows nothing of its earlier processes."""
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


# -------------------------------------------------------------------------------------------- python -m kd run --jobs 2


def by_hand(runs: list[Run], results: Path, *options: str) -> list[str]:
    """The command line that makes these runs from a list."""
    listed = results.parent / f"{results.name}.yaml"
    listed.write_text(yaml.safe_dump({"runs": [run.as_dict() for run in runs]}))
    command = [sys.executable, "-m", "kd", "run", "--settings", str(listed), "--results", str(results)]
    return [*command, "--device", "cpu", "--no-download", *options]


def test_two_jobs_make_every_run_exactly_once(made: Made, tmp_path: Path) -> None:
    results = tmp_path / "results"
    diverging = tiny_run("scratch", training__lr=1e30)
    runs = [KD, SCRATCH, diverging]
    done = subprocess.run(by_hand(runs, results, "--jobs", "2"), capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    for run in (KD.teacher, KD, SCRATCH):
        assert len(re.findall(rf"{run.path} on cpu: done: accuracy", done.stderr)) == 1, done.stderr
        assert same_numbers(results / run.path, made.results / run.path)
    failed = re.findall(rf"^error: {diverging.path}: .*loss is .*$", done.stderr, re.MULTILINE)
    assert len(failed) == 2, "each process says what failed"
    assert len(re.findall(rf"{diverging.path} on cpu: epoch 1/2", done.stderr)) == 1, "but it was tried once"
    assert not list(results.rglob("*lock*"))


def test_two_jobs_that_are_asked_to_stop_save_and_go_on_later(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, log = prepared_copy(made, tmp_path / "results"), tmp_path / "stderr.txt"
    runs = [tiny_run("scratch", seed, training__epochs=5, scale=0.5) for seed in (0, 1)]
    command = by_hand(runs, results, "--jobs", "2")
    halted = {}
    with log.open("w") as stderr:
        parent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, cwd=ROOT)
        try:
            assert until(lambda: halt_after_an_epoch(runs, results, log, halted) == 2), log.read_text()
            parent.terminate()
            time.sleep(0.2)
            for worker_pid in halted.values():
                os.kill(worker_pid, signal.SIGCONT)
            assert parent.wait(60) == 143, log.read_text()
        finally:
            parent.terminate()  # passes it on
            for worker_pid in halted.values():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker_pid, signal.SIGCONT)
            parent.communicate(timeout=60)
    assert log.read_text().count("asked to stop: state saved") == 2
    assert not [pid for pid in halted.values() if Path(f"/proc/{pid}").exists()]
    for run in runs:
        folder = results / run.path
        assert sorted(path.name for path in folder.iterdir()) == ["checkpoint.pt", "ended.json"]
        note = read_json(folder / "ended.json")
        assert (note["error"], note["total"]) == (None, 5)
        assert 1 <= note["done"] < 5
    restore, restored = Checkpoint.restore, []
    monkeypatch.setattr(Checkpoint, "restore", lambda *given: restored.append(restore(*given)) or restored[-1])
    assert command_line.main([*command[3:], "--jobs", "1"]) == 0
    assert restored == [True, True]
    for run in runs:
        assert not (results / run.path / "ended.json").exists()
        execute(run, made, tmp_path / f"undisturbed{run.seed}")
        assert same_numbers(results / run.path, tmp_path / f"undisturbed{run.seed}")


def halt_after_an_epoch(runs: list[Run], results: Path, log: Path, halted: dict[str, int]) -> int:
    """SIGSTOP to the workers whose run has its first epoch behind it, so that none is done too soon; how many are."""
    for run in runs:
        if run.path not in halted and f"{run.path} on cpu: epoch 1/5" in log.read_text():
            halted[run.path] = read_json(results / run.path / "lock.1.json")["pid"]
            os.kill(halted[run.path], signal.SIGSTOP)
    return len(halted)


# ------------------------------------------------------------------------------------------------- mistakes by hand

MISSING = "(missing)"
MISTAKES: list[tuple[str, str, Any, str]] = [
    # method, key, what is written there, what the line says
    ("kd", "training.schedule", "cosin", "training.schedule: got 'cosin'; did you mean 'cosine'?"),
    ("kd", "teachers.0.training.schedule", "cosin", "teachers: training.schedule: got 'cosin'; did you mean 'cosine'?"),
    ("kd", "training.lr", -0.1, "training.lr: got -0.1; allowed: > 0"),
    ("kd", "training.lr", "fast", "training.lr: got 'fast' (text); allowed: number"),
    ("kd", "training.lr", "1e-3", "training.lr: got '1e-3' (text); allowed: number"),
    ("kd", "training.lr", float("nan"), "training.lr: got nan"),
    ("kd", "training.lr", MISSING, "'lr'"),
    ("kd", "training.epochs", "two", "training.epochs: got 'two' (text); allowed: integer"),
    ("kd", "training.epochs", 2.5, "training.epochs: got 2.5 (number); allowed: integer"),
    ("kd", "training.epochs", 0, "training.epochs: got 0"),
    ("kd", "training.epoch", 3, "training: unknown key 'epoch'"),
    ("kd", "training.milestones", 5, "training.milestones: got 5 (integer)"),
    ("kd", "training.milestones", None, "training.milestones: got null"),
    ("kd", "training", MISSING, "training"),
    ("kd", "training", None, "training"),
    ("kd", "training", "long", "training: got 'long' (text)"),
    ("kd", "objective", MISSING, "objective"),
    ("kd", "objective", "ce", "objective: got 'ce' (text)"),
    ("kd", "objective.ce", 1.0, "objective.ce: got 1.0 (number)"),
    ("kd", "objective.ce.weight", -1.0, "objective.ce.weight: got -1.0"),
    ("kd", "objective.kd.temperature", "hot", "objective.kd.temperature: got 'hot' (text); allowed: number"),
    ("kd", "objective.ddk", {"weight": 1.0}, "objective.ddk: unknown loss; did you mean 'dkd'?"),
    ("kd", "teachers", MISSING, "teachers"),
    ("kd", "teachers", "resnet8", "teachers: got 'resnet8' (text)"),
    ("kd", "teachers.0", "resnet8", "teachers: got 'resnet8' (text)"),
    ("kd", "teachers", [], "teachers: got"),
    ("kd", "teachers.0.training", MISSING, "training"),
    ("kd", "teachers.0.kind", "distill", "teacher"),
    ("kd", "teachers.0.objective", "ce", "objective: got 'ce' (text)"),
    ("kd", "kind", "distil", "kind: got 'distil'; did you mean 'distill'?"),
    ("kd", "kind", "train", "kind"),
    ("kd", "kind", "datafree", "kind"),
    ("kd", "model", "resnet9", "student.model"),
    ("kd", "dataset.name", "digit", "dataset.name: got 'digit'; did you mean 'digits'?"),
    ("kd", "dataset", "digits", "dataset: got 'digits' (text)"),
    ("kd", "precision", "half", "precision: got 'half'"),
    ("kd", "scale", 0, "scale: got 0"),
    ("kd", "seed", "one", "seed: got 'one' (text); allowed: integer"),
    ("kd", "seed", -1, "seed: got -1"),
    ("kd", "seed", MISSING, "'seed'"),
    ("kd", "colour", "red", "unknown key 'colour'"),
    ("ssdkd", "inversion", MISSING, "inversion"),
    ("ssdkd", "inversion.generator.meta", "mamel", "inversion.generator.meta: got 'mamel'; did you mean 'maml'?"),
    ("ssdkd", "replay.replacement", "old", "replay.replacement: got 'old'"),
    ("ssdkd", "distillation", None, "distillation"),
    ("ssdkd", "distillation.training.lr", -1, "distillation.training.lr: got -1"),
    ("ssdkd", "teachers", MISSING, "teachers"),
]


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.fixture
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_: Any) -> None:
        raise AssertionError("it starts")

    monkeypatch.setattr(worker, "work_through", started)


@pytest.mark.parametrize(("method", "key", "value", "says"), MISTAKES, ids=lambda item: str(item)[:30])
def test_a_mistake_in_settings_by_hand_ends_in_one_line(
    method: str,
    key: str,
    value: Any,
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    nothing_starts: None,
) -> None:
    settings = json.loads(json.dumps(tiny_run(method).as_dict()))
    *sections, last = key.split(".")
    section = settings
    for name in sections:
        section = section[int(name) if name.isdecimal() else name]
    if value == MISSING:
        del section[last]
    else:
        section[int(last) if last.isdecimal() else last] = value
    file = tmp_path / "wrong.yaml"
    file.write_text(yaml.safe_dump(settings))
    assert command_line.main(["run", "--settings", str(file)]) == 1
    line = one_line(capsys)
    assert line.startswith(f"error: {file}: ")
    assert says in line


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- kind: train\n", "holds a list"),
        ("", "is empty"),
        ("kind: [train\n", "not valid YAML"),
        ("{}\n", "'kind'"),
        ("kind: train\nkind: distill\n", "key 'kind' is given twice"),
        ("runs: all\n", "runs: got 'all' (text)"),
        ("runs: [3]\n", "runs: got a list"),
        ("settings: mine\n", "settings: got 'mine' (text)"),
    ],
)
def test_a_file_that_holds_no_run_ends_in_one_line(
    text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], nothing_starts: None
) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(text)
    assert command_line.main(["run", "--settings", str(file)]) == 1
    line = one_line(capsys)
    assert line.startswith(f"error: {file}: ")
    assert says in line


def test_one_wrong_run_in_a_list_stops_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], nothing_starts: None
) -> None:
    file, wrong = tmp_path / "list.yaml", SCRATCH.as_dict() | {"precision": "half"}
    file.write_text(yaml.safe_dump({"runs": [KD.as_dict(), wrong]}))
    for jobs in ("1", "2"):
        assert command_line.main(["run", "--settings", str(file), "--jobs", jobs]) == 1
        assert "precision: got 'half'" in one_line(capsys)


@pytest.mark.parametrize(
    "options",
    [["--device", "gpu"], ["--device", "cuda:one"], ["--threads", "0"], ["--slots-per-gpu", "0"]],
    ids=" ".join,
)
def test_a_mistake_in_an_option_is_told_before_anything_starts(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], nothing_starts: None
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(SCRATCH.as_dict()))
    try:
        code = command_line.main(["run", "--settings", str(file), *options])
    except SystemExit as ended:  # argparse's own
        code = ended.code
    assert code in (1, 2)
    last = capsys.readouterr().err.splitlines()[-1]
    assert "error: " in last
    assert options[1] in last
