"""Snakemake is killed with its jobs, or without them: the next start goes on from what is there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from conftest import PAIR
from tiny_study import command_of, environment_of, finish, snakemake, write_study

RESULTS = "results/studies/tiny/results.csv"  # needs all runs, and no figures


def start(project: Path, **keywords: Any) -> subprocess.Popen:
    """Start Snakemake without waiting for it."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    command = command_of("--cores", "2")
    return subprocess.Popen(command, cwd=project, env=environment_of(), **quiet, **keywords)


def test_killed_study_goes_on(project: Path) -> None:
    """SIGKILL to everything in the middle; the next start finishes, and its numbers equal an undisturbed study's."""
    long = {"training": {"epochs": 20}}
    only = {"experiments": {"data": {"methods": ["scratch"]}, "scale": {"scales": [0.3], "seeds": [0]}}}
    write_study(
        project, settings={**long, "compute": {"checkpoint_seconds": 0.2}, "tracking": {"enabled": False}}, **only
    )
    process = start(project, start_new_session=True)
    deadline = time.monotonic() + 120
    while not (found := list(project.glob("results/runs/**/train-*/seed0/checkpoint.pt"))) or not any(
        file.parent.parent.parent.name == PAIR[1] for file in found
    ):
        assert time.monotonic() < deadline, "no checkpoint of the student appeared"
        assert process.poll() is None, "the study ended before it could be killed"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert snakemake(project, "--unlock").returncode == 0
    finish(project, RESULTS)
    logs = "".join(file.read_text() for file in project.glob("results/logs/runs/**/*.txt"))
    assert "resumed from checkpoint" in logs
    killed = {file.relative_to(project): file.read_bytes() for file in project.glob("results/runs/**/metrics.json")}
    (project / "results").rename(project / "killed")
    finish(project, RESULTS)
    assert killed == {
        file.relative_to(project): file.read_bytes() for file in project.glob("results/runs/**/metrics.json")
    }


def test_a_run_goes_on_next_to_an_orphan(project: Path) -> None:
    """Only Snakemake is killed; its job lives on. The next start waits for it and uses its results."""
    only = {"experiments": {"data": {"methods": ["scratch"]}, "scale": None}}
    settings = {"training": {"epochs": 150}, "compute": {"checkpoint_seconds": 0.2}, "tracking": {"enabled": False}}
    write_study(project, settings=settings, **only)
    process = start(project)
    pattern = f"results/runs/digits/{PAIR[1]}/train-*/seed0"
    deadline = time.monotonic() + 120
    while not list(project.glob(f"{pattern}/checkpoint.pt")):
        assert time.monotonic() < deadline, "no checkpoint of the student appeared"
        assert process.poll() is None, "the study ended before it could be killed"
        time.sleep(0.02)
    process.kill()
    process.wait()
    (folder,) = project.glob(pattern)
    orphan = json.loads((folder / "lock.1.json").read_text())["pid"]
    assert snakemake(project, "--unlock").returncode == 0
    finish(project, RESULTS)
    log = next(project.glob(f"results/logs/runs/digits/{PAIR[1]}/**/*.txt")).read_text()
    assert f"process {orphan} on" in log
    assert "waiting for it" in log
    assert "already complete" in log
    assert json.loads((folder / "run.json").read_text())["counts"]["student_steps"] == 150 * (1437 // 64)
    assert not list(folder.glob("lease*")) + list(folder.glob("checkpoint*"))


def test_a_finished_run_outlives_its_job(project: Path) -> None:
    """A job that dies after its run is complete costs nothing: its files stay, and nothing is trained again."""
    only = {"experiments": {"data": {"methods": ["scratch"]}, "scale": None}}
    write_study(project, settings={"tracking": {"enabled": False}}, **only)
    script = project / "workflow/scripts/run.py"
    as_it_is = script.read_text("utf-8")
    script.write_text(as_it_is + "    raise SystemExit('killed as it ended')\n", encoding="utf-8")
    assert snakemake(project, "--cores", "2", RESULTS).returncode != 0
    [record] = project.glob("results/runs/**/run.json")
    before = record.stat().st_mtime_ns
    script.write_text(as_it_is, encoding="utf-8")
    finish(project, RESULTS)
    assert record.stat().st_mtime_ns == before
