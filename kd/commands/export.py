"""a finished run's network in one file, ready to use elsewhere"""

from __future__ import annotations

import argparse

from kd.commands.arguments import add_threads, path


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folders", type=path, nargs="+", metavar="RUN", help="a run's folder")
    parser.add_argument(
        "--to",
        choices=("torch", "onnx", "bundle"),
        action="append",
        help="torch: a program that needs only torch; onnx; bundle: weights and description, for kd (default: torch)",
    )
    parser.add_argument("--latency", action="store_true", help="measure its seconds on this CPU as well")
    add_threads(parser)


def do(given: argparse.Namespace) -> int:
    import torch

    from kd.runs.export import export, read_run
    from kd.runs.latency import latency

    torch.set_num_threads(given.threads)
    for folder in given.folders:
        found = read_run(folder)
        for file, difference in export(found, folder, given.to or ["torch"]).items():
            size = file.stat().st_size / 1e6
            print(f"{file}: {size:.1f} MB; its logits are the run's, to {difference:.0e} of the largest", flush=True)
        if given.latency:
            measured = latency(found.ready, found.images[:1])
            measured.keep(folder)
            print(f"{folder}: {measured}")
    return 0
