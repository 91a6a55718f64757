"""The folder of a run: one module knows the names of its files and what finished means."""

import ast
import json
from pathlib import Path

import pytest
from conftest import ROOT, tiny_run

from kd.runs import folder as home
from kd.runs.folder import Records, array_file, ended, files_of, finished, run_folders, sealed, with_results
from kd.runs.provenance import run_code
from kd.runtime.files import write_json

NAMES = {name for kind in ("train", "distill", "datafree") for name in files_of(kind)}
NAMES |= {home.ENDED, home.TRACKED, home.SUGGESTION, home.TRIAL}


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """Make the folder of a finished data-free run."""
    run = tiny_run("ssdkd")
    for name in files_of("datafree"):
        (tmp_path / name).touch()
    (tmp_path / "metrics.json").write_text("{}")
    record = {"settings": run.as_dict(), "identity": "x", "code": run_code(run), "seconds": {"total": 1.0}}
    (tmp_path / "run.json").write_text(json.dumps(record))
    return tmp_path


def test_a_run_with_its_record_and_all_files_of_its_kind_is_finished(made: Path) -> None:
    record = finished(made)
    assert record["identity"] == "x"


@pytest.mark.parametrize("missing", files_of("datafree"))
def test_without_one_of_its_files_it_is_not(made: Path, missing: str) -> None:
    (made / missing).unlink()
    assert finished(made) is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "{}", '{"settings": {"kind": "unknown"}}', '{"settings": {"kind": "datafree"}}']
)
def test_a_record_that_is_torn_or_of_another_version_finishes_nothing(made: Path, text: str) -> None:
    (made / "run.json").write_text(text)
    assert finished(made) is None


def test_results_remain_when_the_weights_are_removed(made: Path) -> None:
    for name in ("weights.pt", "history.csv", array_file("synthetic")):
        (made / name).unlink()
    assert finished(made) is None
    assert with_results(made)["identity"] == "x"
    (made / "metrics.json").unlink()
    assert with_results(made) is None


@pytest.mark.parametrize("text", ["", '{"accuracy": ', "null"])
def test_without_readable_numbers_it_is_neither_finished_nor_in_a_table(made: Path, text: str) -> None:
    (made / "metrics.json").write_text(text)
    assert finished(made) is None
    assert with_results(made) is None


def test_no_folder_is_no_run(tmp_path: Path) -> None:
    assert finished(tmp_path / "none") is None
    assert ended(tmp_path / "none") is None
    assert list(run_folders(tmp_path)) == []


def test_records_are_read_once(made: Path) -> None:
    records = Records(made.parent)
    first = records[made.name]
    (made / "run.json").unlink()
    assert records[made.name] is first


def test_the_folders_of_runs_are_found_by_their_depth(tmp_path: Path) -> None:
    for path in ("runs/a/b/c/seed0", "runs/a/b/c/seed1", "runs/a/b", "studies/a/b/c/d"):
        (tmp_path / path).mkdir(parents=True, exist_ok=True)
    (tmp_path / "runs/a/b/c/file").touch()
    assert list(run_folders(tmp_path)) == ["runs/a/b/c/seed0", "runs/a/b/c/seed1"]


def test_arrays_have_their_files_by_kind() -> None:
    assert set(files_of("distill")) - set(files_of("train")) == {array_file("correlations")}
    assert set(files_of("datafree")) - set(files_of("train")) == {array_file("synthetic")}


def test_no_other_file_of_kd_or_the_workflow_writes_their_names() -> None:
    for file in [*(ROOT / "kd").rglob("*.py"), *(ROOT / "workflow").rglob("*.py")]:
        if file == ROOT / "kd/runs/folder.py":
            continue
        tree = ast.parse(file.read_text())
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
        texts = {ast.get_docstring(node, clean=False) for node in ast.walk(tree) if isinstance(node, documented)}
        written = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)} - texts
        ends = [text.rpartition("/")[2] for text in written if isinstance(text, str)]  # also in f-strings and paths
        assert not set(ends) & NAMES, file
    for file in (ROOT / "workflow").rglob("*.smk"):
        code = "\n".join(line.partition("#")[0] for line in file.read_text().splitlines())
        assert not [name for name in NAMES if f"/{name}" in code or f'"{name}"' in code], file


@pytest.fixture
def known(made: Path) -> Path:
    """The run of `made`, with a record that knows its files."""
    for name in ("weights.pt", "history.csv", array_file("synthetic")):
        (made / name).write_bytes(b"0123456789")
    (made / "metrics.json").write_text('{"accuracy": 50.25}')
    write_json(made / "run.json", sealed(made, json.loads((made / "run.json").read_text())))
    return made


@pytest.mark.parametrize("name", ["metrics.json", "run.json", "history.csv", "weights.pt", array_file("synthetic")])
def test_a_changed_byte_of_any_file_is_seen_and_one_of_a_large_file_where_it_matters(known: Path, name: str) -> None:
    assert finished(known, thorough=True) is not None
    content = (known / name).read_bytes()
    place = content.index(b"1.0" if name == "run.json" else b"5") + 2 * (name == "run.json")
    (known / name).write_bytes(content[:place] + b"7" + content[place + 1 :])
    assert finished(known, thorough=True) is None
    assert (finished(known) is None) == (not name.endswith((".pt", ".npz")))
    (known / name).write_bytes(content[:-2])
    assert finished(known) is None, "a size is always compared"
