"""Bars in seconds and memory for studies of a thousand runs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import PAIR, ROOT
from fake_results import (
    SETTINGS,
    fake_finished,
    rows_of,
)
from measuring import Measured, dry_run, jobs_of, measured, planned

import kd
from kd.__main__ import main
from kd.commands.run import runs_in
from kd.studies import status as state
from kd.studies.study import Study, load_study


def product_study() -> dict[str, Any]:
    """1,000 students of three experiments: pairs x methods x scales x seeds."""
    students = ["wrn_10_1", "resnet14", "vgg8", "wrn_16_1"]
    pairs = [[teacher, student] for teacher in ("resnet8", "wrn_16_2") for student in students]
    free = {"methods": ["ssdkd", "fast"], "scales": [0.1, 0.2, 0.3, 0.4, 0.5]}
    data = {"methods": ["kd", "crd"], "scales": [0.1, 0.2, 0.4, 0.6, 1.0]}
    experiments = {
        "free": {"pairs": pairs, **free, "seeds": list(range(6))},
        "data": {"pairs": pairs, **data, "seeds": list(range(6))},
        "scratch": {"pairs": pairs[:4], "methods": ["scratch"], "scales": [0.1, 0.5], "seeds": list(range(5))},
    }
    return {"title": "Large", "settings": SETTINGS, "experiments": experiments}


def distinct_study() -> dict[str, Any]:
    """1,000 students, each with settings of its own."""
    ablations = {f"alpha-{number}": {"replay": {"alpha": number / 1000}} for number in range(1000)}
    experiment = {"pairs": [PAIR], "methods": ["ssdkd"], "ablations": list(ablations), "scales": [0.5], "seeds": [0]}
    return {"title": "Distinct", "settings": SETTINGS, "ablations": ablations, "experiments": {"a": experiment}}


LARGE: dict[str, Callable[[], dict[str, Any]]] = {"product": product_study, "distinct": distinct_study}


def large(folder: Path, name: str) -> tuple[Path, Study]:
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(LARGE[name](), sort_keys=False))
    chosen = {"study": str(file), "results": str(folder / "results")}
    study = load_study(ROOT / "config/config.yaml", ROOT / "workflow/schemas", chosen)
    assert len(study.students) == 1000
    return file, study


def best_of_three(measure: Callable[[], Measured], seconds: float) -> Measured:
    """Again where it took too long: a machine that is busy is slower in every respect."""
    tries = [measure()]
    while len(tries) < 3 and tries[-1].seconds >= seconds:
        tries.append(measure())
    return min(tries, key=lambda item: item.seconds)


@pytest.mark.alone
@pytest.mark.parametrize("name", LARGE)
def test_a_look_at_a_thousand_finished_runs_takes_seconds(tmp_path: Path, name: str) -> None:
    file, study = large(tmp_path, name)
    for run in study.runs.values():
        fake_finished(study, run, device="cpu")
    for look in ("status", "plan"):
        command = [sys.executable, "-m", "kd", look, str(file), "--config", f"results={study.root}"]
        found = best_of_three(lambda command=command: measured(command, ROOT), 5.0)
        print(f"{name}, {look}: {found}")
        assert rows_of(found.said)["together"][0] == str(len(study.runs))
        assert found.seconds < 5.0
        assert found.megabytes < 1024
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        results = kd.load_results(file, results=str(study.root))
        seconds.append(time.perf_counter() - start)
    print(f"{name}, load_results: {min(seconds):.2f} s")
    assert (results["path"].nunique(), len(results)) == (1000, len(study.table))
    assert min(seconds) < 2.0


@pytest.mark.alone
def test_a_list_of_a_thousand_runs_is_read_in_seconds(tmp_path: Path) -> None:
    """Reading it was slow once: what all runs are checked against was read again for each."""
    file, study = large(tmp_path, "product")
    todo = tmp_path / "todo.yaml"
    start = time.process_time()
    assert main(["plan", str(file), "--config", f"results={study.root}", "--write", str(todo)]) == 0
    written = time.process_time()
    read = runs_in(todo)
    seconds = time.process_time() - written
    print(f"written in {written - start:.1f} s, read in {seconds:.1f} s")
    assert {run.path for run in read} == set(state.states(study))
    assert written - start < 15.0
    assert seconds < 25.0


@pytest.mark.alone
@pytest.mark.parametrize("name", LARGE)
def test_a_dry_run_of_a_thousand_runs_takes_seconds(project: Path, name: str) -> None:
    file, study = large(project, name)
    found = best_of_three(lambda: dry_run(project, file.name), 10.0)
    print(f"{name}, snakemake -n: {found}")
    assert jobs_of(found.said) == planned(study)
    assert found.seconds < 10.0
    assert found.megabytes < 1024
    for run in study.runs.values():
        fake_finished(study, run, device="cpu")
    finished = best_of_three(lambda: dry_run(project, file.name), 10.0)
    print(f"{name}, snakemake -n, all runs finished: {finished}")
    assert not {"train", "distill", "datafree"} & set(jobs_of(finished.said))
    assert finished.seconds < 10.0
