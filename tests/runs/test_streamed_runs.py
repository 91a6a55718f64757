"""Runs that learn from images in files: the same numbers with any number of processes, after any stop, in a team."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from conftest import COMPUTE, tiny_run
from made_runs import at_boundary, until
from photos import NORMALISED, on_photos, photo_tree

from kd.data.raw import Source
from kd.runs.export import read_run
from kd.runs.prepared_data import outdated_data, prepare_step
from kd.runs.provenance import run_code
from kd.runs.run import run_step
from kd.runtime.checkpoint import Stopped
from kd.settings.run import Run
from kd.settings.shapes import Compute

MADE = ("metrics.json", "history.csv", "weights.pt")
# With a larger learning rate two processes, which round otherwise, would soon learn otherwise.
SCHEDULE = {"training__batch_size": 5, "training__epochs": 3, "training__lr": 0.0001}
CHANGES = {**SCHEDULE, "teacher__training__batch_size": 5}


def crd(root: Path) -> Run:
    negatives = {"objective__crd__negatives": 8, "objective__crd__feat_dim": 4}
    return on_photos(tiny_run("crd", **CHANGES, **negatives), root)


def make(results: Path, run: Run, folder: Path, compute: Compute = COMPUTE, **given: object) -> Path:
    teachers = [results / teacher.path / "weights.pt" for teacher in run.teachers or ()]
    run_step(run, folder, results / run.data_path, teachers, compute, **given)
    return folder


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree, its list, a teacher, and CRD's run by one process without workers."""
    results = tmp_path_factory.mktemp("results")
    run = crd(photo_tree(results / "photos"))
    prepare_step(run.dataset, results / run.data_path, Source(None, results, download=False), lambda line: None)
    make(results, run.teacher, results / run.teacher.path, replace(COMPUTE, workers=1))
    make(results, run, results / run.path, replace(COMPUTE, workers=0))
    return results


def same(folder: Path, results: Path) -> bool:
    whole = results / crd(results / "photos").path
    return all((folder / name).read_bytes() == (whole / name).read_bytes() for name in MADE)


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_no_byte(results: Path, tmp_path: Path, workers: int) -> None:
    make(results, crd(results / "photos"), tmp_path, replace(COMPUTE, workers=workers))
    assert same(tmp_path, results)
    assert not psutil.Process().children()


def test_a_stopped_run_goes_on_with_another_number_of_workers(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = crd(results / "photos")
    with monkeypatch.context() as patched:
        at_boundary(7, lambda: os.kill(os.getpid(), signal.SIGTERM), patched)
        with pytest.raises(Stopped):
            make(results, run, tmp_path, replace(COMPUTE, workers=2))
    assert not psutil.Process().children()
    assert (tmp_path / "checkpoint.pt").exists()
    make(results, run, tmp_path, replace(COMPUTE, workers=0))
    assert same(tmp_path, results)


def killed_at(number: int, results: Path, folder: Path) -> None:
    at_boundary(number, lambda: os.kill(os.getpid(), signal.SIGKILL), pytest.MonkeyPatch())
    make(results, crd(results / "photos"), folder, replace(COMPUTE, workers=2, checkpoint_seconds=1e-9))


def test_a_killed_run_goes_on_and_its_workers_are_gone(results: Path, tmp_path: Path) -> None:
    before = decoders()
    killed = multiprocessing.get_context("fork").Process(target=killed_at, args=(10, results, tmp_path))
    killed.start()
    killed.join(60)
    assert killed.exitcode == -signal.SIGKILL
    assert until(lambda: decoders() <= before, 10)
    log = tmp_path / "log.txt"
    make(results, crd(results / "photos"), tmp_path, replace(COMPUTE, workers=3), log=log)
    assert "resumed from checkpoint.pt" in log.read_text("utf-8")
    assert same(tmp_path, results)


def decoders() -> set[int]:
    return {
        process.pid
        for process in psutil.process_iter(["cmdline", "status"])
        if "kd.data.crops" in (process.info["cmdline"] or ()) and process.info["status"] != psutil.STATUS_ZOMBIE
    }


def test_two_processes_make_the_run_of_one(results: Path, tmp_path: Path) -> None:
    run = crd(results / "photos")
    make(results, run, tmp_path, replace(COMPUTE, gpu=2, workers=1))
    shared, alone = (
        [float(row["loss"]) for row in csv.DictReader((folder / "history.csv").read_text("utf-8").splitlines())]
        for folder in (tmp_path, results / run.path)
    )
    assert shared == pytest.approx(alone, rel=1e-4)
    assert json.loads((tmp_path / "run.json").read_text("utf-8"))["computed"]["processes"] == 2
    assert not psutil.Process().children()


def test_a_data_free_run_is_scored_on_files_and_a_student_is_exported(results: Path, tmp_path: Path) -> None:
    root = results / "photos"
    run = replace(on_photos(tiny_run("ssdkd"), root), teachers=crd(root).teachers)
    make(results, run, tmp_path, replace(COMPUTE, workers=1))
    assert json.loads((tmp_path / "metrics.json").read_text("utf-8"))["scored"] == "test"
    found = read_run(results / crd(root).path)
    assert found.images.shape == (8, 3, 16, 16)
    assert "once its shorter side is resized to 18" in found.card["input"]


def test_identity(results: Path) -> None:
    run = crd(results / "photos")
    in_memory = replace(run, dataset=replace(run.dataset, stream=False, **NORMALISED))
    assert run.digest != in_memory.digest
    assert run.data_path != in_memory.data_path
    assert run_code(run) != run_code(in_memory)
    assert "stream" not in in_memory.identity["dataset"]
    assert replace(run.dataset, pad=7) == run.dataset, "its crops know no padding"
    assert not outdated_data(run.dataset, results / run.data_path)
    assert Run.from_dict(run.as_dict()) == run
    asked = replace(COMPUTE, gpu=2, threads=1, workers=3)
    assert (asked.cores(stream=True), asked.cores(stream=False)) == (8, 2)
