"""A tiny study of one run, written and loaded in a folder of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import PAIR, ROOT, TINY
from own_studies import SCHEMAS

from kd.__main__ import main
from kd.settings.merging import merge
from kd.studies.study import Study, load_study

CONFIG = ROOT / "config/config.yaml"


def written(folder: Path, **changes: Any) -> Path:
    """Write a tiny study of one run."""
    own = {key: value for key, value in TINY.items() if key != "methods"}
    content = {
        "title": "Mine",
        "settings": {**own, "tracking": {"enabled": False}},
        "experiments": {"a": {"pairs": [PAIR], "methods": ["scratch"], "seeds": [0]}},
    }
    file = folder / "mine.yaml"
    file.write_text(yaml.safe_dump(merge(content, changes), sort_keys=False))
    return file


def loaded(folder: Path, file: Path, **given: Any) -> Study:
    return load_study(CONFIG, SCHEMAS, {"study": str(file), "results": str(folder / "results"), **given})


def said_by(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    """The only line that a command of kd, which must fail, says."""
    assert main([str(item) for item in arguments]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line
