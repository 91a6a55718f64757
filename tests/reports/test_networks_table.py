"""The table of what a study's networks cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import tiny_run

from kd.registry.models import entry
from kd.reports.networks_table import costs, markdown, networks, representatives
from kd.runtime.files import write_json

SMALL = {"dataset": "digits", "teacher": "a", "student": "b", "parameters": 2e6, "weights_bytes": 8e6}
TAUGHT = SMALL | {"teacher_parameters": 6e6, "teacher_multiply_adds": 30.0, "teacher_weights_bytes": 24e6}


def table(*rows: dict[str, Any]) -> pd.DataFrame:
    return networks(pd.DataFrame(rows))


def test_a_row_per_pair_with_what_the_run_without_a_teacher_does_not_know() -> None:
    made = table(SMALL | {"method": "scratch", "multiply_adds": 10.0}, TAUGHT | {"method": "kd", "multiply_adds": 10.0})
    [row] = made.dropna(axis=1).to_dict("records")
    assert row == TAUGHT | {"methods": "all", "multiply_adds": 10.0}
    assert "`python -m kd tables --latency` measures seconds" in markdown(made)
    assert "| digits | a → b | all | 6 → 2 | 30 → 10 | 24 → 8 |" in markdown(made)


def test_a_method_with_a_larger_student_has_its_own_row() -> None:
    larger = {"parameters": 3e6, "multiply_adds": np.nan}
    rows = [TAUGHT | {"method": name} for name in ("kd", "crd", "kd")]
    made = table(*rows, TAUGHT | larger | {"method": "simkd"})
    assert list(made["methods"]) == ["kd, crd", "simkd"]
    assert list(made["parameters"]) == [2e6, 3e6]
    assert "| digits | a → b | simkd | 6 → 3 | 30 → ? | 24 → 8 |" in markdown(made)


def test_results_of_an_older_kd_have_an_empty_table() -> None:
    made = table({"dataset": "digits", "teacher": "a", "student": "b", "method": "kd"})
    assert made.empty
    assert {"parameters", "teacher_weights_bytes"} <= set(made.columns)
    assert markdown(made) == ""


def test_costs_are_those_of_the_runs_files(tmp_path: Path) -> None:
    pair = ["resnet8", "wrn_10_2"]
    run = tiny_run("kd", teacher__model=pair, dataset__image_size=16)
    folder = tmp_path / run.path
    for number, made in enumerate([run, *run.teachers]):
        (tmp_path / made.path).mkdir(parents=True)
        write_json(tmp_path / made.path / "metrics.json", {"accuracy": 50.0, "parameters": 10 + number})
    found = costs({"settings": run.as_dict()}, folder, tmp_path)
    assert found["weights_bytes"] == 4 * 10
    assert (found["teacher_parameters"], found["teacher_weights_bytes"]) == (11 + 12, 4 * (11 + 12))
    assert 4 * found["teacher_multiply_adds"] == pytest.approx(sum(entry(name).multiply_adds for name in pair))
    (tmp_path / run.teachers[0].path / "metrics.json").unlink()
    again = costs({"settings": run.as_dict()}, folder, tmp_path)
    assert set(found) - set(again) == {"teacher_parameters", "teacher_weights_bytes"}


def test_measured_seconds_stand_in_the_row_of_their_pair(tmp_path: Path) -> None:
    """Of the first run that has any; an ensemble: 4 + 4 ms one after the other, 1 / (1/300 + 1/600) images/s."""
    run = tiny_run("kd", teacher__model=["resnet8", "wrn_10_2"], dataset__image_size=16)
    other = run.with_seed(1)
    for number, made in enumerate([other, run, *run.teachers]):
        (tmp_path / made.path).mkdir(parents=True)
        write_json(tmp_path / made.path / "metrics.json", {"accuracy": 50.0, "parameters": 10})
        write_json(tmp_path / made.path / "run.json", {"settings": made.as_dict()})
        latency = {"milliseconds": min(2.0 * number, 4.0), "images_per_second": 300.0 * max(1, number - 1)}
        if number:
            write_json(tmp_path / made.path / "latency.json", latency | {"measured_on": "a CPU, 1 thread"})
    pair = {"dataset": "digits", "teacher": "a", "student": "b", "method": "kd", "parameters": 10}
    rows = [
        pair | {"path": made.path} | costs({"settings": made.as_dict()}, tmp_path / made.path, tmp_path)
        for made in (other, run)
    ]
    text = markdown(table(*rows))
    assert "| ms for one image | images/s in batches of 64 |" in text
    assert "| 8 → 2 | 200 → 300 |" in text
    assert "Seconds: a CPU, 1 thread." in text
    folders = representatives(pd.DataFrame(rows), tmp_path)
    assert folders == [tmp_path / made.path for made in (other, *run.teachers)]


def test_what_is_not_known_is_left_out(tmp_path: Path) -> None:
    assert costs({}, tmp_path, tmp_path) == {}
    run = tiny_run("scratch", student__model="torchvision:resnet18", dataset__image_size=32)
    assert costs({"settings": run.as_dict()}, tmp_path, tmp_path) == {}
