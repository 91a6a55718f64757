"""A short form of benchmarks/faults.py: a few faults to two kinds of step, and what its comparison sees."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

PROGRAM = [sys.executable, str(ROOT / "benchmarks/faults.py")]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import fault_steps

    return fault_steps


def test_nothing_is_lost_and_nothing_differs(tmp_path: Path) -> None:
    options = ["--only", "teacher", "given", "--faults", "20", "--studies", "0", "--jobs", "2"]
    out = tmp_path / "out"
    done = subprocess.run(
        [*PROGRAM, *options, f"--folder={tmp_path}", f"--out={out}"], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with (out / "faults.csv").open(encoding="utf-8") as file:
        tried = list(csv.DictReader(file))
    assert len(tried) == 20
    assert {row["step"] for row in tried} == {"train: teacher", "given teacher"}
    assert {row["kind"] for row in tried} >= {"SIGKILL", "SIGKILL, torn file", "SIGTERM", "a flipped byte", "a folder"}
    assert any(row["went_on"] == "resumed" for row in tried), "a checkpoint was gone on from"
    assert any(row["told"] for row in tried), "a user was asked to act"
    assert "| train: teacher | SIGKILL |" in (out / "table.md").read_text("utf-8")
    assert not list(tmp_path.glob("kd-faults-*")), "what was equal is removed"


def test_nonsense_is_refused_in_a_line() -> None:
    done = subprocess.run([*PROGRAM, "--only", "kdd"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "--only: got 'kdd'; did you mean 'kd'? allowed: prepare, teacher, kd" in done.stderr.splitlines()[-1]


def test_the_comparison_sees_what_differs_is_missing_is_left_or_was_put_aside(steps: Any, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder, seconds in ((here, 1.0), (there, 2.0)):
        folder.mkdir()
        for name in ("weights.pt", "metrics.json", "history.csv"):
            (folder / name).write_bytes(name.encode())
        (folder / "run.json").write_text(f'{{"counts": {{"steps": 4}}, "seconds": {seconds}}}')
    assert steps.differences(here, there) == ([], [], [])
    (here / "weights.pt").write_bytes(b"veights.pt")
    (here / "metrics.json").unlink()
    (here / "run.json").write_text('{"counts": {"steps": 3}}')
    (here / ".run.json.1.tmp").touch()
    (here / "checkpoint.unusable.pt").touch()
    found = ["metrics.json", "run.json", "weights.pt"], [".run.json.1.tmp"], ["checkpoint.unusable.pt"]
    assert steps.differences(here, there) == found
