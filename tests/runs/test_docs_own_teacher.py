"""docs/own-teacher.md followed to the letter in a copy of the project, with shorter schedules."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import yaml
from conftest import ROOT
from docs_project import Project, blocks

from kd.settings.merging import merge

# A torchvision that was built for another torch needs its operators declared first.
ANY_TORCHVISION = "from kd.runtime.torchvision_compat import import_torchvision\nimport_torchvision()\n"
SHORT = {
    "settings": {
        "inversion": {"generator": {"warmup": 1, "steps": 2, "noise_dim": 8, "width": 4}},
        "distillation": {"steps": 2, "training": {"epochs": 2}},
    }
}


def test_the_walk_ends_with_a_student(tmp_path: Path) -> None:
    copy = Project(tmp_path)
    train, use = blocks("own-teacher.md", "python")
    assert "range(6)" in train
    (tmp_path / "my_teacher.py").write_text(ANY_TORCHVISION + train.replace("range(6)", "range(1)"))
    (tmp_path / "use.py").write_text(use)
    [study] = blocks("own-teacher.md", "yaml")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(merge(yaml.safe_load(study), SHORT)))
    [commands] = blocks("own-teacher.md", "sh")
    assert commands.splitlines() == ["python my_teacher.py", "snakemake --cores 2 --config study=mine.yaml"]
    copy.shell(f"{sys.executable} my_teacher.py")
    copy.shell("snakemake --cores 2 --config study=mine.yaml")
    [record] = (tmp_path / "results/runs").glob("none-10/*--wrn_16_1/*/seed0/run.json")
    assert json.loads(record.read_text())["settings"]["teachers"][0]["kind"] == "given"
    assert "torch.Size([1, 10])" in copy.shell(f"{sys.executable} use.py")
    study_folder = tmp_path / "results/studies/mine"
    table = (study_folder / "table.md").read_text()
    assert "Agreement with the teacher, in %, on synthetic images that the student never saw" in table
    assert "| agreement % |" in re.sub(" +", " ", table)
    assert any("<!-- agreement, % -->" in file.read_text() for file in (study_folder / "figures").glob("*.svg"))
    copy.shell("snakemake --cores 2 --config study=mine.yaml 2>&1 | grep 'Nothing to be done'")


def test_the_page_names_every_key_of_a_checkpoint_and_every_prefix() -> None:
    from kd.runtime.weights import KEYS, WRAPPED

    page = (ROOT / "docs/own-teacher.md").read_text()
    assert all(f"`{word}`" in page for word in (*KEYS, *WRAPPED))
