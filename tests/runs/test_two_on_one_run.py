"""Two processes on the same run: the second waits or takes over from a killed one; one that lost the run stops."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from conftest import COMPUTE, ROOT, execute
from made_runs import KD, OFTEN, SCRATCH, STEPS, Made, at_boundary, made_by_one_process, same_numbers, state_of, until

from kd.runtime.files import read_json, write_json
from kd.runtime.run_lock import TakenOver
from kd.settings.shapes import Compute
from kd.training import with_data


@pytest.fixture
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made_by_one_process(tmp_path_factory.getbasetemp() / "made")


# Makes a run in a folder, slowly; prints a line after each step.
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
    """Start a process that makes KD in `folder`; return it after its first step."""
    files = [made.results / KD.data_path, made.results / KD.teacher.path / "weights.pt", folder]
    settings = [json.dumps(content) for content in (KD.as_dict(), dataclasses.asdict(compute))]
    command = [sys.executable, "-c", SLOWLY, *map(str, files), *settings]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)
    lines = iter(process.stdout.readline, "")
    assert "step\n" in lines, "it ended before its first step"
    return process


def test_a_second_process_waits_and_uses_the_results_of_the_first(made: Made, tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "log.txt"
    first = slowly(made, folder, COMPUTE)
    metrics = execute(KD, made.results, folder, log=log)
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


def test_a_waiting_process_goes_on_where_a_killed_one_was(made: Made, tmp_path: Path) -> None:
    folder, log = tmp_path / "run", tmp_path / "log.txt"
    first = slowly(made, folder, OFTEN)

    def kill() -> None:
        until(lambda: log.exists() and "waiting for it" in log.read_text())
        until((folder / "checkpoint.previous.pt").exists)
        first.kill()  # and nobody waits for it, so that it stays as a zombie

    killer = threading.Thread(target=kill)
    killer.start()
    execute(KD, made.results, folder, log=log)
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
        execute(SCRATCH, made.results, tmp_path, OFTEN)
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
        execute(SCRATCH, made.results, tmp_path)
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith("lock")] == []
