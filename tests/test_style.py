"""Formatters and linters."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

BIN = Path(sys.executable).parent


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        ["snakefmt", "--check", "Snakefile", "workflow"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_clean(command: list[str]) -> None:
    done = subprocess.run([str(BIN / command[0]), *command[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_rooms_stay_apart() -> None:
    """Imports point one way; mlflow and optuna have one door each; kd does not know Snakemake."""
    sources = {file.relative_to(ROOT).as_posix(): file.read_text() for file in (ROOT / "kd").rglob("*.py")}
    importing = {
        package: {name for name, text in sources.items() if f"import {package}" in text or f"from {package}" in text}
        for package in ("mlflow", "optuna", "snakemake")
    }
    assert importing == {
        "mlflow": {"kd/integrations/tracking.py"},
        "optuna": {"kd/integrations/tuning.py"},
        "snakemake": set(),
    }
    for name, text in sources.items():
        if name.startswith(("kd/losses/", "kd/models/", "kd/data/")):
            assert "kd.training.with_data" not in text, name
            assert "kd.inversion" not in text, name
