"""docs/add-a-source.md followed to the letter in a copy of the project: its study is planned and run at tiny size."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from conftest import TINY, tiny_run
from docs_project import Project, blocks

from kd.settings.merging import merge

STUDY: dict[str, Any] = yaml.safe_load(blocks("add-a-source.md", "yaml")[0])
SMALL = {"settings": {key: TINY[key] for key in ("replay", "distillation")}}


def test_the_study_of_the_document_runs_and_no_other_run_is_touched(tmp_path: Path) -> None:
    copy = Project(tmp_path)
    others = [tiny_run(method) for method in ("scratch", "kd", "ssdkd", "original")]
    codes = copy.codes(others)
    copy.follow("add-a-source.md")
    assert copy.codes(others) == codes
    records = copy.run(**merge(STUDY, SMALL, {"methods": {"noise": {"inversion": {"noise": {"batch_size": 32}}}}}))
    assert len(records) == 3, "the teacher and two students"
    [mine] = [record for record in records.values() if record["settings"].get("inversion", {}).get("source") == "noise"]
    assert mine["settings"]["inversion"] == {"source": "noise", "noise": {"batch_size": 32, "cells": 2}}
    assert mine["counts"]["images"] == 3 * 32, "three epochs, no warm-up"
    assert "generator_steps" not in mine["counts"]
    assert "modulation" not in mine["settings"]


def test_its_settings_reach_schema_and_documents_and_are_checked(tmp_path: Path) -> None:
    copy = Project(tmp_path)
    copy.follow("add-a-source.md")
    subprocess.run([sys.executable, "-m", "kd.settings.documents"], cwd=tmp_path, check=True, capture_output=True)
    config = yaml.safe_load((tmp_path / "config/config.yaml").read_text())
    assert config["inversion"]["noise"] == {"batch_size": 256, "cells": 4}
    assert "`inversion.noise.cells` | `4` | integer, at least 1 |" in (tmp_path / "config/README.md").read_text()
    for setting, message in (({"cels": 1}, "did you mean 'cells'"), ({"cells": 0}, "allowed: >= 1")):
        planned = copy.plan(**merge(STUDY, SMALL, {"methods": {"noise": {"inversion": {"noise": setting}}}}))
        assert planned.returncode == 1
        assert re.search(message, planned.stderr), planned.stderr
