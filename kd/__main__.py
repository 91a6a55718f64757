"""`python -m kd`: every step by hand, without Snakemake, MLflow or Optuna."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from kd.config import Compute, ConfigError, Run, read_yaml


def main(arguments: list[str] | None = None) -> int:
    """0, or 1 after one readable line on stderr."""
    parser = argparse.ArgumentParser(prog="python -m kd", description=__doc__)
    commands = parser.add_subparsers(required=True, dest="command")
    run = commands.add_parser("run", help="train, score and write one run, with its data set and teacher if missing")
    run.add_argument("--settings", type=Path, required=True, help="a run.json, or YAML with the settings in one")
    run.add_argument("--results", type=Path, default=Path("results"), help="the results folder (default: results)")
    run.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    run.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1); their number decides last bits")
    sync = commands.add_parser("sync", help="send to MLflow what it missed while it was away")
    sync.add_argument("--results", type=Path, default=Path("results"))
    given = parser.parse_args(arguments)
    try:
        return {"run": _run, "sync": _sync}[given.command](given)
    except (ConfigError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _run(given: argparse.Namespace) -> int:
    from kd.data.prepare import prepare
    from kd.run import run_step

    compute = Compute(
        given.device, given.threads, checkpoint_seconds=60.0, freeze_code=False, gpu=1, mem_mb=1, runtime=1
    )
    wanted = Run.from_dict(_settings(given.settings))
    for run in filter(None, (wanted.teacher, wanted)):
        folder, data = given.results / run.path, given.results / run.data_path
        if not data.exists():
            prepare(run.dataset, data)
        if run is wanted or not (folder / "weights.pt").exists():
            teacher = run.teacher and given.results / run.teacher.path / "weights.pt"
            metrics = run_step(run, folder, data, teacher, compute)
            print(f"{folder}: accuracy {metrics['accuracy']:.2f} %")
    return 0


def _settings(path: Path) -> dict[str, Any]:
    content = read_yaml(path)  # JSON is YAML
    return content["settings"] if isinstance(content.get("settings"), dict) else content


def _sync(given: argparse.Namespace) -> int:
    from kd.tracking import sync

    print(f"{sync(given.results)} runs sent")
    return 0


if __name__ == "__main__":
    sys.exit(main())
