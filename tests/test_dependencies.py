"""pyproject.toml, constraints.txt, environment.yml and what is installed name the same packages and versions."""

import ast
import importlib.metadata
import platform
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RUNTIME = [Requirement(line) for line in PROJECT["dependencies"]]
DEV = [Requirement(line) for line in PROJECT["optional-dependencies"]["dev"]]
OPTIONAL = {canonicalize_name(Requirement(line).name) for line in PROJECT["optional-dependencies"]["formats"]}
DIRECT = {canonicalize_name(requirement.name): requirement for requirement in RUNTIME + DEV}


def pins(lines):
    """{canonical name: version} of `name==version` lines; each package once, nothing but exact pins."""
    found = {}
    for line in lines:
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.!+]+)", line)
        assert match, f"{line!r} is no exact pin"
        name = canonicalize_name(match[1])
        assert name not in found, f"{name} is pinned twice"
        found[name] = str(Version(match[2]))
    return found


def constraints():
    lines = (line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines())
    return pins(line for line in lines if line)


def environment():
    return yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]


def conda_pins():
    [inner] = [entry["pip"] for entry in environment() if isinstance(entry, dict)]
    return pins(inner)


@pytest.mark.parametrize("name", DIRECT)
def test_a_direct_dependency_is_pinned_inside_its_range(name):
    assert DIRECT[name].specifier, "no range in pyproject.toml"
    assert name in constraints(), "not in constraints.txt"
    assert DIRECT[name].specifier.contains(constraints()[name], prereleases=True)


def test_the_conda_environment_repeats_the_pins_of_direct_dependencies():
    assert conda_pins() == {name: constraints()[name] for name in DIRECT}


def test_the_conda_environments_python_is_one_that_we_promise():
    [python] = [entry for entry in environment() if isinstance(entry, str) and entry.startswith("python=")]
    version = python.removeprefix("python=").strip("=")
    assert SpecifierSet(PROJECT["requires-python"]).contains(f"{version}.0")
    assert SpecifierSet(PROJECT["requires-python"]).contains(platform.python_version())
    assert "pip" in environment()


@pytest.mark.parametrize("name", DIRECT)
def test_the_installed_version_is_the_pinned_one(name):
    """PyTorch's own index adds a local part (+cpu, +cu130) to the version."""
    assert Version(importlib.metadata.version(name)).public == constraints()[name]


def test_every_import_of_kd_is_a_direct_dependency():
    """Those that need not be installed are imported inside a function."""
    modules = {"yaml": "pyyaml", "sklearn": "scikit-learn", "PIL": "pillow"}
    for file in (ROOT / "kd").rglob("*.py"):
        tree = ast.parse(file.read_text())
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            for name in {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"kd"}:
                allowed = set(DIRECT) | (OPTIONAL if node not in tree.body else set())
                assert canonicalize_name(modules.get(name, name)) in allowed, f"{file.name} imports {name}"
