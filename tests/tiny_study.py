"""A tiny study in a copy of the project, and ways to start Snakemake on it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from conftest import PAIR, ROOT, TINY
from forked_dry_runs import DryRuns

from kd.settings.merging import merge

STUDY: dict[str, Any] = {
    "title": "Tiny",
    "settings": TINY,
    "methods": TINY["methods"],
    "ablations": {
        "no-priority": {"replay": {"alpha": 0.0, "beta": 0.0}},
        "no-modulation": {"modulation": {"diversity": 0.0, "gamma": 0.0}},
    },
    "experiments": {
        "data": {"view": "pairs", "pairs": [PAIR], "methods": ["scratch", "kd", "crd"], "seeds": [0]},
        "scale": {"view": "scale", "pairs": [PAIR], "methods": ["ssdkd"], "scales": [0.3, 0.6], "seeds": [0, 1]},
    },
}
JOB_BY_JOB = ("--quiet", "host")  # Snakemake's own words, in full but for its banner
CLAIMS = {
    "larger-is-better": {
        "says": "A larger {buffer} is better.",
        "tests": [{"of": {"method": "ssdkd", "scale": 0.6}, "to": {"method": "ssdkd", "scale": 0.3}, "above": 0}],
    }
}
STUDY["settings"] = {key: value for key, value in TINY.items() if key != "methods"}


def write_study(project: Path, name: str = "tiny", **changes: Any) -> Path:
    """Write STUDY with `changes` merged over it; an experiment that is None there is left out."""
    path = project / f"config/studies/{name}.yaml"
    content = merge(STUDY, changes)
    content["experiments"] = {key: value for key, value in content["experiments"].items() if value is not None}
    path.write_text(yaml.safe_dump(content))
    return path


def command_of(*arguments: str) -> list[str]:
    return [str(Path(sys.executable).with_name("snakemake")), "--config", "study=tiny", *arguments]


def environment_of(**environment: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}


def snakemake(project: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Start Snakemake on the study `tiny` and wait for its end."""
    env = environment_of(**environment)
    return subprocess.run(command_of(*arguments), cwd=project, capture_output=True, text=True, env=env, timeout=600)


def finish(project: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Start Snakemake on two cores; the test fails if it does."""
    done = snakemake(project, "--cores", "2", *arguments, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def planned(dry: DryRuns, *arguments: str, study: str = "tiny") -> dict[str, int]:
    """Return the jobs per rule of a dry run."""
    [(code, said)] = dry(["-n", "--quiet", "rules", "--config", f"study={study}", *arguments])
    assert code == 0, said
    return {rule: int(count) for rule, count in re.findall(r"^(\w+)\s+(\d+)$", said, re.M)}


def runs_of(counts: dict[str, int]) -> dict[str, int]:
    return {rule: counts[rule] for rule in ("train", "distill", "datafree") if rule in counts}
