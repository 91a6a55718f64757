"""Every section of the queue of benchmarks/gpu_evidence.py has runs, planned at full size and in miniature."""

from __future__ import annotations

import importlib
import sys
from types import SimpleNamespace

import pytest
from conftest import ROOT

from kd.runtime.messages import ConfigError


@pytest.fixture(scope="module")
def plan():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield importlib.import_module("gpu_plan")
    sys.path.remove(str(ROOT / "benchmarks"))


@pytest.mark.parametrize("miniature", [False, True], ids=["full size", "miniature"])
def test_every_section_has_runs_and_all_their_teachers(plan, miniature, tmp_path):
    queue = plan.Queue(tmp_path, miniature)
    assert [title for title, _ in queue.sections] == [section.title for section in plan.QUEUE]
    runs = [run for _, runs in queue.sections for run in runs]
    assert len({run.path for run in runs}) == len(runs) >= 30, "a run that two sections name is made once"
    assert {teacher.path for run in runs for teacher in run.teachers or ()} == set(queue.teachers)
    left = queue.left(set())
    assert {run.path for run in left} == set(queue.runs)
    assert queue.left({run.path for run in left}) == []


def test_only_some_sections(plan, tmp_path):
    queue = plan.Queue(tmp_path, True, ["CRD"])
    assert [title for title, _ in queue.sections] == ["CRD, WRN-40-2 to WRN-16-2"]
    with pytest.raises(ConfigError, match="--sections: none of"):
        plan.Queue(tmp_path, True, ["no such title"])


def run(name, teacher=None, reads=False, dataset="a"):
    """Return as much of a run as the queue looks at."""
    entry = SimpleNamespace(synthesises=not reads)
    found = {"path": name, "teachers": teacher and (teacher,), "dataset": SimpleNamespace(name=dataset)}
    return SimpleNamespace(**found, inversion=SimpleNamespace(entry=entry))


def names(plan, sections, done, data):
    queue = plan.Queue.__new__(plan.Queue)
    queue.sections = sections
    return [run.path for run in queue.next(done, data)]


def test_a_teacher_is_trained_right_before_its_section_and_with_nothing_next_to_it(plan):
    teachers = [run(f"teacher {number}") for number in range(3)]
    sections = [("first", [run("x", teachers[0]), run("y", teachers[1])]), ("second", [run("z", teachers[2])])]
    assert names(plan, sections, set(), {"a": True}) == ["teacher 0", "teacher 1"]
    done = {"teacher 0", "teacher 1"}
    assert names(plan, sections, done, {"a": True}) == ["x", "y"], "no teacher next to students"
    assert names(plan, sections, done | {"x", "y"}, {"a": True}) == ["teacher 2"]
    assert names(plan, sections, done | {"teacher 2", "x"}, {"a": True}) == ["y", "z"]
    assert names(plan, sections, done | {"teacher 2", "x", "y", "z"}, {"a": True}) == []


def test_test_images_are_enough_for_data_free_students_of_kept_teachers(plan):
    kept, lacking = run("kept"), run("lacking")
    sections = [
        ("first", [run("free", kept), run("real", kept, reads=True), run("taught", lacking)]),
        ("second", [run("more", kept), run("elsewhere", kept, dataset="b")]),
    ]
    assert names(plan, sections, {"kept"}, {"a": False}) == ["free", "more"]
    assert names(plan, sections, {"kept", "free", "more"}, {"a": False}) == []
    assert names(plan, sections, {"kept", "free"}, {"a": True}) == ["real"]
    assert names(plan, sections, {"kept", "free", "real"}, {"a": True}) == ["lacking"]
