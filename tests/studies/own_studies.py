"""Small studies of our own, written and loaded by the tests of this folder."""

from __future__ import annotations

import copy
import shutil

import pytest
import yaml
from conftest import ROOT, read_once

from kd.runtime.messages import ConfigError
from kd.runtime.yaml_files import read_yaml
from kd.studies.study import load_study

SCHEMAS = ROOT / "workflow/schemas"
TRAINING = {"epochs": 10, "lr": 0.1, "schedule": "steps", "milestones": [4], "momentum": 0.9, "nesterov": False}
SETTINGS = {
    "dataset": {"name": "digits", "image_size": 16, "validation": 0.0},
    "teacher": {"seed": 0, "training": TRAINING},
    "training": TRAINING,
    "distillation": {"training": TRAINING},
    "scale": 0.5,
    "kind": "train",
}
METHODS = {
    "plain": {"kind": "train"},
    "soft": {"kind": "distill", "objective": {"ce": {"weight": 0.5}, "kd": {"weight": 0.5, "temperature": 4.0}}},
    "free": {
        "kind": "datafree",
        "modulation": {"diversity": 1.0, "gamma": 1.0},
        "replay": {"alpha": 0.5, "beta": 0.5},
    },
    "bare": {
        "kind": "datafree",
        "modulation": {"diversity": 0.0, "gamma": 0.0},
        "replay": {"alpha": 0.0, "beta": 0.0},
    },
}
ABLATIONS = {
    "no-priority": {"replay": {"alpha": 0.0, "beta": 0.0}},
    "no-modulation": {"modulation": {"diversity": 0.0, "gamma": 0.0}},
    "neither": {"modulation": {"diversity": 0, "gamma": 0}, "replay": {"alpha": 0, "beta": 0}},
}
PAIR = ["wrn_16_2", "wrn_16_1"]


def loader(folder, monkeypatch):
    """Return `load(given, name, **content)`, which writes a study next to a copy of config.yaml and loads it.

    The files that no test changes are parsed once.
    """
    shared = {folder / "config/config.yaml": ROOT / "config/config.yaml"}
    shared |= {path: path for path in SCHEMAS.iterdir()}
    monkeypatch.setattr(
        "kd.studies.study.read_yaml",
        lambda path: copy.deepcopy(read_once(shared[path])) if path in shared else read_yaml(path),
    )
    (folder / "config/studies").mkdir(parents=True)
    shutil.copy(ROOT / "config/config.yaml", folder / "config/config.yaml")
    (folder / "config/studies/demo.yaml").write_text("title: another\nexperiments: {}\n")

    def load(given=None, name="mine", for_search=False, **content):
        study = {"title": "Mine", "settings": SETTINGS, "methods": METHODS, "ablations": ABLATIONS, **content}
        study = {key: value for key, value in study.items() if value is not ...}
        file = folder / f"config/studies/{name}.yaml"
        file.write_text(yaml.safe_dump(study, sort_keys=False))
        given = {"study": name, **(given or {})}
        return load_study(folder / "config/config.yaml", SCHEMAS, given, for_search)

    return load


def experiment(**values):
    return {"pairs": [PAIR], "methods": ["free"], "seeds": [0], **values}


def paths(study, **where):
    table = study.table
    for column, value in where.items():
        table = table[table[column] == value]
    return set(table["path"])


def fault(load, **content):
    """The one readable line, or lines, that a study is refused with."""
    with pytest.raises(ConfigError) as caught:
        load(**content)
    text = str(caught.value)
    for line in text.splitlines():
        assert line.isprintable()
        assert "Traceback" not in line
    return text


def search(**values):
    entry = {"pair": PAIR, "method": "free", "scale": 0.3, "seed": 5, "trials": 3, "validation": 0.2}
    return {"t": {**entry, "space": {"inversion.generator.bn": {"low": 0.1, "high": 10.0, "log": True}}, **values}}


def claims(**test):
    return {"x": {"says": "So.", "tests": [{"of": {"method": "free"}, "to": {"method": "free"}, "above": 0, **test}]}}
