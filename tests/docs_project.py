"""A copy of the project in which a test follows a page of the documentation to the letter and runs what comes of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from conftest import ROOT, TINY

from kd.settings.merging import merge

CODES = """
import json, sys
from kd.runs.provenance import data_code, run_code
from kd.settings.run import Run
runs = [Run.from_dict(settings) for settings in json.load(sys.stdin)]
print(json.dumps([[run_code(run), data_code(run.dataset)] for run in runs]))
"""


class Project:
    """The copy, in `folder`; what is run there imports its kd and no other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("kd", "config", "workflow", "profiles"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("Snakefile", "environment.yml"):
            shutil.copy(ROOT / name, folder)

    def follow(self, page: str) -> list[str]:
        """Do what the Python blocks of a page of docs/ say; return those marked "instead", for `replace`.

        A block's first line names its file. "# FILE" creates it; "# FILE, in NAME" adds the other lines at the top of
        the mapping or tuple NAME; "# FILE, in NAME, instead" replaces the lines that were added before.
        """
        instead = []
        for block in blocks(page, "python"):
            first, _, content = block.partition("\n")
            file, *where = first.removeprefix("# ").split(", ")
            path = self.folder / file
            if not where:
                assert not path.exists(), f"{page} overwrites {file}"
                path.write_text(block)
            elif where[1:] == ["instead"]:
                instead.append(block)
            else:
                self._insert(path, where[0].removeprefix("in "), content)
        return instead

    def replace(self, block: str) -> None:
        """Replace the line of the same key that was added before."""
        first, _, content = block.partition("\n")
        path = self.folder / first.removeprefix("# ").split(", ")[0]
        key = re.escape(content.partition(":")[0])
        text, count = re.subn(rf"^{key}:.*\n", lambda _: content, path.read_text(), flags=re.M)
        assert count == 1
        path.write_text(text)

    @staticmethod
    def _insert(path: Path, name: str, lines: str) -> None:
        text, count = re.subn(rf"^({name}\b.*[{{(]\n)", lambda head: head[1] + lines, path.read_text(), flags=re.M)
        assert count == 1, f"{path.name} has no {name}"
        path.write_text(text)

    def codes(self, runs: list[Any]) -> list[list[str]]:
        """Return the digests of the code of these runs and of their data, by the copy as it is now."""
        done = self._python("-c", CODES, stdin=json.dumps([run.as_dict() for run in runs]))
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def plan(self, **study: Any) -> subprocess.CompletedProcess:
        """Plan a study at tiny size, its runs listed in runs.yaml."""
        study["settings"] = merge(
            {key: TINY[key] for key in ("dataset", "teacher", "training", "compute")}, study["settings"]
        )
        (self.folder / "config/studies/docs.yaml").write_text(yaml.safe_dump({"title": "docs", **study}))
        return self._python("-m", "kd", "plan", "docs", "--write", "runs.yaml")

    def run(self, **study: Any) -> dict[str, dict[str, Any]]:
        """Plan a study and run it; return the record of each run by its folder."""
        planned = self.plan(**study)
        assert planned.returncode == 0, planned.stderr
        done = self.run_planned()
        assert done.returncode == 0, done.stderr
        files = sorted((self.folder / "results/runs").rglob("run.json"))
        return {str(file.parent.relative_to(self.folder / "results")): json.loads(file.read_text()) for file in files}

    def run_planned(self) -> subprocess.CompletedProcess:
        """Run what `plan` has listed."""
        return self._python("-m", "kd", "run", "--settings", "runs.yaml", "--device", "cpu", "--no-download")

    def shell(self, command: str) -> str:
        """Run a command line as one types it, with this environment's programs; return what it says."""
        programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        variables = {**os.environ, "PATH": programs, "PYTHONPATH": str(self.folder)}
        done = subprocess.run(command, shell=True, cwd=self.folder, env=variables, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    def _python(self, *command: str, stdin: str = "") -> subprocess.CompletedProcess:
        variables = {**os.environ, "PYTHONPATH": ""}
        return subprocess.run(
            [sys.executable, *command], input=stdin, cwd=self.folder, env=variables, capture_output=True, text=True
        )


def blocks(page: str, language: str) -> list[str]:
    """Return a page's code blocks in one language, also those inside a list."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", (ROOT / "docs" / page).read_text(), re.S | re.M)
    return [re.sub(f"^{indent}", "", content, flags=re.M) for indent, content in found]
