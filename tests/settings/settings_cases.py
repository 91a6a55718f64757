"""Settings that the tests of this folder start from."""

import copy
from pathlib import Path

import pytest

from kd.runtime.messages import ConfigError
from kd.runtime.yaml_files import read_yaml
from kd.settings.merging import merge, run_of
from kd.settings.schema import settings_schema
from kd.settings.validation import validate

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = settings_schema()
DEFAULTS = read_yaml(ROOT / "config/config.yaml")
DROP = object()  # in an override: take the key away
TRAINING = {
    "epochs": 10,
    "batch_size": 8,
    "lr": 0.1,
    "schedule": "steps",
    "milestones": [4, 8],
    "gamma": 0.5,
    "final_lr": 0.0,
    "momentum": 0.9,
    "nesterov": False,
    "weight_decay": 0.0,
}
# Settings of our own, so that another default breaks no test.
BASE = merge(
    DEFAULTS,
    {
        "dataset": {"name": "digits", "image_size": 16, "validation": 0.0, "pad": 2, "flip": False},
        "teacher": {"model": "wrn_16_2", "seed": 0, "training": TRAINING},
        "student": {"model": "wrn_16_1"},
        "training": TRAINING,
        "distillation": {"training": TRAINING},
        "scale": 0.5,
        "kind": "train",
    },
)
BASE["objective"] = {"ce": {"weight": 1.0}}
OBJECTIVE = {"ce": {"weight": 0.5}, "kd": {"weight": 0.5, "temperature": 4.0}}
KINDS = {
    "train": {"kind": "train"},
    "distill": {"kind": "distill", "objective": OBJECTIVE},
    "datafree": {
        "kind": "datafree",
        "inversion": {"generator": {"reset_epoch": 3}},
        "replay": {"full_size": 64, "final_beta": 0.5},
    },
}


def changed(override, base=BASE):
    """`base` with an override in which DROP takes a key away."""
    result = copy.deepcopy(base)
    for key, value in override.items():
        if value is DROP:
            del result[key]
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = changed(value, result[key])
        else:
            result[key] = copy.deepcopy(value)
    return result


def faults_of(override):
    """The lines that an override is refused with; each one readable by itself."""
    with pytest.raises(ConfigError) as caught:
        validate(changed(override), SCHEMA, "my.yaml")
    lines = str(caught.value).splitlines()
    for line in lines:
        assert line.startswith("my.yaml: ")
        assert line.isprintable()
        assert len(line) < 1000
        for word in ("Traceback", "jsonschema", "Error", "On instance", "Failed validating", "<class"):
            assert word not in line
    return lines


def run(kind="train", seed=0, **override):
    settings = merge(BASE, KINDS[kind], override)
    validate(settings, SCHEMA, "test")
    return run_of(settings, seed)


def distilled(loss, teacher="wrn_16_2", **values):
    """An override: distillation by one loss with these settings."""
    return {"kind": "distill", "teacher": {"model": teacher}, "objective": {loss: {"weight": 1.0, **values}}}


def adversarial(**values):
    """An override: a data-free run with the adversarial source and these settings of it."""
    return {"kind": "datafree", "inversion": {"source": "adversarial", "adversarial": values}}
