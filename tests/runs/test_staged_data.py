"""Prepared data are copied to a machine's own disk once, whole, and read from there."""

from __future__ import annotations

import errno
import multiprocessing
import os
from pathlib import Path

import pytest
from conftest import COMPUTE, tiny_run

import kd.data.dataset
import kd.runs.staged_data as staged_data
from kd.data.prepare import prepare
from kd.data.raw import Source
from kd.runs.run import run_step
from kd.runs.staged_data import staged
from kd.settings.shapes import Compute


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    file = tmp_path / "data/some [set].pt"
    file.write_bytes(os.urandom(3_000_000))
    return file


def copies(place: Path) -> list[Path]:
    """Whatever lies in the folder of the copies: locks and torn files would be seen."""
    return sorted(place.glob("*/*")) + sorted(place.glob("*/.*"))


def silent(text: str) -> None:
    raise AssertionError(text)


def test_data_stay_where_they_are_unless_a_folder_is_named(data: Path) -> None:
    assert staged(data, "", silent) == data


def test_a_copy_is_made_once_and_found_again(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NODE", str(tmp_path / "node"))
    copy = staged(data, "$NODE/fast", silent)
    assert copy.read_bytes() == data.read_bytes()
    before = copy.stat().st_ino
    assert staged(data, "$NODE/fast", silent) == copy
    assert copy.stat().st_ino == before
    assert copies(tmp_path / "node/fast") == [copy]


def _stage(data: Path, place: str, start: object, inodes: object) -> None:
    start.wait()
    inodes.put(staged(data, place, silent).stat().st_ino)


def test_jobs_that_begin_together_share_one_copy(data: Path, tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    start, inodes = fork.Barrier(4), fork.SimpleQueue()
    jobs = [fork.Process(target=_stage, args=(data, str(tmp_path / "node"), start, inodes)) for _ in range(4)]
    for job in jobs:
        job.start()
    assert len({inodes.get() for _ in jobs}) == 1
    for job in jobs:
        job.join()
    assert len(copies(tmp_path / "node")) == 1


@pytest.mark.parametrize("damage", [lambda file: os.truncate(file, 1000), lambda file: file.write_bytes(b"other")])
def test_a_damaged_copy_is_replaced(data: Path, tmp_path: Path, damage: object) -> None:
    copy = staged(data, str(tmp_path / "node"), silent)
    damage(copy)
    torn = copy.with_name(f".{copy.name}.123.tmp")
    torn.touch()
    assert staged(data, str(tmp_path / "node"), silent).read_bytes() == data.read_bytes()
    assert len(copies(tmp_path / "node")) == 1


def test_the_copy_of_data_that_have_changed_is_replaced(data: Path, tmp_path: Path) -> None:
    old = staged(data, str(tmp_path / "node"), silent)
    data.write_bytes(b"prepared again")
    new = staged(data, str(tmp_path / "node"), silent)
    assert new.read_bytes() == b"prepared again"
    assert old != new
    assert copies(tmp_path / "node") == [new]


def test_without_room_for_a_copy_the_data_are_read_where_they_are(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(staged_data.shutil, "copyfileobj", full)
    said: list[str] = []
    assert staged(data, str(tmp_path / "node"), said.append) == data
    node = tmp_path / "node"
    assert said == [f"compute.stage: {node}: No space left on device; the data are read from {data}"]
    assert copies(node) == []


@pytest.mark.parametrize(
    ("place", "why"), [("$NO_SUCH_VARIABLE/x", "a variable is not set"), ("/proc/none", "No such file or directory")]
)
def test_a_folder_that_is_not_there_costs_a_line(data: Path, place: str, why: str) -> None:
    said: list[str] = []
    assert staged(data, place, said.append) == data
    [line] = said
    assert line.startswith(f"compute.stage: {place}: {why}")


def test_a_run_reads_the_copy_and_ends_with_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, read = tiny_run("scratch"), []
    data = tmp_path / run.data_path
    prepare(run.dataset, data, Source(None, tmp_path, False))
    load = kd.data.dataset.load
    monkeypatch.setattr(kd.data.dataset, "load", lambda file, *given: read.append(file) or load(file, *given))
    run_step(run, tmp_path / "a", data, [], COMPUTE)
    run_step(run, tmp_path / "b", data, [], Compute.by_hand(device="cpu", stage=str(tmp_path / "node")))
    assert read == [data, *copies(tmp_path / "node")]
    for name in ("metrics.json", "history.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    run_step(run, tmp_path / "b", data, [], COMPUTE)
    assert len(read) == 2, "the copy is no part of the run's identity"
