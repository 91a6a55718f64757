"""The Snakemake side: the DAG, what reruns when, readable errors, a whole tiny study, tuning, the SLURM profile."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from conftest import PAIR, ROOT, TINY

from kd.settings.merging import merge

STUDY: dict[str, Any] = {
    "title": "Tiny",
    "settings": TINY,
    "methods": TINY["methods"],
    "ablations": {
        "no-priority": {"replay": {"alpha": 0.0, "beta": 0.0}},
        "no-modulation": {"modulation": {"diversity": 0.0, "gamma": 0.0}},
    },
    "experiments": {
        "data": {"view": "pairs", "pairs": [PAIR], "methods": ["scratch", "kd", "crd"], "seeds": [0]},
        "scale": {"view": "scale", "pairs": [PAIR], "methods": ["ssdkd"], "scales": [0.3, 0.6], "seeds": [0, 1]},
    },
}
CLAIMS = {
    "larger-is-better": {
        "says": "A larger {buffer} is better.",
        "tests": [{"of": {"method": "ssdkd", "scale": 0.6}, "to": {"method": "ssdkd", "scale": 0.3}, "above": 0}],
    }
}
STUDY["settings"] = {key: value for key, value in TINY.items() if key != "methods"}


def write_study(project: Path, name: str = "tiny", **changes: Any) -> Path:
    path = project / f"config/studies/{name}.yaml"
    path.write_text(yaml.safe_dump(merge(STUDY, changes)))
    return path


def snakemake(project: Path, *arguments: str, study: str = "tiny", **environment: str) -> subprocess.CompletedProcess:
    command = [str(Path(sys.executable).with_name("snakemake")), "--config", f"study={study}", *arguments]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, cwd=project, capture_output=True, text=True, env=env, timeout=600)


def planned(project: Path, *arguments: str, study: str = "tiny", **environment: str) -> dict[str, int]:
    """Jobs per rule of a dry run."""
    done = snakemake(project, "-n", "--quiet", "rules", *arguments, study=study, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return {rule: int(count) for rule, count in re.findall(r"^(\w+)\s+(\d+)$", done.stdout + done.stderr, re.M)}


def runs_of(counts: dict[str, int]) -> dict[str, int]:
    return {rule: counts[rule] for rule in ("train", "distill", "datafree") if rule in counts}


def test_dag_has_one_job_per_distinct_run(project: Path) -> None:
    write_study(project)
    counts = planned(project)
    # one shared teacher and a student from scratch; KD and CRD; two scales and two seeds
    assert runs_of(counts) == {"train": 2, "distill": 2, "datafree": 4}
    assert {rule: counts[rule] for rule in ("prepare_data", "collect", "tables", "figure")} == {
        "prepare_data": 1,
        "collect": 1,
        "tables": 1,
        "figure": 2,
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
def test_a_mistake_gives_one_readable_line(project: Path, changes: dict, expected: str) -> None:
    write_study(project, **changes)
    done = snakemake(project, "--cores", "1")
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert re.search(expected, said), said
    assert "Traceback" not in said
    assert len([line for line in said.splitlines() if re.search(expected, line)]) == 1
    assert not (project / "results").exists()


def test_unknown_study_lists_those_there_are(project: Path) -> None:
    done = snakemake(project, "-n", study="dmo")
    assert done.returncode != 0
    assert "did you mean 'demo'?" in done.stdout + done.stderr


def test_settings_on_the_command_line(project: Path) -> None:
    write_study(project)
    shown = snakemake(project, "-n", "--quiet", "rules", "--config", "study=tiny", "training={epochs: 3, lr: 0.2}")
    assert shown.returncode == 0, shown.stderr
    refused = snakemake(project, "-n", "--config", "study=tiny", "training={lr: -1}")
    assert "training.lr: got -1; allowed: > 0" in refused.stdout + refused.stderr


def test_whole_study_then_only_what_is_new(project: Path) -> None:
    """The thread end to end: runs, tables, figures, MLflow, report; then nothing to do; then only what changed."""
    write_study(project, claims=CLAIMS)
    done = snakemake(project, "--cores", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "profile profiles/default" in done.stderr, "picked up by itself"
    folder = project / "results/studies/tiny"
    results = pd.read_csv(folder / "results.csv")
    assert len(results) == 7
    assert results["accuracy"].between(0, 100).all()
    table = (folder / "table.md").read_text()
    assert "A larger {buffer} is better." in table
    assert "| ssdkd, 60 % against ssdkd, 30 % | accuracy, difference | above 0 |" in table
    assert len(pd.read_csv(folder / "claims.csv")) == 1
    assert table.count("| resnet8 → wrn_10_1 |") == 3 + 2 + 2, "a row per group; heads of methods by pairs, of shares"
    assert (folder / "tables/data-by-pair.tex").read_text().startswith("\\begin{tabular}{lc}")
    assert list(pd.read_csv(folder / "tables/data-by-pair.csv")["method"]) == ["scratch", "kd", "crd"]
    assert re.search(r"\d+\.\d\d ± \d+\.\d\d", table)
    for name in ("data", "scale", "correlations", "synthetic-images", "synthetic-histograms"):
        for ending in ("png", "svg"):
            assert (folder / f"figures/{name}.{ending}").stat().st_size > 1000
    _check_mlflow(project, results)

    assert planned(project) == {}, "a finished study has nothing to do"
    report = snakemake(project, "--report", str(folder / "report.html"))
    assert report.returncode == 0, report.stderr
    assert (folder / "report.html").stat().st_size > 100_000

    write_study(
        project, claims=CLAIMS, settings={"compute": {"checkpoint_seconds": 5.0}, "tracking": {"enabled": False}}
    )
    assert runs_of(planned(project)) == {}, "how a run is computed is no part of it"
    write_study(project, claims=CLAIMS, experiments={"scale": {"seeds": [0, 1, 2]}})
    assert runs_of(planned(project)) == {"datafree": 2}, "a new seed runs at both scales, nothing else"
    write_study(project, claims=CLAIMS, methods={"crd": {"objective": {"crd": {"tau": 0.1}}}})
    assert runs_of(planned(project)) == {"distill": 1}, "a loss's setting reruns the runs that use it"
    write_study(project, claims=CLAIMS, settings={"teacher": {"training": {"epochs": 3}}})
    assert runs_of(planned(project)) == {"train": 1, "distill": 2, "datafree": 4}, "another teacher, other students"
    write_study(project, claims=CLAIMS, name="second", title="Shares every run")
    assert runs_of(planned(project, study="second")) == {}, "equal settings are one run, also across studies"


def _check_mlflow(project: Path, results: pd.DataFrame) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{project / 'results/mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny")
    runs = client.search_runs([experiment.experiment_id], max_results=100)
    by_path = {run.data.tags["path"]: run for run in runs if "path" in run.data.tags}
    assert len(by_path) == 8  # seven students and the teacher
    for row in results.itertuples():
        run = by_path[f"results/{row.path}"]
        assert run.data.metrics["final_accuracy"] == pytest.approx(row.accuracy)
        assert run.data.tags["method"] == row.method
        assert run.data.params["kind"] == row.kind
        assert run.info.status == "FINISHED"
    some = by_path[f"results/{results['path'].iloc[-1]}"]
    assert len(client.get_metric_history(some.info.run_id, "loss")) == 3  # a value per student epoch
    assert {file.path for file in client.list_artifacts(some.info.run_id)} >= {"metrics.json", "weights.pt"}


def test_killed_study_goes_on(project: Path) -> None:
    """SIGKILL to everything in the middle; the next start finishes, and its numbers equal an undisturbed study's."""
    long = {"training": {"epochs": 20}}
    only = {"experiments": {"data": {"methods": ["scratch"]}, "scale": {"scales": [0.3], "seeds": [0]}}}
    write_study(project, settings={**long, "compute": {"checkpoint_seconds": 0.2}}, **only)
    command = [str(Path(sys.executable).with_name("snakemake")), "--config", "study=tiny", "--cores", "2"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, cwd=project, env=env, start_new_session=True, **quiet)
    deadline = time.monotonic() + 120
    while not (found := list(project.glob("results/runs/**/train-*/seed0/checkpoint.pt"))) or not any(
        file.parent.parent.parent.name == PAIR[1] for file in found
    ):
        assert time.monotonic() < deadline, "no checkpoint of the student appeared"
        assert process.poll() is None, "the study ended before it could be killed"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert snakemake(project, "--unlock").returncode == 0
    done = snakemake(project, "--cores", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    logs = "".join(file.read_text() for file in project.glob("results/logs/runs/**/*.txt"))
    assert "resumed from checkpoint" in logs
    killed = {file.relative_to(project): file.read_bytes() for file in project.glob("results/runs/**/metrics.json")}
    (project / "results").rename(project / "killed")
    done = snakemake(project, "--cores", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert killed == {
        file.relative_to(project): file.read_bytes() for file in project.glob("results/runs/**/metrics.json")
    }


def test_editing_the_package_runs_again_what_uses_it(project: Path) -> None:
    """A method's file reruns exactly its runs, a comment or a new loss nothing, the shared core everything."""
    shutil.copytree(ROOT / "kd", project / "kd", ignore=shutil.ignore_patterns("__pycache__"))
    own = {"PYTHONPATH": str(project)}
    only = {"settings": {"tracking": {"enabled": False}}, "experiments": {"scale": {"scales": [0.3], "seeds": [0]}}}
    write_study(project, **only)
    done = snakemake(project, "--cores", "2", **own)
    assert done.returncode == 0, done.stdout + done.stderr
    assert planned(project, **own) == {}

    def edited(file: str, before: str = r"\Z", after: str = "\nUNUSED = 1\n") -> dict[str, int]:
        path = project / file
        text = path.read_text()
        changed, count = re.subn(before, after, text, count=1)
        assert count == 1
        path.write_text(changed)
        counts = planned(project, **own)
        path.write_text(text)
        return counts

    crd, init = "kd/losses/crd.py", "kd/registry/losses.py"
    assert edited(crd, '"""', '"""Other words. ') == {}, "docstrings and layout do not count"
    counts = edited(crd)
    assert runs_of(counts) == {"distill": 1}, "the run that uses the loss"
    assert {"collect", "tables", "figure"} <= set(counts)
    assert runs_of(edited("kd/training/datafree.py")) == {"datafree": 1}
    student_alone = {"train": 1, "distill": 2, "datafree": 1}
    assert runs_of(edited("kd/models/wrn.py")) == student_alone, "the teacher is a ResNet"
    assert runs_of(edited("kd/training/with_data.py")) == {"train": 2, "distill": 2, "datafree": 1}
    counts = edited("kd/reports/tables.py")
    assert runs_of(counts) == {}
    assert {"collect", "tables", "figure"} <= set(counts)
    (project / "kd/losses/mine.py").write_text((project / "kd/losses/kd.py").read_text())
    (project / init).write_text(
        (project / init)
        .read_text()
        .replace(
            "LOSSES: dict[str, Entry] = {\n", 'LOSSES: dict[str, Entry] = {\n    "mine": Entry("kd.losses.mine:kd"),\n'
        )
    )
    assert planned(project, **own) == {}, "a loss that is added reruns nothing"
    mine = {"kind": "distill", "objective": {"mine": {"weight": 1.0}}}
    experiments = merge(only["experiments"], {"data": {"methods": ["scratch", "kd", "crd", "mine"]}})
    write_study(project, **{**only, "methods": {"mine": mine}, "experiments": experiments})
    assert runs_of(planned(project, **own)) == {"distill": 1}, "and a method that uses it runs alone"


def test_a_run_goes_on_beside_an_orphan(project: Path) -> None:
    """Snakemake alone is killed; its job lives on. The next start waits for it and takes what it made."""
    only = {"experiments": {"data": {"methods": ["scratch"]}, "scale": {"scales": [0.3], "seeds": [0]}}}
    settings = {"training": {"epochs": 150}, "compute": {"checkpoint_seconds": 0.2}, "tracking": {"enabled": False}}
    write_study(project, settings=settings, **only)
    command = [str(Path(sys.executable).with_name("snakemake")), "--config", "study=tiny", "--cores", "2"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, cwd=project, env={**os.environ, "PYTHONPATH": str(ROOT)}, **quiet)
    pattern = f"results/runs/digits/{PAIR[1]}/train-*/seed0"
    deadline = time.monotonic() + 120
    while not list(project.glob(f"{pattern}/checkpoint.pt")):
        assert time.monotonic() < deadline, "no checkpoint of the student appeared"
        assert process.poll() is None, "the study ended before it could be killed"
        time.sleep(0.02)
    process.kill()
    process.wait()
    (folder,) = project.glob(pattern)
    orphan = json.loads((folder / "lease.1.json").read_text())["pid"]
    assert snakemake(project, "--unlock").returncode == 0
    done = snakemake(project, "--cores", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    log = next(project.glob(f"results/logs/runs/digits/{PAIR[1]}/**/*.txt")).read_text()
    assert f"process {orphan} on" in log
    assert "waiting for it" in log
    assert "already complete" in log
    assert json.loads((folder / "run.json").read_text())["counts"]["student_steps"] == 150 * (1437 // 64)
    assert not list(folder.glob("lease*")) + list(folder.glob("checkpoint*"))


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


def test_tuning_writes_settings_that_a_run_can_take(project: Path) -> None:
    search = {
        "pair": PAIR,
        "method": "ssdkd",
        "scale": 0.3,
        "seed": 0,
        "trials": 2,
        "validation": 0.2,
        "space": {"replay.alpha": {"low": 0.0, "high": 1.0}, "modulation.gamma": {"low": 0.0, "high": 2.0}},
    }
    only = {"experiments": {"scale": {"scales": [0.3], "seeds": [0]}}}
    write_study(project, tune={"phi": search}, **only)
    done = snakemake(project, "--cores", "2", "tune")
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = project.glob("results/studies/tiny/tune/phi-*")
    trials = pd.read_csv(folder / "trials.csv")
    assert len(trials) == 2
    assert trials["replay.alpha"].nunique() == 2
    best = yaml.safe_load((folder / "best.yaml").read_text())
    winner = trials.loc[trials["accuracy"].idxmax()]
    assert best["replay"]["alpha"] == pytest.approx(winner["replay.alpha"])
    scored = {json.loads(file.read_text())["scored"] for file in folder.glob("trial*/run/metrics.json")}
    assert scored == {"validation"}, "a search never sees the test images"

    best_file = str((folder / "best.yaml").relative_to(project))
    tuned = {"ablations": {"tuned": best_file}, "experiments": {"scale": {"ablations": ["tuned"]}}}
    write_study(project, tune={"phi": search}, **merge(only, tuned))
    shown = snakemake(project, "-n", "--quiet", "rules")
    assert shown.returncode == 0, shown.stderr
    write_study(project, **merge(only, {**tuned, "ablations": {"tuned": "nowhere.yaml"}}))
    refused = snakemake(project, "-n")
    assert refused.returncode != 0
    assert "no file 'nowhere.yaml'" in refused.stdout + refused.stderr


def test_mlflow_away_is_reported_and_sent_later(project: Path) -> None:
    only = {"experiments": {"data": {"methods": ["scratch"]}, "scale": {"scales": [0.3], "seeds": [0]}}}
    write_study(project, **only)
    target = "results/studies/tiny/figures/data.png"
    done = snakemake(project, "--cores", "2", target, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "is away" in done.stdout + done.stderr
    states = list(project.glob("results/runs/**/mlflow.json"))
    assert states
    for file in states:
        state = json.loads(file.read_text())
        assert not state["complete"]
        file.write_text(json.dumps({**state, "uri": f"sqlite:///{project / 'later.db'}"}))
    command = [sys.executable, "-m", "kd", "sync", "--results", "results"]
    synced = subprocess.run(
        command, cwd=project, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert f"{len(states)} runs sent" in synced.stdout, synced.stderr
    assert all(json.loads(file.read_text())["complete"] for file in states)


def test_slurm_profile_dry_runs(project: Path) -> None:
    write_study(project)
    counts = planned(project, "--workflow-profile", "slurm")
    assert runs_of(counts) == {"train": 2, "distill": 2, "datafree": 4}


def test_lint(project: Path) -> None:
    write_study(project)
    done = snakemake(project, "--lint")
    assert done.returncode == 0, done.stdout + done.stderr
