"""A study in MLflow: rows below their experiments, found by their names, with means, differences and files."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import statistics
from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow_store import Said
from scipy.stats import t
from watched_study import ACCURACY, EPOCHS, SEEDS, fill, finish_all, study_of

from kd.integrations.jobs import close_study, sync_all
from kd.integrations.store import Store
from kd.integrations.summaries import compared, metrics, note, row_name
from kd.reports.tables import summarise

RUNS = 2 * len(SEEDS) + 1  # SSD-KD, Fast, the teacher
ROWS = 4 * len(SEEDS)


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


class Sent:
    """A study that is finished, and sent."""

    def __init__(self, folder: Path):
        self.folder, self.study, self.said = folder, study_of(folder), Said()
        finish_all(self.study)
        self.count = close_study(self.study, self.said)
        self.client = Store(self.study.tracking, self.study.root).client()

    def runs(self, filter_string="", client=None, name="watched"):
        client = client or self.client
        number = client.get_experiment_by_name(name).experiment_id
        return client.search_runs([number], filter_string, order_by=["tags.row"])

    def experiment(self, name):
        [run] = self.runs(f"tags.kind = 'experiment' AND tags.experiment = '{name}'")
        return run


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Sent once; tests read it, or change a copy."""
    with pytest.MonkeyPatch.context() as patched:
        patched.delenv("MLFLOW_TRACKING_URI", raising=False)
        return Sent(tmp_path_factory.mktemp("sent"))


@pytest.fixture
def copy(base, tmp_path):
    """A copy of what was sent, as one may copy a project: it has its own store."""
    shutil.copytree(base.folder, tmp_path, dirs_exist_ok=True)
    found = object.__new__(Sent)
    found.folder, found.study, found.said = tmp_path, study_of(tmp_path), Said()
    found.client = Store(found.study.tracking, found.study.root).client()
    return found


def test_what_is_said_and_counted(base):
    assert base.count == RUNS
    models, link = base.said
    assert models.startswith(f"networks in MLflow as weights.pt, not as models: {RUNS}; the first: ")
    assert "/#/experiments/1/runs?workflowType=machine_learning&viewStateShareKey=kd\n" in link
    assert f"mlflow ui --backend-store-uri sqlite:///{base.study.root / 'mlflow.db'}" in link


def test_each_row_is_found_by_its_names(base):
    """Without its modules SSD-KD is Fast: the same runs, in two rows."""
    fast, neither = base.runs("tags.method = 'fast'"), base.runs("tags.ablation = 'neither'")
    assert [run.info.run_name for run in fast] == [f"fast (full), 50 %, seed {seed}" for seed in SEEDS]
    assert [run.info.run_name for run in neither] == [f"ssdkd (neither), 50 %, seed {seed}" for seed in SEEDS]
    for runs in (fast, neither):
        assert [run.data.metrics["accuracy"] for run in runs] == list(ACCURACY["fast"])
        assert {run.data.metrics["seconds"] for run in runs} == {20.0}
        assert [run.info.end_time - run.info.start_time for run in runs] == [20_000] * 3
        assert {(run.data.tags["scale"], run.data.tags["seed"]) for run in runs} == {("0.5", str(s)) for s in SEEDS}
        assert runs[0].data.params["replay.alpha"] == "0.0"
        assert len(base.client.get_metric_history(runs[0].info.run_id, "loss")) == EPOCHS
        [data] = runs[0].inputs.dataset_inputs
        assert (data.dataset.name, data.tags[0].value) == ("digits", "evaluation")
    assert len(base.runs("tags.method = 'ssdkd'")) == 3 * len(SEEDS), "in two experiments, and as neither"
    assert len(base.runs("tags.experiment = 'free' AND tags.method = 'ssdkd'")) == len(SEEDS)
    assert [run.info.run_name for run in base.runs("tags.method = 'teacher'")] == ["teacher resnet8, seed 0"]


def test_weights_are_stored_once(base):
    files = [path for path in base.study.root.glob("mlartifacts/watched/*/artifacts/weights.pt")]
    assert len(files) == RUNS
    copies = [run for run in base.runs() if "copy_of" in run.data.tags]
    assert len(copies) == ROWS - (RUNS - 1)
    assert all(not base.client.list_artifacts(run.info.run_id) for run in copies)
    assert {run.data.tags["copy_of"] for run in copies} <= {run.info.run_id for run in base.runs()}


def test_rows_are_below_their_experiment_in_the_studys_order(base):
    shown = [run.info.run_name for run in base.runs("tags.row LIKE '%'")]
    modules = [f"ssdkd ({name}), 50 %, seed {seed}" for name in ("full", "neither") for seed in SEEDS]
    free = [f"{name} (full), 50 %, seed {seed}" for name in ("fast", "ssdkd") for seed in SEEDS]
    headed = ["modules: modules", *modules, "free: SSD-KD and Fast", *free]
    assert shown == ["watched: Watched", *headed, "teacher resnet8, seed 0"]
    parent = base.experiment("free").info.run_id
    children = base.runs(f"tags.mlflow.parentRunId = '{parent}'")
    assert [run.info.run_name for run in children] == free
    assert base.experiment("free").info.end_time - base.experiment("free").info.start_time == 2 * 86_400_000 + 20_000


def test_an_experiment_says_means_and_the_paired_difference(base):
    run = base.experiment("free")
    gaps = [a - b for a, b in zip(ACCURACY["ssdkd"], ACCURACY["fast"], strict=True)]
    mean, reach = statistics.mean(gaps), float(t.ppf(0.975, 2)) * statistics.stdev(gaps) / 3**0.5
    found = run.data.metrics
    for name in ("ssdkd", "fast"):
        assert found[f"accuracy_mean/{name}"] == pytest.approx(statistics.mean(ACCURACY[name]))
        assert found[f"accuracy_std/{name}"] == pytest.approx(statistics.stdev(ACCURACY[name]))
        assert found[f"n/{name}"] == 3
    assert (found["seconds_mean/ssdkd"], found["seconds_std/ssdkd"]) == (12.0, 0.0)
    assert found["difference/ssdkd"] == pytest.approx(mean)
    assert found["difference_low/ssdkd"] == pytest.approx(mean - reach)
    assert found["difference_high/ssdkd"] == pytest.approx(mean + reach)
    assert (found["difference_n/ssdkd"], "difference/fast" in found) == (3, False)
    said = f"{mean:+.2f} ({mean - reach:+.2f} to {mean + reach:+.2f})"
    assert run.data.tags["compared"].startswith(f"ssdkd - fast: {said}, n 3, p 0.")
    assert f"| ssdkd | 91.33 ± 1.53 | 3 | {said} | 0." in run.data.tags["mlflow.note.content"]
    assert {file.path for file in base.client.list_artifacts(run.info.run_id)} == {"free.csv", "free.png"}
    about = base.client.get_experiment_by_name("watched").tags["mlflow.note.content"]
    assert f"- free: ssdkd - fast: {said}" in about
    assert "(#/experiments/1/runs?workflowType=machine_learning&viewStateShareKey=kd)" in about


def test_the_studys_run_has_its_tables_and_figures(base):
    [run] = base.runs("tags.kind = 'study'")
    files = {file.path for file in base.client.list_artifacts(run.info.run_id)}
    assert files == {"table.md", "results.csv", "runs.csv", "tables", "figures"}


def test_the_saved_view_names_columns_that_exist(base):
    tags = base.client.get_experiment_by_name("watched").tags
    state = json.loads(json.loads(tags["mlflow.sharedViewState.kd"])["state"])
    [row, *_] = base.runs("tags.method = 'fast'")
    run = base.experiment("free")
    known = {f"metrics.`{name}`" for name in row.data.metrics} | {f"tags.`{name}`" for name in row.data.tags}
    assert set(state["selectedColumns"]) <= known | {f"tags.`{name}`" for name in run.data.tags}
    assert state["orderByKey"] == "tags.`row`"


def test_nothing_is_sent_twice(copy):
    before = {run.info.run_id: run.data.metrics for run in copy.runs()}
    assert close_study(copy.study, copy.said) == 0
    assert len(copy.said) == 1
    assert {run.info.run_id: run.data.metrics for run in copy.runs()} == before
    assert len(before) == RUNS + len(SEEDS) * 2 + 3  # copies; two experiments and the study


def test_a_run_made_again_takes_the_place_of_the_old_one(copy):
    [fast, *_] = [run for run in copy.study.runs.values() if run.kind == "datafree" and run.replay.alpha == 0]
    folder = fill(copy.study, fast, finished="2026-02-01T00:00:00Z")
    (folder / "mlflow.json").unlink()  # as a new training does
    assert close_study(copy.study, copy.said) == 1
    shown = copy.runs("tags.row LIKE '%' AND tags.method = 'fast'")
    assert len(shown) == len(SEEDS)
    assert shown[fast.seed].info.end_time == 1_769_904_000_000
    assert len(copy.runs("tags.method = 'fast'")) == len(SEEDS) + 1, "the old one is there, too"


def test_a_run_that_the_user_has_deleted_stays_deleted(copy):
    [run, *_] = copy.runs("tags.ablation = 'neither'")
    copy.client.delete_run(run.info.run_id)
    close_study(copy.study, copy.said)
    assert len(copy.runs("tags.ablation = 'neither'")) == len(SEEDS) - 1


def test_a_row_of_which_half_was_sent_is_sent_again(copy):
    [run, *_] = copy.runs("tags.method = 'fast'")
    copy.client.update_run(run.info.run_id, status="RUNNING")
    close_study(copy.study, copy.said)
    found = copy.runs("tags.method = 'fast'")
    assert ([one.info.status for one in found], len(found)) == (["FINISHED"] * 3, 3)
    assert run.info.run_id not in {one.info.run_id for one in found}


def test_a_study_whose_runs_another_one_has_made_shows_them(copy):
    second = study_of(copy.folder, "second")
    shutil.copytree(copy.study.root / "studies/watched", copy.study.root / "studies/second")
    assert close_study(second, copy.said) == 0
    assert len(copy.runs("tags.method = 'fast'", name="second")) == len(SEEDS)
    assert len(copy.runs("tags.row LIKE '%'", name="second")) == ROWS + 3


def test_a_wrong_store_does_not_stick(copy):
    assert close_study(copy.study, copy.said, "http://127.0.0.1:9") == 0
    [line] = copy.said
    assert line.startswith("MLflow store http://127.0.0.1:9 is away (Connection refused); `python -m kd sync ")
    assert line.endswith(f"--to http://127.0.0.1:9` tries again ({RUNS} of {RUNS} finished runs have not arrived)")
    assert close_study(copy.study, copy.said) == 0
    assert f"sqlite:///{copy.study.root / 'mlflow.db'}" in copy.said[-1]


def test_another_store_gets_everything_whatever_was_sent(copy):
    file = copy.folder / "other.db"
    shutil.copy(copy.study.root / "mlflow.db", file)  # a store of somebody else: making one takes seconds
    with contextlib.closing(sqlite3.connect(file)) as database, database:
        database.execute("UPDATE experiments SET name = 'of others' WHERE name = 'watched'")
    other = f"sqlite:///{file}"
    assert sync_all(copy.study.root, copy.study.tracking, copy.said, other) == RUNS
    assert close_study(copy.study, copy.said, other) == 0
    there, here = (copy.runs("tags.row LIKE '%'", client) for client in (MlflowClient(other), copy.client))
    assert [run.info.run_name for run in there] == [run.info.run_name for run in here]
    assert {run.info.run_id for run in there}.isdisjoint(run.info.run_id for run in here)


# -------------------------------------------------------------------------------------------------------------- texts


def summary(*rows):
    names = ("teacher", "student", "method", "ablation", "scale", "seed", "accuracy", "seconds_total")
    return summarise(pd.DataFrame([dict(zip(names, row, strict=True)) for row in rows]))


def test_texts_of_one_seed_scales_and_odd_names():
    one = summary(("a", "b", "kd", "full", 1.0, 0, 90.0, 1.0), ("a", "b", "c%d", "no (x)", 1.0, 0, 91.0, 2.0))
    assert compared(one) == "c%d no (x) - kd: +1.00, n 1"
    assert metrics(one)["difference/c_d no _x_"] == 1.0
    assert "inf" not in note(one) + compared(one)
    scales = summary(("a", "b", "kd", "full", 1.0, 0, 90.0, 1.0), ("a", "b", "kd", "full", 0.1, 0, 80.0, 2.0))
    assert compared(scales) == "kd 1: 90.00, n 1; kd 0.1: 80.00, n 1"


def test_rows_name_the_pair_where_there_are_several(base):
    table = base.study.table.copy()
    row = table.iloc[0].to_dict()
    assert row_name(row, table) == "ssdkd (full), 50 %, seed 0"
    table.loc[1, "student"] = "other"
    assert row_name(row, table) == "ssdkd (full), 50 %, seed 0, resnet8 → wrn_10_1"
