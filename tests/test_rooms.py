"""The rooms of kd: which may import which, and what a run's code digest may not follow."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from conftest import ROOT

from kd.runs.provenance import NOT_FOLLOWED

# From left to right: a room imports itself and what stands to its right. Rooms of one group know nothing of each other,
# but that inversion uses losses.
ORDER = [
    {"__main__"},
    {"commands"},
    {"integrations", "reports"},
    {"studies"},
    {"runs"},
    {"training"},
    {"inversion"},
    {"losses"},
    {"data", "models"},
    {"settings"},
    {"registry"},
    {"runtime", "batch"},
]
PLACE = {room: place for place, group in enumerate(ORDER) for room in group}
# Without torch: what plans, checks, draws and tells the state of a study.
TORCH_FREE = ("registry", "settings", "studies", "reports", "integrations")


def imports(file: Path) -> set[str]:
    """The modules of kd that a file imports anywhere in its text, with the names taken from them."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] == "kd"}


def room_of(file: Path) -> str:
    return file.relative_to(ROOT / "kd").parts[0].removesuffix(".py")


FILES = [file for file in sorted((ROOT / "kd").rglob("*.py")) if file != ROOT / "kd/__init__.py"]


def test_every_room_has_its_place():
    entries = {path.name.removesuffix(".py") for path in (ROOT / "kd").iterdir() if path.name != "__pycache__"}
    assert entries - {"__init__"} == set(PLACE)
    assert len(entries) <= 16


@pytest.mark.parametrize("room", sorted(PLACE))
def test_imports_point_one_way(room):
    files = [file for file in FILES if room_of(file) == room]
    assert files
    for file in files:
        for name in imports(file):
            other = name.split(".")[1]
            assert other == room or PLACE[other] > PLACE[room], f"{file.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize("room", TORCH_FREE)
def test_what_plans_and_draws_imports_no_torch(room):
    for file in FILES:
        if room_of(file) == room:
            tree = ast.parse(file.read_text())
            top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
            modules = {alias.name for node in top if isinstance(node, ast.Import) for alias in node.names}
            modules |= {node.module for node in top if isinstance(node, ast.ImportFrom)}
            assert not {name for name in modules if name.split(".")[0] in ("torch", "torchvision")}, file


def test_rooms_that_a_digest_does_not_follow_lead_to_no_room_that_it_does():
    """Otherwise code that changes numbers could hide behind one that does not count."""
    apart = {name.split(".")[1] for name in NOT_FOLLOWED}
    for file in FILES:
        if room_of(file) in apart:
            others = {name.split(".")[1] for name in imports(file)} - apart - {"batch"}
            assert not others, f"{file.relative_to(ROOT)} imports {others}"


def test_mlflow_and_optuna_have_their_doors_and_kd_does_not_know_snakemake():
    doors = {"snakemake": set(), "mlflow": set(), "optuna": set()}
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for package in {name.split(".")[0] for name in names} & set(doors):
                doors[package].add(file.relative_to(ROOT / "kd").as_posix())
    assert doors == {
        "snakemake": set(),
        "mlflow": {f"integrations/{name}.py" for name in ("networks", "sending", "store", "study_view")},
        "optuna": {f"integrations/{name}.py" for name in ("optuna_journal", "trial_storage", "tuning")},
    }
