"""A complete run is not repeated; it is made again if what it was made from has changed or one of its files is gone."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
from conftest import COMPUTE, execute, tiny_run
from made_runs import KD, SCRATCH, Made, made_by_one_process, state_of

from kd.runs import provenance
from kd.runs import run as run_module
from kd.runs.run import run_step
from kd.runtime.files import read_json


@pytest.fixture
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made_by_one_process(tmp_path_factory.getbasetemp() / "made")


def test_a_complete_run_is_not_repeated(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shutil.copytree(made.results / SCRATCH.path, tmp_path / "run")
    before = {path.name: state_of(path) for path in folder.iterdir()}
    (folder / "checkpoint.pt").write_bytes(b"of one who was killed after its last file")
    monkeypatch.setattr(run_module, "_make", None)
    assert execute(SCRATCH, made.results, folder) == read_json(folder / "metrics.json")
    assert {path.name: state_of(path) for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    "what", ["settings", "code", "teacher", "data", "no metrics", "torn metrics", "torn record", "odd record"]
)
def test_a_run_that_was_made_from_something_else_is_made_again(
    what: str, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(made.results / KD.path, tmp_path / "run")
    run, data = KD, made.results / KD.data_path
    teacher = made.results / KD.teacher.path / "weights.pt"
    if what == "settings":
        run = tiny_run("kd", training__lr=0.2)
    elif what == "code":
        monkeypatch.setattr(provenance, "run_code", lambda run: "0123456789")
    elif what == "teacher":
        teacher = made.results / SCRATCH.path / "weights.pt"
    elif what == "data":
        data = tmp_path / "data.pt"
        data.write_bytes(b"other images")
    elif what == "no metrics":
        (folder / "metrics.json").unlink()
    elif what == "torn metrics":
        (folder / "metrics.json").write_text('{"accuracy": ')
    else:
        (folder / "run.json").write_text('{"identity": "' if what == "torn record" else "[]")
    begun = []
    monkeypatch.setattr(run_module, "_make", lambda run, *_: begun.append(run) or {"accuracy": 1.0})
    monkeypatch.setattr(run_module, "reading", lambda *_: nullcontext())
    assert run_step(run, folder, data, [teacher], COMPUTE) == {"accuracy": 1.0}
    assert begun == [run]


@pytest.mark.parametrize("name", ["weights.pt", "history.csv"])
def test_a_run_that_has_lost_a_file_is_made_again(
    name: str, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Students would not find their teacher's weights, and Snakemake would not find its output."""
    folder = shutil.copytree(made.results / SCRATCH.path, tmp_path / "run")
    (folder / name).unlink()
    begun = []
    monkeypatch.setattr(run_module, "_make", lambda run, *_: begun.append(run) or {"accuracy": 1.0})
    execute(SCRATCH, made.results, folder)
    assert begun == [SCRATCH]
