"""Searches of a study: settings left open, ranges, mistakes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from own_studies import PAIR, SETTINGS, experiment, fault, loader, search

from kd.settings.merging import merge
from kd.studies.search import Tuning, flatten, grid

LR = {"training.lr": {"low": 0.1, "high": 0.2}}


@pytest.fixture
def load(tmp_path, monkeypatch):
    return loader(tmp_path, monkeypatch)


def test_a_search_is_a_run_with_some_settings_left_open(load):
    space = {
        "inversion.generator.bn": {"low": 0.1, "high": 10.0, "log": True},
        "inversion.generator.steps": {"low": 1, "high": 5},
        "replay.refresh": {"choices": ["drawn", "all"]},
        "distillation.training.lr": {"low": 0.01, "high": 0.1},
    }
    study = load(
        experiments={"a": experiment()}, tune=search(space=space, settings={"inversion": {"generator": {"oh": 0.25}}})
    )
    tuning = study.tunings["t"]
    assert (tuning.name, tuning.seed, tuning.trials, list(tuning.space)) == ("t", 5, 3, list(space))
    assert [values.get("integer") for values in tuning.space.values()] == [False, True, None, False]
    run = tuning.run(
        {
            "inversion.generator.bn": 0.5,
            "inversion.generator.steps": 4,
            "replay.refresh": "all",
            "distillation.training.lr": 0.02,
        }
    )
    assert (run.kind, run.seed, run.scale, run.model, run.teacher.model) == ("datafree", 5, 0.3, *PAIR[::-1])
    assert (run.inversion.settings["bn"], run.inversion.settings["steps"], run.replay.refresh) == (0.5, 4, "all")
    assert (run.distillation.training.lr, run.inversion.settings["oh"]) == (0.02, 0.25)
    assert run.dataset.validation == 0.2
    assert run.path not in study.runs
    assert study.runs[run.teacher.path] == run.teacher


def test_a_search_needs_its_teacher_although_no_experiment_does(load):
    study = load(experiments={"a": experiment(methods=["plain"])}, tune=search())
    [teacher] = [run for run in study.runs.values() if run.model == PAIR[0]]
    assert teacher.path not in study.students
    study = load(
        experiments={"a": experiment(methods=["plain"])},
        tune=search(method="plain", space={"training.lr": {"low": 0.1, "high": 1.0}}),
    )
    assert len(study.runs) == 1


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (
            {"inversion.generator.lr_noize": {"low": 1.0, "high": 2.0}},
            "unknown key 'lr_noize'; did you mean 'lr_noise'?",
        ),
        ({"inversion": {"low": 1.0, "high": 2.0}}, "got 'inversion'"),
        ({"compute.threads": {"low": 1, "high": 2}}, "got 'compute.threads'"),
        ({"teacher.training.lr": {"low": 0.1, "high": 0.2}}, "got 'teacher.training.lr'"),
        ({"inversion.generator.bn.x": {"low": 1.0, "high": 2.0}}, "inversion.generator.bn: got a mapping"),
        ({"inversion.generator.bn": {"low": 2.0, "high": 1.0}}, "low must be below high"),
        ({"inversion.generator.bn": {"low": 2.0, "high": 2.0}}, "low must be below high"),
        ({"inversion.generator.bn": {"low": 0.0, "high": 2.0, "log": True}}, "a log range needs low above 0"),
        ({"inversion.generator.bn": {"low": -1.0, "high": 2.0}}, "inversion.generator.bn: got -1.0; allowed: >= 0"),
        ({"modulation.diversity": {"low": 0.5, "high": 1.5}}, "modulation.diversity: got 1.5; allowed: <= 1"),
        ({"inversion.generator.bn": {"low": 1.0, "high": float("inf")}}, "inf"),
        ({"inversion.generator.bn": {"low": float("nan"), "high": 1.0}}, "nan"),
        (
            {"inversion.generator.steps": {"low": 1, "high": 2.5}},
            "inversion.generator.steps: got 2.5 (number); allowed: integer",
        ),
        (
            {"inversion.generator.bn": {"low": 1.0}},
            "tune.t.space.inversion.generator.bn: got {'low': 1.0}; allowed: {low, high}",
        ),
        (
            {"inversion.generator.bn": {"low": 1.0, "high": 2.0, "choices": [1.0, 2.0]}},
            "tune.t.space.inversion.generator.bn: got {",
        ),
        (
            {"inversion.generator.meta": {"choices": ["maml", "sgd"]}},
            "inversion.generator.meta: got 'sgd'; allowed: maml, reptile",
        ),
        ({"inversion.generator.meta": {"choices": ["maml"]}}, "tune.t.space.inversion.generator.meta: got {"),
        ({"replay.priority_feedback": {"low": 0, "high": 1}}, "replay.priority_feedback: got 0 (integer)"),
        ({"distillation.training.epochs": {"low": 2, "high": 9}}, "milestones: got 4; allowed: below epochs (2)"),
        ({"objective.kd.temprature": {"low": 1.0, "high": 2.0}}, "objective.kd"),
        ({"dataset.flip": {"choices": [True, False]}}, "got 'dataset.flip'"),
        ({"replay.alpha": {"low": 0.0, "high": 1.0, "step": 0.3}}, "step 0.3 does not lead from low 0.0 to high 1.0"),
        ({"replay.alpha": {"low": 0.1, "high": 1.0, "step": 0.1, "log": True}}, "got log and step; allowed: one of"),
        ({"inversion.generator.steps": {"low": 1, "high": 2, "step": 0.5}}, "step is 0.5; the setting is an integer"),
        ({}, "tune.t.space: got {}"),
    ],
)
def test_a_mistake_in_a_search_is_named(load, space, words):
    text = fault(load, experiments={"a": experiment()}, tune=search(space=space))
    assert words in text
    assert "tune.t" in text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"method": "fre"}, "did you mean 'free'?"),
        ({"trials": 0}, "tune.t.trials: got 0"),
        ({"validation": 0}, "tune.t.validation: got 0"),
        ({"validation": 1}, "tune.t.validation: got 1"),
        ({"pair": ["vgg8"]}, "tune.t.pair: got ['vgg8']"),
        ({"pair": ["vgg8", "vgg9"]}, "unknown model 'vgg9'"),
        ({"trial": 5}, "unknown key 'trial'; did you mean 'trials'?"),
        ({"settings": {"replay": {"alhpa": 1}}}, "did you mean 'alpha'?"),
        ({"sampler": "tep"}, "tune.t.sampler: got 'tep'; did you mean 'tpe'?"),
        ({"pruner": "meddian"}, "tune.t.pruner: got 'meddian'; did you mean 'median'?"),
        ({"pruner": {"name": "median", "percentil": 3}}, "unknown key 'percentil'"),
        ({"sampler": "grid"}, "tune.t.sampler: got grid; inversion.generator.bn has no step; a grid needs one"),
        ({"objective": "acuracy"}, "did you mean 'accuracy'?"),
        (
            {"method": "plain", "objective": "agreement", "space": LR},
            "tune.t.objective: got agreement with a method of",
        ),
        ({"seconds": 0}, "tune.t.seconds: got 0"),
        ({"storage": "optuna.db"}, "tune.t.storage: got 'optuna.db'; allowed: a URL such as postgresql://"),
        ({"storage": "$NOT_SET_ANYWHERE"}, "got $NOT_SET_ANYWHERE; this environment variable is not set"),
    ],
)
def test_a_mistake_around_a_space_is_named(load, change, words):
    assert words in fault(load, experiments={"a": experiment()}, tune=search(**change))


def test_a_range_of_a_number_written_as_an_integer_stays_continuous(load):
    """`passes: 2` in a study is the number 2.0; the schema knows, the value does not."""
    study = load(
        experiments={"a": experiment()},
        settings=merge(SETTINGS, {"distillation": {"passes": 2}}),
        tune=search(space={"distillation.passes": {"low": 0.5, "high": 3.5}}),
    )
    assert study.tunings["t"].space["distillation.passes"]["integer"] is False


def test_a_range_of_an_integer_that_is_null_gives_integers(load):
    study = load(
        experiments={"a": experiment()},
        settings=merge(SETTINGS, {"inversion": {"generator": {"reset_epoch": None}}}),
        tune=search(space={"inversion.generator.reset_epoch": {"low": 1, "high": 9}}),
    )
    assert study.tunings["t"].space["inversion.generator.reset_epoch"]["integer"] is True


def test_how_trials_are_computed_is_no_part_of_a_search(load):
    search = {"pair": PAIR, "method": "free", "scale": 0.5, "seed": 0, "trials": 2, "validation": 0.2}
    tune = {"x": {**search, "space": {"replay.alpha": {"low": 0.0, "high": 1.0}}}}
    studies = [
        load(settings={**SETTINGS, "compute": {"threads": threads}}, tune=tune, experiments={"a": experiment()})
        for threads in (1, 2)
    ]
    assert studies[0].tunings == studies[1].tunings
    assert "compute" not in studies[0].tunings["x"].settings


def test_a_search_without_a_budget_is_refused(load):
    entry = search()["t"]
    del entry["trials"]
    assert "tune.t: no budget; give trials: 24, or seconds: 3600" in fault(
        load, experiments={"a": experiment()}, tune={"t": entry}
    )


def test_a_grid_has_as_many_trials_as_points(load):
    space = {"replay.alpha": {"low": 0.0, "high": 1.0, "step": 0.5}, "inversion.generator.steps": {"low": 1, "high": 4}}
    counts = []
    for trials in ({}, {"trials": 100}, {"trials": 5}):
        entry = {key: value for key, value in search(space=space)["t"].items() if key != "trials"} | trials
        study = load(experiments={"a": experiment()}, tune={"t": {**entry, "sampler": "grid"}})
        counts.append(study.tunings["t"].trials)
    assert counts == [12, 12, 5]


def test_every_point_of_a_grid_counts_as_one_of_its_space(load):
    """One that did not would be run again without end: a third has more digits than a point."""
    space = {
        "replay.alpha": {"low": 2 / 3, "high": 5 / 3, "step": 1 / 3},
        "inversion.generator.steps": {"low": 1, "high": 3},
    }
    tuning = load(experiments={"a": experiment()}, tune=search(space=space, sampler="grid")).tunings["t"]
    points = grid(tuning.space, 0)
    assert len(points) == 12
    assert any(not 2 / 3 <= point["replay.alpha"] <= 5 / 3 for point in points)
    assert all(tuning.holds(point) for point in points)
    assert not tuning.holds(points[0] | {"replay.alpha": 1.7})
    assert not tuning.holds({"replay.alpha": 1.0})


def test_how_a_search_is_made_is_no_part_of_it(load, monkeypatch):
    """Another budget, sampler, pruner or storage continues the same search; another objective is another one."""
    monkeypatch.setenv("SEARCHES", "sqlite:///x.db")
    ways = {"trials": 9, "seconds": 60, "workers": 3, "sampler": "random", "pruner": "median", "startup": 2, "every": 1}
    digests = [
        load(experiments={"a": experiment()}, tune=search(**given)).tunings["t"].digest
        for given in ({}, {**ways, "storage": "$SEARCHES"}, {"objective": "agreement"}, {"seed": 6})
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_without_images_agreement_is_searched(load, tmp_path):
    (tmp_path / "my.pt").write_bytes(b"x")
    none = {"name": "none", "classes": 10, "channels": 1, "mean": [0.5], "std": [0.5]}
    given = {"dataset": none, "teacher": {"weights": str(tmp_path / "my.pt")}, "replay": {"full_size": 100}}
    entry = {key: value for key, value in search()["t"].items() if key != "validation"}
    content = {"experiments": {"a": experiment()}, "settings": merge(SETTINGS, given)}
    tuning = load(tune={"t": entry}, **content).tunings["t"]
    assert (tuning.objective, tuning.settings["dataset"]["validation"]) == ("agreement", 0.0)
    assert tuning.held_out_run.teachers == tuning.run({}).teachers
    assert tuning.held_out_run.seed != tuning.seed
    words = "tune.t.objective: got accuracy; without images (dataset.name none) only agreement can be measured"
    assert words in fault(load, tune={"t": {**entry, "objective": "accuracy"}}, **content)


def test_a_pruner_of_students_that_get_another_head_is_refused(load):
    given = {"methods": {"sim": {"kind": "distill", "objective": {"ce": {"weight": 0.0}, "simkd": {"weight": 1.0}}}}}
    text = fault(
        load,
        experiments={"a": experiment(methods=["sim"])},
        tune=search(method="sim", space=LR, pruner="median"),
        **given,
    )
    assert "tune.t.pruner: got median; with objective.simkd the student is scored with its teacher's head" in text


def test_a_sampler_whose_package_is_missing_is_refused(load, monkeypatch):
    monkeypatch.setattr("kd.studies.search_entry.importlib.util.find_spec", lambda name: None)
    text = fault(load, experiments={"a": experiment()}, tune=search(sampler="cmaes"))
    assert "tune.t.sampler: got cmaes; its package is missing: pip install cmaes, or take tpe" in text


def test_flat_names():
    assert flatten({"a": {"b": {"c": 1}, "d": [1]}, "e": None}) == {"a.b.c": 1, "a.d": [1], "e": None}
    assert flatten({}) == {}


@pytest.mark.parametrize(("name", "score"), [("digits", "accuracy"), ("rooms", "mean IoU")])
def test_the_objective_is_called_what_it_is(name, score):
    tuning = Tuning("t", {"dataset": {"name": name}}, {}, 0)
    assert (tuning.score, tuning.measured) == (score, f"validation {score}")
    other = replace(tuning, objective="agreement")
    assert (other.score, other.measured) == ("agreement", "agreement on held-out synthetic images")
