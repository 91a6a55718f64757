"""Fixed cost of a job: from the start of its process to its first training step, on the CPU, through Snakemake.

    python benchmarks/startup.py [--rounds 5]

Runs the three kinds of job of a tiny study on the digits and watches them from outside: the process's own creation
time, and the first checkpoint, which a job told to save at every boundary writes just before its first step. Prints the
median of the rounds. The bar is 6 seconds.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import yaml

ROOT = Path(__file__).resolve().parent.parent
BAR = 6.0
STUDY = {
    "title": "Start-up",
    "settings": {
        "dataset": {"image_size": 8},
        "teacher": {"training": {"epochs": 1, "milestones": []}},
        "training": {"epochs": 1, "milestones": []},
        "inversion": {"generator": {"warmup": 1, "batch_size": 16}},
        "distillation": {"training": {"epochs": 1, "batch_size": 16}},
        "compute": {"device": "cpu", "checkpoint_seconds": 1e-9},
    },
    "experiments": {
        "all": {
            "pairs": [["resnet8", "wrn_10_1"]],
            "methods": ["scratch", "crd", "ssdkd"],
            "scales": [1.0],
            "seeds": [0],
        }
    },
}


def seconds_to_first_step(project: Path) -> dict[str, float]:
    """One study, job after job: folder of each run -> seconds from its process's creation to its first checkpoint."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [
        str(Path(sys.executable).with_name("snakemake")),
        "--config",
        "study=startup",
        "--cores",
        "1",
        "-q",
        "all",
    ]
    study = subprocess.Popen(command, cwd=project, env=environment)
    found: dict[str, float] = {}
    while study.poll() is None:
        for file in project.glob("results/runs/**/checkpoint.pt"):
            name = file.parent.parent.name
            if name not in found:
                first_step = file.stat().st_ctime
                jobs = [child for child in psutil.Process(study.pid).children(recursive=True) if _is_job(child)]
                if jobs:
                    found[name] = first_step - max(job.create_time() for job in jobs)
        time.sleep(0.01)
    if study.returncode:
        raise SystemExit(f"the study ended with code {study.returncode}")
    return found


def _is_job(process: psutil.Process) -> bool:
    try:
        return any("scripts" in part and part.endswith(".py") for part in process.cmdline())
    except psutil.Error:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    times: dict[str, list[float]] = {}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            project = Path(folder)
            for name in ("workflow", "config"):
                shutil.copytree(ROOT / name, project / name)
            for name in ("Snakefile", "environment.yml"):
                shutil.copy(ROOT / name, project)
            (project / "config/studies/startup.yaml").write_text(yaml.safe_dump(STUDY), encoding="utf-8")
            for name, seconds in seconds_to_first_step(project).items():
                times.setdefault(name.rsplit("-", 1)[0], []).append(seconds)
    print(f"{'job':12} {'median s':>9} {'worst s':>9}   bar {BAR:.0f} s, {rounds} rounds")
    for name, values in sorted(times.items()):
        print(f"{name:12} {statistics.median(values):9.2f} {max(values):9.2f}")


if __name__ == "__main__":
    main()
