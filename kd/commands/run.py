"""train, score and write runs, with their data sets and teachers if missing"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from pathlib import Path

from kd.commands.arguments import add_results, device, path, positive
from kd.runs.folder import refuse_code_of_results
from kd.runtime.messages import ConfigError, kind_of
from kd.runtime.progress import inform
from kd.runtime.yaml_files import read_yaml
from kd.settings.run import Run
from kd.settings.shapes import Compute
from kd.studies.files import project


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--settings",
        type=path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="a run.json, YAML with the settings in one, or a list of runs as `plan --write` makes it",
    )
    parser.add_argument("--device", type=device, default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument(
        "--threads", type=positive, default=1, help="CPU threads (default: 1); their number decides last bits"
    )
    parser.add_argument("--capture", choices=("auto", "off"), default="auto", help="as compute.capture (default: auto)")
    parser.add_argument(
        "--compile", choices=("auto", "on", "off"), default="auto", help="as compute.compile (default: auto)"
    )
    parser.add_argument("--jobs", type=positive, default=1, help="processes that share the work (default: 1)")
    parser.add_argument(
        "--slots-per-gpu",
        type=positive,
        default=1,
        help="how many of them may share a GPU, where they take turns (default: 1)",
    )
    parser.add_argument(
        "--together",
        type=positive,
        default=1,
        metavar="N",
        help="runs that each process makes at the same time on its GPU, their steps in one CUDA graph (default: 1)",
    )
    parser.add_argument("--gpu", type=positive, default=1, metavar="N", help="as compute.gpu: GPUs of a run with data")
    parser.add_argument("--root", type=path, help="where the data set lies, as dataset.root in a study")
    parser.add_argument("--no-download", action="store_true", help="never download a data set")
    add_results(parser)


def do(given: argparse.Namespace) -> int:
    asked = [(run, file) for file in given.settings for run in runs_in(file)]
    for run, file in asked:
        refuse_code_of_results(run, given.results, file)
    runs = [run for run, _ in asked]
    if given.jobs > 1:
        return _share(given.arguments, given.jobs)
    from kd.data.raw import Source
    from kd.runs.worker import work_through

    names = ("device", "threads", "capture", "compile", "slots_per_gpu", "gpu")
    compute = Compute.by_hand(**{name: getattr(given, name) for name in names})
    source = Source(given.root, given.results / "data/downloads", not given.no_download)
    failed = work_through(runs, given.results, compute, source, together=given.together)
    for place, message in failed.items():
        inform(f"error: {place}: {message}")
    return 1 if failed else 0


def _share(arguments: list[str], jobs: int) -> int:
    """Run the command in that many processes and pass signals on to them."""
    workers: list[subprocess.Popen] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _frame: [worker.send_signal(number) for worker in workers])
    for _ in range(jobs):
        workers.append(subprocess.Popen([sys.executable, "-m", "kd", *arguments, "--jobs", "1"]))
    return max(worker.wait() for worker in workers)


def runs_in(file: Path) -> list[Run]:
    """Return the runs of a settings file, checked. Raises ConfigError."""
    from kd.settings.validation import validate_run

    content = read_yaml(file)  # JSON is YAML
    if not isinstance(content.get("settings", {}), dict):
        raise ConfigError(f"{file}: settings: got {kind_of(content['settings'])}; a mapping is needed")
    listed = content["runs"] if "runs" in content else [content.get("settings", content)]
    if not isinstance(listed, list) or not all(isinstance(settings, dict) for settings in listed):
        raise ConfigError(
            f"{file}: runs: got {kind_of(listed)}; a list of mappings, each with a run's settings, is needed"
        )
    runs = []
    for settings in listed:
        try:
            runs.append(Run.from_dict(settings))
        except ConfigError as error:
            raise ConfigError(f"{file}: {error}") from None
        validate_run(runs[-1], project(), str(file))
    return runs
