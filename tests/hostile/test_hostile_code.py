"""Code that a configuration names is not run by a look at it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hostile import PLACES, dry_runs, listing, load, with_experiment

from kd.runs.provenance import run_code
from kd.studies.status import plan, status

CODE = [
    "os:system",
    "builtins:eval",
    "builtins:exec",
    "subprocess:call",
    "pathlib:Path",
    "evil:build",
    "evil:run",
    "evilpackage:build",
    "evilpackage.net:build",
    "evilpackage.net.deeper:build",
    "no_such_module:build",
    '__import__("os").system("touch PWNED")',
    'os:system("touch PWNED")',
    "evil",
    "kd.models.wrn:WideResNet",
]


@pytest.fixture
def evil(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path with a module and a package that leave a file behind when they are imported."""
    folder = tmp_path / "there"
    (folder / "evilpackage").mkdir(parents=True)
    mark = f"from pathlib import Path\nPath({str(tmp_path / 'PWNED')!r}).touch()\n"
    function = f"{mark}\n\ndef build(**sizes):\n    Path({str(tmp_path / 'PWNED')!r}).touch()\n"
    (folder / "evil.py").write_text(function)
    (folder / "evilpackage/__init__.py").write_text(function)
    (folder / "evilpackage/net.py").write_text(function)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.chdir(folder)
    yield folder
    for name in [name for name in sys.modules if name.startswith("evil")]:
        del sys.modules[name]


def assert_nothing_ran(tmp_path: Path) -> None:
    assert not list(tmp_path.rglob("PWNED*"))
    assert not [name for name in sys.modules if name.startswith("evil")]


@pytest.mark.usefixtures("parsed_once")
@pytest.mark.parametrize("name", CODE)
def test_code_that_a_configuration_names_is_not_run_by_a_look(tmp_path: Path, evil: Path, name: str) -> None:
    """Validation, `plan` and `status`, and the digest of a run's code read files and import nothing of the user's."""
    file = evil / "mine.yaml"
    file.write_text(yaml.safe_dump(with_experiment(pairs=[[name, name]], methods=["kd"])))
    study = load(file, results=str(tmp_path / "results"))
    if study is not None:
        assert plan(study)
        assert status(study)
        assert all(re.fullmatch("[0-9a-f]{10}", run_code(run)) for run in study.runs.values())
    assert_nothing_ran(tmp_path)


@pytest.mark.usefixtures("parsed_once")
@pytest.mark.parametrize(
    ("name", "accepted"), [("evil:build", True), ("evil:run", False), ("no_such_module:build", False), ("evil", False)]
)
def test_a_function_of_ones_own_has_to_be_there(evil: Path, name: str, accepted: bool) -> None:
    file = evil / "mine.yaml"
    file.write_text(yaml.safe_dump(with_experiment(pairs=[[name, name]], methods=["kd"])))
    assert (load(file) is not None) == accepted


@pytest.mark.usefixtures("parsed_once")
@pytest.mark.parametrize("name", CODE)
def test_models_alone_may_name_code(tmp_path: Path, evil: Path, name: str) -> None:
    file = evil / "mine.yaml"
    for place in ("data set", "loss", "setting of a loss", "view", "device", "kind", "unknown method"):
        file.write_text(yaml.safe_dump(PLACES[place](name)))
        assert load(file) is None, place
    assert_nothing_ran(tmp_path)


def test_code_that_a_configuration_names_is_not_run_by_a_dry_run(tmp_path: Path, project: Path, evil: Path) -> None:
    cases = {}
    for pair in (
        ["evil:build", "os:system"],
        ["evilpackage.net:build", "subprocess:call"],
        ["builtins:eval", "evil:build"],
    ):
        file = project / f"case{len(cases)}.yaml"
        file.write_text(yaml.safe_dump(with_experiment(pairs=[pair], methods=["kd"])))
        cases[" and ".join(pair)] = [f"study={file.name}"]
    before = listing(evil)
    dry_runs(project, cases, PYTHONPATH=str(evil))
    assert_nothing_ran(tmp_path)
    assert listing(evil) == before
