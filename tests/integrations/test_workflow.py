"""The Snakemake side: the DAG, what reruns when, readable errors, a whole tiny study, tuning, the SLURM profile."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import PAIR, ROOT, copy_project
from forked_dry_runs import DryRuns
from tiny_study import CLAIMS, JOB_BY_JOB, environment_of, finish, planned, runs_of, snakemake, write_study

from kd.settings.merging import merge

TITLE = "Tiny </script><script>bad()</script>"
WHOLE = {"claims": CLAIMS, "title": TITLE}
# of results in Snakemake's report
LABELS = [
    ("what", "The answer"),
    ("table", "data, by pairs"),
    ("figure", "scale"),
    ("figure", "Synthetic images at the end of a run"),
]


@pytest.fixture(scope="module")
def dry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DryRuns]:
    """Starts of Snakemake that run nothing, in a project that tests share; they write the study first."""
    project = copy_project(tmp_path_factory.mktemp("dry"))
    with DryRuns(project) as runs:
        runs.project = project
        yield runs


def test_dag_has_one_job_per_distinct_run(dry: DryRuns) -> None:
    write_study(dry.project)
    counts = planned(dry)
    # one shared teacher and a student from scratch; KD and CRD; two scales and two seeds
    assert runs_of(counts) == {"train": 2, "distill": 2, "datafree": 4}
    assert {rule: counts[rule] for rule in ("prepare_data", "collect", "tables", "figures", "page")} == {
        "prepare_data": 1,
        "collect": 1,
        "tables": 1,
        "figures": 1,
        "page": 1,
    }


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"settings": {"replay": {"alpha": -1.0}}}, r"replay.alpha: got -1.0; allowed: >= 0"),
        ({"settings": {"replay": {"alhpa": 1.0}}}, r"replay: unknown key 'alhpa'; did you mean 'alpha'\?"),
        ({"settings": {"training": {"lr": "1e-3"}}}, r"training.lr: got '1e-3' \(text\); .*write 0.001"),
        ({"settings": {"dataset": {"name": "digitz"}}}, r"dataset.name: got 'digitz'; did you mean 'digits'"),
        ({"experiments": {"data": {"pairs": [["resnet9", "wrn_10_1"]]}}}, r"teacher.model: .*resnet9"),
        ({"experiments": {"data": {"methods": ["scrach"]}}}, r"methods: got 'scrach'; did you mean 'scratch'"),
        ({"colour": "red"}, r"unknown key 'colour'"),
    ],
)
def test_a_mistake_gives_one_readable_line(dry: DryRuns, changes: dict, expected: str) -> None:
    write_study(dry.project, **changes)
    [(code, said)] = dry(["--cores", "1", "--config", "study=tiny"])
    assert code != 0
    assert re.search(expected, said), said
    assert "Traceback" not in said
    assert len([line for line in said.splitlines() if re.search(expected, line)]) == 1
    assert not (dry.project / "results").exists()


def test_unknown_study_lists_those_there_are(dry: DryRuns) -> None:
    [(code, said)] = dry(["-n", "--config", "study=dmo"])
    assert code != 0
    assert "did you mean 'demo'?" in said


def test_settings_on_the_command_line(dry: DryRuns) -> None:
    write_study(dry.project)
    planned(dry, "training={epochs: 3, lr: 0.2}")
    [(code, said)] = dry(["-n", "--config", "study=tiny", "training={lr: -1}"])
    assert code != 0
    assert "training.lr: got -1; allowed: > 0" in said


def test_slurm_profile_dry_runs(dry: DryRuns) -> None:
    write_study(dry.project)
    counts = planned(dry, "--workflow-profile", "profiles/slurm")
    assert runs_of(counts) == {"train": 2, "distill": 2, "datafree": 4}


def test_a_study_on_the_cpu_asks_for_no_gpu(dry: DryRuns) -> None:
    """A SLURM job would wait for one, and --resources gpu=N would hold it back."""
    write_study(dry.project)  # with compute.device: cpu
    results = "results=nothing-there"  # so that every run is planned
    for device, asked in (("cpu", {"0"}), ("auto", {"1"})):
        compute = f"compute={{device: {device}}}"
        [(code, said)] = dry(
            ["-n", *JOB_BY_JOB, "--workflow-profile", "profiles/slurm", "--config", "study=tiny", results, compute]
        )
        assert code == 0, said
        assert set(re.findall(r"\bgpu=(\d+)", said)) == asked


def test_several_gpus_are_asked_for_where_steps_are_shared(dry: DryRuns) -> None:
    write_study(dry.project)
    given = ["study=tiny", "results=nothing-there", "compute={device: auto, gpu: 2, threads: 3}"]
    [(code, said)] = dry(["-n", *JOB_BY_JOB, "--cores", "8", "--config", *given])
    assert code == 0, said
    asked = set(re.findall(r"^(?:rule )(\w+):(?:\n .*)*\n    threads: (\d+)\n    resources: .*\bgpu=(\d)", said, re.M))
    assert asked == {("train", "6", "2"), ("distill", "6", "2"), ("datafree", "3", "1")}


def test_lint(dry: DryRuns) -> None:
    write_study(dry.project)
    [(code, said)] = dry(["--lint", "--config", "study=tiny"])
    assert code == 0, said


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess]:
    """A finished study, from which tests go on in a copy, and what Snakemake said."""
    project = copy_project(tmp_path_factory.mktemp("whole"))
    write_study(project, **WHOLE)
    return project, finish(project)


def test_whole_study_then_only_what_is_new(whole: tuple[Path, subprocess.CompletedProcess], tmp_path: Path) -> None:
    """The thread end to end: runs, tables, figures, MLflow, report; then nothing to do; then only what changed."""
    finished, done = whole
    project = shutil.copytree(finished, tmp_path / "project")
    assert "profile profiles/default" in done.stderr, "picked up by itself"
    folder = project / "results/studies/tiny"
    results = pd.read_csv(folder / "results.csv")
    assert len(results) == 7
    assert results["accuracy"].between(0, 100).all()
    table = (folder / "table.md").read_text()
    assert "A larger {buffer} is better." in table
    assert "| ssdkd, 60 % against ssdkd, 30 % | accuracy, difference | above 0 |" in table
    assert len(pd.read_csv(folder / "claims.csv")) == 1
    assert table.count("| resnet8 → wrn_10_1 |") == 3 + 2 + 2 + 1, "rows of groups; heads by pairs, of shares; networks"
    assert (folder / "tables/data-by-pair.tex").read_text().startswith("\\begin{tabular}{lc}")
    assert list(pd.read_csv(folder / "tables/data-by-pair.csv")["method"]) == ["scratch", "kd", "crd"]
    assert re.search(r"\d+\.\d\d ± \d+\.\d\d", table)
    for name in ("data", "scale", "correlations", "synthetic-images", "synthetic-histograms"):
        for ending in ("png", "svg"):
            assert (folder / f"figures/{name}.{ending}").stat().st_size > 1000
    _check_mlflow(project, results)

    page = (folder / "report.html").read_text("utf-8")
    assert page.count(html.escape(TITLE)) == 2, "above it and in its window's title"
    assert "A larger {buffer} is better." in page
    assert page.count("data:image/png") == 5

    report = snakemake(project, "--report", str(project / "snakemake-report.html"))
    assert report.returncode == 0, report.stderr
    assert "WARNING" not in report.stderr, "of its captions"
    said = (project / "snakemake-report.html").read_text("utf-8")
    assert "</script><script>bad()" not in said
    assert [said.count(f'"{key}": "{value}"') for key, value in LABELS] == [1] * len(LABELS)
    assert said.count('"mime_type": "text/html"') == 5, "the answer, three tables of experiments, the networks"

    with DryRuns(project) as dry:
        assert planned(dry) == {}, "a finished study has nothing to do"
        write_study(project, **WHOLE, settings={"compute": {"checkpoint_seconds": 5.0}, "tracking": {"enabled": False}})
        assert runs_of(planned(dry)) == {}, "how a run is computed is no part of it"
        write_study(project, **WHOLE, experiments={"scale": {"seeds": [0, 1, 2]}})
        assert runs_of(planned(dry)) == {"datafree": 2}, "a new seed runs at both scales, nothing else"
        write_study(project, **WHOLE, methods={"crd": {"objective": {"crd": {"tau": 0.1}}}})
        assert runs_of(planned(dry)) == {"distill": 1}, "a loss's setting reruns the runs that use it"
        write_study(project, **WHOLE, settings={"teacher": {"training": {"epochs": 3}}})
        assert runs_of(planned(dry)) == {"train": 1, "distill": 2, "datafree": 4}, "another teacher, other students"
        write_study(project, **WHOLE, name="second")
        assert runs_of(planned(dry, study="second")) == {}, "equal settings are one run, also across studies"


def _check_mlflow(project: Path, results: pd.DataFrame) -> None:
    import mlflow.pytorch
    import torch
    from mlflow import MlflowClient

    from kd.runs.export import read_run

    client = MlflowClient(f"sqlite:///{project / 'results/mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny")
    runs = client.search_runs([experiment.experiment_id], max_results=100)
    by_path = {run.data.tags["path"]: run for run in runs if "path" in run.data.tags}
    assert len(by_path) == 8  # seven students and the teacher
    for row in results.itertuples():
        run = by_path[row.path]
        assert run.data.metrics["final_accuracy"] == pytest.approx(row.accuracy)
        assert run.data.tags["method"] == row.method
        assert run.data.params["kind"] == row.kind
        assert run.info.status == "FINISHED"
    some = by_path[results["path"].iloc[-1]]
    assert len(client.get_metric_history(some.info.run_id, "loss")) == 3  # a value per student epoch
    files = {file.path for file in client.list_artifacts(some.info.run_id)}
    assert files == {"metrics.json", "run.json", "history.csv"}, "the weights are in the model"
    [model] = some.outputs.model_outputs
    stored = mlflow.pytorch.load_model(client.get_logged_model(model.model_id).artifact_location)
    found = read_run(project / "results" / some.data.tags["path"])
    torch.testing.assert_close(stored(found.images), found.logits, rtol=1e-4, atol=1e-4)
    [parent] = client.search_runs([experiment.experiment_id], "tags.kind = 'experiment' AND tags.experiment = 'scale'")
    assert parent.data.metrics["n/ssdkd 0.3"] == 2
    assert {"scale.csv", "scale.png"} <= {file.path for file in client.list_artifacts(parent.info.run_id)}


def test_editing_the_package_runs_again_what_uses_it(
    whole: tuple[Path, subprocess.CompletedProcess], tmp_path: Path
) -> None:
    """A method's file reruns exactly its runs, a comment or a new loss nothing, the shared core everything."""
    project = shutil.copytree(whole[0], tmp_path / "project")
    shutil.copytree(ROOT / "kd", project / "kd", ignore=shutil.ignore_patterns("__pycache__"))
    with DryRuns(project, edited=project) as dry:
        assert planned(dry) == {}

        def edited(file: str, before: str = r"\Z", after: str = "\nUNUSED = 1\n") -> dict[str, int]:
            path = project / file
            text = path.read_text()
            changed, count = re.subn(before, after, text, count=1)
            assert count == 1
            path.write_text(changed)
            counts = planned(dry)
            path.write_text(text)
            return counts

        crd, init = "kd/losses/crd.py", "kd/registry/losses.py"
        assert edited(crd, '"""', '"""Other words. ') == {}, "docstrings and layout do not count"
        counts = edited(crd)
        assert runs_of(counts) == {"distill": 1}, "the run that uses the loss"
        assert {"collect", "tables", "figures"} <= set(counts)
        assert runs_of(edited("kd/training/datafree.py")) == {"datafree": 4}
        only_the_student = {"train": 1, "distill": 2, "datafree": 4}
        assert runs_of(edited("kd/models/wrn.py")) == only_the_student, "the teacher is a ResNet"
        assert runs_of(edited("kd/training/with_data.py")) == {"train": 2, "distill": 2, "datafree": 4}
        for file in ("kd/reports/tables.py", "kd/reports/page/page.css"):
            counts = edited(file)
            assert runs_of(counts) == {}
            assert {"collect", "tables", "figures", "page"} <= set(counts)
        (project / "kd/losses/mine.py").write_text((project / "kd/losses/kd.py").read_text())
        (project / init).write_text(
            (project / init)
            .read_text()
            .replace(
                "LOSSES: dict[str, Entry] = {\n",
                'LOSSES: dict[str, Entry] = {\n    "mine": Entry("kd.losses.mine:kd"),\n',
            )
        )
        assert planned(dry) == {}, "a loss that is added reruns nothing"
        mine = {"kind": "distill", "objective": {"mine": {"weight": 1.0}}}
        experiments = {"data": {"methods": ["scratch", "kd", "crd", "mine"]}}
        write_study(project, **WHOLE, methods={"mine": mine}, experiments=experiments)
        assert runs_of(planned(dry)) == {"distill": 1}, "and only the method that uses it runs"


def test_more_gpu_slots_than_there_are_is_refused(project: Path) -> None:
    write_study(project)
    tool = project / "bin/nvidia-smi"
    tool.parent.mkdir()
    tool.write_text("#!/bin/sh\necho 'GPU 0: A'\necho 'GPU 1: B'\n")
    tool.chmod(0o755)
    path = f"{tool.parent}:{os.environ['PATH']}"
    changed = {"compute": {"device": "auto", "slots_per_gpu": 2}}
    write_study(project, settings=changed)
    done = snakemake(project, "--cores", "1", "--resources", "gpu=5", PATH=path)
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert "error: --resources gpu: got 5; allowed: at most 4 on this machine" in said
    assert "Traceback" not in said
    assert not list(project.glob("results/runs/**/weights.pt"))
    assert snakemake(project, "-n", "--resources", "gpu=5", PATH=path).returncode == 0, "a look starts nothing"


def test_a_search_writes_settings_that_the_study_takes(project: Path) -> None:
    search = {
        "pair": PAIR,
        "method": "ssdkd",
        "scale": 0.3,
        "trials": 2,
        "workers": 2,
        "space": {"replay.alpha": {"low": 0.0, "high": 1.0}, "modulation.gamma": {"low": 0.0, "high": 2.0}},
    }
    only = {"experiments": {"data": None, "scale": {"scales": [0.3], "seeds": [0], "ablations": ["tuned"]}}}
    only["ablations"] = {"tuned": "best"}
    write_study(project, **merge(only, {"ablations": {"tuned": {}}}))
    none = snakemake(project, "-n", "--", "tune")
    assert (none.returncode, "error: tune: study tiny has no `tune:` section" in none.stderr) == (1, True)
    write_study(project, tune={"phi": search}, **only)
    with DryRuns(project) as dry:
        [(code, said)] = dry(["-n", "--config", "study=tiny"])
    assert code != 0
    assert "ablations.tuned: search phi has no best settings yet; tune first: snakemake --cores all tune" in said
    said = finish(project, "--", "tune").stderr
    folder = project / "results/studies/tiny/tune/phi"
    assert "search phi: 2 trials (2 complete)" in said
    assert all(str((folder / name).relative_to(project)) in said for name in ("best.yaml", "trials.csv", "figures"))
    trials = pd.read_csv(folder / "trials.csv")
    assert (len(trials), trials["replay.alpha"].nunique()) == (2, 2)
    best = yaml.safe_load((folder / "best.yaml").read_text())
    winner = trials.loc[trials["accuracy"].idxmax()]
    assert best["replay"]["alpha"] == pytest.approx(winner["replay.alpha"])
    assert {path.stem for path in (folder / "figures").iterdir()} == {"history", "importances", "plane"}
    scored = {json.loads(file.read_text())["scored"] for file in folder.glob("trial*/run/metrics.json")}
    assert scored == {"validation"}, "a search never sees the test images"
    codes = {json.loads(file.read_text("utf-8"))["code"] for file in folder.glob("trial*/trial.json")}
    assert len(codes) == 1
    assert re.fullmatch("[0-9a-f]{10}", *codes)
    shutil.rmtree(project / ".snakemake")
    with DryRuns(project) as dry:
        assert planned(dry, "--", "tune") == {}, "done, also without metadata"
        assert runs_of(planned(dry))["datafree"] == 1, "with what was found"
        chosen = (folder / "best.yaml").read_text("utf-8")
        (folder / "best.yaml").write_text(chosen.replace("# made of trials ", "# made of trials f"), "utf-8")
        assert planned(dry, "--", "tune") == {"best": 1, "tune": 1, "total": 2}, "of other trials, whatever its stamp"
        (folder / "best.yaml").write_text(chosen, "utf-8")
        (folder / "trial1/trial.json").unlink()
        assert planned(dry, "--", "tune")["worker"] == 2
        write_study(project, tune={"phi": {**search, "trials": 3}}, **only)
        assert planned(dry, "--", "tune")["worker"] == 2


def test_mlflow_away_is_reported_and_sent_later(project: Path) -> None:
    """The store that is meant now gets what it lacks, wherever the study was sent before; no secret is kept."""
    write_study(project, experiments={"data": {"methods": ["scratch"], "seeds": [0, 1]}, "scale": None})
    target = "results/studies/tiny/figures/data.png"
    done = finish(project, target, MLFLOW_TRACKING_URI="http://me:hidden-word@127.0.0.1:9")
    said = " ".join((done.stdout + done.stderr).split())  # in lines of 80 characters
    assert "MLflow store http://***@127.0.0.1:9 is away (Connection refused); `python -m kd sync tiny`" in said
    kept = [file for file in project.rglob("*") if file.is_file() and b"hidden-word" in file.read_bytes()]
    assert (kept, "hidden-word" in said) == ([], False)
    command = [sys.executable, "-m", "kd", "sync", "tiny"]
    environment = environment_of(MLFLOW_TRACKING_URI=f"sqlite:///{project / 'later.db'}")
    for sent in (2, 0):
        synced = subprocess.run(command, cwd=project, capture_output=True, text=True, env=environment)
        said = synced.stdout.splitlines()
        assert said[-1] == f"{sent} runs sent", synced.stderr
        assert "/runs?workflowType=machine_learning&viewStateShareKey=kd" in said[0], said
