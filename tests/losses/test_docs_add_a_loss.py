"""docs/add-a-loss.md followed to the letter in a copy of the project: its study is planned and run at tiny size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import tiny_run
from docs_project import Project, blocks

from kd.settings.merging import merge

STUDY: dict[str, Any] = {"settings": {}, **yaml.safe_load(blocks("add-a-loss.md", "yaml")[0])}


@pytest.fixture
def copy(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_the_study_of_the_document_runs_and_no_other_run_is_touched(copy: Project) -> None:
    others = [tiny_run(method) for method in ("scratch", "kd", "crd", "at", "ssdkd")]
    codes = copy.codes(others)
    copy.follow("add-a-loss.md")
    assert copy.codes(others) == codes
    records = copy.run(**STUDY)
    assert len(records) == 3, "the teacher, kd and the document's method"
    [mine] = [path for path in records if "logit_mse" in path]
    assert records[mine]["settings"]["objective"]["logit_mse"] == {"weight": 0.5, "scale": 2.0}
    metrics = json.loads((copy.folder / "results" / mine / "metrics.json").read_text())
    assert metrics["accuracy"] > 30, "of ten classes"


def test_a_misspelt_setting_and_one_out_of_range_are_refused_by_the_plan(copy: Project) -> None:
    copy.follow("add-a-loss.md")
    for setting, message in (({"scail": 1.0}, "did you mean 'scale'"), ({"scale": -1.0}, "allowed: at least 0")):
        wrong = merge(STUDY, {"methods": {"mse": {"objective": {"logit_mse": setting}}}})
        planned = copy.plan(**wrong)
        assert planned.returncode == 1
        assert message in planned.stderr
