"""Which figures and tables a study has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from conftest import PAIR, ROOT
from fake_results import find, loaded

from kd.reports import plan
from kd.reports.figures import OF_RUNS, VIEW_CAPTIONS, VIEWS
from kd.reports.plan import example_runs, plan_figures, plan_tables, student_without_teacher
from kd.runtime.messages import ConfigError
from kd.runtime.yaml_files import read_yaml

SYNTHETIC = ["synthetic-images", "synthetic-histograms", "agreement", "synthetic-course"]


@pytest.fixture
def study(tmp_path):
    """Experiments: data (scratch, kd), free (ssdkd, seeds 0 and 1), extra (ssdkd, fast)."""
    return loaded(tmp_path)


def test_the_schema_allows_the_views_that_there_are():
    schema = read_yaml(ROOT / "workflow/schemas/study.schema.yaml")
    properties = schema["properties"]["experiments"]["additionalProperties"]["properties"]
    assert set(properties["view"]["enum"]) == set(VIEWS)


def test_a_study_has_a_figure_per_experiment_and_those_that_its_runs_allow(study):
    figures = plan_figures(study)
    assert [figure.name for figure in figures] == ["data", "free", "extra", "correlations", *SYNTHETIC]
    assert [figure.experiment for figure in figures] == ["data", "free", "extra", *[None] * (1 + len(SYNTHETIC))]
    assert all(figure.title and figure.caption.endswith(".") and figure.kind in VIEWS | OF_RUNS for figure in figures)
    assert set(VIEW_CAPTIONS) == set(VIEWS)
    table = study.table[study.table["method"] == "scratch"]
    only = replace(study, table=table, experiments={"data": study.experiments["data"]})
    assert [figure.name for figure in plan_figures(only)] == ["data"]


def test_a_figure_names_the_runs_that_it_shows_and_the_files_that_it_reads(study):
    figures = {figure.name: figure for figure in plan_figures(study)}
    scratch, kd, free = find(study, "scratch").path, find(study, "kd").path, find(study, "ssdkd").path
    correlations = figures["correlations"]
    assert list(correlations.runs.items()) == [("scratch (full), 100 %", scratch), ("kd (full), 100 %", kd)]
    files = ("correlations.npz", "metrics.json", "run.json")
    assert correlations.inputs == (*(f"{kd}/{name}" for name in files), f"{scratch}/run.json")
    assert correlations.note == f"digits, {PAIR[0]} → {PAIR[1]}, seed 0."
    fast = study.table[study.table["method"] == "fast"]["path"].item()
    course = figures["synthetic-course"]
    assert course.runs == {"ssdkd (full), 50 %, seed 0": free, "fast (full), 50 %, seed 1": fast}
    assert course.note == f"digits, {PAIR[0]} → {PAIR[1]}."
    assert course.inputs == tuple(
        f"{path}/{name}" for path in (free, fast) for name in ("synthetic.npz", "history.csv", "run.json")
    )
    assert figures["data"].inputs == ()


def test_of_finished_runs_only_those_with_the_files_of_a_figure_are_shown(study):
    scratch, kd = find(study, "scratch").path, find(study, "kd").path
    assert [figure.name for figure in plan_figures(study, {scratch})] == ["data"]
    assert [figure.name for figure in plan_figures(study, {scratch, kd})] == ["data"], "no correlations.npz"
    (study.root / kd).mkdir(parents=True)
    for name in ("correlations.npz", "metrics.json", "run.json"):
        (study.root / kd / name).touch()
    assert list(plan_figures(study, {scratch, kd})[-1].runs.values()) == [scratch, kd]
    assert list(plan_figures(study, {kd})[-1].runs.values()) == [kd], "scratch is not finished"


def test_the_student_without_a_teacher_matches_the_distilled_one(study):
    scratch, kd = find(study, "scratch").path, find(study, "kd").path
    assert list(student_without_teacher(study, kd)["path"]) == [scratch]
    assert student_without_teacher(study, kd + "x").empty


def test_a_figure_of_single_runs_has_a_limited_number_of_panels(study):
    rows = study.table[study.table["method"] == "kd"]
    many = [rows.assign(method=f"m{number}", path=f"runs/{number}") for number in range(plan.PANELS + 5)]
    large = replace(study, table=pd.concat([study.table, *many]))
    assert len(example_runs(large, ("distill",))) == plan.PANELS
    assert len(example_runs(large, ("distill",), {"runs/3", "runs/28"})) == 2


def test_an_experiment_has_no_other_figures_name(tmp_path: Path):
    clash = {"correlations": {"pairs": [PAIR], "methods": ["kd"], "seeds": [0]}}
    with pytest.raises(ConfigError, match=r"experiments\.correlations: a figure of the study has this name"):
        plan_figures(loaded(tmp_path, experiments=clash))


def test_tables_of_pairs_are_merged_where_there_are_several():
    views = {"one": "pairs", "two": "methods", "three": "pairs"}
    experiments = {name: {"title": name.title(), "view": view, "note": ""} for name, view in views.items()}
    tables = plan_tables(experiments)
    assert [file for table in tables for file in table.files] == [
        *("one.csv", "one.html"),
        *("one-by-pair.csv", "one-by-pair.tex", "one-by-pair.html"),
        *("two.csv", "two.html"),
        *("three.csv", "three.html"),
        *("three-by-pair.csv", "three-by-pair.tex", "three-by-pair.html"),
        *("_all-by-pair.csv", "_all-by-pair.tex", "study.all-by-pair.html"),
        *("_networks.csv", "study.networks.html"),
    ]
    assert tables[1].heading == "One, by pairs"
    assert [table.experiments for table in tables[-2:]] == [("one", "three"), ("one", "two", "three")]
    del experiments["three"]
    assert [table.name for table in plan_tables(experiments)] == ["one", "one-by-pair", "two", "_networks"]


def test_runs_of_other_seeds_and_data_are_told_apart(study):
    rows = study.table.assign(dataset=[f"set{number % 2}" for number in range(len(study.table))])
    names, note = plan._named(rows.assign(seed=range(len(rows))).drop_duplicates("path"))
    assert len(names) == rows["path"].nunique()
    assert note == f"{PAIR[0]} → {PAIR[1]}."
    assert all(", set" in name and ", seed " in name for name in names)
    both = rows.assign(seed=range(len(rows)), student=[f"s{number}" for number in range(len(rows))])
    assert plan._named(both)[1] == ""
