"""Runs that are made together in one process: each ends with the numbers that it has when it is made alone."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import COMPUTE, ROOT, tiny_run
from made_runs import OFTEN, at_boundary, source, until
from tape import Tape, play_on_cpu
from test_two_jobs import by_hand
from torch.nn.modules.module import register_module_forward_hook

from kd.models.classifier import Classifier
from kd.runs import run as run_module
from kd.runs import worker
from kd.runs.worker import work_through
from kd.runtime import run_lock, turns
from kd.runtime.checkpoint import Checkpoint, Stopped
from kd.runtime.files import read_json, write_json
from kd.settings.run import Run
from kd.training import networks, with_data


def small(method: str, seed: int = 0, **changes: Any) -> Run:
    """A run of 12 steps of 64 images."""
    return tiny_run(method, seed, scale=0.3, **changes)


KD, KD_1, AT, CRD, SCRATCH = small("kd"), small("kd", 1), small("at"), small("crd"), small("scratch")
AB, DIST = small("ab", objective__ab__first_epochs=1), small("dist")
SSDKD = [tiny_run("ssdkd", seed) for seed in (0, 1)]
DROPS = [small("kd", seed, student__model="dropping:net") for seed in (0, 1)]
ALL = [*SSDKD, KD, KD_1, AT, CRD, AB, SCRATCH, *DROPS]
FAR = {"host": "far", "pid": 1, "process": 1, "machine": "far away", "slurm_job": None, "beat": 7}

# A user's network that draws from torch's own generators.
DROPPING = """
from torch import nn
def net(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    maps = [nn.Conv2d(in_channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*maps, nn.Flatten(), nn.Dropout(0.5), nn.Linear(8, num_classes))
"""


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A results folder with ALL and their teacher, made one after the other."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "dropping.py").write_text(DROPPING, encoding="utf-8")
    sys.path.insert(0, str(folder))
    assert work_through(ALL, folder, COMPUTE, source(folder), lambda text: None) == {}
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture
def results(alone: Path, tmp_path: Path) -> Path:
    """A results folder with the data and the teacher, which is there already."""
    shutil.copytree(alone / "data", tmp_path / "results/data")
    shutil.copytree(alone / KD.teacher.path, tmp_path / "results" / KD.teacher.path)
    return tmp_path / "results"


@pytest.fixture(autouse=True)
def no_test_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def too_long(*_: Any) -> None:
        raise TimeoutError("it waits for ever")

    monkeypatch.setattr(turns, "PAUSE_SECONDS", 0.05)
    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def together(runs: list[Run], results: Path, number: int, compute: Any = COMPUTE) -> dict[str, str]:
    return work_through(runs, results, compute, source(results), lambda text: None, number)


def stopped_together(runs: list[Run], results: Path, number: int) -> int:
    """Return the exit code of runs that are asked to stop."""
    with pytest.raises(Stopped) as stopped:
        together(runs, results, number)
    return stopped.value.code


def numbers(folder: Path) -> tuple:
    """Every number that a run leaves behind."""
    weights = torch.load(folder / "weights.pt", weights_only=True)
    bytes_of = {name: value.contiguous().numpy().tobytes() for name, value in weights.items()}
    return bytes_of, (folder / "metrics.json").read_text(), (folder / "history.csv").read_text()


def assert_as_alone(runs: list[Run], results: Path, alone: Path) -> None:
    for run in runs:
        assert numbers(results / run.path) == numbers(alone / run.path), run.path
    assert not list(results.rglob("*lock*"))


@pytest.mark.parametrize("captured", [False, True])
def test_a_mixed_list_gives_the_numbers_of_runs_made_alone(captured: bool, alone, tmp_path, monkeypatch) -> None:
    """The teacher of most of them is trained by one while the others wait for it."""
    steppers = play_on_cpu(monkeypatch) if captured else []
    shutil.copytree(alone / "data", tmp_path / "data")
    runs = [*SSDKD, KD, AT, CRD, AB, SCRATCH]
    assert together(runs, tmp_path, 4) == {}
    assert_as_alone([KD.teacher, *runs], tmp_path, alone)
    assert not captured or max(stepper.computed["together"] for stepper in steppers) > 1


class Counting(Tape):
    """Notes how many steps a graph holds, and how often a frozen network has answered in them."""

    found: set[tuple[int, int]]

    def __init__(self, steps: list, *given: Any):
        answers = []

        def note(module: torch.nn.Module, *_: Any) -> None:
            if isinstance(module, Classifier) and not module.training:
                answers.append(module)

        with register_module_forward_hook(note):
            super().__init__(steps, *given)
        self.found.add((len(steps), len(answers)))


@pytest.mark.parametrize(
    ("runs", "forwards"),
    [
        ([KD, AT], 1),
        ([KD, AT, CRD], 2),
        ([KD, KD_1], 2),
        ([KD, SCRATCH], 1),
    ],
)
def test_the_teacher_answers_once_for_the_same_batch(runs, forwards, results, alone, monkeypatch) -> None:
    play_on_cpu(monkeypatch, Counting)
    Counting.found = set()
    assert together(runs, results, 3) == {}
    assert {answers for steps, answers in Counting.found if steps == len(runs)} == {forwards}
    assert_as_alone(runs, results, alone)


def test_one_that_goes_on_in_the_middle_of_an_epoch_shares_no_answer(results, alone, monkeypatch) -> None:
    play_on_cpu(monkeypatch, Counting)
    with monkeypatch.context() as patched:
        at_boundary(9, lambda: os.kill(os.getpid(), signal.SIGTERM), patched)
        assert stopped_together([KD], results, 1) == 143
    Counting.found = set()
    assert together([KD, AT], results, 2) == {}
    assert {answers for steps, answers in Counting.found if steps == 2} == {2}
    assert_as_alone([KD, AT], results, alone)


def test_runs_share_one_teacher(results, alone, monkeypatch) -> None:
    build, teachers = networks.student_and_teacher, []

    def noted(*given: Any) -> tuple:
        teachers.append(build(*given)[1])
        return build(*given)

    monkeypatch.setattr(with_data, "student_and_teacher", noted)
    assert together([KD, AT, CRD], results, 3) == {}
    assert len(teachers) == 3
    assert len(set(map(id, teachers))) == 1
    assert_as_alone([KD, AT, CRD], results, alone)


@pytest.mark.parametrize("captured", [False, True])
def test_a_network_with_dropout_draws_as_it_does_alone(captured: bool, results, alone, monkeypatch) -> None:
    steppers = play_on_cpu(monkeypatch) if captured else []
    assert together([*DROPS, KD, AT], results, 4) == {}
    assert_as_alone([*DROPS, KD, AT], results, alone)
    assert [stepper.by_itself for stepper in steppers].count({"step"}) == 2 * captured


@pytest.mark.parametrize(("captured", "at"), [(False, 3), (True, 2), (True, 4)])
def test_runs_that_fail_leave_the_others_as_they_are(captured: bool, at: int, results, alone, monkeypatch) -> None:
    """One with a loss that is not finite, one whose step raises (the fourth is captured), one that is refused."""
    if captured:
        play_on_cpu(monkeypatch)
    step, calls = with_data.train_step, []

    def raising(student: Any, teacher: Any, objective: Any, *given: Any) -> Any:
        if "dist" in objective.losses:
            calls.append(True)
            if len(calls) >= at:
                raise KeyError("on purpose")
        return step(student, teacher, objective, *given)

    monkeypatch.setattr(with_data, "train_step", raising)
    diverging, refused = small("scratch", training__lr=1e30), tiny_run("ssdkd", scale=0.001)
    failed = together([diverging, KD, DIST, refused, AT, SSDKD[0]], results, 3)
    assert set(failed) == {diverging.path, refused.path, DIST.path}
    assert re.match(r"epoch 1: loss is (nan|inf); the student's weights are not finite", failed[diverging.path])
    assert "KeyError: 'on purpose'" in failed[DIST.path]
    assert failed[refused.path].startswith("scale: got 0.001, which leaves 0 of 100 images")
    assert_as_alone([KD, AT, SSDKD[0]], results, alone)


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_all_save_and_leave_when_asked_to_stop_and_go_on_later(captured, number, results, alone, monkeypatch) -> None:
    if captured:
        play_on_cpu(monkeypatch)
    runs, restore, restored = [SSDKD[0], KD, CRD], Checkpoint.restore, []
    with monkeypatch.context() as patched:
        at_boundary(12, lambda: os.kill(os.getpid(), number), patched)
        assert stopped_together(runs, results, 3) == 128 + number
    for run in runs:
        assert [path.name for path in sorted((results / run.path).iterdir())] == ["checkpoint.pt", "ended.json"]
        assert read_json(results / run.path / "ended.json")["error"] is None
    monkeypatch.setattr(Checkpoint, "restore", lambda *given: restored.append(restore(*given)) or restored[-1])
    assert together(runs, results, 3) == {}
    assert restored == [True] * 3
    assert_as_alone(runs, results, alone)


def test_whoever_waits_for_a_teacher_stops_at_once(results, monkeypatch) -> None:
    shutil.rmtree(results / KD.teacher.path)
    at_boundary(5, lambda: os.kill(os.getpid(), signal.SIGTERM), monkeypatch)
    assert stopped_together([KD, AT], results, 2) == 143
    assert [path.name for path in sorted((results / KD.teacher.path).iterdir())] == ["checkpoint.pt", "ended.json"]
    assert not (results / KD.path).exists()


def test_a_run_that_begins_just_after_the_signal_stops_too(results, alone, monkeypatch) -> None:
    identify, begun = run_module.identity_of, []

    def signalled(run: Run, *given: Any) -> str:
        begun.append(run)
        if len(begun) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return identify(run, *given)

    with monkeypatch.context() as patched:
        patched.setattr(run_module, "identity_of", signalled)
        assert stopped_together([KD, AT, CRD], results, 2) == 143
    assert begun == [KD, AT]
    for run in begun:
        assert not (results / run.path / "metrics.json").exists()
        assert (results / run.path / "checkpoint.pt").exists()
    assert together([KD, AT], results, 2) == {}
    assert_as_alone([KD, AT], results, alone)


def test_data_is_prepared_while_a_signal_still_ends_the_process(tmp_path, monkeypatch) -> None:
    """Nothing is to be saved then; later, whoever prepares would keep the others from saving."""
    handlers, prepare = [], worker.prepare_step

    def noted(*given: Any) -> None:
        handlers.append(signal.getsignal(signal.SIGTERM))
        prepare(*given)

    monkeypatch.setattr(worker, "prepare_step", noted)
    assert together([SCRATCH, AT], tmp_path, 2) == {}
    assert handlers == [signal.SIG_DFL]


def test_a_run_that_another_process_takes_over_is_left_to_it(results, alone, monkeypatch) -> None:
    save, seen = Checkpoint.stop_or_save, []

    def taken_over(self: Checkpoint, parts: dict[str, Any]) -> None:
        folder = self.files[0].parent
        if folder == results / AT.path:
            seen.append(folder)
            if len(seen) == 5:
                write_json(folder / "lock.2.json", FAR)
        save(self, parts)

    monkeypatch.setattr(Checkpoint, "stop_or_save", taken_over)
    failed = together([KD, AT, SCRATCH], results, 3, OFTEN)
    assert list(failed) == [AT.path]
    assert re.match("process 1 on far has taken over this run", failed[AT.path])
    assert read_json(results / AT.path / "lock.2.json") == FAR
    (results / AT.path / "lock.2.json").unlink()
    (results / AT.path / "lock.1.json").unlink(missing_ok=True)
    assert_as_alone([KD, SCRATCH], results, alone)


def test_a_busy_run_is_looked_at_again(results, alone, monkeypatch) -> None:
    (results / AT.path).mkdir(parents=True)
    write_json(results / AT.path / "lock.1.json", FAR)
    monkeypatch.setattr(run_lock, "DEAD_AFTER_SECONDS", 0.5)
    assert together([AT, KD], results, 2) == {}
    assert_as_alone([AT, KD], results, alone)


def test_two_jobs_with_two_runs_together_each(results, alone) -> None:
    runs = [KD, AT, SCRATCH, SSDKD[0]]
    command = by_hand(runs, results, "--jobs", "2", "--together", "2")
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    for run in runs:
        assert len(re.findall(rf"{run.path} on cpu: done: accuracy", done.stderr)) == 1, done.stderr
    assert_as_alone(runs, results, alone)


def test_a_process_that_is_asked_to_stop_leaves_with_that_code(results) -> None:
    runs = [tiny_run("scratch", seed, training__epochs=200) for seed in (0, 1)]
    command = by_hand(runs, results, "--together", "2")
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert until(lambda: all((results / run.path / "lock.1.json").exists() for run in runs), 30)
        time.sleep(1)
        process.terminate()
        output = process.communicate(timeout=30)[1]
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    assert process.returncode == 143, output
    assert output.count("asked to stop: state saved") == 2
    assert "Traceback" not in output


def test_one_at_a_time_is_the_way_without_turns(results, alone, monkeypatch) -> None:
    monkeypatch.setattr(worker, "Company", None)
    assert together([KD], results, 1) == {}
    assert_as_alone([KD], results, alone)


@pytest.mark.parametrize("runs", [[], [KD]])
def test_more_than_there_are_runs(runs: list[Run], results, alone) -> None:
    assert together(runs, results, 9) == {}
    assert_as_alone(runs, results, alone)
