"""Shared by all tests: one torch thread, and tiny studies on the digits."""

from __future__ import annotations

import copy
import functools
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from kd.data.prepare import prepare
from kd.data.raw import Source
from kd.runs.run import run_step
from kd.runtime.yaml_files import read_yaml
from kd.settings.merging import merge, run_of
from kd.settings.run import Run
from kd.settings.shapes import Compute
from kd.studies.search import nested

ROOT = Path(__file__).resolve().parent.parent

# Settings that make every run a matter of a second or two.
TINY: dict[str, Any] = {
    "dataset": {"name": "digits", "image_size": 8, "pad": 1, "flip": False},
    "teacher": {"training": {"epochs": 2, "batch_size": 64, "lr": 0.1, "schedule": "cosine", "milestones": []}},
    "training": {"epochs": 2, "batch_size": 64, "lr": 0.1, "schedule": "cosine", "milestones": []},
    "inversion": {
        "generator": {
            "batch_size": 16,
            "warmup": 1,
            "steps": 2,
            "noise_dim": 8,
            "width": 4,
            "reset_epoch": 2,
            "bn": 1.0,
            "lr_generator": 0.02,  # two steps each: with less some seeds draw one class, as kernels round
        },
        "deepinversion": {"batch_size": 16, "steps": 3},
        "cmi": {
            "batch_size": 16,
            "warmup": 1,
            "steps": 3,
            "lr": 0.05,
            "negatives": 8,
            "bank": 24,
            "head_dim": 8,
            "noise_dim": 8,
            "width": 4,
        },
        "nayer": {"batch_size": 16, "warmup": 1, "steps": 3, "life": 2, "noise_dim": 8, "width": 4},
    },
    "replay": {"full_size": 100},
    "distillation": {"passes": 1.0, "training": {"epochs": 3, "batch_size": 16, "lr": 0.05}},
    "methods": {"crd": {"objective": {"crd": {"negatives": 64, "feat_dim": 16}}}},
    "compute": {"device": "cpu"},
}
PAIR = ["resnet8", "wrn_10_1"]
COMPUTE = Compute.by_hand(device="cpu", checkpoint_seconds=3600.0)

LONG = ("test_workflow.py", "test_interrupted_studies.py", "test_run.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole studies and runs first: at the end they would leave one of two workers without work."""
    items.sort(key=lambda item: item.path.name not in LONG)
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no GPU"))


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


def tiny_settings(method: str, **dotted: Any) -> dict[str, Any]:
    """Merged settings of one method at tiny size; `dotted` as in a study, with `__` for the dots."""
    defaults = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    base = merge(defaults, TINY)
    chosen = {"teacher": {"model": PAIR[0]}, "student": {"model": PAIR[1]}}
    changes = nested({key.replace("__", "."): value for key, value in dotted.items()})
    return merge(base, base["methods"][method], chosen, changes)


def tiny_run(method: str, seed: int = 0, **dotted: Any) -> Run:
    return run_of(tiny_settings(method, **dotted), seed)


def copy_project(folder: Path) -> Path:
    """Copy the project's workflow and configuration, which a test may edit; kd itself stays the installed one."""
    for name in ("workflow", "config", "profiles"):
        shutil.copytree(ROOT / name, folder / name)
    for name in ("Snakefile", "environment.yml"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return copy_project(tmp_path)


@functools.cache
def read_once(path: Path) -> dict[str, Any]:
    """Parse one of the project's own files once; the content must not be changed."""
    return read_yaml(path)


@pytest.fixture
def parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Studies are loaded with the project's own config.yaml and schemas, each of them parsed once for all tests."""
    own = {ROOT / "config/config.yaml", *(ROOT / "workflow/schemas").iterdir()}

    def read(path: Path) -> dict[str, Any]:
        return copy.deepcopy(read_once(path)) if path in own else read_yaml(path)

    for module in ("kd.studies.study", "kd.settings.validation"):
        monkeypatch.setattr(f"{module}.read_yaml", read)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with the data set and the teacher that the tests of runs share; they add nothing to it."""
    results = tmp_path_factory.mktemp("results")
    run = tiny_run("kd")
    prepare(run.dataset, results / run.data_path, Source(None, results, download=False))
    run_step(run.teacher, results / run.teacher.path, results / run.data_path, [], COMPUTE)
    return results


def execute(run: Run, store: Path, folder: Path, compute: Compute = COMPUTE, **given: Any) -> dict[str, float]:
    teachers = [store / teacher.path / "weights.pt" for teacher in run.teachers or ()]
    return run_step(run, folder, store / run.data_path, teachers, compute, **given)
