"""`python -m kd`: runs by hand, without Snakemake, MLflow or Optuna; what a study needs, and where it stands."""

from __future__ import annotations

import argparse
import io
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from kd.registry.published import PUBLISHED
from kd.runtime.files import whole_path, write_atomically
from kd.runtime.messages import ConfigError, disk_fault, kind_of
from kd.runtime.progress import inform
from kd.runtime.yaml_files import read_yaml
from kd.settings.run import Run
from kd.settings.shapes import Compute
from kd.studies.files import project


def main(arguments: list[str] | None = None) -> int:
    """Return 0, or 1 after a readable line on stderr per mistake or failed run."""
    parser = argparse.ArgumentParser(prog="python -m kd", description=__doc__)
    commands = parser.add_subparsers(required=True, dest="command")
    run = commands.add_parser("run", help="train, score and write runs, with their data sets and teachers if missing")
    run.add_argument(
        "--settings",
        type=_path,
        nargs="+",
        required=True,
        metavar="FILE",
        help="a run.json, YAML with the settings in one, or a list of runs as `plan --write` makes it",
    )
    run.add_argument("--device", type=_device, default="auto", help="auto, cpu, cuda, cuda:1, ...")
    run.add_argument(
        "--threads", type=_positive, default=1, help="CPU threads (default: 1); their number decides last bits"
    )
    run.add_argument("--capture", choices=("auto", "off"), default="auto", help="as compute.capture (default: auto)")
    run.add_argument(
        "--compile", choices=("auto", "on", "off"), default="auto", help="as compute.compile (default: auto)"
    )
    run.add_argument("--jobs", type=_positive, default=1, help="processes that share the work (default: 1)")
    run.add_argument(
        "--slots-per-gpu",
        type=_positive,
        default=1,
        help="how many of them may share a GPU, where they take turns (default: 1)",
    )
    run.add_argument(
        "--together",
        type=_positive,
        default=1,
        metavar="N",
        help="runs that each process makes at the same time on its GPU, their steps in one CUDA graph (default: 1)",
    )
    run.add_argument("--root", type=_path, help="where the data set lies, as dataset.root in a study")
    run.add_argument("--no-download", action="store_true", help="never download a data set")
    plan = commands.add_parser("plan", help="what a study would run, and what that costs")
    plan.add_argument("--write", type=_path, metavar="FILE", help="write the runs still to do, for `run --settings`")
    status = commands.add_parser("status", help="where a study stands, from its files only")
    tables = commands.add_parser("tables", help="tables and figures of a study's runs that are finished so far")
    tables.add_argument(
        "--out", type=_path, metavar="FOLDER", help="folder to write to (default: results/studies/<study>/so-far)"
    )
    tables.add_argument("--latency", action="store_true", help="first measure how fast the networks answer on this CPU")
    compares = commands.add_parser("compare", help="what methods differ by: accuracy, paired difference, seconds")
    compares.add_argument(
        "sides",
        nargs="+",
        metavar="RUNS",
        help="METHOD[,ABLATION][,KEY=VALUE ...], at least two: ssdkd fast, or ssdkd ssdkd,none,scale=0.1; "
        "the first is compared with each of the others",
    )
    compares.add_argument(
        "--study", nargs="+", default=[], help="names or paths, several too; default: as config.yaml says"
    )
    compares.add_argument("--measure", default="accuracy", help="a column of the results (docs/results.md)")
    compares.add_argument("--format", choices=("text", "markdown", "latex", "csv"), default="text")
    compares.add_argument(
        "--above",
        type=float,
        metavar="X",
        help="exit with 0 if all intervals lie above X, with 4 if one lies below, else with 3",
    )
    imports = commands.add_parser("import", help="a network that another code has trained, as a teacher's weights")
    imports.add_argument("file", type=_path, help="its checkpoint or state dict")
    imports.add_argument("--from", choices=PUBLISHED, required=True, dest="source", help="the code that wrote the file")
    imports.add_argument("--model", required=True, help="the network, by kd's name (docs/add-a-model.md) or the code's")
    imports.add_argument(
        "--image-size", type=_positive, metavar="N", help="pixels, for torchvision's (default: 224); vit_* need theirs"
    )
    imports.add_argument("--out", type=_path, metavar="FILE", help="file to write (default: <model>-<from>.pt, here)")
    export = commands.add_parser("export", help="a finished run's network in one file, ready to use elsewhere")
    export.add_argument("folders", type=_path, nargs="+", metavar="RUN", help="a run's folder")
    export.add_argument(
        "--to",
        choices=("torch", "onnx", "bundle"),
        action="append",
        help="torch: a program that needs only torch; onnx; bundle: weights and description, for kd (default: torch)",
    )
    export.add_argument("--latency", action="store_true", help="measure its seconds on this CPU as well")
    for command in (tables, export):
        command.add_argument("--threads", type=_positive, default=1, help="CPU threads (default: 1)")
    sync = commands.add_parser("sync", help="send to MLflow what it lacks: a study's runs and tables, or all runs")
    sync.add_argument("--to", metavar="URI", help="another store than tracking.uri, $MLFLOW_TRACKING_URI or the file")
    for command in (run, sync):
        command.add_argument("--results", type=_path, default=Path("results"), help="results folder (default: results)")
    for command in (plan, status, tables, sync, compares):
        command.add_argument(
            "--config", nargs="*", action="extend", default=[], metavar="KEY=VALUE", help="as Snakemake's --config"
        )
    for command in (plan, status, tables, sync):
        default = "all runs of --results" if command is sync else "as config.yaml says"
        command.add_argument("study", nargs="?", help=f"name or path, as --config study=...; default: {default}")
    if isinstance(sys.stdout, io.TextIOWrapper):  # a locale that lacks a title's letters
        sys.stdout.reconfigure(errors="backslashreplace")
    given = parser.parse_args(arguments)
    given.arguments = sys.argv[1:] if arguments is None else arguments
    try:
        return COMMANDS[given.command](given)
    except ConfigError as error:
        print("\n".join(f"error: {line}" for line in str(error).splitlines()), file=sys.stderr)
        return 1
    except BrokenPipeError:  # of a reader such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if not (fault := disk_fault(error)):
            raise
        print(f"error: {fault}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _path(text: str) -> Path:
    try:
        return Path(whole_path(text))
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda|cuda:[0-9]+", text):
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed: auto, cpu, cuda, cuda:0, cuda:1, ...")
    return text


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed: 1 or more")
    return int(text)


def _run(given: argparse.Namespace) -> int:
    runs = [run for file in given.settings for run in _runs_in(file)]
    if given.jobs > 1:
        return _share(given.arguments, given.jobs)
    from kd.data.raw import Source
    from kd.runs.worker import work_through

    names = ("device", "threads", "capture", "compile", "slots_per_gpu")
    compute = Compute.by_hand(**{name: getattr(given, name) for name in names})
    source = Source(given.root, given.results / "data/downloads", not given.no_download)
    failed = work_through(runs, given.results, compute, source, together=given.together)
    for path, message in failed.items():
        inform(f"error: {path}: {message}")
    return 1 if failed else 0


def _share(arguments: list[str], jobs: int) -> int:
    """Run the command in that many processes and pass signals on to them."""
    workers: list[subprocess.Popen] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _frame: [worker.send_signal(number) for worker in workers])
    for _ in range(jobs):
        workers.append(subprocess.Popen([sys.executable, "-m", "kd", *arguments, "--jobs", "1"]))
    return max(worker.wait() for worker in workers)


def _runs_in(file: Path) -> list[Run]:
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


def _plan(given: argparse.Namespace) -> int:
    from kd.studies.inputs import require_data, require_results_folder
    from kd.studies.status import plan, to_do

    study = _study(given)
    if not given.write:  # a list of runs is for another machine, where the data may lie elsewhere
        require_results_folder(study.root)
        require_data(study)
    print(plan(study))
    if given.write:
        content = {"runs": [run.as_dict() for run in to_do(study)]}
        try:
            given.write.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"--write: {given.write} cannot be written ({error})") from None
        print(f"{len(content['runs'])} runs written to {given.write}")
    return 0


def _status(given: argparse.Namespace) -> int:
    from kd.studies.status import status

    print(status(_study(given)))
    return 0


def _tables(given: argparse.Namespace) -> int:
    from kd.reports.publish import publish

    study = _study(given)
    folder = given.out or study.root / "studies" / study.name / "so-far"
    if given.latency:
        _measure(study, given.threads)
    print(f"{publish(study, folder)} of {len(study.students)} runs: {folder / 'table.md'}")
    return 0


def _compare(given: argparse.Namespace) -> int:
    import pandas as pd

    from kd.reports.compare import FORMATS, compare, side, verdict
    from kd.reports.results import load_results
    from kd.studies.command_line import settings_from

    sides, chosen = [side(text) for text in given.sides], settings_from(given.config)
    if len(sides) < 2:
        raise ConfigError(f"compare: got one group of runs, {given.sides[0]!r}; name what it is compared with, too")
    results = pd.concat([load_results(study, **chosen) for study in given.study or [None]], ignore_index=True)
    compared = compare(results, sides, given.measure)
    print(FORMATS[given.format](compared, given.measure), end="")
    holds = True if given.above is None else verdict(compared, given.above)
    return {True: 0, None: 3, False: 4}[holds]


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


def _study(given: argparse.Namespace) -> Any:
    from kd.studies.command_line import settings_from
    from kd.studies.study import asked_study

    return asked_study(given.study, settings_from(given.config))


def _sync(given: argparse.Namespace) -> int:
    from kd.integrations.jobs import close_study, sync_all

    if given.study or given.config:
        if given.results != Path("results"):
            given.config.append(f"results={given.results}")
        sent = close_study(_study(given), print, given.to)
    else:
        settings = read_yaml(project() / "config/config.yaml").get("tracking") or {"uri": None}
        sent = sync_all(given.results, settings, print, given.to)
    print(f"{sent} runs sent")
    return 0


def _import(given: argparse.Namespace) -> int:
    import torch

    from kd.models.imported import read, study_lines

    imported = read(given.file, given.source, given.model, given.image_size)
    out = given.out or Path(f"{imported.model.replace(':', '-')}-{given.source}.pt")
    if out.exists():
        raise ConfigError(f"--out: {out} exists already; name another file, or remove it")
    write_atomically(out, lambda file: torch.save(imported.network.state_dict(), file))
    left_out = f", {len(imported.left_out)} tensors of heads for training left out" if imported.left_out else ""
    print(f"{out}: {imported.model}, {imported.network.num_classes} classes, all {imported.tensors} tensors{left_out}")
    print(f"In a study:\n\n{study_lines(imported, given.source, out)}", end="")
    return 0


def _export(given: argparse.Namespace) -> int:
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


COMMANDS = {"run": _run, "plan": _plan, "status": _status, "tables": _tables, "compare": _compare}
COMMANDS |= {"import": _import, "export": _export, "sync": _sync}

if __name__ == "__main__":
    sys.exit(main())
