"""Every loss has tests against its equation (marked `formula`), and they notice a value that is wrong by 0.1 %."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from conftest import ROOT

from kd.registry.losses import LOSSES


def test_every_loss_is_compared_with_its_equation_by_tests_that_can_fail(tmp_path: Path) -> None:
    here, outcomes = Path(__file__).parent, tmp_path / "outcomes.json"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{here}", "OUTCOMES": str(outcomes)}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--tb=no",
        "-m",
        "formula",
        "-p",
        "wrong_losses",
        "-p",
        "no:cacheprovider",
        here,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 1, done.stdout + done.stderr
    found = json.loads(outcomes.read_text())
    missing = LOSSES.keys() - found.keys()
    assert not missing, f'no test is marked pytest.mark.formula("{min(missing)}")'
    assert found.keys() == LOSSES.keys(), "a mark names a loss that does not exist"
    blind = [test for tests in found.values() for test, outcome in tests.items() if outcome != "failed"]
    assert not blind, "these compare a loss with its equation, but pass where its values are wrong"
