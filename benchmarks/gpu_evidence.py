"""The published tables on a GPU, a few minutes at a time: python benchmarks/gpu_evidence.py --minutes 9 --jobs 4

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
is not whole yet wait. Where there is no git history, --commit names a file that holds the commit.

Teachers are kept in half precision in results/reference/teachers (or --teachers), and their students learn from the
rounded weights from the start, so that a study gives the same numbers from a teacher just trained and from one brought.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

if find_spec("kd") is None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.append(str(Path(__file__).resolve().parent))

import numpy as np
import pandas as pd
import travel
import yaml

from kd.reports.plan import plan_figures
from kd.reports.publish import publish
from kd.reports.tables import collect
from kd.runtime.files import read_json, write_atomically
from kd.runtime.messages import ConfigError
from kd.settings.merging import merge
from kd.settings.run import Run
from kd.studies.claims import interval
from kd.studies.study import Study, load_study

ROOT = Path(__file__).resolve().parents[1]
SAVE_SECONDS = 30  # how often the state in --out is brought up to date while runs are at work
GRACE_SECONDS = 40  # for workers to save their state before they are killed
TEACHERS_AHEAD = 2  # trained beside the runs that are ready: the GPU is never without work, nor full of what comes late
RECORD = ("run.json", "metrics.json", "history.csv")
WHOLE = {"cifar10": 60_000, "cifar100": 60_000}  # images
ENDINGS = (".webp", ".png")

# A schedule for GPUs: 97 steps an epoch instead of 390. Predicted: 95.2 % and 76 % in about 150 s; measured: not yet.
TEACHER = {"training": {"epochs": 120, "batch_size": 512, "lr": 0.4, "nesterov": True, "weight_decay": 0.0005}}
WRN: dict[str, Any] = {"teacher": TEACHER, "training": TEACHER["training"]}
RESNET = {**WRN, "precision": "bf16"}  # fills the GPU; its 16-20 PFLOP take minutes in float32


@dataclass(frozen=True)
class Section:
    """Runs of one study that belong together: `given` as on the command line, `rows` of the study's table."""

    title: str
    study: str
    rows: dict[str, Any]
    given: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Bar:
    """Seconds that a run may take, of wall-clock time per run where several share the GPU; accuracy by data set."""

    what: str
    rows: dict[str, Any]
    seconds: float
    accuracy: dict[str, float] = field(default_factory=dict)


def _pair(teacher: str, *students: str) -> dict[str, Any]:
    return {"teacher": [teacher], "student": list(students)}


AT_TEN = {"experiment": ["pairs"], "method": ["ssdkd", "fast10", "original"]}
QUEUE = [
    *(
        Section(f"WRN-40-2 to WRN-16-1, {name}", name, {**AT_TEN, **_pair("wrn_40_2", "wrn_16_1")}, WRN)
        for name in ("ssdkd-cifar10", "ssdkd-cifar100")
    ),
    *(
        Section(f"WRN-40-2 to other WRN, {name}", name, {**AT_TEN, **_pair("wrn_40_2", "wrn_16_2", "wrn_40_1")}, WRN)
        for name in ("ssdkd-cifar10", "ssdkd-cifar100")
    ),
    *(
        Section(f"ResNet-34 to ResNet-18, {name}", name, {**AT_TEN, **_pair("resnet34", "resnet18")}, RESNET)
        for name in ("ssdkd-cifar10", "ssdkd-cifar100")
    ),
    Section(
        "bf16 beside float32",
        "ssdkd-cifar10",
        {**AT_TEN, "method": ["ssdkd"], **_pair("wrn_40_2", "wrn_16_1")},
        {**WRN, "precision": "bf16"},
    ),
    *(
        Section(f"{title}, {name}", name, {"experiment": [experiment], **_pair("wrn_40_2", "wrn_16_1")}, WRN)
        for title, experiment in (("Scales", "scale"), ("Modules", "modules"), ("Fast at 100 %", "full-scale"))
        for name in ("ssdkd-cifar10", "ssdkd-cifar100")
    ),
    Section(
        "CRD, WRN-40-2 to WRN-16-2",
        "crd-cifar100",
        {"method": ["scratch", "kd", "crd", "crd-kd"], **_pair("wrn_40_2", "wrn_16_2")},
    ),
]
SSDKD = {"method": ["ssdkd"], "ablation": ["full"], "scale": [0.1]}
BARS = [
    Bar("SSD-KD, WRN-40-2 to WRN-16-1", {**SSDKD, **_pair("wrn_40_2", "wrn_16_1")}, 60),
    Bar("SSD-KD, ResNet-34 to ResNet-18", {**SSDKD, **_pair("resnet34", "resnet18")}, 120),
    Bar(
        "teacher WRN-40-2", {"method": ["teacher"], "student": ["wrn_40_2"]}, 180, {"cifar10": 94.87, "cifar100": 75.83}
    ),
]
# Fang et al., AAAI 2022, with teachers of their own: teacher, student alone, Fast10, in %.
PUBLISHED = {
    ("cifar10", "wrn_40_2", "wrn_16_1"): (94.87, 91.12, 89.29),
    ("cifar10", "wrn_40_2", "wrn_40_1"): (94.87, 93.94, 92.51),
    ("cifar10", "wrn_40_2", "wrn_16_2"): (94.87, 93.95, 92.45),
    ("cifar10", "resnet34", "resnet18"): (95.70, 95.20, 94.05),
    ("cifar100", "wrn_40_2", "wrn_16_1"): (75.83, 65.31, 54.02),
    ("cifar100", "wrn_40_2", "wrn_40_1"): (75.83, 72.19, 63.91),
    ("cifar100", "wrn_40_2", "wrn_16_2"): (75.83, 73.56, 65.12),
    ("cifar100", "resnet34", "resnet18"): (78.05, 77.10, 74.34),
}
# The same queue in minutes on a CPU: the digits in place of CIFAR, the smallest networks, single epochs.
MINIATURE: dict[str, Any] = {
    "dataset": {"name": "digits", "image_size": 8, "pad": 1, "flip": False},
    "teacher": {
        "training": {"epochs": 2, "batch_size": 64, "lr": 0.1, "schedule": "cosine", "milestones": [], "nesterov": True}
    },
    "training": {"epochs": 1, "batch_size": 64, "lr": 0.1, "schedule": "cosine", "milestones": []},
    "inversion": {"generator": {"batch_size": 16, "warmup": 1, "noise_dim": 8, "width": 4, "reset_epoch": 1}},
    "replay": {"full_size": 200},
    "distillation": {"passes": 1.0, "training": {"epochs": 2, "batch_size": 16, "lr": 0.05}},
}
SMALL = {"wrn_40_2": "wrn_10_2", "wrn_16_2": "resnet14", "wrn_40_1": "wrn_16_1", "wrn_16_1": "wrn_10_1"}
SMALL |= {"resnet34": "resnet20", "resnet18": "resnet8"}


# --------------------------------------------------------------------------------------------------------- what to do


class Queue:
    """The runs of QUEUE in order, and the studies that they are rows of. A run that two sections name is made once."""

    def __init__(self, results: Path, miniature: bool, titles: list[str] | None = None):
        self.studies: dict[str, Study] = {}
        self.sections: list[tuple[str, list[Run]]] = []
        self.asked: dict[str, list[str]] = {}  # study's key -> paths of its runs
        queue = [section for section in QUEUE if not titles or any(title in section.title for title in titles)]
        if not queue:
            raise ConfigError(f"--sections: none of {titles} is part of a title; there are {[s.title for s in QUEUE]}")
        for section in queue:
            key, study = self._study(section, results, miniature)
            table = study.table[_matches(study.table, section.rows, miniature)]
            runs = [study.runs[path] for path in dict.fromkeys(table.sort_values("seed", kind="stable")["path"])]
            if not runs:
                raise ConfigError(f"{section.study}: no run of section {section.title!r}; correct QUEUE")
            known = {run.path for _, earlier in self.sections for run in earlier}
            self.sections.append((section.title, [run for run in runs if run.path not in known]))
            self.asked.setdefault(key, []).extend(run.path for run in runs)
        students = [run for _, runs in self.sections for run in runs]
        self.teachers = {teacher.path: teacher for run in students for teacher in run.teachers or ()}
        self.runs = {run.path: run for run in students} | self.teachers

    def _study(self, section: Section, results: Path, miniature: bool) -> tuple[str, Study]:
        given: dict[str, Any] = {"study": section.study, "results": str(results), **section.given}
        key = f"{section.study}-{given.get('precision', 'float32')}"
        if key not in self.studies:
            study = _load(given)
            if miniature:
                study = _load(merge(given, MINIATURE, {"study": str(_small(section.study, study))}))
            self.studies[key] = study
        return key, self.studies[key]

    def next(self, done: set[str], datasets: set[str]) -> list[Run]:
        """What to start now, most valuable first: all runs whose teachers are there, up to the first section that lacks
        one; then teachers that the sections from there on lack. Where nothing else can start, the first teacher has the
        GPU for itself: all the rest waits for it. Data sets that are not whole are left out."""
        ready: list[Run] = []
        lacking: dict[str, Run] = {}
        for _, runs in self.sections:
            runs = [run for run in runs if run.path not in done and run.dataset.name in datasets]
            lacking |= {t.path: t for run in runs for t in run.teachers or () if t.path not in done}
            if not lacking:
                ready += runs
        return ready + list(lacking.values())[: TEACHERS_AHEAD if ready else 1]

    def left(self, done: set[str]) -> list[Run]:
        """All runs that are not done, teachers of unfinished students included."""
        students = [run for _, runs in self.sections for run in runs if run.path not in done]
        teachers = {teacher.path: teacher for run in students for teacher in run.teachers or ()}
        return [teacher for path, teacher in teachers.items() if path not in done] + students

    def section_of(self, run: Run) -> str:
        return next((title for title, runs in self.sections if run in runs), "teachers")


def _matches(table: pd.DataFrame, rows: dict[str, Any], miniature: bool) -> pd.Series:
    if miniature:
        rows = {key: [SMALL.get(value, value) for value in values] for key, values in rows.items()}
    return pd.concat([table[key].isin(values) for key, values in rows.items()], axis=1).all(axis=1)


def _load(given: dict[str, Any]) -> Study:
    return load_study(ROOT / "config/config.yaml", ROOT / "workflow/schemas", given)


def _small(name: str, study: Study) -> Path:
    """A study that extends another: small networks and banks, one seed, no experiment whose networks are not small."""
    experiments: dict[str, Any] = {}
    for experiment, rows in study.table.groupby("experiment"):
        found = rows[["teacher", "student"]].drop_duplicates().itertuples(index=False)
        pairs = [[SMALL[teacher], SMALL[student]] for teacher, student in found if {teacher, student} <= set(SMALL)]
        fits = pairs and "fsp" not in set(rows["method"])  # which needs equal widths
        experiments[experiment] = {"pairs": pairs, "seeds": [0]} if fits else None
    content: dict[str, Any] = {"extends": str(ROOT / f"config/studies/{name}.yaml"), "claims": None}
    bank = {"objective": {"crd": {"negatives": 64, "feat_dim": 16}}}
    content |= {"experiments": experiments, "methods": {"crd": bank, "crd-kd": bank}}
    file = study.root / f"miniature/{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(content))
    return file


# ------------------------------------------------------------------------------------------------------------ at work


def work(queue: Queue, options: argparse.Namespace, until: float) -> None:
    """Start workers on what is next until all is done, the time is over, or no run can go on."""
    results, tried = options.results, set()
    while time.monotonic() < until:
        attempt(keep_teachers, queue, options)
        done = finished(queue, results)
        todo = [run for run in queue.next(done, prepare(queue, options, done)) if run.path not in tried]
        if not todo:
            return
        tried |= {run.path for run in todo}
        for run in todo:  # a teacher's folder may hold records alone
            for teacher in run.teachers or ():
                if not (results / teacher.path / "weights.pt").exists():
                    (results / teacher.path / "run.json").unlink(missing_ok=True)  # taken anew from those that are kept
        say(f"{len(todo)} runs, first {todo[0].path}")
        settings = results / "next.yaml"
        write_atomically(
            settings, lambda file, todo=todo: file.write(yaml.safe_dump({"runs": [r.as_dict() for r in todo]}).encode())
        )
        jobs = min(options.jobs, len(todo))
        command = [sys.executable, "-P", "-m", "kd", "run", "--settings", str(settings), "--results", str(results)]
        command += ["--jobs", str(jobs), "--slots-per-gpu", str(jobs), "--device", options.device, "--no-download"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "KD_TEACHERS": str(options.teachers)}
        with (results / "work.log").open("a") as log:  # a group of their own: killed together, if it comes to that
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
            say("\n".join(["a worker ended with an error:", *tail(results / "work.log")]))
        save(queue, options)


def end(workers: subprocess.Popen) -> None:
    """The clock, or a signal to this process: workers save their state; one that hangs does not hold up the rest."""
    workers.send_signal(signal.SIGTERM)
    try:
        workers.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        say(f"workers that did not end in {GRACE_SECONDS} s are killed")
        os.killpg(workers.pid, signal.SIGKILL)
        workers.wait()


def save(queue: Queue, options: argparse.Namespace) -> list[str]:
    """Bring --out up to date, all but evidence.md; gives what there is to say about the state."""
    attempt(keep_teachers, queue, options)
    append_results(queue, options)
    return attempt(pack, queue, options) or []


def attempt(step: Callable, *arguments: Any) -> Any:
    """What fails here must not keep the rest from being saved."""
    try:
        return step(*arguments)
    except Exception:
        say(traceback.format_exc())


def tail(file: Path, lines: int = 40) -> list[str]:
    return file.read_text(errors="replace").splitlines()[-lines:]


def measure_steps(options: argparse.Namespace, until: float, arguments: list[str]) -> None:
    """Meanwhile another process unpacks and prepares the data, so that neither waits for the other."""
    import gpu_steps

    other = subprocess.Popen([sys.executable, __file__, *arguments, "--only-data"])
    try:
        until = min(until, time.monotonic() + 60 * options.steps)
        gpu_steps.measure(options.out, until, options.miniature, options.device)
    finally:
        if (options.out / "steps.json").exists():  # --out may be emptied between calls
            shutil.copyfile(options.out / "steps.json", options.results / "steps.json")
        other.wait()


def finished(queue: Queue, results: Path) -> set[str]:
    """Paths of runs whose record is there. A teacher counts when it is kept, too."""
    return {
        path
        for path, run in queue.runs.items()
        if (results / path / "run.json").exists() and (results / path / "metrics.json").exists()
        if path not in queue.teachers or "taken_from" in read_json(results / path / "run.json")
    }


def keep_teachers(queue: Queue, options: argparse.Namespace) -> None:
    """Round each new teacher to half precision, score it as it is then, and keep it; its run takes it from there."""
    from kd.runs import kept_teachers as pretrained

    for path, run in queue.teachers.items():
        folder, kept = options.results / path, options.teachers / f"{pretrained.name_of(run)}.pt"
        record = folder / "run.json"
        if record.exists() and not kept.exists() and (folder / "weights.pt").exists():
            pretrained.keep(run, folder, _rounded_metrics(run, folder, options), options.teachers)
        data = options.results / run.data_path
        if kept.exists() and data.exists() and not (record.exists() and "taken_from" in read_json(record)):
            folder.mkdir(parents=True, exist_ok=True)
            say(f"teacher {kept.name}: {_take(run, options):.2f} %")


def _take(run: Run, options: argparse.Namespace) -> float:
    """Let the teacher's own run adopt what is kept."""
    from kd.runs import kept_teachers as pretrained
    from kd.runs.run import identity_of

    identity = identity_of(run, options.results / run.data_path, [])
    return pretrained.fill_from_kept(run, options.results / run.path, identity, options.teachers)["accuracy"]


def _rounded_metrics(run: Run, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    import torch

    from kd.data.dataset import load
    from kd.runs.kept_teachers import in_half_precision
    from kd.training.evaluate import evaluate
    from kd.training.networks import network

    device = torch.device("cuda" if torch.cuda.is_available() and options.device != "cpu" else "cpu")
    data = load(options.results / run.data_path, run.dataset, device)
    model = network(run, data, device)
    model.load_state_dict(in_half_precision(torch.load(folder / "weights.pt", weights_only=True, map_location="cpu")))
    return read_json(folder / "metrics.json") | evaluate(model, data.score, data.augment)[0]


# --------------------------------------------------------------------------------------------------------------- data


def unpack(archives: list[Path], data: Path) -> None:
    """Each archive once, over what is there."""
    for archive in archives:
        mark = data / f".{archive.name}.unpacked"
        if mark.exists():
            continue
        data.mkdir(parents=True, exist_ok=True)
        try:
            with tarfile.open(archive) as tar:
                tar.extractall(data, filter="data")
        except (OSError, EOFError, tarfile.TarError) as error:
            raise ConfigError(f"--archives: {archive} cannot be unpacked ({error})") from None
        mark.touch()
        say(f"{archive.name} unpacked to {data}")


def prepare(queue: Queue, options: argparse.Namespace, done: set[str]) -> set[str]:
    """Prepare the data sets that are whole and needed; gives their names."""
    from kd.data.prepare import prepare as prepare_data
    from kd.data.raw import Source

    names = set()
    for data_path, run in {run.data_path: run for run in queue.left(done)}.items():  # to count files takes its time
        name, file = run.dataset.name, options.results / data_path
        root = options.data / name
        if name in WHOLE and not file.exists() and images_in(root) < WHOLE[name]:
            continue
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            prepare_data(run.dataset, file, Source(root if name in WHOLE else None, options.data, False))
            say(f"{name} prepared")
        names.add(name)
    return names


def images_in(root: Path) -> int:
    return sum(1 for file in root.rglob("*") if file.suffix in ENDINGS)


# -------------------------------------------------------------------------------------------------------------- output


def append_results(queue: Queue, options: argparse.Namespace) -> bool:
    """A row for each run that is finished and has none yet; gives whether there was one."""
    file = options.out / "results.csv"
    rows = pd.read_csv(file) if file.exists() else pd.DataFrame(columns=["path"])
    without = finished(queue, options.results) - set(rows["path"])
    new = [path for path in queue.runs if path in without]
    if not new:
        return False
    found = [_row(queue, path, options.results) for path in new]
    columns = list(rows) if len(rows) else list(COLUMNS)
    with file.open("a", newline="") as stream:
        writer = csv.DictWriter(stream, columns, restval="", extrasaction="ignore", lineterminator="\n")
        if not len(rows):
            writer.writeheader()
        writer.writerows(found)
    return True


COLUMNS = [
    *("section", "study", "dataset", "teacher", "student", "method", "ablation", "scale", "seed", "precision"),
    *("accuracy", "teacher_accuracy", "agreement"),
    *("seconds_total", "seconds_inversion", "seconds_distillation", "seconds_training"),
    *("images", "generator_steps", "student_steps", "peak_memory_mb"),
    *("started", "finished", "device", "commit", "path"),
]


def _row(queue: Queue, path: str, results: Path) -> dict[str, Any]:
    run, record = queue.runs[path], read_json(results / path / "run.json")
    names = {
        "dataset": run.dataset.label,
        "teacher": run.teacher_names,
        "student": run.model,
        "method": "teacher",
        "ablation": "full",
    }
    for key, paths in queue.asked.items():
        if path in paths:
            table = queue.studies[key].table
            names |= {
                "study": key,
                **table[table["path"] == path].iloc[0][["teacher", "student", "method", "ablation"]],
            }
            break
    one = pd.DataFrame([{"path": path, "scale": run.scale, "seed": run.seed}])
    times = {key: record.get(key) for key in ("started", "finished")}
    rest = {"section": queue.section_of(run), "precision": run.precision, **times, **names}
    return {**collect(one, results).iloc[0].to_dict(), **rest}


def write_evidence(queue: Queue, options: argparse.Namespace) -> None:
    """evidence.md: what is done, bars, and each study's tables as far as they go; if wanted, their figures."""
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
        lines += [f"<!-- {key}: {count} of {len(study.students)} runs -->", (folder / "table.md").read_text()]
        if options.figures:
            shutil.copytree(folder / "figures", options.out / "figures" / key, dirs_exist_ok=True)
    write_atomically(options.out / "evidence.md", lambda file: file.write("\n".join(lines).encode()))


def bars(results: Path) -> list[str]:
    """Each bar against the time of a run and its share of the time of all that ran at once; published beside ours."""
    if not results.exists():
        return []
    rows = pd.read_csv(results)
    lines = ["| bar | data | allowed | seconds of a run | share per run | accuracy % | runs | |", "|---" * 8 + "|"]
    for _, of_device in rows.groupby("device"):
        rows.loc[of_device.index, "share"] = _shares(of_device)
    for bar in BARS:
        chosen = rows[_matches(rows, bar.rows, False)]
        for (dataset, device, precision), group in chosen.groupby(["dataset", "device", "precision"]):
            apart, seconds, accuracy = (group[key].mean() for key in ("share", "seconds_total", "accuracy"))
            wanted = bar.accuracy.get(dataset, 0.0)
            met = "met" if min(apart, seconds) < bar.seconds and accuracy >= wanted else "MISSED"
            allowed = f"{bar.seconds:g} s" + (f", {wanted} %" if wanted else "")
            shown = f"{seconds:.1f} | {apart:.1f} | {accuracy:.2f} | {len(group)} | {met}, {device}"
            lines.append(f"| {bar.what}, {precision} | {dataset} | {allowed} | {shown} |")
    lines += [
        "",
        "| pair | teacher %, ours (published) | Fast10 % at 10 %, ours (published, at 100 %) |",
        "|---|---|---|",
    ]
    at_ten = rows[(rows["scale"] == 0.1) & (rows["method"] == "fast10")]
    for key, group in at_ten.groupby(["dataset", "teacher", "student"]):
        if key in PUBLISHED:
            teacher, _, fast = PUBLISHED[key]
            ours = f"{group['teacher_accuracy'].mean():.2f} ({teacher}) | {group['accuracy'].mean():.2f} ({fast})"
            lines.append(f"| {', '.join(key)} | {ours} |")
    return [*lines, *precisions(rows)]


def precisions(rows: pd.DataFrame) -> list[str]:
    """bf16 beside float32, seed by seed: equal within noise where the 95 % interval of the mean difference holds 0."""
    keys = ["dataset", "teacher", "student", "method", "ablation", "scale", "seed"]
    both = rows[rows["precision"] == "bf16"].merge(rows[rows["precision"] == "float32"], on=keys)
    lines = ["", "| bf16 minus float32 | accuracy, points (95 % interval) | seeds | |", "|---|---|---|---|"]
    for key, group in both.groupby(keys[:-1], dropna=False):
        found = interval(group["accuracy_x"] - group["accuracy_y"])
        verdict = "not decided" if found.n < 2 else "equal within noise" if found.low <= 0 <= found.high else "DIFFERS"
        shown = f"{found.mean:+.2f} ({found.low:+.2f} to {found.high:+.2f})"
        lines.append(f"| {', '.join(map(str, key))} | {shown} | {found.n} | {verdict} |")
    return lines if len(both) else []


def _shares(runs: pd.DataFrame) -> np.ndarray:
    """Seconds of each run, of which n at once count as 1/n each; one gone on with counts as if it ran in one piece."""
    origin = pd.Timestamp(0, tz="UTC")
    start, end = ((pd.to_datetime(runs[name]) - origin).dt.total_seconds() for name in ("started", "finished"))
    start, end = np.minimum(start, end - runs["seconds_total"]).to_numpy(), end.to_numpy()
    shares, edges = np.zeros(len(runs)), np.unique([start, end])
    for first, last in pairwise(edges):
        running = (start <= first) & (end >= last)
        shares[running] += (last - first) / max(1, running.sum())
    return shares


def pack(queue: Queue, options: argparse.Namespace) -> list[str]:
    """state.NN in --out: records, then teachers, what figures show, and the state of unfinished runs, the most valuable
    first."""
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
    """What an earlier call left on this machine, then what an earlier day left: its records and states to where they
    were, its teachers to those that are kept."""
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
    parser.add_argument("--jobs", type=int, default=4, help="runs at once (default: 4)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--out", type=Path, default=ROOT / "results/gpu-evidence", help="tables, results, state")
    parser.add_argument("--state", type=Path, help="--out of an earlier day")
    parser.add_argument("--results", type=Path, default=ROOT / "results/gpu", help="where runs are made")
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="where data sets lie or are unpacked to")
    parser.add_argument("--archives", type=Path, nargs="*", default=[], help="gzip tars of data sets")
    parser.add_argument("--teachers", type=Path, default=ROOT / "results/reference/teachers", help="kept teachers")
    parser.add_argument("--commit", type=Path, help="a file that holds the commit, where there is no git history")
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
    """0 when the queue is done, 3 while there is work left, 1 after a mistake or a failed run."""
    options = parsed(arguments)
    until = time.monotonic() + 60 * options.minutes
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    if options.commit:
        os.environ["KD_COMMIT"] = options.commit.read_text().strip()
    try:
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
