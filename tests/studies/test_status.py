"""The state of single runs, and their counts, from files alone."""

from __future__ import annotations

import json
import os
import re
import socket
from pathlib import Path

import pytest
import yaml
from conftest import PAIR, ROOT
from fake_results import (
    SETTINGS,
    counts,
    fake_end,
    fake_finished,
    fake_lock,
    find,
    loaded,
    rows_of,
    state_of,
)

from kd.runs.provenance import run_code
from kd.runtime.run_lock import RunLock
from kd.studies import status as state
from kd.studies.study import Study, load_study


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return loaded(tmp_path)


def test_nothing_there_waits(study: Study) -> None:
    found = state.states(study)
    assert set(found) == set(study.runs)
    assert set(found.values()) == {state.State("waiting")}
    assert not study.root.exists(), "a look makes no folder"


def test_a_finished_run_is_done(study: Study) -> None:
    run = find(study, "scratch")
    fake_finished(study, run)
    assert state_of(study, run) == state.State("done", 100.0, 1.0)


@pytest.mark.parametrize("missing", ["run.json", "metrics.json"])
def test_a_run_without_all_its_files_waits(study: Study, missing: str) -> None:
    run = find(study, "scratch")
    (fake_finished(study, run) / missing).unlink()
    assert state_of(study, run).name == "waiting"


@pytest.mark.parametrize("text", ["", "{", "[]", "5", "null", '{"seconds": 5}', '{"seconds": {}}', '{"seconds": null}'])
def test_a_record_that_is_not_whole_waits(study: Study, text: str) -> None:
    run = find(study, "scratch")
    (fake_finished(study, run) / "run.json").write_text(text)
    assert state_of(study, run).name == "waiting"
    assert state.plan(study)


@pytest.mark.parametrize("text", ["", "{", "[]", "5", "null", "{}"])
def test_a_note_or_lock_that_is_not_whole_breaks_no_look(study: Study, text: str) -> None:
    run = find(study, "scratch")
    fake_end(study, run, None)
    (study.root / run.path / "ended.json").write_text(text)
    assert state_of(study, run).name == "waiting"
    fake_lock(study, run).write_text(text)
    assert state_of(study, run).name in ("waiting", "running")
    assert state.status(study)
    assert state.plan(study)


def test_a_live_lock_of_this_process_is_a_running_run(study: Study) -> None:
    run = find(study, "scratch")
    fake_lock(study, run, age=3600.0)  # this machine's kernel knows better than the clock
    found = state_of(study, run)
    assert (found.name, found.seconds, found.share) == ("running", 30.0, 0.25)
    assert f"process {os.getpid()} on here" in found.note


def test_a_real_lock_is_a_running_run(study: Study) -> None:
    run = find(study, "scratch")
    folder = study.root / run.path
    folder.mkdir(parents=True)
    with RunLock(folder, progress=lambda: {"done": 1, "total": 4, "seconds": 8.0}):
        found = state_of(study, run)
        assert (found.name, found.seconds, found.share) == ("running", 8.0, 0.25)
        assert socket.gethostname() in found.note
    assert state_of(study, run).name == "waiting"


@pytest.mark.parametrize(
    ("changed", "age", "name"),
    [
        ({"process": 1}, 0.0, "waiting"),  # another process has that number now
        ({"pid": 2**22 + 1}, 0.0, "waiting"),  # none has
        ({"machine": "another", "host": "far"}, 1.0, "running"),
        ({"machine": "another", "host": "far"}, 3600.0, "waiting"),  # no heartbeat
        ({"machine": None, "host": "far"}, 1.0, "running"),
        ({"machine": None, "host": "far"}, 3600.0, "waiting"),
    ],
)
def test_a_lock_is_alive_or_dead(study: Study, changed: dict, age: float, name: str) -> None:
    run = find(study, "scratch")
    fake_lock(study, run, age=age, **changed)
    found = state_of(study, run)
    assert (found.name, found.seconds, found.share) == (name, 30.0, 0.25)
    assert ("died; goes on from its checkpoint" in found.note) == (name == "waiting")


def test_the_newest_lock_counts(study: Study) -> None:
    run = find(study, "scratch")
    fake_lock(study, run, number=9, process=1)
    fake_lock(study, run, number=10, done=6)
    found = state_of(study, run)
    assert (found.name, found.share) == ("running", 0.5)


def test_a_slurm_job_is_named(study: Study) -> None:
    run = find(study, "scratch")
    fake_lock(study, run, machine="another", host="node7", slurm_job="4711")
    assert "node7, SLURM job 4711" in state_of(study, run).note


def test_a_failed_run_says_why(study: Study) -> None:
    run = find(study, "scratch")
    fake_end(study, run, "FloatingPointError: loss is nan in epoch 7; lower training.lr")
    assert state_of(study, run) == state.State(
        "failed", 40.0, 0.5, "FloatingPointError: loss is nan in epoch 7; lower training.lr"
    )
    text = state.status(study)
    assert f"failed:\n  {run.path}: 50 %, FloatingPointError: loss is nan in epoch 7; lower training.lr" in text


def test_a_stopped_run_waits(study: Study) -> None:
    run = find(study, "scratch")
    fake_end(study, run, None)
    assert state_of(study, run) == state.State("waiting", 40.0, 0.5, "stopped; goes on from its checkpoint")


def test_a_run_that_failed_before_its_first_epoch(study: Study) -> None:
    run = find(study, "scratch")
    folder = study.root / run.path
    folder.mkdir(parents=True)
    (folder / "ended.json").write_text('{"error": "ConfigError: no data", "when": "2026-01-01T00:00:00Z"}')
    assert state_of(study, run) == state.State("failed", 0.0, 0.0, "ConfigError: no data")


def test_a_run_at_work_again_is_not_failed_any_more(study: Study) -> None:
    run = find(study, "scratch")
    fake_end(study, run, "OSError: disk full")
    fake_lock(study, run)
    assert state_of(study, run).name == "running"


def test_a_run_made_by_other_code_waits_unless_the_code_is_frozen(tmp_path: Path) -> None:
    study = loaded(tmp_path)
    run = find(study, "scratch")
    fake_finished(study, run, code="0123456789")
    found = state_of(study, run)
    assert (found.name, found.share) == ("waiting", 0.0)
    assert "other code" in found.note
    frozen = loaded(tmp_path, settings={"compute": {"freeze_code": True}})
    assert state_of(frozen, run).name == "done"


def test_students_of_a_teacher_that_is_made_again_wait(tmp_path: Path) -> None:
    study = loaded(tmp_path)
    teacher, student, alone = find(study, "teacher"), find(study, "kd"), find(study, "scratch")
    for run in (student, alone):
        fake_finished(study, run)
    fake_finished(study, teacher, code="0123456789")
    assert state_of(study, student) == state.State("waiting", note="its teacher will be made again")
    assert state_of(study, alone).name == "done"
    fake_finished(study, teacher)
    assert state_of(study, student).name == "done"
    frozen = loaded(tmp_path, settings={"compute": {"freeze_code": True}})
    fake_finished(study, teacher, code="0123456789")
    assert state_of(frozen, student).name == "done"


def test_teachers_that_only_a_search_needs_are_not_counted(tmp_path: Path) -> None:
    search = {"pair": ["resnet14", PAIR[1]], "method": "ssdkd", "scale": 0.3, "seed": 0, "trials": 2, "validation": 0.2}
    study = loaded(tmp_path, tune={"t": {**search, "space": {"replay.alpha": {"low": 0.0, "high": 1.0}}}})
    assert {run.model for run in study.runs.values()} == {"resnet14", *PAIR}
    assert {study.runs[path].model for path in state.states(study)} == set(PAIR)


def test_counts_per_experiment_and_together(study: Study) -> None:
    fake_finished(study, find(study, "teacher"))
    fake_finished(study, find(study, "scratch"))
    fake_lock(study, find(study, "kd"))
    fake_end(study, find(study, "ssdkd", 0), "OSError: disk full")
    fake_finished(study, find(study, "ssdkd", 1))  # in two experiments, one run
    assert counts(study) == {
        "teachers": [1, 0, 0, 0],
        "data": [1, 1, 0, 0],
        "free": [1, 0, 1, 0],
        "extra": [1, 0, 0, 1],
        "together": [3, 1, 1, 1],
    }
    spent = {name: row[4] for name, row in rows_of(state.status(study)).items()}
    assert spent == {
        "teachers": "0:01:40",
        "data": "0:02:10",
        "free": "0:02:20",
        "extra": "0:01:40",
        "together": "0:06:10",
    }


def test_a_teacher_that_an_experiment_compares_is_counted_there(tmp_path: Path) -> None:
    """Trained at full scale from labels, the teacher is also the `scratch` run of its own pair."""
    only = {"data": {"pairs": [[PAIR[0], PAIR[0]]], "methods": ["scratch", "kd"]}}
    study = loaded(tmp_path, experiments={**only, "free": {"methods": ["kd"], "scales": [1.0]}})
    assert find(study, "scratch") == find(study, "teacher")
    assert "teachers" not in counts(study)
    assert counts(study)["data"] == [0, 0, 0, 2]


def test_an_experiment_may_be_called_teachers_or_together(tmp_path: Path) -> None:
    one = {"pairs": [PAIR], "methods": ["kd"], "seeds": [0]}
    two = {"pairs": [PAIR], "methods": ["kd"], "seeds": [1, 2]}
    file = tmp_path / "watched.yaml"
    text = {"title": "Watched", "settings": SETTINGS, "experiments": {"teachers": two, "together": one}}
    file.write_text(yaml.safe_dump(text, sort_keys=False))
    study = load_study(
        ROOT / "config/config.yaml", ROOT / "workflow/schemas", {"study": str(file), "results": str(tmp_path / "r")}
    )
    table = state.status(study).split("\n\n")[1]
    waiting = re.findall(r"^ *\S.*? +0 +0 +0 +(\d+) +[\d:]+ ", table, re.MULTILINE)
    assert waiting == ["1", "2", "1", "4"], table  # the teacher, the two experiments, all


def test_trials_done_are_counted(tmp_path: Path) -> None:
    search = {"pair": PAIR, "method": "ssdkd", "scale": 0.3, "seed": 0, "trials": 5, "validation": 0.2}
    study = loaded(tmp_path, tune={"phi": {**search, "space": {"replay.alpha": {"low": 0.0, "high": 1.0}}}})
    folder, search = study.root / "studies/watched/tune/phi", study.tunings["phi"]
    diverged = {"params": {"replay.alpha": 0.5}, "state": "FAIL", "value": None, "number": 0, "epoch": None, "note": ""}
    diverged |= {"search": search.digest, "seconds": 1.0}
    code = run_code(study.tunings["phi"].run(diverged["params"]))
    for number, of in ((0, code), (2, "0123456789"), (3, code)):
        (folder / f"trial{number}").mkdir(parents=True)
        (folder / f"trial{number}/trial.json").write_text(json.dumps(diverged | {"code": of}))
    (folder / "trial1").mkdir()  # under way
    (folder / "trial7").mkdir()  # of a longer search
    (folder / "trial7/trial.json").write_text(json.dumps(diverged | {"code": code}))
    (folder / "trial4").mkdir()
    (folder / "trial4/trial.json").write_text(json.dumps(diverged | {"code": code, "search": "of another one"}))
    for said in (state.status(study), state.plan(study)):
        assert "search phi: 2 of 5 trials done (3 failed)" in said
    assert "1 worker (`snakemake tune`)" in state.plan(study)
