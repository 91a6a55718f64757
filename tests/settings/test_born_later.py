"""Settings that are born later than finished runs: at their neutral value they change no run's folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from settings_cases import ROOT

# (file, text that is there, text with the new setting)
BORN = [
    (
        "kd/settings/shapes.py",
        '    momentum: float = setting(0.9, "of SGD"',
        '    warmup_epochs: int = setting(0, "epochs in which lr rises", neutral=0, at_least=0)\n',
    ),
    ("kd/inversion/sources/generator.py", "        width: int = 64,\n", "        tv: float = 0.0,\n"),
    (
        "kd/registry/sources.py",
        '            "reset_epoch": Setting(',
        '            "tv": Setting("weight of the total variation", at_least=0, neutral=0.0),\n',
    ),
    ("kd/losses/kd.py", "temperature: float = 4.0", "temperature: float = 4.0, floor: float = 0.0"),
    (
        "kd/registry/losses.py",
        '    "kd": Entry("kd.losses.kd:kd", {',
        '    "kd": Entry("kd.losses.kd:kd", {"floor": Setting("smallest logit", neutral=0.0), ',
    ),
]
PATHS = """
import json, sys
from pathlib import Path
from kd.studies.study import load_study
study = load_study(Path("config/config.yaml"), Path("workflow/schemas"), json.loads(sys.argv[1]))
print(json.dumps(sorted(study.runs)))
"""
STUDY = """
title: Three kinds
settings: {dataset: {name: digits}}
experiments:
  all: {pairs: [[wrn_16_2, wrn_16_1]], methods: [scratch, kd, ssdkd], seeds: [0]}
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in ("kd", "config", "workflow"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "config/studies/three.yaml").write_text(STUDY)
    return tmp_path


def runs_of(copy: Path, **given) -> list[str]:
    variables = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", PATHS, json.dumps({"study": "three", **given})]
    done = subprocess.run(command, cwd=copy, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_finished_runs_stay_where_they_are(copy: Path) -> None:
    """Kept teachers, too: their files are named by the same digest (tests/runs/test_kept_teachers.py)."""
    before = runs_of(copy)
    for name, there, new in BORN:
        text = (copy / name).read_text()
        assert text.count(there) == 1, (name, there)
        replaced = new if new.startswith(there[:20]) and name != "kd/settings/shapes.py" else new + there
        (copy / name).write_text(text.replace(there, replaced))
    subprocess.run([sys.executable, "-m", "kd.settings.documents"], cwd=copy, check=True, capture_output=True)
    config = (copy / "config/config.yaml").read_text()
    assert config.count("warmup_epochs: 0") == 3
    assert config.count("    tv: 0.0") == 1
    assert runs_of(copy) == before
    for given, moved in (
        ({"training": {"warmup_epochs": 2}}, {"train", "ce-kd"}),
        ({"inversion": {"generator": {"tv": 0.5}}}, {"datafree"}),
        ({"methods": {"kd": {"objective": {"kd": {"floor": 0.5}}}}}, {"ce-kd"}),
    ):
        after = set(runs_of(copy, **given)) - set(before)
        assert {path.split("/")[3].rsplit("-", 1)[0] for path in after} == moved


def test_old_copies_of_config_yaml_lack_a_setting_that_is_born_later(copy: Path) -> None:
    """Someone's own config.yaml needs no new line: what has a neutral value is not required."""
    before = runs_of(copy)
    name, there, new = BORN[0]
    text = (copy / name).read_text()
    (copy / name).write_text(text.replace(there, new + there))
    assert runs_of(copy) == before
