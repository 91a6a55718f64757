"""Every section of the queue of benchmarks/gpu_evidence.py has runs, planned at full size and in miniature."""

from __future__ import annotations

import importlib
import sys

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
