"""Teachers that are kept in half precision, and runs that use them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import execute, tiny_run

from kd.runs import kept_teachers, run
from kd.runtime.files import read_json, write_json
from kd.runtime.messages import ConfigError
from kd.settings.shapes import Compute

TEACHER = tiny_run("kd").teacher


@pytest.fixture
def kept(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder with one kept teacher, where `run_step` looks for it."""
    execute(TEACHER, store, tmp_path / "made")
    folder = tmp_path / "kept"
    kept_teachers.keep(TEACHER, tmp_path / "made", {"accuracy": 12.5}, folder)
    monkeypatch.setattr(kept_teachers.fill_from_kept, "__defaults__", (folder,))
    return folder


def test_a_run_takes_the_teacher_of_its_settings(store: Path, tmp_path: Path, kept: Path) -> None:
    metrics = execute(TEACHER, store, tmp_path / "taken")
    assert metrics == {"accuracy": 12.5}, "those of the rounded weights, not a new training"
    made, taken = (torch.load(tmp_path / name / "weights.pt", weights_only=True) for name in ("made", "taken"))
    assert made.keys() == taken.keys()
    for name, value in made.items():
        assert taken[name].dtype == value.dtype
        torch.testing.assert_close(taken[name], value, rtol=2**-10, atol=1e-7)
    assert any(not torch.equal(made[name], taken[name]) for name in made), "rounded on the way"
    pd.testing.assert_frame_equal(*(pd.read_csv(tmp_path / name / "history.csv") for name in ("made", "taken")))
    record = read_json(tmp_path / "taken/run.json")
    assert record["taken_from"] == f"{kept_teachers.name_of(TEACHER)}.pt"
    assert record["seconds"] == read_json(tmp_path / "made/run.json")["seconds"]
    size = sum(file.stat().st_size for file in kept.glob("*.pt"))
    assert size < 0.6 * (tmp_path / "made/weights.pt").stat().st_size


def test_it_is_complete_for_the_next_start(store: Path, tmp_path: Path, kept: Path, monkeypatch) -> None:
    execute(TEACHER, store, tmp_path / "taken")
    monkeypatch.setattr(run, "fill_from_kept", lambda *_: pytest.fail("it is there already"))
    assert execute(TEACHER, store, tmp_path / "taken") == {"accuracy": 12.5}


@pytest.mark.parametrize("change", [{"seed": 1}, {"teacher__training__epochs": 3}, {"teacher__model": "resnet14"}])
def test_other_settings_are_trained(change: dict, store: Path, tmp_path: Path, kept: Path) -> None:
    other = tiny_run("kd", **{key: value for key, value in change.items() if key != "seed"})
    teacher = tiny_run("kd", teacher__seed=1).teacher if "seed" in change else other.teacher
    assert execute(teacher, store, tmp_path / "other")["accuracy"] != 12.5


def test_students_are_never_taken_and_none_are_on_request(store: Path, tmp_path: Path, kept: Path) -> None:
    assert kept_teachers.fill_from_kept(tiny_run("kd"), tmp_path, "identity", kept) is None
    data = store / TEACHER.data_path
    asked = Compute.by_hand(device="cpu", pretrained=False)
    assert run.run_step(TEACHER, tmp_path / "own", data, [], asked)["accuracy"] != 12.5


def test_a_damaged_file_is_named_and_nothing_is_written(store: Path, tmp_path: Path, kept: Path) -> None:
    weights = next(kept.glob("*.pt"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(ConfigError, match=r"cannot be used \(its checksum differs\); restore it, or set compute.pre"):
        execute(TEACHER, store, tmp_path / "taken")
    assert not (tmp_path / "taken/weights.pt").exists()
    for record in ({}, [], 3):
        write_json(weights.with_suffix(".json"), record)
        with pytest.raises(ConfigError, match="cannot be used"):
            execute(TEACHER, store, tmp_path / "taken")


def test_what_does_not_fit_half_precision_is_not_kept() -> None:
    with pytest.raises(ValueError, match="running_var does not fit half precision"):
        kept_teachers.in_half_precision({"weight": torch.ones(2), "running_var": torch.tensor([1e6])})
    whole = torch.tensor(70_000)
    assert kept_teachers.in_half_precision({"num_batches_tracked": whole}) == {"num_batches_tracked": whole}
