"""Whole runs at tiny size: files, repeatability, kill and resume."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, execute, tiny_run
from forked_programs import Ended, ForkedPrograms

from kd.models.build import build
from kd.runtime.messages import ConfigError
from kd.settings.run import Run
from kd.settings.shapes import Compute

METHODS = ("scratch", "kd", "crd", "ssdkd")


@pytest.mark.parametrize("method", METHODS)
def test_same_seed_gives_the_same_metrics_byte_for_byte(method: str, store: Path, tmp_path: Path) -> None:
    run = tiny_run(method)
    for name in ("a", "b"):
        execute(run, store, tmp_path / name)
    first, second = ((tmp_path / name / "metrics.json").read_bytes() for name in ("a", "b"))
    assert first == second
    execute(tiny_run(method, seed=1), store, tmp_path / "c")
    assert (tmp_path / "c" / "metrics.json").read_bytes() != first


def test_files_of_a_run(store: Path, tmp_path: Path) -> None:
    run = tiny_run("ssdkd")
    metrics = execute(run, store, tmp_path)
    assert {"accuracy", "agreement", "loss", "top5", "parameters", "teacher_accuracy"} <= set(metrics)
    record = json.loads((tmp_path / "run.json").read_text())
    assert Run.from_dict(record["settings"]) == run
    assert record["counts"]["images"] == 4 * 16  # warm-up and student epochs times the inversion's batch
    assert record["counts"]["generator_steps"] == 4 * 2
    assert record["counts"]["student_steps"] == 3 * 7  # ceil(100 images / 16) steps an epoch
    assert record["seconds"]["total"] >= record["seconds"]["inversion"] > 0
    assert len((tmp_path / "history.csv").read_text().splitlines()) == 1 + 4
    weights = torch.load(tmp_path / "weights.pt", weights_only=True)
    build(run.model, num_classes=10, in_channels=1, image_size=8).load_state_dict(weights)
    assert not list(tmp_path.glob("checkpoint*")), "checkpoints are removed when the run is complete"


def test_runs_with_data_keep_how_their_logits_correlate(store: Path, tmp_path: Path) -> None:
    metrics = {method: execute(tiny_run(method), store, tmp_path / method) for method in ("scratch", "kd")}
    alone, taught = (dict(np.load(tmp_path / method / "correlations.npz")) for method in metrics)
    assert alone.keys() == {"student"}
    assert taught.keys() == {"student", "teacher", "difference"}
    assert {matrix.shape for matrix in (*alone.values(), *taught.values())} == {(10, 10)}
    assert np.abs(taught["difference"]).mean(dtype=float) == pytest.approx(metrics["kd"]["correlation_gap"], rel=1e-3)
    assert "correlation_gap" not in metrics["scratch"]


# This run kills itself, with SIGKILL or SIGTERM, once it has written its k-th checkpoint.
KILLED = """
import os, signal, sys
from pathlib import Path
from conftest import COMPUTE, execute, tiny_run
from kd.runtime.checkpoint import Checkpoint
from kd.inversion.sources.generator import MetaGenerator
import dataclasses, torch
torch.set_num_threads(1)
method, kill, at, store, folder = sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]), Path(sys.argv[5])
boundaries = 0
original = Checkpoint.stop_or_save
def stop_or_save(self, parts):
    global boundaries
    boundaries += 1
    if boundaries == at:
        os.kill(os.getpid(), getattr(signal, kill))
    original(self, parts)
Checkpoint.stop_or_save = stop_or_save
judged = MetaGenerator._judge
def slowly_judged(self, *given):
    if kill == "SIGTERM" and at < 0 and boundaries == -at:
        os.kill(os.getpid(), signal.SIGTERM)  # in the middle of an inversion
    return judged(self, *given)
MetaGenerator._judge = slowly_judged
every = 0.0 if kill == "SIGKILL" else 3600.0  # SIGKILL leaves the last periodic checkpoint, SIGTERM writes its own
execute(tiny_run(method), store, folder, dataclasses.replace(COMPUTE, checkpoint_seconds=every or 1e-9))
"""


@pytest.fixture(scope="module")
def programs() -> Iterator[ForkedPrograms]:
    with ForkedPrograms() as running:
        yield running


Killed = Callable[..., Ended]


@pytest.fixture
def killed(programs: ForkedPrograms, store: Path) -> Killed:
    """Return a function that runs KILLED or another script like it in another process."""

    def killed(method: str, kill: str, at: int, folder: Path, script: str = KILLED) -> Ended:
        return programs(script, method, kill, str(at), str(store), str(folder))

    return killed


@pytest.mark.parametrize(
    ("method", "kill", "at"),
    [
        ("scratch", "SIGKILL", 30),
        ("crd", "SIGKILL", 2),
        ("crd", "SIGKILL", 31),
        ("kd", "SIGTERM", 25),
        ("ssdkd", "SIGKILL", 3),  # at the start of a student's first epoch
        ("ssdkd", "SIGKILL", 13),  # between two student steps
        ("ssdkd", "SIGINT", 11),  # Ctrl-C
        ("ssdkd", "SIGTERM", -10),  # inside an inversion
    ],
)
def test_killed_and_resumed_equals_undisturbed(
    method: str, kill: str, at: int, store: Path, killed: Killed, tmp_path: Path
) -> None:
    execute(tiny_run(method), store, tmp_path / "undisturbed")
    stopped = killed(method, kill, at, tmp_path / "killed")
    expected = -signal.SIGKILL if kill == "SIGKILL" else 128 + getattr(signal, kill)
    assert stopped.returncode == expected, stopped.stderr
    assert not (tmp_path / "killed" / "metrics.json").exists()
    assert (tmp_path / "killed" / "checkpoint.pt").exists()
    execute(tiny_run(method), store, tmp_path / "killed")
    for name in ("metrics.json", "history.csv"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()
    steps = [json.loads((tmp_path / name / "run.json").read_text())["counts"] for name in ("killed", "undisturbed")]
    assert steps[0] == steps[1]


DIFFERS = {"seconds": 0, "checksum": ""}  # of trial.json
TRIAL = (
    KILLED.rsplit("execute(", 1)[0]
    + """
from kd.studies.search import Tuning
from kd.integrations.trial_storage import TrialStorage
from kd.integrations.tuning import trial
from conftest import tiny_settings
settings = tiny_settings(method, dataset__validation=0.2)
space = {"replay.alpha": {"low": 0.0, "high": 1.0, "integer": False}}
tuning = Tuning("s", settings, space, seed=0, trials=1)
compute = dataclasses.replace(COMPUTE, checkpoint_seconds=every or 1e-9)
def objective(suggestion, where, report):
    return execute(tuning.run(suggestion), store, where, compute)["accuracy"]
trial(TrialStorage(tuning, folder, "s", print), 0, objective)
"""
)


@pytest.mark.parametrize(("kill", "at"), [("SIGKILL", 13), ("SIGTERM", 9)])
def test_a_killed_trial_ends_as_an_undisturbed_one(
    kill: str, at: int, store: Path, killed: Killed, tmp_path: Path
) -> None:
    run = tiny_run("ssdkd", dataset__validation=0.2)
    execute(run.teacher, store, store / run.teacher.path)
    killed("ssdkd", kill, 10**9, tmp_path / "undisturbed", TRIAL)
    stopped = killed("ssdkd", kill, at, tmp_path / "killed", TRIAL)
    assert stopped.returncode == (-signal.SIGKILL if kill == "SIGKILL" else 128 + signal.SIGTERM), stopped.stderr
    assert not (tmp_path / "killed/trial0/trial.json").exists()
    resumed = killed("ssdkd", kill, 10**9, tmp_path / "killed", TRIAL)
    assert "resumed from checkpoint.pt" in resumed.stderr
    killed_at, undisturbed = tmp_path / "killed/trial0", tmp_path / "undisturbed/trial0"
    assert (killed_at / "run/metrics.json").read_bytes() == (undisturbed / "run/metrics.json").read_bytes()
    trials = [json.loads((folder / "trial.json").read_text("utf-8")) for folder in (killed_at, undisturbed)]
    assert trials[0] | DIFFERS == trials[1] | DIFFERS


def test_divergence_ends_with_a_remedy(store: Path, tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"loss is (nan|inf).*lower training.lr"):
        execute(tiny_run("scratch", training__lr=1e30), store, tmp_path)


def test_a_gpu_that_is_not_there_is_refused(store: Path, tmp_path: Path) -> None:
    if torch.cuda.device_count() > 7:
        pytest.skip("this machine has that GPU")
    compute = Compute.by_hand(device="cuda:7")
    with pytest.raises(ConfigError, match=r"compute.device: got 'cuda:7'.*allowed: auto, cpu"):
        execute(tiny_run("scratch"), store, tmp_path, compute)


def test_by_hand_makes_data_teacher_and_run(store: Path, tmp_path: Path) -> None:
    run = tiny_run("kd")
    execute(run, store, tmp_path / "record")
    command = [sys.executable, "-m", "kd", "run", "--settings", str(tmp_path / "record/run.json"), "--results"]
    done = subprocess.run(
        [*command, str(tmp_path / "out"), "--device", "cpu"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    by_hand, recorded = tmp_path / "out" / run.path / "metrics.json", tmp_path / "record/metrics.json"
    assert by_hand.read_bytes() == recorded.read_bytes()
    (tmp_path / "bad.yaml").write_text("kind: train\nmodel: resnet8\ncolour: red\n")
    refused = subprocess.run([*command[:5], str(tmp_path / "bad.yaml")], capture_output=True, text=True, cwd=ROOT)
    assert refused.returncode == 1
    assert "unknown key 'colour'" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_fixed_cost_stays_small() -> None:
    """Importing what a job imports is quick and touches no GPU (the benchmark measures a whole job)."""
    code = "import kd.runs.run, torch, sys; assert not torch.cuda.is_initialized(); assert 'mlflow' not in sys.modules"
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert time.monotonic() - start < 30
