"""Text that a user gives, and the locale: what they cannot break."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import PAIR, ROOT, TINY
from PIL import Image

from kd.runtime.files import read_json

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}  # a locale of seven bits
LATIN = {**ASCII, "PYTHONIOENCODING": "latin-1"}
TITLE = "Größe → $\\frac$ | a_1^{2}"
CLASSES = {b"$\\x_1^2$": "$\\x_1^2$", b"_na\xefve": "_na\\xefve", "→ ä".encode(): "→ ä", b"a\nb": "a\\nb"}


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study of images whose classes have the names of CLASSES."""
    draw = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in CLASSES:
            folder = os.path.join(os.fsencode(tmp_path / "images" / split), name)
            os.makedirs(folder)
            for number in range(4):
                image = Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8))
                image.save(os.fsdecode(os.path.join(folder, b"%d.png" % number)))
    settings = {key: value for key, value in TINY.items() if key != "methods"}
    images = {"name": "folder", "root": str(tmp_path / "images"), "classes": sorted(CLASSES.values())}
    settings["dataset"] = {**TINY["dataset"], **images}
    experiment = {"title": TITLE, "pairs": [PAIR], "methods": ["ssdkd"], "seeds": [0], "scales": [0.5]}
    content = {"title": TITLE, "settings": settings, "experiments": {"e": experiment}}
    file = tmp_path / "text.yaml"
    file.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    return file


def started(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-m", "kd", *arguments]
    return subprocess.run(command, capture_output=True, env=environment, encoding="latin-1")


def kd(*arguments: str, **environment: str) -> str:
    done = started(*arguments, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_study_ends_in_any_locale_whatever_its_names(study: Path, tmp_path: Path) -> None:
    chosen, home = [str(study), "--config", "results=~/kd"], {"HOME": str(tmp_path)}
    kd("plan", *chosen, f"--write={tmp_path}/runs.yaml", **home, **ASCII)
    kd("run", f"--settings={tmp_path}/runs.yaml", "--results=~/kd", "--device=cpu", **home, **ASCII)
    assert "Größe \\u2192 $\\frac$ | a_1^{2}" in kd("status", *chosen, **home, **LATIN)
    kd("tables", *chosen, "--out=~/out", **home, **ASCII)
    records = [read_json(file) for file in (tmp_path / "kd/runs").rglob("run.json")]
    assert [record["classes"] for record in records] == [sorted(CLASSES.values())] * 2
    text = (tmp_path / "out/table.md").read_text(encoding="utf-8")
    assert f"## {TITLE}\n" in text
    assert {file.stem for file in (tmp_path / "out/figures").glob("*.png")} >= {"e", "synthetic-histograms"}


def test_a_results_folder_that_the_locale_cannot_name_is_refused(study: Path) -> None:
    content = yaml.safe_load(study.read_text(encoding="utf-8"))
    content["settings"]["results"] = "größe"
    study.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    done = started("status", str(study), **ASCII)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {study}: ")
    assert "results: got 'gr\\xf6\\xdfe'; in this locale names are ascii" in done.stderr
    assert done.stderr.count("\n") == 1
