"""Commands as processes of their own: what they say, their seconds and their memory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile

import psutil
from conftest import ROOT

from kd.studies import status as state
from kd.studies.study import Study


@dataclass(frozen=True)
class Measured:
    said: str
    wall: float
    processor: float
    megabytes: float

    @property
    def seconds(self) -> float:
        """What it takes on an idle machine: the rest of `wall` is the time of others."""
        return min(self.wall, self.processor)

    def __str__(self) -> str:
        load = psutil.getloadavg()[0]
        return f"{self.wall:.2f} s, {self.processor:.2f} s of a processor, {self.megabytes:.0f} MB, load {load:.1f}"


def dry_run(project: Path, study: str) -> Measured:
    command = [str(Path(sys.executable).with_name("snakemake")), "-n", "--quiet", "rules", "--config", f"study={study}"]
    return measured(command, project, PYTHONPATH=str(ROOT))


def measured(command: list[str], folder: Path, **environment: str) -> Measured:
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    start = time.monotonic()
    with TemporaryFile("w+") as out:
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=out, stderr=subprocess.STDOUT)
        megabytes = 0.0
        while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
            # the largest so far; `ru_maxrss` would count this process, from which that one was forked
            peak = re.search(r"^VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text(), re.MULTILINE)
            megabytes = float(peak[1]) / 1024 if peak else megabytes
            time.sleep(0.02)
        wall = time.monotonic() - start
        process.returncode = os.waitstatus_to_exitcode(ended[1])
        out.seek(0)
        said = out.read()
    assert process.returncode == 0, said[-2000:]
    return Measured(said, wall, ended[2].ru_utime + ended[2].ru_stime, megabytes)


def jobs_of(said: str) -> dict[str, int]:
    wanted = ("train", "distill", "datafree", "prepare_data")
    found = {rule: int(count) for rule, count in re.findall(r"^(\w+)\s+(\d+)$", said, re.MULTILINE)}
    return {rule: found[rule] for rule in wanted if rule in found}


def planned(study: Study) -> dict[str, int]:
    line = re.search(r"^jobs +(.*)$", state.plan(study), re.MULTILINE)[1]
    return {} if line == "none" else {name: int(count) for count, name in (item.split() for item in line.split(", "))}
