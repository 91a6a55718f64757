"""Formatters and linters."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
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


def test_no_python_file_is_longer_than_350_lines() -> None:
    files = [file for folder in ("kd", "tests", "benchmarks", "workflow") for file in (ROOT / folder).rglob("*.py")]
    lengths = {file.relative_to(ROOT).as_posix(): len(file.read_text(encoding="utf-8").splitlines()) for file in files}
    assert len(lengths) > 100
    assert {name: length for name, length in lengths.items() if length > 350} == {}


def unnamed_encodings(source: str) -> Iterator[int]:
    """Yield the lines with a call that reads or writes text in whatever encoding the locale has."""
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        called = ast.unparse(call.func)
        name, owner = called.rpartition(".")[2], called.rpartition(".")[0]
        values = [value.value for value in call.args if isinstance(value, ast.Constant)]
        given = {keyword.arg for keyword in call.keywords}
        binary = any(isinstance(value, str) and "b" in value and len(value) < 4 for value in values)
        text = (name == "open" and not binary and owner not in ("Image", "os", "tarfile")) or (
            name in ("read_text", "write_text") and len(call.args) < 1 + (name == "write_text")
        )
        if (text or given & {"text", "universal_newlines"}) and "encoding" not in given:
            yield call.lineno


def test_text_is_utf_8_whatever_the_locale() -> None:
    calls = "path.open()\nopen(a, 'w')\npath.read_text()\npath.write_text(a)\nsubprocess.run(a, text=True)"
    assert list(unnamed_encodings(calls)) == [1, 2, 3, 4, 5], "the test sees each of them"
    assert list(unnamed_encodings("path.open('rb')\npath.read_text('utf-8')\nopen(a, encoding='utf-8')")) == []
    files = [file for folder in ("kd", "benchmarks", "workflow") for file in (ROOT / folder).rglob("*.py")]
    found = {file.relative_to(ROOT).as_posix(): list(unnamed_encodings(file.read_text("utf-8"))) for file in files}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_make_test_gpu_runs_every_file_with_tests_of_a_gpu() -> None:
    target = (ROOT / "Makefile").read_text("utf-8").partition("\ntest-gpu:")[2].partition("\n\n")[0]
    marked = [
        file.name
        for file in (ROOT / "tests").rglob("test_*.py")
        if any(name in file.read_text("utf-8") for name in ("@on_each_device", "@GPU", "mark" + ".gpu"))
    ]
    assert set(re.findall(r"test_\w+\.py", target)) == set(marked) - {"test_style.py"}
