"""How a run ended: the note of an error or a stop, until the run succeeds."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
from pathlib import Path

import pytest
from conftest import COMPUTE, execute, tiny_run
from made_runs import SCRATCH, Made, at_boundary, made_by_one_process, same_numbers

from kd.runtime.checkpoint import Stopped
from kd.runtime.files import read_json


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
