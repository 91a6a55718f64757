"""Mistakes in a study are named in one readable line, those of its claims among them."""

from __future__ import annotations

import pytest
from own_studies import METHODS, PAIR, claims, experiment, fault, loader


@pytest.fixture
def load(tmp_path, monkeypatch):
    return loader(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"title": ...}, "top level: key 'title' is missing"),
        ({"title": ""}, "title: got ''"),
        ({"title": 5}, "title: got 5 (integer)"),
        ({"expriments": {}}, "unknown key 'expriments'; did you mean 'experiments'?"),
        ({"settings": None}, "settings: got null"),
        ({"settings": {"traning": {}}}, "unknown key 'traning'; did you mean 'training'?"),
        ({"settings": {"training": {"lr": "1e-3"}}}, "training.lr: got '1e-3' (text)"),
        ({"methods": ["free"]}, "methods: got a list"),
        ({"methods": {"free": None}}, "methods.free: got null"),
        ({"methods": {"free": {"kind": "datafre"}}}, "kind: got 'datafre'; did you mean 'datafree'?"),
        ({"ablations": {"a b": {}}}, "ablations: got 'a b'"),
        ({"experiments": {}}, "experiments: got {}"),
        ({"experiments": {"a/b": experiment()}}, "experiments: got 'a/b'"),
        ({"experiments": {"a": experiment(seed=[1])}}, "experiments.a: unknown key 'seed'; did you mean 'seeds'?"),
        ({"experiments": {"a": {"pairs": [PAIR], "methods": ["free"]}}}, "experiments.a: key 'seeds' is missing"),
        ({"experiments": {"a": experiment(seeds=[])}}, "experiments.a.seeds: got []"),
        ({"experiments": {"a": experiment(seeds=3)}}, "experiments.a.seeds: got 3 (integer)"),
        ({"experiments": {"a": experiment(seeds=[0, 0])}}, "experiments.a.seeds: got [0, 0]"),
        ({"experiments": {"a": experiment(seeds=[-1])}}, "experiments.a.seeds.0: got -1"),
        ({"experiments": {"a": experiment(seeds=[True])}}, "experiments.a.seeds.0: got True (boolean)"),
        ({"experiments": {"a": experiment(scales=[0])}}, "experiments.a.scales.0: got 0"),
        ({"experiments": {"a": experiment(scales=["10%"])}}, "experiments.a.scales.0: got '10%' (text)"),
        ({"experiments": {"a": experiment(scales=[float("nan")])}}, "experiments.a.scales.0: got nan"),
        ({"experiments": {"a": experiment(pairs=[["vgg8"]])}}, "experiments.a.pairs.0: got ['vgg8']"),
        ({"experiments": {"a": experiment(pairs=["vgg8"])}}, "experiments.a.pairs.0: got 'vgg8' (text)"),
        ({"experiments": {"a": experiment(pairs=[["vgg8", "vgg9"]])}}, "student.model: unknown model 'vgg9'"),
        ({"experiments": {"a": experiment(view="scales")}}, "view: got 'scales'; did you mean 'scale'?"),
        ({"experiments": {"a": experiment(settings={"scale": 2})}}, "scale: got 2"),
    ],
)
def test_a_mistake_in_a_study_is_named(load, content, words):
    assert words in fault(load, **{"experiments": {"a": experiment()}, **content})


def test_seeds_are_written_without_a_point(load):
    """1.0 would give another folder than 1."""
    assert "experiments.a.seeds.0" in fault(load, experiments={"a": experiment(seeds=[1.0])})


@pytest.mark.parametrize("place", ["methods", "ablations", "experiment"])
def test_what_holds_for_a_whole_study_is_refused_elsewhere(load, place):
    override = {"compute": {"threads": 2}}
    content = {"experiments": {"a": experiment(**({"settings": override} if place == "experiment" else {}))}}
    if place == "methods":
        content["methods"] = {**METHODS, "free": {**METHODS["free"], **override}}
    if place == "ablations":
        content |= {"ablations": {"x": override}, "experiments": {"a": experiment(ablations=["x"])}}
    assert "compute: holds for a whole study" in fault(load, **content)


def test_claims_are_checked_before_anything_runs(load):
    assert load(experiments={"a": experiment()}, claims=claims()).claims == claims()
    a = {"a": experiment()}
    assert "claims.x.tests.0: no run of {'method': 'plain'}" in fault(
        load, experiments=a, claims=claims(of={"method": "plain"})
    )
    assert "claims.x.tests.0" in fault(load, experiments=a, claims=claims(below=1)), "above or below, not both"
    assert "got 'acuracy'" in fault(load, experiments=a, claims=claims(measure="acuracy"))
    assert "each: got 'seed'" in fault(load, experiments=a, claims=claims(each="seed"))


def test_a_claim_names_the_experiment_where_two_have_equal_names(load):
    two = {"a": experiment(), "b": experiment(settings={"inversion": {"generator": {"adv": 0.7}}})}
    assert "claims.x.tests.0.of: got {'method': 'free'}, 2 runs for one" in fault(
        load, experiments=two, claims=claims()
    )
    sides = {side: {"method": "free", "experiment": name} for side, name in (("of", "a"), ("to", "b"))}
    assert load(experiments=two, claims=claims(**sides)).claims == claims(**sides)
    shared = {"a": experiment(), "b": experiment()}
    assert load(experiments=shared, claims=claims()).claims == claims(), "one run, whatever the experiment"


def test_a_claim_about_each_pair_is_a_test_for_every_one(load):
    pairs = [PAIR, ["resnet8", "wrn_16_1"]]
    tests = load(experiments={"a": experiment(pairs=pairs)}, claims=claims(each="pair")).claims["x"]["tests"]
    networks = [{"method": "free", "teacher": teacher, "student": student} for teacher, student in pairs]
    assert tests == [{"of": side, "to": side, "above": 0} for side in networks]
