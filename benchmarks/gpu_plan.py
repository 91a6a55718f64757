"""The queue of gpu_evidence.py: which runs of which studies, in the order of their value."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

if find_spec("kd") is None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.append(str(Path(__file__).resolve().parent))

import pandas as pd
import yaml

from kd.runs.prepared_data import reads_training_images
from kd.runtime.messages import ConfigError
from kd.settings.merging import merge
from kd.settings.run import Run
from kd.studies.study import Study, load_study

ROOT = Path(__file__).resolve().parents[1]

# A schedule for GPUs: 97 steps an epoch instead of 390. On an H200 50 epochs of it gave 93.71 % on CIFAR-10.
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


def pair(teacher: str, *students: str) -> dict[str, Any]:
    return {"teacher": [teacher], "student": list(students)}


FULL_SIZE = {"study": "ssdkd-full-size", "given": {"precision": "bf16"}}  # as the study says itself
SMALLEST = pair("wrn_40_2", "wrn_16_1")


def of_data_set(study: str) -> list[Section]:
    """Return the sections of one data set: the five pairs at 10 %, original samples, modules, scales, Fast at 100 %."""
    at_ten = {"experiment": ["pairs"], "method": ["ssdkd", "fast2", "fast10"]}
    others = pair("wrn_40_2", "wrn_16_2", "wrn_40_1")
    resnet = {"teacher": ["resnet34", "vgg11"], "student": ["resnet18"]}
    rows = {
        "WRN-40-2 to WRN-16-1": ({**at_ten, **SMALLEST}, WRN),
        "WRN-40-2 to other WRN": ({**at_ten, **others}, WRN),
        "ResNet-34 and VGG-11 to ResNet-18": ({**at_ten, **resnet}, RESNET),
        "Original samples": ({"experiment": ["pairs"], "method": ["original"], **SMALLEST}, WRN),
        "Modules": ({"experiment": ["modules"], **SMALLEST}, WRN),
        "Scales": ({"experiment": ["scale"], **SMALLEST}, WRN),
        "Fast at 100 %": ({"experiment": ["full-scale"], **SMALLEST}, WRN),
    }
    return [Section(f"{title}, {study}", study, *chosen) for title, chosen in rows.items()]


QUEUE = [
    Section("Passes over the buffer at 10 %", rows={"experiment": ["passes"], "method": ["ssdkd"]}, **FULL_SIZE),
    Section("Fast2 and Fast10 at 10 %", rows={"experiment": ["passes"], "method": ["fast2", "fast10"]}, **FULL_SIZE),
    Section("Fast at full size", rows={"experiment": ["full-scale"]}, **FULL_SIZE),
    Section("What the student cannot follow, at full size", rows={"experiment": ["choices"]}, **FULL_SIZE),
    *of_data_set("ssdkd-cifar10"),
    *of_data_set("ssdkd-cifar100"),
    Section("Inversion in bf16 at 10 %", rows={"experiment": ["precision"]}, **FULL_SIZE),
    Section(
        "bf16 against float32",
        "ssdkd-cifar10",
        {"experiment": ["pairs"], "method": ["ssdkd"], **SMALLEST},
        {**WRN, "precision": "bf16"},
    ),
    Section(
        "CRD, WRN-40-2 to WRN-16-2",
        "crd-cifar100",
        {"method": ["scratch", "kd", "crd", "crd-kd"], **pair("wrn_40_2", "wrn_16_2")},
    ),
]
# The same queue in minutes on a CPU: the digits in place of CIFAR, the smallest networks, single epochs.
MINIATURE: dict[str, Any] = {
    "dataset": {"name": "digits", "image_size": 8, "pad": 1, "flip": False},
    "teacher": {
        "training": {
            "epochs": 1,
            "batch_size": 128,
            "lr": 0.1,
            "schedule": "cosine",
            "milestones": [],
            "nesterov": True,
        }
    },
    "training": {"epochs": 1, "batch_size": 256, "lr": 0.1, "schedule": "cosine", "milestones": []},
    "inversion": {"generator": {"batch_size": 16, "warmup": 1, "noise_dim": 8, "width": 4, "reset_epoch": 2}},
    "replay": {"full_size": 200},
    "distillation": {"passes": 1.0, "training": {"epochs": 2, "batch_size": 16, "lr": 0.05}},
}
SMALL = {"wrn_40_2": "wrn_10_2", "wrn_16_2": "resnet14", "wrn_40_1": "wrn_16_1", "wrn_16_1": "wrn_10_1"}
SMALL |= {"resnet34": "resnet20", "vgg11": "resnet14", "resnet18": "resnet8"}
POOL = {"replay": {"full_size": 200}, "distillation": {"steps": 4}}  # in place of Fast's at 100 %


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
            table = study.table[matches(study.table, section.rows, miniature)]
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

    def next(self, done: set[str], data: dict[str, bool]) -> list[Run]:
        """Return what to start now, most valuable first: all runs up to the first section that lacks a teacher.

        Where that is the very next section, its teachers, with nothing next to them: its students wait for them. data:
        the data sets that are there, and whether they have training images; without, only data-free students of
        teachers that are there can start, and what else a section has is passed over.
        """
        ready: list[Run] = []
        for _, runs in self.sections:
            lacking: dict[str, Run] = {}
            for run in runs:
                missing = [teacher for teacher in run.teachers or () if teacher.path not in done]
                needed = bool(missing) or reads_training_images(run)
                if run.path in done or run.dataset.name not in data or (needed and not data[run.dataset.name]):
                    continue
                lacking |= {teacher.path: teacher for teacher in missing}
                if not missing:
                    ready.append(run)
            if lacking:
                return ready or list(lacking.values())
        return ready

    def left(self, done: set[str]) -> list[Run]:
        """Return all runs that are not done, teachers of unfinished students included."""
        students = [run for _, runs in self.sections for run in runs if run.path not in done]
        teachers = {teacher.path: teacher for run in students for teacher in run.teachers or ()}
        return [teacher for path, teacher in teachers.items() if path not in done] + students

    def section_of(self, run: Run) -> str:
        return next((title for title, runs in self.sections if run in runs), "teachers")


def matches(table: pd.DataFrame, rows: dict[str, Any], miniature: bool) -> pd.Series:
    if miniature:
        rows = {key: [SMALL.get(value, value) for value in values] for key, values in rows.items()}
    return pd.concat([table[key].isin(values) for key, values in rows.items()], axis=1).all(axis=1)


def _load(given: dict[str, Any]) -> Study:
    return load_study(ROOT / "config/config.yaml", ROOT / "workflow/schemas", given)


def _small(name: str, study: Study) -> Path:
    """Write a study that extends another: small networks and banks, one seed, only experiments that fit them."""
    experiments: dict[str, Any] = {}
    for experiment, rows in study.table.groupby("experiment"):
        found = rows[["teacher", "student"]].drop_duplicates().itertuples(index=False)
        pairs = [[SMALL[teacher], SMALL[student]] for teacher, student in found if {teacher, student} <= set(SMALL)]
        fits = pairs and "fsp" not in set(rows["method"])  # which needs equal widths
        settings = POOL if experiment == "full-scale" else {}
        experiments[experiment] = {"pairs": pairs, "seeds": [0], "settings": settings} if fits else None
    content: dict[str, Any] = {"extends": str(ROOT / f"config/studies/{name}.yaml"), "claims": None}
    bank = {"objective": {"crd": {"negatives": 64, "feat_dim": 16}}}
    content |= {"experiments": experiments, "methods": {"crd": bank, "crd-kd": bank}}
    file = study.root / f"miniature/{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return file
