"""Whole studies whose Snakemake is killed or stopped at a drawn moment, and then started again."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from conftest import copy_project
from fault_kinds import Outcome, last_line
from fault_steps import STUDY, differences
from tiny_study import command_of, environment_of, write_study

ALL, MAIN, STOP, INTERRUPT = "SIGKILL to all", "SIGKILL to Snakemake only", "SIGTERM to all", "SIGINT to all"
SIGNALS = {ALL: signal.SIGKILL, MAIN: signal.SIGKILL, STOP: signal.SIGTERM, INTERRUPT: signal.SIGINT}
KINDS = tuple(SIGNALS)
TARGET = "results/studies/tiny/results.csv"  # needs all runs, and no figures
SECONDS = 900  # after which a study counts as hung


class Studies:
    """A study in miniature, its undisturbed results, and faults to it."""

    name = "a study: Snakemake"

    def __init__(self, folder: Path, seed: int):
        self.folder, self.draw = folder, random.Random(f"{seed} studies")
        folder.mkdir(parents=True)
        self.reference = self._project("undisturbed")
        started = time.monotonic()
        code, said = self._finish(self.reference)
        if code:
            raise RuntimeError(f"the undisturbed study ended with {code}: {said[-2000:]}")
        self.seconds = time.monotonic() - started

    def faults(self, number: int) -> list[Callable[[], Outcome]]:
        """Return that many faults, of each kind as many, at drawn moments."""
        moments = [(KINDS[each % len(KINDS)], self.draw.uniform(0.1, 0.95) * self.seconds) for each in range(number)]
        return [
            lambda each=each, kind=kind, after=after: self.suffer(f"study{each}", kind, after)
            for each, (kind, after) in enumerate(moments)
        ]

    def suffer(self, name: str, kind: str, after: float) -> Outcome:
        """Stop a new study by that kind of signal after some seconds, start it again, and compare."""
        project, started = self._project(name), time.monotonic()
        with (project / "said.txt").open("wb") as said:
            process = subprocess.Popen(**self._start(project), stdout=said, stderr=said, start_new_session=True)
            time.sleep(after)
            to = os.kill if kind == MAIN else os.killpg
            if process.poll() is None:
                to(process.pid, SIGNALS[kind])
            try:
                code = process.wait(SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                code = process.wait()
        begun = sum(1 for _ in project.glob("results/runs/**/checkpoint.pt"))
        first = (project / "said.txt").read_text("utf-8", errors="replace")
        (project / "said.txt").unlink()
        subprocess.run(command_of("--unlock"), cwd=project, env=environment_of(), capture_output=True, timeout=SECONDS)
        again, text = self._finish(project)
        logs = "".join(file.read_text("utf-8") for file in project.glob("results/logs/**/*.txt"))
        differ, left, aside = differences(project / "results/runs", self.reference / "results/runs")
        tables, more, _ = differences(project / "results/studies", self.reference / "results/studies")
        differ += tables + ([f"it ended with {again}: {text[-300:]}"] if again else [])
        resumed = "resumed from" in logs or "waiting for it" in logs
        result = "differing" if differ else "lost" if begun and not resumed else "equal"
        traced = "Traceback (most recent call last)" in first + text + logs
        told = last_line(text) if again else ""
        went_on = "resumed" if resumed else "from the start"
        place, ends = f"after {after:.1f} of {self.seconds:.1f} s", f"exit code {code}"
        parts = (told, int(traced), "; ".join(left + more), "; ".join(aside), "; ".join(differ))
        seconds = round(time.monotonic() - started, 2)
        if result == "equal" and not traced:
            shutil.rmtree(project, ignore_errors=True)
        return Outcome(self.name, kind, place, ends, went_on, result, *parts, seconds)

    def _project(self, name: str) -> Path:
        """Return a new copy of the project's workflow with the study."""
        folder = self.folder / name
        folder.mkdir()
        project = copy_project(folder)
        settings = STUDY["settings"] | {"compute": {"device": "cpu", "checkpoint_seconds": 0.001, "pretrained": False}}
        only = {"scale": {"scales": [0.3]}}
        write_study(project, settings=settings, experiments=STUDY["experiments"] | only)
        return project

    def _start(self, project: Path) -> dict:
        return {"args": command_of("--cores", "1", TARGET), "cwd": project, "env": environment_of()}

    def _finish(self, project: Path) -> tuple[int, str]:
        done = subprocess.run(**self._start(project), capture_output=True, timeout=SECONDS)
        return done.returncode, (done.stdout + done.stderr).decode(errors="replace")
