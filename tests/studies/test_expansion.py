"""What the axes of a study expand to, and which runs are shared."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from conftest import ROOT
from own_studies import METHODS, PAIR, SETTINGS, experiment, loader, paths

from kd.runtime.yaml_files import read_yaml
from kd.settings.merging import merge
from kd.studies.expansion import COLUMNS, FULL


@pytest.fixture
def load(tmp_path, monkeypatch):
    return loader(tmp_path, monkeypatch)


def test_axes_multiply_to_a_table_in_the_order_of_the_study(load):
    pairs = [PAIR, ["resnet8", "wrn_10_1"]]
    study = load(
        experiments={
            "all": experiment(
                pairs=pairs,
                methods=["bare", "free"],
                ablations=["no-priority", FULL],
                scales=[0.9, 0.1],
                seeds=[3, 1],
            ),
            "short": experiment(methods=["plain"]),
        }
    )
    table = study.table
    assert list(table.columns) == COLUMNS
    expected = [
        ("all", "digits", teacher, student, method, ablation, scale, seed, "datafree")
        for teacher, student in pairs
        for method in ("bare", "free")
        for ablation in ("no-priority", FULL)
        for scale in (0.9, 0.1)
        for seed in (3, 1)
    ]
    expected.append(("short", "digits", *PAIR, "plain", FULL, 0.5, 0, "train"))
    assert [tuple(row) for row in table.drop(columns=["path", "quoted"]).itertuples(index=False)] == expected
    for row in table.itertuples():
        run = study.runs[row.path]
        assert run.path == row.path
        assert (run.kind, run.model, run.scale, run.seed) == (row.kind, row.student, row.scale, row.seed)
        if run.teacher is not None:
            assert run.teacher.model == row.teacher
            assert study.runs[run.teacher.path] == run.teacher
    assert study.students == list(dict.fromkeys(table["path"]))
    teachers = {run.teacher.path for run in study.runs.values() if run.teacher}
    assert set(study.runs) == set(table["path"]) | teachers


def test_titles_views_and_folders(load):
    study = load(experiments={"a": experiment(), "b": experiment(title="B", view="scale")})
    expected = {"a": {"title": "a", "view": "methods", "note": ""}, "b": {"title": "B", "view": "scale", "note": ""}}
    assert study.experiments == expected
    assert (study.name, study.title) == ("mine", "Mine")
    assert study.root == Path(study.settings["results"])
    assert load({"results": "there"}, experiments={"a": experiment()}).root == Path("there")
    assert (
        load(experiments={"a": experiment()}, settings=merge(SETTINGS, {"compute": {"threads": 3}})).compute.threads
        == 3
    )


def test_settings_come_from_defaults_study_method_ablation_experiment(load):
    def beta(study):
        [path] = set(study.table["path"])
        return study.runs[path].replay.beta

    plain = {"settings": merge(SETTINGS, {"replay": {"beta": 0.11}}), "methods": {"free": {"kind": "datafree"}}}
    assert beta(load(**plain, experiments={"a": experiment()})) == 0.11
    with_method = {**plain, "methods": {"free": {"kind": "datafree", "replay": {"beta": 0.22}}}}
    assert beta(load(**with_method, experiments={"a": experiment()})) == 0.22
    with_ablation = {**with_method, "ablations": {"x": {"replay": {"beta": 0.33}}}}
    assert beta(load(**with_ablation, experiments={"a": experiment(ablations=["x"])})) == 0.33
    own = {"replay": {"beta": 0.44}}
    assert beta(load(**with_ablation, experiments={"a": experiment(ablations=["x"], settings=own)})) == 0.44


def test_methods_of_config_yaml_are_there_and_a_study_changes_them(load):
    known = read_yaml(ROOT / "config/config.yaml")["methods"]
    same_widths = [["wrn_16_1", "wrn_16_1"]]  # some distillers need them
    study = load(experiments={"a": experiment(pairs=same_widths, methods=list(known), scales=[1.0])}, methods=...)
    assert list(study.table["method"]) == list(known)
    study = load(experiments={"a": experiment(methods=["ssdkd"])}, methods={"ssdkd": {"replay": {"beta": 0.77}}})
    [run] = [study.runs[path] for path in study.students]
    assert (run.kind, run.replay.beta) == ("datafree", 0.77)


def test_experiments_and_methods_that_ask_for_the_same_share_a_run(load):
    study = load(
        experiments={
            "a": experiment(methods=["free", "bare"], ablations=[FULL, "neither"], seeds=[0, 1]),
            "b": experiment(methods=["bare"], seeds=[1, 2]),
        }
    )
    neither = paths(study, method="free", ablation="neither")
    assert neither == paths(study, experiment="a", method="bare", ablation=FULL)
    assert neither == paths(study, method="bare", ablation="neither")
    assert neither != paths(study, method="free", ablation=FULL)
    assert len(paths(study, experiment="a") & paths(study, experiment="b")) == 1
    assert len(study.table) == 10
    assert len(study.students) == 5


def test_published_methods_with_both_modules_off_are_the_generator_alone(load):
    study = load(
        methods=...,
        experiments={"a": experiment(methods=["ssdkd"], ablations=["neither"]), "b": experiment(methods=["fast"])},
    )
    assert paths(study, experiment="a") == paths(study, experiment="b")


def test_teachers_are_shared_and_no_students(load):
    study = load(
        experiments={
            "a": experiment(methods=["soft", "free"], scales=[0.2, 0.4], seeds=[0, 1, 2]),
            "b": experiment(pairs=[["wrn_16_2", "vgg8"]]),
        }
    )
    [teacher] = {run.teacher.path for run in study.runs.values() if run.teacher}
    assert study.runs[teacher].scale == 1.0
    assert teacher not in study.students
    assert len(study.runs) == len(study.students) + 1 == 14


def test_students_without_a_teacher_do_not_depend_on_one(load):
    study = load(experiments={"a": experiment(pairs=[PAIR, ["vgg8", "wrn_16_1"]], methods=["plain"])})
    assert len(study.table) == 2
    assert len(study.runs) == 1


def test_a_teacher_trained_at_full_scale_is_the_run_that_learns_from_labels(load):
    study = load(experiments={"a": experiment(pairs=[["vgg8", "vgg8"]], methods=["plain", "soft"], scales=[1.0])})
    [teacher] = {run.teacher.path for run in study.runs.values() if run.teacher}
    assert paths(study, method="plain") == {teacher}


def test_one_teacher_per_seed_on_request(load):
    def teachers(seed):
        settings = merge(SETTINGS, {"teacher": {"seed": seed}})
        study = load(experiments={"a": experiment(seeds=[4, 5])}, settings=settings)
        return [study.runs[path].teacher.seed for path in study.students], study

    assert teachers(7)[0] == [7, 7]
    seeds, study = teachers(None)
    assert seeds == [4, 5]
    assert len(study.runs) == 4


FULL_STUDY = {"a": experiment(methods=["plain", "soft", "free", "bare"], scales=[0.2, 0.4], seeds=[0, 1])}


def test_adding_seeds_and_variants_adds_runs_and_touches_none(load):
    before = set(load(experiments=FULL_STUDY).runs)
    wider = {
        "a": {**FULL_STUDY["a"], "seeds": [0, 1, 2], "ablations": [FULL, "no-priority"], "scales": [0.2, 0.4, 0.6]}
    }
    after = set(load(experiments=wider).runs)
    assert before < after
    more = {**METHODS, "new": {"kind": "datafree", "inversion": {"generator": {"bn": 0.123}}}}
    wider = {"a": {**FULL_STUDY["a"], "methods": [*METHODS, "new"]}}
    after = set(load(experiments=wider, methods=more).runs)
    assert before < after
    assert len(after - before) == 4
    reordered = {"a": {**FULL_STUDY["a"], "methods": list(METHODS)[::-1], "seeds": [1, 0]}}
    assert set(load(experiments=reordered).runs) == before


@pytest.mark.parametrize(
    ("override", "touched"),
    [
        ({"inversion": {"generator": {"bn": 0.123}}}, {"free", "bare"}),
        ({"distillation": {"training": {"lr": 0.123}}}, {"free", "bare"}),
        ({"training": {"lr": 0.123}}, {"plain", "soft"}),
        ({"teacher": {"training": {"lr": 0.123}}}, {"soft", "free", "bare"}),
        ({"teacher": {"seed": 9}}, {"soft", "free", "bare"}),
        ({"dataset": {"pad": 7}}, {"plain", "soft", "free", "bare"}),
        ({"compute": {"threads": 3}, "tracking": {"enabled": False}, "results": "there"}, set()),
    ],
)
def test_a_setting_touches_exactly_the_runs_that_use_it(load, override, touched):
    before = load(experiments=FULL_STUDY)
    after = load(experiments=FULL_STUDY, settings=merge(SETTINGS, override))
    for method in METHODS:
        same = paths(before, method=method) & paths(after, method=method)
        assert same == (set() if method in touched else paths(before, method=method)), method


def test_a_methods_setting_touches_that_method_alone(load):
    before = load(experiments=FULL_STUDY)
    changed = merge(METHODS, {"soft": {"objective": {"kd": {"temperature": 2.0}}}})
    after = load(experiments=FULL_STUDY, methods=changed)
    assert not paths(before, method="soft") & paths(after, method="soft")
    for method in ("plain", "free", "bare"):
        assert paths(before, method=method) == paths(after, method=method)


def test_studies_find_each_others_runs(load):
    first = load(experiments=FULL_STUDY)
    renamed = {f"{name}-2": value for name, value in METHODS.items()}
    second = load(
        name="another",
        title="Another",
        methods=renamed,
        experiments={"x": {**FULL_STUDY["a"], "methods": list(renamed)}},
    )
    assert set(first.runs) == set(second.runs)


def test_a_thousand_runs_expand_in_seconds(load):
    pairs = [[teacher, student] for teacher in ("wrn_16_2", "vgg8") for student in ("resnet8", "wrn_10_1", "vgg11")]
    asked = experiment(
        pairs=pairs[:5],
        methods=list(METHODS),
        ablations=[FULL, "no-priority"],
        scales=[0.1, 0.2, 0.3, 0.4, 0.5],
        seeds=list(range(5)),
    )
    start = time.process_time()
    study = load(experiments={"a": asked})
    assert time.process_time() - start < 5
    assert len(study.table) == 1000


def test_an_experiment_sets_single_methods_apart(load):
    """Below `settings.methods`, as below teachers and students, and after everything else but the axes."""
    settings = {"replay": {"eps": 0.01}, "methods": {"free": {"scale": 0.7, "replay": {"eps": 0.02}}}}
    study = load(experiments={"a": experiment(methods=["free", "bare", "plain"], settings=settings)})
    runs = {row.method: study.runs[row.path] for row in study.table.itertuples()}
    assert {name: run.scale for name, run in runs.items()} == {"free": 0.7, "bare": 0.5, "plain": 0.5}
    assert (runs["free"].replay.eps, runs["bare"].replay.eps) == (0.02, 0.01)
    with_axis = load(experiments={"a": experiment(methods=["free"], scales=[0.3], settings=settings)})
    assert list(with_axis.table["scale"]) == [0.3]


def test_quoted_numbers_stand_next_to_the_runs_of_their_pair(load):
    quoted = {
        "source": "a page\nof theirs",
        "teachers": [90, None],
        "methods": {"free": [80.5, None], "bare": [70, 71]},
    }
    study = load(
        experiments={
            "a": experiment(
                pairs=[PAIR, ["resnet8", "wrn_10_1"]],
                methods=["free", "bare", "plain"],
                ablations=[FULL, "no-priority"],
                seeds=[0, 1],
                quoted=quoted,
            ),
            "b": experiment(methods=["free"]),
        }
    )
    rows = study.table[study.table["quoted"].notna()]
    found = set(rows[["experiment", "teacher", "method", "ablation", "quoted"]].itertuples(index=False, name=None))
    assert found == {
        ("a", PAIR[0], "free", FULL, 80.5),
        ("a", PAIR[0], "bare", FULL, 70),
        ("a", "resnet8", "bare", FULL, 71),
    }
    assert len(rows) == 6, "for every seed"
    note = f"\nQuoted, not measured here: a page of theirs; its teachers: {PAIR[0]} 90.00 %.\n"
    assert [experiment["note"] for experiment in study.experiments.values()] == [note, ""]
