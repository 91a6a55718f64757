"""How a run ended: the note of an error or a stop, until the run succeeds."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
from pathlib import Path

import pytest
from conftest import COMPUTE, execute, tiny_run
from made_runs import SCRATCH, Made, at_boundary, made_by_one_process, prepared_copy, same_numbers, source

from kd.runs.worker import work_through
from kd.runtime.checkpoint import Stopped
from kd.runtime.files import read_json, write_json
from kd.runtime.messages import ConfigError


@pytest.fixture
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made_by_one_process(tmp_path_factory.getbasetemp() / "made")


def test_a_diverged_run_leaves_a_note_until_it_succeeds(made: Made, tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError):
        execute(tiny_run("scratch", training__lr=1e30), made.results, tmp_path)
    note = read_json(tmp_path / "ended.json")
    assert note["error"].startswith("Unhealthy: epoch 1: loss is ")
    assert (note["done"], note["total"]) == (1, 2)
    assert note["seconds"] > 0
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", note["when"])
    execute(SCRATCH, made.results, tmp_path)
    assert not (tmp_path / "ended.json").exists()


def test_a_stopped_run_leaves_a_note_without_an_error(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        at_boundary(30, lambda: os.kill(os.getpid(), signal.SIGTERM), patched)
        with pytest.raises(Stopped) as stopped:
            execute(SCRATCH, made.results, tmp_path)
    assert stopped.value.code == 143
    note = read_json(tmp_path / "ended.json")
    assert (note["error"], note["done"], note["total"]) == (None, 1, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", "ended.json"]
    execute(SCRATCH, made.results, tmp_path)
    assert not (tmp_path / "ended.json").exists()
    assert same_numbers(tmp_path, made.results / SCRATCH.path)


def test_a_device_that_is_not_there_is_noted_too(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ValueError, match=r"compute\.device"):
        execute(SCRATCH, made.results, tmp_path, dataclasses.replace(COMPUTE, device="cuda:7"))
    assert read_json(tmp_path / "ended.json")["error"].startswith("ConfigError: compute.device: got 'cuda:7'")


def test_a_complete_run_has_no_note_of_an_earlier_failure(made: Made, tmp_path: Path) -> None:
    """Its weights were damaged, making them again failed, and then they were brought back."""
    execute(SCRATCH, made.results, tmp_path)
    write_json(tmp_path / "ended.json", {"error": "a folder in a file's place"})
    execute(SCRATCH, made.results, tmp_path)
    assert not (tmp_path / "ended.json").exists()


@pytest.mark.parametrize("name", ["weights.pt", "history.csv", "metrics.json", "correlations.npz"])
def test_a_damaged_file_of_a_finished_run_is_made_again(made: Made, tmp_path: Path, name: str) -> None:
    execute(SCRATCH, made.results, tmp_path)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[:50] + bytes([whole[50] ^ 1]) + whole[51:])
    execute(SCRATCH, made.results, tmp_path)
    assert (tmp_path / name).read_bytes() == whole


def test_damaged_data_is_refused_in_a_line_and_prepared_again_by_a_worker(made: Made, tmp_path: Path) -> None:
    data = prepared_copy(made, tmp_path) / SCRATCH.data_path
    whole = data.read_bytes()
    data.write_bytes(whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
    with pytest.raises(ConfigError, match=r"its checksum differs; delete .*: the data set is then prepared again"):
        execute(SCRATCH, tmp_path, tmp_path / "run")
    assert work_through([SCRATCH], tmp_path, COMPUTE, source(tmp_path)) == {}
    assert data.read_bytes() == whole
    assert same_numbers(tmp_path / SCRATCH.path, made.results / SCRATCH.path)
