"""A full disk costs a save and some words; what only informs ends no run, and what is declared fails with a line."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest
from conftest import execute
from made_runs import OFTEN, SCRATCH, Made, made_by_one_process, same_numbers, source

from kd.runs import run, worker
from kd.runtime import checkpoint
from kd.runtime.files import read_json, write_json
from kd.runtime.messages import disk_fault

FULL = Path("/dev/full")  # every write to it fails as on a full disk
pytestmark = pytest.mark.skipif(not FULL.exists(), reason="needs Linux's /dev/full")


@pytest.fixture
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made_by_one_process(tmp_path_factory.getbasetemp() / "made")


def no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Closed:
    """A stream whose other end has gone."""

    def write(self, _text: str) -> int:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    flush = isatty = lambda self: None


def test_log_and_checkpoint_on_a_full_disk_cost_nothing_but_themselves(made: Made, tmp_path: Path, monkeypatch, capsys):
    saves, save = [], checkpoint._write

    def third_save_fails(*given) -> None:
        saves.append(True)
        (no_space if len(saves) == 3 else save)(*given)

    monkeypatch.setattr(checkpoint, "_write", third_save_fails)
    execute(SCRATCH, made.results, tmp_path / "run", OFTEN, log=FULL)
    assert len(saves) > 3
    assert same_numbers(tmp_path / "run", made.results / SCRATCH.path)
    said = capsys.readouterr().err  # what the log does not take
    assert said.count("No space left") == 1
    assert "the last good one is kept" in said
    assert "done: accuracy" in said


def test_a_log_that_cannot_even_be_opened_ends_no_run(made: Made, tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file in the folder's place")
    execute(SCRATCH, made.results, tmp_path / "run", log=tmp_path / "logs/run.txt")
    assert same_numbers(tmp_path / "run", made.results / SCRATCH.path)


@pytest.mark.parametrize("stream", [Closed(), None])
def test_a_worker_whose_reader_has_gone_makes_its_runs(stream, made: Made, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "data").symlink_to(made.results / "data")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    assert worker.work_through([SCRATCH], tmp_path, OFTEN, source(tmp_path)) == {}
    assert same_numbers(tmp_path / SCRATCH.path, made.results / SCRATCH.path)


def test_the_note_of_an_end_hides_no_error(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "reading", lambda *_: pytest.fail("the error itself"))
    monkeypatch.setattr(run, "write_json", no_space)
    with pytest.raises(pytest.fail.Exception, match="the error itself"):
        execute(SCRATCH, made.results, tmp_path)


def test_what_cannot_be_removed_at_the_end_ends_no_complete_run(made: Made, tmp_path: Path, monkeypatch) -> None:
    unlink = Path.unlink

    def stays(self: Path, missing_ok: bool = False) -> None:
        if self.name.startswith(("checkpoint", "lock.")):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        unlink(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", stays)
    execute(SCRATCH, made.results, tmp_path, OFTEN)
    assert same_numbers(tmp_path, made.results / SCRATCH.path)


def test_weights_that_do_not_fit_on_the_disk_fail_with_their_name(made: Made, tmp_path: Path, monkeypatch) -> None:
    """torch.save itself reports a disk that is full as a fault of its own."""
    opening = Path.open

    def on_a_full_disk(self: Path, mode: str = "r", *given, **named):
        small = mode == "xb" and self.name.startswith(".weights.pt.")
        return FULL.open("wb", 0) if small and self != FULL else opening(self, mode, *given, **named)

    monkeypatch.setattr(Path, "open", on_a_full_disk)
    with pytest.raises(OSError, match="No space left") as failed:
        execute(SCRATCH, made.results, tmp_path)
    weights = tmp_path / "weights.pt"
    assert disk_fault(failed.value).startswith(f"{weights}: No space left on device; make room and start again")
    assert not weights.exists()
    assert "No space left" in read_json(tmp_path / "ended.json")["error"]
    monkeypatch.undo()
    execute(SCRATCH, made.results, tmp_path)
    assert same_numbers(tmp_path, made.results / SCRATCH.path)


def test_every_file_that_does_not_fit_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left") as failed:
        write_json(tmp_path / "metrics.json", {})
    assert disk_fault(failed.value).startswith(f"{tmp_path / 'metrics.json'}: ")
