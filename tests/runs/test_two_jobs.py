"""python -m kd run --jobs 2, --together 3: every run is made exactly once; a stop saves, and a later call goes on."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, execute, tiny_run
from made_runs import KD, SCRATCH, Made, made_by_one_process, prepared_copy, same_numbers, until

from kd import __main__ as command_line
from kd.runtime.checkpoint import Checkpoint
from kd.runtime.files import read_json
from kd.settings.run import Run


@pytest.fixture
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made_by_one_process(tmp_path_factory.getbasetemp() / "made")


def by_hand(runs: list[Run], results: Path, *options: str) -> list[str]:
    """Write a list of these runs; return the command line that makes them."""
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
            parent.terminate()  # it passes the signal on to its workers
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
        execute(run, made.results, tmp_path / f"undisturbed{run.seed}")
        assert same_numbers(results / run.path, tmp_path / f"undisturbed{run.seed}")


def halt_after_an_epoch(runs: list[Run], results: Path, log: Path, halted: dict[str, int]) -> int:
    """Suspend workers after their first epoch, so that none ends too soon; return how many are suspended."""
    for run in runs:
        if run.path not in halted and f"{run.path} on cpu: epoch 1/5" in log.read_text():
            halted[run.path] = read_json(results / run.path / "lock.1.json")["pid"]
            os.kill(halted[run.path], signal.SIGSTOP)
    return len(halted)


@pytest.mark.parametrize("given", ["0", "-1", "x", "1.5"])
def test_other_numbers_are_refused_in_one_line(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command_line.main(["run", "--settings", "runs.yaml", f"--together={given}"])
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"python -m kd run: error: argument --together: got '{given}'; allowed: 1 or more"


def test_several_bars_and_lines_do_not_write_into_each_other(made: Made, tmp_path: Path) -> None:
    """On a terminal, which every line begins at its left."""
    results = prepared_copy(made, tmp_path / "results")
    command = by_hand([KD, tiny_run("kd", 1), SCRATCH], results, "--together", "3")
    parent, child = pty.openpty()
    process = subprocess.Popen(command, stdout=child, stderr=child, cwd=ROOT)
    os.close(child)
    shown = b""
    with contextlib.suppress(OSError):  # at its end
        while part := os.read(parent, 4096):
            shown += part
    assert process.wait(30) == 0, shown
    written = shown.replace(str(results).encode(), b"results")
    lines = re.findall(rb"(?:^|[\r\n])(?:results|runs)[^\r\n]*accuracy \d+\.\d\d %", written)
    assert len(lines) == 2 * 4, shown.decode()
