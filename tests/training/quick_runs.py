"""Runs of one epoch on a tenth of the digits, and their teachers."""

from __future__ import annotations

from pathlib import Path

from conftest import ROOT, execute, tiny_run

from kd.runtime.yaml_files import read_yaml
from kd.settings.run import Run

METHODS = {
    name: method
    for name, method in read_yaml(ROOT / "config/config.yaml")["methods"].items()
    if method["kind"] == "distill"
}
QUICK = {"training__epochs": 1, "scale": 0.1}


def quick(method: str, seed: int = 0, **changes):
    """One epoch on a tenth of the digits, teacher and student of equal widths; one epoch of a first stage."""
    for loss in ("ab", "ft", "fsp"):
        if loss in METHODS[method]["objective"]:
            changes.setdefault(f"objective__{loss}__first_epochs", 1)
    return tiny_run(method, seed, **{"teacher__model": "wrn_10_1", **QUICK, **changes})


def with_teachers(run: Run, store: Path, folder: Path) -> dict[str, float]:
    """The run, once its teachers are there."""
    for teacher in run.teachers:
        execute(teacher, store, store / teacher.path)  # at once, where it is complete
    return execute(run, store, folder)
