"""Overrides for single teachers and students, and ensembles."""

from __future__ import annotations

import pytest
import torch
from own_studies import PAIR, SETTINGS, experiment, fault, loader

from kd.runtime.messages import ConfigError
from kd.settings.merging import merge


@pytest.fixture
def load(tmp_path, monkeypatch):
    return loader(tmp_path, monkeypatch)


def test_overrides_for_a_teacher_hold_for_its_students(load):
    pairs = [PAIR, ["resnet8", "wrn_16_1"]]
    teachers = {"resnet8": {"inversion": {"generator": {"adv": 1.33}}, "modulation": {"gamma": 3.0}}}
    study = load(experiments={"a": experiment(pairs=pairs, methods=["free", "soft"])}, teachers=teachers)
    runs = {run.teacher.model: run for run in study.runs.values() if run.kind == "datafree"}
    assert (runs["resnet8"].inversion.settings["adv"], runs["wrn_16_2"].inversion.settings["adv"]) == (1.33, 1.1)
    assert runs["resnet8"].modulation.gamma == 1.0, "the method has the last word"
    with pytest.raises(ConfigError, match=r"inversion.generator: unknown key 'avd'; did you mean 'adv'"):
        load(
            experiments={"a": experiment(pairs=pairs)}, teachers={"resnet8": {"inversion": {"generator": {"avd": 1.0}}}}
        )


def test_a_network_may_change_one_method_alone(load):
    """As with DKD, whose authors give a weight per teacher."""
    pairs = [PAIR, ["resnet8", "wrn_16_1"]]
    warm = {"objective": {"kd": {"temperature": 7.0}}}
    ablations = {"cool": {"objective": {"kd": {"temperature": 2.0}}}}
    both = {"pairs": pairs, "methods": ["soft"], "ablations": ["full", "cool"]}

    def temperatures(**networks):
        study = load(experiments={"a": experiment(**both)}, ablations=ablations, **networks)
        runs = [study.runs[path] for path in study.table["path"]]
        return {(run.teacher.model, run.model, run.objective["kd"]["temperature"]) for run in runs}

    plain = temperatures()
    assert {row[2] for row in plain} == {4.0, 2.0}
    changed = temperatures(teachers={"resnet8": {"methods": {"soft": warm}}})
    assert changed - plain == {("resnet8", "wrn_16_1", 7.0)}, "the ablation has the last word"
    changed = temperatures(students={PAIR[1]: {"methods": {"soft": warm}, "training": {"lr": 0.01}}})
    assert changed - plain == {(*PAIR, 7.0), ("resnet8", "wrn_16_1", 7.0)}, "both have that student"
    assert (
        temperatures(teachers={"resnet8": {"methods": {"free": {"inversion": {"generator": {"adv": 2.0}}}}}}) == plain
    )
    text = fault(load, experiments={"a": experiment(**both)}, ablations=ablations, teachers={"x": {"methods": []}})
    assert "teachers.x.methods" in text
    text = fault(
        load,
        experiments={"a": experiment(**both)},
        ablations=ablations,
        teachers={"resnet8": {"methods": {"sotf": warm}}},
    )
    assert "teachers.resnet8.methods: got 'sotf'; did you mean 'soft'" in text


def test_an_ensemble_of_unlike_teachers_may_have_methods_that_they_do_not_share(load):
    """Teachers of one ensemble must agree on the methods it is distilled with, not on others."""
    pairs = [[["resnet8", "wrn_16_2"], "resnet14"]]
    own = {"methods": {"free": {"inversion": {"generator": {"adv": 2.0}}}}}
    load(experiments={"a": experiment(pairs=pairs, methods=["soft"], scales=[1.0])}, teachers={"resnet8": own})
    own = {"methods": {"soft": {"objective": {"kd": {"temperature": 7.0}}}}}
    assert "are one ensemble" in fault(
        load, experiments={"a": experiment(pairs=pairs, methods=["soft"], scales=[1.0])}, teachers={"resnet8": own}
    )


def test_an_ensemble_is_made_of_the_teachers_that_stand_alone(load):
    alone, both = [["resnet8", "resnet14"], ["wrn_16_2", "resnet14"]], [[["resnet8", "wrn_16_2"], "resnet14"]]
    experiments = {"a": experiment(pairs=alone + both, methods=["soft"], scales=[1.0])}
    study = load(experiments=experiments)
    assert len({teacher.path for run in study.runs.values() for teacher in run.teachers or ()}) == 2
    short = {"teacher": {"training": {"lr": 0.013}}}
    assert "teachers: resnet8 and wrn_16_2 are one ensemble in experiments.a but have unlike settings" in fault(
        load, experiments=experiments, teachers={"resnet8": short}
    )
    study = load(experiments=experiments, teachers={"resnet8": short, "wrn_16_2": short})
    assert {run.training.lr for run in study.runs.values() if run.kind == "train"} == {0.013}


def test_with_a_teacher_per_seed_no_two_ensembles_share_a_member(load):
    twins = {"a": experiment(pairs=[[["resnet8", "resnet8"], "resnet14"]], methods=["soft"], seeds=[0, 1, 2])}
    study = load(experiments=twins, settings=merge(SETTINGS, {"teacher": {"seed": None}}))
    seeds = [[teacher.seed for teacher in study.runs[path].teachers] for path in study.students]
    assert seeds == [[0, 1], [2, 3], [4, 5]]


def test_networks_that_experiments_name_need_not_be_in_the_settings(load):
    """Those of config.yaml, which say one class per image, are nobody's here."""
    of_maps = {**SETTINGS, "dataset": {**SETTINGS["dataset"], "name": "rooms"}}
    study = load(settings=of_maps, experiments={"a": experiment(pairs=[["deeplabv3_small", "deeplabv3_tiny"]])})
    assert {run.model for run in study.runs.values()} == {"deeplabv3_small", "deeplabv3_tiny"}
    said = r"experiments\.a .*: teacher\.model: got wrn_16_2; the labels of dataset rooms are maps; take one of"
    with pytest.raises(ConfigError, match=said):
        load(settings=of_maps, experiments={"a": experiment(pairs=[PAIR])})


def test_weights_of_single_teachers_do_without_data(load, tmp_path):
    torch.save({}, tmp_path / "own.pt")
    described = {"name": "none", "classes": 10, "channels": 1, "mean": [0.5], "std": [0.5]}
    study = load(
        settings={**SETTINGS, "dataset": {**SETTINGS["dataset"], **described}, "replay": {"full_size": 100}},
        teachers={PAIR[0]: {"teacher": {"weights": str(tmp_path / "own.pt")}}},
        experiments={"a": experiment(methods=["free"])},
    )
    assert {run.kind for run in study.runs.values()} == {"given", "datafree"}
    with pytest.raises(ConfigError, match=r"student\.model: got deeplabv3_tiny; only one of it and wrn_16_2"):
        load(
            settings={**SETTINGS, "dataset": {**SETTINGS["dataset"], **described}, "replay": {"full_size": 100}},
            teachers={PAIR[0]: {"teacher": {"weights": str(tmp_path / "own.pt")}}},
            experiments={"a": experiment(pairs=[[PAIR[0], "deeplabv3_tiny"]], methods=["free"])},
        )
