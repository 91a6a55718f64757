"""The published tables on a GPU, a few minutes at a time: python benchmarks/gpu_evidence.py --minutes 9

Works through QUEUE, the runs in order of their value, on a machine that has torch, pandas, scipy and PyYAML and
nothing of the workflow. It may be stopped at any moment, by the clock, a signal or a machine that goes away, and goes
on another day, on another machine, from what it left in --out (brought up to date while it works, for the case that it
is killed without warning):

    evidence.md      tables and verdicts of what is done so far, which bars are met, what is left
    results.csv      a row per finished run, appended as it ends
    steps.json       with --steps: what gpu_steps.py has measured
    state.00, ...    the records of finished runs, the teachers, and the state of unfinished runs, in parts

Give the folder that these were brought to as --state the next time. Data sets may arrive in parts, too: --archives
unpacks gzip tars (cifar10/train/<class>/..., one part or several, in one call or in several), and runs whose data set
is not whole yet wait. Data-free students of kept teachers need the test images alone (gpu_test_images.py makes their
tar), and --bring-teacher brings one that was trained elsewhere. --commit names a file that holds the commit; it
wins over git.

Teachers are kept in half precision in results/reference/teachers (or --teachers), and their students learn from the
rounded weights from the start, so that a study gives the same numbers from a teacher just trained and from one brought.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

if find_spec("kd") is None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.append(str(Path(__file__).resolve().parent))

import travel
import yaml
from gpu_data import prepare, unpack
from gpu_plan import Queue
from gpu_rows import append_results, finished
from gpu_teachers import bring, keep_teachers
from gpu_verdicts import bars

from kd.reports.plan import plan_figures
from kd.reports.publish import publish
from kd.runtime.files import read_json, write_atomically
from kd.runtime.messages import ConfigError

ROOT = Path(__file__).resolve().parents[1]
SHARING = ("--together", "N")  # how `python -m kd run` makes N runs at once
REFERENCE = ROOT / "results/reference/teachers"
SAVE_SECONDS = 30  # how often the state in --out is brought up to date while runs are at work
GRACE_SECONDS = 40  # for workers to save their state before they are killed
RECORD = ("run.json", "metrics.json", "history.csv")

# ------------------------------------------------------------------------------------------------------------ at work


def work(queue: Queue, options: argparse.Namespace, until: float) -> None:
    """Start workers on the next runs until all are done, the time is over, or none can go on."""
    results, tried = options.results, set()
    while time.monotonic() < until:
        data = prepare(queue, options, finished(queue, results))
        bring(queue, options)
        attempt(keep_teachers, queue, options)
        todo = [run for run in queue.next(finished(queue, results), data) if run.path not in tried]
        if not todo:
            return
        tried |= {run.path for run in todo}
        for run in todo:  # a teacher's folder may hold only records
            for teacher in run.teachers or ():
                if not (results / teacher.path / "weights.pt").exists():
                    (results / teacher.path / "run.json").unlink(missing_ok=True)  # filled again from the kept teachers
        say(f"{len(todo)} runs, first {todo[0].path}")
        settings = results / "next.yaml"
        write_atomically(
            settings, lambda file, todo=todo: file.write(yaml.safe_dump({"runs": [r.as_dict() for r in todo]}).encode())
        )
        together = str(min(options.together, len(todo)))
        command = [sys.executable, "-P", "-m", "kd", "run", "--settings", str(settings), "--results", str(results)]
        command += [part.replace("N", together) for part in SHARING] + ["--device", options.device, "--no-download"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "KD_TEACHERS": str(options.teachers)}
        with (results / "work.log").open("ab") as log:  # in an own process group, to be killed together
            workers = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, process_group=0)
            saved = time.monotonic()
            try:
                while workers.poll() is None and time.monotonic() < until:
                    time.sleep(0.5)
                    if append_results(queue, options) or time.monotonic() - saved > SAVE_SECONDS:
                        save(queue, options)
                        saved = time.monotonic()
            finally:
                failed = workers.poll() not in (None, 0)
                end(workers)
        if failed:
            lines = (results / "work.log").read_text(encoding="utf-8", errors="replace").splitlines()[-40:]
            say("\n".join(["a worker ended with an error:", *lines]))
        save(queue, options)


def end(workers: subprocess.Popen) -> None:
    """Let workers save their state when the time is over or a signal came; one that hangs does not hold up the rest."""
    workers.send_signal(signal.SIGTERM)
    try:
        workers.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        say(f"workers that did not end in {GRACE_SECONDS} s are killed")
        os.killpg(workers.pid, signal.SIGKILL)
        workers.wait()


def save(queue: Queue, options: argparse.Namespace) -> list[str]:
    """Bring --out up to date, except evidence.md; return what there is to say about the state."""
    attempt(keep_teachers, queue, options)
    append_results(queue, options)
    return attempt(pack, queue, options) or []


def attempt(step: Callable, *arguments: Any) -> Any:
    """Run one part of the output; a failure in it must not keep the rest from being saved."""
    try:
        return step(*arguments)
    except Exception:
        say(traceback.format_exc())


def measure_steps(options: argparse.Namespace, until: float, arguments: list[str]) -> None:
    """Measure the steps while another process unpacks and prepares the data, so that neither waits for the other."""
    import gpu_steps

    other = subprocess.Popen([sys.executable, __file__, *arguments, "--only-data"])
    try:
        until = min(until, time.monotonic() + 60 * options.steps)
        gpu_steps.measure(options.out, until, options.miniature, options.device)
    finally:
        if (options.out / "steps.json").exists():  # --out may be emptied between calls
            shutil.copyfile(options.out / "steps.json", options.results / "steps.json")
        other.wait()


# -------------------------------------------------------------------------------------------------------------- output


def write_evidence(queue: Queue, options: argparse.Namespace) -> None:
    """Write evidence.md: what is done, bars, and the tables of each study so far; draw their figures if wanted."""
    done = finished(queue, options.results)
    lines = ["# Evidence from a GPU", "", "| section | runs | done |", "|---|---|---|"]
    lines += [f"| {title} | {len(runs)} | {sum(run.path in done for run in runs)} |" for title, runs in queue.sections]
    lines += ["", *bars(options.out / "results.csv"), ""]
    if (options.out / "steps.json").exists():
        import gpu_steps

        lines += ["## Steps: decisions and bars", "", gpu_steps.markdown(read_json(options.out / "steps.json"))]
    for key, study in queue.studies.items():
        folder = options.results / "studies" / key
        try:
            count = publish(study, folder, figures=options.figures)
        except ConfigError:  # nothing is finished
            continue
        lines += [f"<!-- {key}: {count} of {len(study.students)} runs -->", (folder / "table.md").read_text("utf-8")]
        if options.figures:
            shutil.copytree(folder / "figures", options.out / "figures" / key, dirs_exist_ok=True)
    write_atomically(options.out / "evidence.md", lambda file: file.write("\n".join(lines).encode()))


def pack(queue: Queue, options: argparse.Namespace) -> list[str]:
    """Write state.NN in --out: records, then teachers, arrays for figures, and the state of unfinished runs, most
    valuable first."""
    from kd.runs.kept_teachers import name_of

    results, done = options.results, finished(queue, options.results)
    records = [(path, name) for path in queue.runs if path in done for name in RECORD]
    needed = [(results / path / name, f"results/{path}/{name}") for path, name in records]
    needed += [(options.out / name, name) for name in ("results.csv", "steps.json") if (options.out / name).exists()]
    names = [
        name_of(run) + ending for path, run in queue.teachers.items() if path in done for ending in (".json", ".pt")
    ]
    unfinished = [(results / run.path / "checkpoint.pt", run.path) for run in queue.left(done)]
    checkpoints = [(file, f"results/{path}/{file.name}") for file, path in unfinished if file.exists()]
    sizes = (round(1e6 * size) for size in (options.part_mb, options.limit_mb))
    teachers = [(options.teachers / name, f"teachers/{name}") for name in names]
    return travel.pack(options.out, needed, teachers + shown(queue, results, done), checkpoints, *sizes)


def shown(queue: Queue, results: Path, done: set[str]) -> list[tuple[Path, str]]:
    """Return the arrays that figures of finished runs are drawn from, each with its name in the state."""
    plans = [figure for study in queue.studies.values() for figure in plan_figures(study, done)]
    paths = dict.fromkeys(path for figure in plans for path in figure.runs.values())
    files = [f"{path}/{name}" for path in paths for name in ("correlations.npz", "synthetic.npz")]
    return [(results / file, f"results/{file}") for file in files if (results / file).exists()]


def restore(options: argparse.Namespace) -> None:
    """Restore what an earlier call left on this machine, then what an earlier day left: records and states to where
    they were, teachers to the kept ones."""
    kept, steps = options.results / "steps.json", options.out / "steps.json"
    if kept.exists() and not steps.exists():
        shutil.copyfile(kept, steps)
    if options.state:
        places = {"results": options.results, "teachers": options.teachers}
        say(f"went on from {travel.unpack(options.state, places, options.out)} parts of state")


# ---------------------------------------------------------------------------------------------------------------- main


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=9.0, help="when to stop (default: 9)")
    parser.add_argument("--together", type=int, default=4, help="runs that share the GPU (default: 4)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--out", type=Path, default=ROOT / "results/gpu-evidence", help="tables, results, state")
    parser.add_argument("--state", type=Path, help="--out of an earlier day")
    parser.add_argument("--results", type=Path, default=ROOT / "results/gpu", help="where runs are made")
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="where data sets lie or are unpacked to")
    parser.add_argument("--archives", type=Path, nargs="*", default=[], help="gzip tars of data sets")
    parser.add_argument("--teachers", type=Path, default=REFERENCE, help="kept teachers")
    parser.add_argument(
        "--bring-teacher",
        nargs="*",
        default=[],
        metavar="DATA/MODEL=FILE",
        help="a state dict that stands for the queue's teachers of this data set and network, such as cifar10/wrn_40_2",
    )
    parser.add_argument("--commit", type=Path, help="a file that holds the commit: git is not asked")
    parser.add_argument("--part-mb", type=float, default=15.0, help="size of a part of the state (default: 15)")
    parser.add_argument("--limit-mb", type=float, default=60.0, help="size of the whole state (default: 60)")
    parser.add_argument(
        "--steps",
        type=float,
        nargs="?",
        const=math.inf,
        metavar="MINUTES",
        help="first measure benchmarks/gpu_steps.py, where not done yet, for so long (default: all of it)",
    )
    parser.add_argument("--only-data", action="store_true", help="unpack and prepare the data, and end")
    parser.add_argument("--figures", action="store_true", help="draw the studies' figures, too (takes matplotlib)")
    parser.add_argument("--sections", nargs="*", metavar="TITLE", help="only sections with one of these in their title")
    parser.add_argument("--miniature", action="store_true", help="the whole queue with tiny runs on the digits")
    options = parser.parse_args(arguments)
    for name in ("out", "results", "data", "teachers"):
        setattr(options, name, getattr(options, name).resolve())
    return options


def main(arguments: list[str] | None = None) -> int:
    """Return 0 when the queue is done, 3 while there is work left, 1 after a mistake or a failed run."""
    options = parsed(arguments)
    until = time.monotonic() + 60 * options.minutes
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    if options.commit:
        os.environ["KD_COMMIT"] = options.commit.read_text(encoding="utf-8").strip()
    try:
        if options.bring_teacher and options.teachers == REFERENCE:
            raise ConfigError("--bring-teacher: give --teachers FOLDER, too; with the project's it would be everyone's")
        for folder in (options.out, options.results):
            folder.mkdir(parents=True, exist_ok=True)
        if options.only_data:
            unpack(options.archives, options.data)
            prepare(Queue(options.results, options.miniature, options.sections), options, set())
            return 0
        restore(options)
        if options.steps:
            measure_steps(options, until, sys.argv[1:] if arguments is None else arguments)
        unpack(options.archives, options.data)
        queue = Queue(options.results, options.miniature, options.sections)
        try:
            work(queue, options, until)
        finally:
            for line in save(queue, options):
                say(line)
            attempt(write_evidence, queue, options)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    left = queue.left(finished(queue, options.results))
    failed = [run for run in left if (read_or_none(options.results / run.path / "ended.json") or {}).get("error")]
    for run in failed:
        say(f"failed: {run.path}: {read_json(options.results / run.path / 'ended.json')['error']}")
    say(f"{len(queue.runs) - len(left)} of {len(queue.runs)} runs are done")
    return 1 if failed else 3 if left else 0


def read_or_none(file: Path) -> Any:
    return read_json(file) if file.exists() else None


def _leave(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
