"""Runs whose steps two processes share: the numbers of one, resume, and a process that is killed."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from conftest import COMPUTE, tiny_run

from kd.data.prepare import prepare
from kd.data.raw import Source
from kd.runs.followers import FollowerLost
from kd.runs.run import run_step
from kd.runtime.messages import ConfigError
from kd.settings.run import Run
from kd.settings.shapes import Compute

TWO = replace(COMPUTE, gpu=2)
# CRD's first steps are far from linear: with a larger learning rate rounding grows a hundredfold in each epoch.
CRD = tiny_run("crd", training__lr=0.0001, training__epochs=3)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data and teacher."""
    root = tmp_path_factory.mktemp("results")
    prepare(CRD.dataset, root / CRD.data_path, Source(None, root, download=False))
    run_step(CRD.teacher, root / CRD.teacher.path, root / CRD.data_path, [], COMPUTE)
    return root


def make(root: Path, run: Run, folder: Path, compute: Compute, **given: object) -> Path:
    teachers = [root / teacher.path / "weights.pt" for teacher in run.teachers or ()]
    run_step(run, folder, root / run.data_path, teachers, compute, **given)
    return folder


def curve(folder: Path) -> list[float]:
    return [float(row["loss"]) for row in csv.DictReader((folder / "history.csv").read_text("utf-8").splitlines())]


@pytest.fixture(scope="module")
def shared(root: Path) -> Path:
    return make(root, CRD, root / "shared", TWO)


def test_two_processes_make_the_run_of_one(root: Path, shared: Path) -> None:
    alone = make(root, CRD, root / "alone", COMPUTE)
    assert curve(shared) == pytest.approx(curve(alone), rel=1e-4)
    assert curve(shared) != curve(alone), "sums in another order: two processes were at work"
    assert json.loads((shared / "run.json").read_text("utf-8"))["computed"]["processes"] == 2
    assert not list(shared.glob("checkpoint*"))
    assert not psutil.Process().children()


def test_a_process_that_is_killed_stops_the_run_which_then_goes_on(root: Path, shared: Path) -> None:
    folder = root / "killed"

    @contextmanager
    def killing() -> Iterator[object]:
        def after(history: list[dict[str, float]]) -> None:
            if len(history) == 2:
                [follower] = [child for child in psutil.Process().children() if "kd.runs.followers" in child.cmdline()]
                follower.kill()

        yield after

    with pytest.raises(
        FollowerLost, match=r"process 2 of 2 that share this run has ended \(signal SIGKILL\); the next"
    ):
        make(root, CRD, folder, replace(TWO, checkpoint_seconds=1e-9), tracker=killing())
    assert (folder / "checkpoint.pt").exists()
    assert "SIGKILL" in json.loads((folder / "ended.json").read_text("utf-8"))["error"]
    log = folder / "log.txt"
    make(root, CRD, folder, TWO, log=log)
    assert "resumed from checkpoint.pt" in log.read_text("utf-8")
    for name in ("metrics.json", "history.csv"):
        assert (folder / name).read_bytes() == (shared / name).read_bytes()


def test_runs_that_cannot_be_shared_stay_with_one_process(root: Path) -> None:
    run = tiny_run("ssdkd", scale=0.1)
    folder = make(root, run, root / "datafree", TWO)
    assert json.loads((folder / "run.json").read_text("utf-8"))["computed"]["processes"] == 1
    from kd.runs.together import Company

    with pytest.raises(ConfigError, match=r"compute.gpu: got 2; runs that are made together share one GPU"):
        Company(TWO, print)
