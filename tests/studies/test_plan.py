"""Plans: written as lists that are read back, and the same jobs as those of the workflow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_results import (
    fake_end,
    fake_finished,
    fake_lock,
    find,
    loaded,
)
from forked_dry_runs import DryRuns
from measuring import jobs_of, planned

from kd.__main__ import main
from kd.commands.run import runs_in
from kd.data.prepare import prepare
from kd.data.raw import Source
from kd.runs.run import run_step
from kd.settings.run import Run
from kd.settings.shapes import Compute
from kd.studies import status as state
from kd.studies.study import Study


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return loaded(tmp_path)


def test_a_plan_is_written_as_a_list_that_is_read_back(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    fake_finished(study, find(study, "scratch"))
    fake_lock(study, find(study, "kd"))
    fake_end(study, find(study, "ssdkd", 1), "OSError: disk full")
    chosen = [str(tmp_path / "watched.yaml"), "--config", f"results={study.root}"]
    file = tmp_path / "todo.yaml"
    assert main(["plan", *chosen, "--write", str(file)]) == 0
    said = capsys.readouterr().out
    assert f"5 runs written to {file}" in said
    assert said.startswith(state.plan(study))
    read = runs_in(file)
    assert read == state.to_do(study)
    assert {run.path for run in read} == set(study.runs) - {find(study, "scratch").path}
    assert read[0] == find(study, "teacher")
    assert main(["status", *chosen]) == 0
    assert capsys.readouterr().out == state.status(study) + "\n"
    for run in study.runs.values():
        fake_finished(study, run)
    (study.root / find(study, "kd").path / "lock.1.json").unlink()
    assert main(["plan", *chosen, "--write", str(file)]) == 0
    assert runs_in(file) == []


def test_looking_changes_nothing(study: Study, tmp_path: Path) -> None:
    fake_finished(study, find(study, "scratch"))
    fake_lock(study, find(study, "kd"), process=1)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert state.plan(study)
    assert state.status(study)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_plan_cannot_be_written_into_a_missing_folder(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    chosen = [str(tmp_path / "watched.yaml"), "--config", f"results={study.root}"]
    assert main(["plan", *chosen, "--write", str(tmp_path / "missing/todo.yaml")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "missing/todo.yaml" in said


@pytest.fixture
def snakemake(project: Path) -> Iterator[DryRuns]:
    with DryRuns(project) as runs:
        yield runs


def test_a_plan_has_the_jobs_of_the_workflow(project: Path, snakemake: DryRuns) -> None:
    """An empty store; the teacher and a student; all runs; then the data, the teacher and a student are gone."""

    def compare() -> dict[str, int]:
        [(code, said)] = snakemake(["-n", "--quiet", "rules", "--config", "study=watched.yaml"])
        assert code == 0, said
        assert planned(study) == jobs_of(said), said
        return planned(study)

    study = loaded(project)
    compute = Compute.by_hand(device="cpu", checkpoint_seconds=3600.0)
    assert compare() == {"train": 2, "distill": 1, "datafree": 3, "prepare_data": 1}

    def make(run: Run) -> None:
        teachers = [study.root / teacher.path / "weights.pt" for teacher in run.teachers or ()]
        run_step(run, study.root / run.path, study.root / run.data_path, teachers, compute)

    teacher = find(study, "teacher")
    prepare(teacher.dataset, study.root / teacher.data_path, Source(None, study.root, download=False))
    for run in (teacher, find(study, "ssdkd", 1)):
        make(run)
    assert compare() == {"train": 1, "distill": 1, "datafree": 2}
    for run in study.runs.values():
        make(run)
    assert compare() == {}
    data = study.root / teacher.data_path
    data.rename(project / "data.pt")
    assert compare() == {}, "nothing needs the data any more"
    data.hardlink_to(project / "data.pt")
    (study.root / teacher.path).rename(project / "teacher")
    assert compare() == {}, "nothing needs the teacher any more"
    (study.root / find(study, "kd").path).rename(project / "student")
    assert compare() == {"train": 1, "distill": 1, "datafree": 3}, "all students of a teacher that is made again"
