"""What is made again is decided by content, and `snakemake -n` and `kd status` always agree on it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, copy_project
from forked_dry_runs import DryRuns
from tiny_study import JOB_BY_JOB, environment_of, finish, write_study

from kd.runs.folder import sealed
from kd.runtime.files import read_json, write_json
from kd.studies.status import states
from kd.studies.study import load_study

RESULTS = "results/studies/tiny/results.csv"
ONLY = {"experiments": {"data": {"methods": ["scratch", "kd"]}, "scale": None}}
TEACHER, SCRATCH, KD = "resnet8/train-", "wrn_10_1/train-", "resnet8--wrn_10_1/"
EVERYTHING = {TEACHER, SCRATCH, KD}
FUTURE = 4_000_000_000.0  # seconds since 1970


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose study is finished; tests copy it."""
    project = copy_project(tmp_path_factory.mktemp("whole"))
    write_study(project, **ONLY)
    finish(project, RESULTS)
    return project


@pytest.fixture
def project(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "project", symlinks=True)


@pytest.fixture
def edited(project: Path) -> Path:
    """The project with a kd of its own, which may be edited."""
    shutil.copytree(ROOT / "kd", project / "kd", ignore=shutil.ignore_patterns("__pycache__"))
    return project


def run(project: Path, name: str) -> Path:
    [folder] = project.glob(f"results/runs/digits/{name}*/seed0")
    return folder


def jobs(said: str) -> set[str]:
    """Return the paths of the runs that a dry run would make."""
    return {f"runs/{name}" for name in re.findall(r"wildcards: run=(\S+)", said)}


def kinds(paths: set[str]) -> set[str]:
    return {name for name in EVERYTHING if any(f"digits/{name}" in path for path in paths)}


def planned(project: Path, *config: str) -> set[str]:
    """Return which runs Snakemake would make in a project with its own kd; asserts that `kd status` says the same."""
    with DryRuns(project, edited=project) as dry:
        [(code, said)] = dry(["-n", *JOB_BY_JOB, "--config", "study=tiny", *config, "--", RESULTS])
    assert code == 0, said
    command = [sys.executable, "-m", "kd", "status", "tiny", *(["--config", *config] if config else [])]
    env = environment_of(PYTHONPATH=str(project))
    status = subprocess.run(command, cwd=project, capture_output=True, text=True, env=env)
    assert {line.strip().partition(": ")[0] for line in status.stdout.splitlines() if "  runs/" in line} == jobs(said)
    return kinds(jobs(said))


def without_metadata(project: Path) -> None:
    shutil.rmtree(project / ".snakemake")


def stamp(when: float) -> Callable[[Path], None]:
    return lambda project: [os.utime(file, (when, when)) for file in project.glob("results/data/*")]


def mark(project: Path) -> None:
    """As Snakemake leaves it when it is killed and its jobs live on."""
    for file in (project / ".snakemake/metadata").iterdir():
        if b64decode(file.name).startswith(b"results/runs/"):
            (project / ".snakemake/incomplete" / file.name).touch()


def lose(*names: str) -> Callable[[Path], None]:
    return lambda project: [shutil.rmtree(run(project, name)) for name in names]


def lose_data(project: Path) -> None:
    shutil.rmtree(project / "results/data")


def other_teacher(project: Path) -> None:
    shutil.copyfile(run(project, SCRATCH) / "weights.pt", run(project, TEACHER) / "weights.pt")


def other_data(project: Path) -> None:
    [file] = project.glob("results/data/*.pt")
    file.write_bytes(file.read_bytes() + b"x")


def made_at_another_time(project: Path) -> None:
    """As when a study was killed between a run and its table, and the stamps were lost."""
    folder = run(project, SCRATCH)
    record = read_json(folder / "run.json")
    del record["files"]
    write_json(folder / "run.json", sealed(folder, record | {"finished": f"1{record['finished'][1:]}"}))
    os.utime(project / RESULTS)


def torn_record(project: Path) -> None:
    (run(project, SCRATCH) / "run.json").write_text("{")


CASES: dict[str, tuple[set[str], list[Callable[[Path], None]]]] = {
    "nothing": (set(), []),
    "metadata": (set(), [without_metadata]),
    "marked as unfinished": (set(), [mark]),
    "new stamps": (set(), [stamp(FUTURE / 2), without_metadata]),
    "future": (set(), [stamp(FUTURE)]),
    "data gone": (set(), [lose_data]),
    "teacher gone": (set(), [lose(TEACHER)]),
    "run gone": ({KD}, [lose(KD)]),
    "run and data gone": ({KD}, [lose(KD), lose_data, without_metadata]),
    "run and teacher gone": ({TEACHER, KD}, [lose(KD, TEACHER), stamp(FUTURE)]),
    "other teacher": ({TEACHER, KD}, [other_teacher]),  # it is not what its run has written
    "other teacher, metadata": ({TEACHER, KD}, [other_teacher, without_metadata]),
    "other data": (EVERYTHING, [other_data, without_metadata]),
    "table of other runs": (set(), [made_at_another_time, without_metadata]),
    "torn record": ({SCRATCH}, [torn_record]),
}


def test_content_decides(whole: Path, tmp_path: Path) -> None:
    """Whatever happened to time stamps and to Snakemake's own memory."""
    for name, (_, changes) in CASES.items():
        shutil.copytree(whole, tmp_path / name)
        for change in changes:
            change(tmp_path / name)
    with DryRuns(whole) as dry:
        command = ["-n", *JOB_BY_JOB, "--config", "study=tiny", "--directory"]
        answers = dry(*([*command, str(tmp_path / name), "--", RESULTS] for name in CASES))
    found = {}
    for name, (code, said) in zip(CASES, answers, strict=True):
        assert code == 0, (name, said)
        given = {"study": "tiny", "results": str(tmp_path / name / "results")}
        study = load_study(whole / "config/config.yaml", whole / "workflow/schemas", given)
        assert {path for path, state in states(study).items() if state.name != "done"} == jobs(said), name
        found[name] = kinds(jobs(said))
        if name == "table of other runs":
            assert "rule collect" in said
    assert found == {name: again for name, (again, _) in CASES.items()}


def test_changed_code_is_seen_without_snakemakes_memory(edited: Path) -> None:
    without_metadata(edited)
    assert planned(edited) == set()
    with (edited / "kd/losses/kd.py").open("a") as file:
        file.write("UNUSED = 1\n")
    assert planned(edited) == {KD}
    assert planned(edited, "compute={freeze_code: true}") == set()
    with (edited / "kd/data/digits.py").open("a") as file:
        file.write("UNUSED = 1\n")
    assert planned(edited) == EVERYTHING, "its data may come out otherwise"
    assert planned(edited, "compute={freeze_code: true}") == set()


def test_data_prepared_again_with_the_same_content_costs_no_training(edited: Path) -> None:
    """Snakemake removes the outputs of a job before it runs; those of a run stay until there are others."""
    with (edited / "kd/data/digits.py").open("a") as file:
        file.write("UNUSED = 1\n")
    before = digests(edited / "results/runs")
    target = (run(edited, SCRATCH) / "run.json").relative_to(edited)
    done = finish(edited, str(target), PYTHONPATH=str(edited))
    assert "data prepared" in done.stderr
    assert (
        "already complete"
        in (edited / "results/logs").joinpath(f"{target.parent}.txt".replace("results/", "")).read_text()
    )
    after = digests(edited / "results/runs")
    assert {name: after[name] for name in before} == before


def test_a_failed_run_keeps_what_was_there(edited: Path) -> None:
    """And Snakemake's words about files that were never there are left out."""
    text = "import kd.training.with_data as loop\n\n\ndef compute(*_):\n    raise FloatingPointError('loss is nan')\n"
    (edited / "kd/training/with_data.py").write_text(text.partition("\n\n\n")[2])
    before = digests(run(edited, SCRATCH))
    with pytest.raises(AssertionError) as failed:
        finish(edited, str((run(edited, SCRATCH) / "run.json").relative_to(edited)), PYTHONPATH=str(edited))
    assert "error: loss is nan" in str(failed.value)
    assert "Cannot restore" not in str(failed.value)
    after = digests(run(edited, SCRATCH))
    assert after.pop("ended.json")
    assert after == before


def digests(folder: Path) -> dict[str, str]:
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_a_copied_project_goes_on_by_itself(whole: Path, project: Path) -> None:
    """One more seed: not a byte of the original changes, and MLflow's files of the copy lie in the copy."""
    before = digests(whole)
    stamp(FUTURE)(project)  # a wrong clock where the archive was made
    write_study(project, experiments={"data": {"methods": ["scratch"], "seeds": [0, 1]}, "scale": None})
    finish(project, RESULTS)
    assert digests(whole) == before
    assert len(list(project.glob("results/runs/digits/wrn_10_1/train-*/seed*/weights.pt"))) == 2
    with sqlite3.connect(project / "results/mlflow.db") as database:
        places = {row[0] for row in database.execute("SELECT artifact_uri FROM runs")}
    here = (project / "results/mlartifacts/tiny").as_uri()
    assert len(places) == 6, "teacher, KD, two from scratch, the experiment, the study"
    assert all(place.startswith(f"{here}/") for place in places)
    folders = [folder for place in places if (folder := Path(place.removeprefix("file://"))).exists()]
    assert len(folders) == 5, "the experiment has no table and no figure"
    for folder in folders:
        assert {"run.json", "results.csv"} & {file.name for file in folder.iterdir()}


def test_a_moved_folder_is_sent_to_the_store_that_is_meant_now(whole: Path, project: Path) -> None:
    before = digests(whole)
    moved = project / "elsewhere"
    (project / "results").rename(moved)
    (moved / "mlflow.db").unlink()
    command = [sys.executable, "-m", "kd", "sync", "--results", "elsewhere"]
    for expected in ("3 runs sent\n", "0 runs sent\n"):
        done = subprocess.run(command, cwd=project, capture_output=True, text=True, env=environment_of())
        assert (done.stdout.splitlines(True)[-1], done.returncode) == (expected, 0), done.stderr
    assert digests(whole) == before
    assert (moved / "mlflow.db").exists()
    assert not (project / "results").exists()
    states = [json.loads(file.read_text())["sent"] for file in moved.rglob("mlflow.json")]
    assert [list(sent) for sent in states] == [["sqlite:mlflow.db"]] * 3


def test_runs_made_by_hand_are_sent_with_their_study(project: Path) -> None:
    for file in project.glob("results/runs/**/mlflow.json"):
        file.unlink() if "--" in str(file) else file.write_text('{"torn')
    command = [sys.executable, "-m", "kd", "sync", "tiny"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, env=environment_of())
    assert done.stdout.endswith("\n3 runs sent\n"), done.stderr
