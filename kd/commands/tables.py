"""tables and figures of a study's runs that are finished so far"""

from __future__ import annotations

import argparse
from typing import Any

from kd.commands.arguments import add_study, add_threads, path, study_of


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=path, metavar="FOLDER", help="folder to write to (default: results/studies/<study>/so-far)"
    )
    parser.add_argument("--latency", action="store_true", help="first measure how fast the networks answer on this CPU")
    add_threads(parser)
    add_study(parser)


def do(given: argparse.Namespace) -> int:
    from kd.reports.publish import publish

    study = study_of(given)
    folder = given.out or study.root / "studies" / study.name / "so-far"
    if given.latency:
        _measure(study, given.threads)
    print(f"{publish(study, folder)} of {len(study.students)} runs: {folder / 'table.md'}")
    return 0


def _measure(study: Any, threads: int) -> None:
    """Keep in the folder of one run for each network of the study how fast that answers."""
    import torch

    from kd.reports.networks_table import representatives
    from kd.reports.results import finished
    from kd.runs.export import read_run
    from kd.runs.latency import latency

    torch.set_num_threads(threads)
    for folder in representatives(finished(study), study.root):
        found = read_run(folder)
        measured = latency(found.ready, found.images[:1])
        measured.keep(folder)
        print(f"{found.card['model']}: {measured}", flush=True)
