"""A study on a real SLURM: cancelled jobs, time limits, preemption, a controller that dies, Snakemake that is killed.

Skipped where SLURM cannot be started (tests/slurm/local_cluster.py says why). Not in `make test`: `make test-slurm`.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import PAIR, copy_project
from local_cluster import GPUS, Cluster, missing
from tiny_study import command_of, environment_of, snakemake, write_study

from kd.settings.merging import merge

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(bool(missing()), reason=f"no SLURM here: {missing()}"),
]
EPOCHS = 60
STUDY: dict[str, Any] = {
    "settings": {
        "training": {"epochs": EPOCHS},
        "distillation": {"training": {"epochs": EPOCHS}},
        "compute": {"device": "auto", "checkpoint_seconds": 0.2, "mem_mb": 500, "runtime": 10},
        "tracking": {"enabled": False},
    },
    "experiments": {
        "data": {"view": "methods", "methods": ["scratch", "kd"], "seeds": [0, 1]},
        "scale": {"scales": [0.3], "seeds": [0, 1, 2]},
    },
}
TOGETHER = (  # several runs in one job, one after the other
    *("--groups", "distill=short", "--group-components", "short=8"),
    *("--set-resource-scopes", "gpu=local", "--resources", "gpu=1"),
)
WRONG = {"view": "modules", "pairs": [PAIR], "methods": ["kd"], "ablations": ["wrong"], "seeds": [0]}
QUICK = {  # questions every few seconds, as no shared cluster would like
    "kd-slurm-init-seconds-before-status-checks": 2,
    "seconds-between-status-checks": 2,
    "kd-slurm-status-attempts": 2,
    "latency-wait": 10,
    "retries": 5,
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose runs were made without Snakemake, by two processes that nobody disturbed."""
    project = a_project(tmp_path_factory.mktemp("undisturbed") / "project")

    def kd(*arguments: str) -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-m", "kd", *arguments], cwd=project, env=environment_of())

    assert kd("plan", "tiny", "--write", "runs.yaml").wait(60) == 0
    assert [process.wait(600) for process in [kd("run", "--settings", "runs.yaml") for _ in range(2)]] == [0, 0]
    return project


def a_project(folder: Path, **changes: Any) -> Path:
    project = copy_project(folder)
    write_study(project, **merge(STUDY, changes))
    file = project / "profiles/slurm/config.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text("utf-8")) | QUICK), encoding="utf-8")
    return project


def start(project: Path, said: Path, *arguments: str) -> subprocess.Popen:
    with said.open("ab") as file:
        command = command_of("--workflow-profile", "profiles/slurm", *arguments)
        return subprocess.Popen(
            command,
            cwd=project,
            env=environment_of(),
            stdout=file,
            stderr=file,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
        )


def until(found: Callable[[], Any], what: str, process: subprocess.Popen | None = None, seconds: float = 200) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline, f"{what} has not come"
        assert process is None or process.poll() is None, f"Snakemake ended before {what}"
        time.sleep(0.1)
    return value


class Watch(threading.Thread):
    """Looks at the cluster and at the locks of runs until it is told to stop."""

    def __init__(self, project: Path):
        super().__init__(daemon=True)
        self.project, self.over = project, threading.Event()
        self.most, self.shared, self.back = 0, [], []
        self.done: dict[str, int] = defaultdict(int)

    def run(self) -> None:
        while not self.over.wait(0.3):
            self._look_at_devices()
            for folder, lock in locks(self.project).items():
                done = lock.get("done") or 0
                if 0 < done < self.done[folder] - 2:  # a checkpoint every 0.2 s: an epoch or two may be lost
                    self.back.append((folder, self.done[folder], done))
                self.done[folder] = max(done, self.done[folder])

    def _look_at_devices(self) -> None:
        said = subprocess.run(["scontrol", "-d", "-o", "show", "job"], capture_output=True, text=True).stdout
        running = [line for line in said.splitlines() if "JobState=RUNNING" in line and "(IDX:" in line]
        devices = [device for line in running for device in re.findall(r"GRES=gpu\S*\(IDX:(\d+)\)", line)]
        self.most = max(self.most, len(running))
        if len(set(devices)) < len(devices):
            self.shared.append(devices)


def locks(project: Path) -> dict[str, dict[str, Any]]:
    """The locks of students that have a checkpoint, by folder."""
    found = {}
    for file in project.glob(f"results/runs/digits/*{PAIR[1]}/*/seed*/lock.*.json"):
        try:
            if (file.parent / "checkpoint.pt").exists():
                found[str(file.parent)] = json.loads(file.read_text("utf-8"))
        except (OSError, ValueError):  # gone, or just being written
            pass
    return found


def a_job(project: Path, process: subprocess.Popen, but: set[str], what: str, of: str = "") -> str:
    """The SLURM job of a student that has a checkpoint, and `of` in its path."""

    def found() -> str | None:
        held = {folder: lock for folder, lock in locks(project).items() if of in folder}
        jobs = {str(lock["slurm_job"]) for lock in held.values() if lock.get("slurm_job")} - but
        return next(iter(sorted(jobs)), None)

    return until(found, what, process)


def words(said: Path) -> str:
    """What was said, without the ends of lines."""
    return " ".join(said.read_text("utf-8").split())


def call(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def occupied(gpus: int) -> str:
    """Take that many GPUs, before any job of a study that waits; return the job that has them."""
    return call(
        "sbatch", "--parsable", "-p", "high", "--gpus", str(gpus), "-o", "/dev/null", "--wrap", "sleep 600"
    ).strip()


def metrics(project: Path) -> dict[str, bytes]:
    files = project.glob("results/runs/**/metrics.json")
    return {str(file.relative_to(project)): file.read_bytes() for file in files}


def assert_nothing_was_made_twice(watch: Watch, project: Path, undisturbed: Path) -> None:
    """All runs ended with the numbers of a study that nobody disturbed, after as many steps."""
    watch.over.set()
    watch.join()
    numbers = metrics(undisturbed)
    assert metrics(project) == {name: numbers.get(name) for name in metrics(project)}
    assert not watch.back, "no run starts again where it has a checkpoint"
    logs = "".join(file.read_text("utf-8") for file in project.glob("results/logs/runs/**/*.txt"))
    assert "resumed from checkpoint" in logs, "runs that went on in another job"
    for file in project.glob("results/runs/**/run.json"):
        files = file, undisturbed / file.relative_to(project)
        counts, same = (json.loads(each.read_text("utf-8"))["counts"] for each in files)
        assert counts == same, "nothing is trained twice"


def test_a_study_survives_what_a_cluster_does(cluster: Cluster, undisturbed: Path, tmp_path: Path) -> None:
    project, said = a_project(tmp_path / "stormy"), tmp_path / "said.txt"
    watch = Watch(project)
    watch.start()
    process = start(project, said)

    cancelled = a_job(project, process, set(), "a student's checkpoint")
    call("scancel", cancelled)
    limited = a_job(project, process, {cancelled}, "another student's checkpoint")
    call("scontrol", "update", f"JobId={limited}", "TimeLimit=0:01")
    until(lambda: limited not in call("squeue", "-h", "-t", "R", "-o", "%i").split(), "the end of its time", process)

    a_job(project, process, {cancelled, limited}, "a student to be preempted")
    urgent = call("sbatch", "--parsable", "-p", "high", "-c", "8", "-o", "/dev/null", "--wrap", "sleep 3").strip()
    until(lambda: urgent not in call("squeue", "-h", "-o", "%i").split(), "the end of the urgent job", process)

    time.sleep(7)  # until the controller has saved what it knows: else it would take the urgent job for a running one
    cluster.kill_controller()
    time.sleep(15)
    cluster.start_controller()
    a_job(project, process, set(), "a student after the controller's death")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert snakemake(project, "--unlock").returncode == 0
    process = start(project, said)
    code = process.wait(400)

    assert code == 0, said.read_text("utf-8")[-3000:]
    assert_nothing_was_made_twice(watch, project, undisturbed)
    assert len(metrics(project)) == 8
    assert 1 < watch.most <= GPUS
    assert not watch.shared, "each job has a device of its own"


def test_forgotten_jobs_ctrl_c_and_a_run_that_fails(cluster: Cluster, undisturbed: Path, tmp_path: Path) -> None:
    wrong = {"ablations": {"wrong": {"training": {"lr": 1e30}}}, "experiments": {"scale": None, "wrong": WRONG}}
    project, said = a_project(tmp_path / "stormy", **wrong), tmp_path / "said.txt"
    watch = Watch(project)
    watch.start()
    cluster.forget_after(2)
    of_others = occupied(GPUS - 1)  # so one student is at work, and the others have no node
    process = start(project, said, "--retries", "1")

    forgotten = a_job(project, process, set(), "a student's checkpoint")
    os.kill(process.pid, signal.SIGSTOP)  # it looks away until SLURM has forgotten the job
    call("scancel", forgotten)
    the_last = occupied(1)  # no student ends in the meantime
    until(lambda: forgotten not in call("squeue", "-h", "-t", "all", "-o", "%i").split(), "the job to be forgotten")
    os.kill(process.pid, signal.SIGCONT)
    until(lambda: f"no longer knows job {forgotten}" in words(said), "a word on the job", process)

    cluster.forget_after(86_400)
    call("scancel", the_last)
    a_job(project, process, {forgotten}, "another student's checkpoint")
    assert call("squeue", "-h", "-p", "main", "-t", "PD", "-o", "%i"), "jobs without a node"
    os.killpg(process.pid, signal.SIGINT)
    process.wait(60)
    until(lambda: not call("squeue", "-h", "-p", "main", "-o", "%i"), "the end of the study's jobs")
    call("scancel", of_others)
    process = start(project, said, "--retries", "1", *TOGETHER)
    several = a_job(project, process, {forgotten}, "a checkpoint of a run in a job of several", "ce-kd")
    call("scancel", several)
    code = process.wait(400)

    assert code == 1, said.read_text("utf-8")[-3000:]
    assert "None assigned" not in words(said)
    [failed] = set(
        re.findall(r"FAILED {3}kd, wrong.*\n(?: {2}error: .*\n)(?: {4}.*\n)*? {2}log: (\S+)", said.read_text("utf-8"))
    )
    assert "error: epoch 1: loss is nan" in (project / failed).read_text("utf-8")
    assert_nothing_was_made_twice(watch, project, undisturbed)
    assert len(metrics(project)) == 5, "the others went on"
    jobs = [line for line in call("scontrol", "-o", "show", "job").splitlines() if "Comment=rule_short" in line]
    asked = [re.search(r"TimeLimit=(\S+) .*TresPerJob=\S*gpu:(\d)", line).groups() for line in jobs]
    assert asked == [("00:30:00", "1"), ("01:00:00", "1")], "time for three runs, twice as much for the retry; one GPU"
