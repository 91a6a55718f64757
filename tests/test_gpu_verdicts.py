"""Bars and verdicts of benchmarks/gpu_evidence.py, from tables that are made here."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT


@pytest.fixture(scope="module")
def verdicts():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield importlib.import_module("gpu_verdicts")
    sys.path.remove(str(ROOT / "benchmarks"))


ROW = {"dataset": "cifar10", "teacher": "wrn_40_2", "student": "wrn_16_1", "method": "ssdkd", "scale": 0.1}
ROW |= {"ablation": "full", "seed": 0, "precision": "float32"}


def test_bars_are_judged_by_a_run_s_share_of_the_time(tmp_path: Path, verdicts) -> None:
    """Two runs at once in 80 s are 40 s each, under the bar of 45, though each took 75; whatever the other run is."""
    row = ROW | {"accuracy": 90.0, "teacher_accuracy": 95.0, "seconds_total": 75.0, "device": "a GPU"}
    rows = [
        row | {"started": "2026-01-01T00:00:00Z", "finished": "2026-01-01T00:01:15Z"},
        row | {"started": "2026-01-01T00:00:05Z", "finished": "2026-01-01T00:01:20Z"},
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "results.csv", index=False)
    text = "\n".join(verdicts.bars(tmp_path / "results.csv"))
    assert "| 45 s | 75.0 | 40.0 | 90.00 | 2 | met, a GPU |" in text
    pd.DataFrame([rows[0], rows[1] | {"method": "fast10"}]).to_csv(tmp_path / "results.csv", index=False)
    assert "| 45 s | 75.0 | 40.0 | 90.00 | 1 | met, a GPU |" in "\n".join(verdicts.bars(tmp_path / "results.csv"))
    weak = row | {"teacher": "", "student": "wrn_40_2", "method": "teacher", "scale": 1.0, "accuracy": 94.0}
    pd.DataFrame([weak | {"started": "2026-01-01T00:00:00Z", "finished": "2026-01-01T00:01:15Z"}]).to_csv(
        tmp_path / "results.csv", index=False
    )
    assert "110 s, 94.87 % | 75.0 | 75.0 | 94.00 | 1 | MISSED" in "\n".join(verdicts.bars(tmp_path / "results.csv"))


def test_a_run_that_was_gone_on_with_counts_in_full(verdicts) -> None:
    """Its last attempt took ten seconds, all of it 90."""
    row = {"started": "2026-01-02T00:00:00Z", "finished": "2026-01-02T00:00:10Z", "seconds_total": 90.0}
    assert verdicts.shares(pd.DataFrame([row])) == 90


def test_fast10_stands_next_to_what_was_published_for_its_scale(tmp_path: Path, verdicts) -> None:
    """Runs with other settings than Fast's have another ablation."""
    row = ROW | {"method": "fast10", "teacher_accuracy": 94.0, "seconds_total": 9.0, "device": "a GPU"}
    row |= {"started": "2026-01-01T00:00:00Z", "finished": "2026-01-01T00:00:09Z"}
    rows = [row | {"accuracy": 85.0}, row | {"accuracy": 87.0, "seed": 1}, row | {"accuracy": 1.0, "ablation": "more"}]
    pd.DataFrame(rows).to_csv(tmp_path / "results.csv", index=False)
    line = "| cifar10, wrn_40_2, wrn_16_1, float32 | 94.00 (94.87) | 86.00 | (89.29) |"
    assert line in verdicts.bars(tmp_path / "results.csv")
    pd.DataFrame([*rows, row | {"accuracy": 88.5, "scale": 1.0}]).to_csv(tmp_path / "results.csv", index=False)
    assert line.replace("| (", "| 88.50 (") in verdicts.bars(tmp_path / "results.csv")


def test_kept_teachers_need_no_times(tmp_path: Path, verdicts) -> None:
    """They were made elsewhere: without a start, perhaps without any time; alone in the table or next to others."""
    student = ROW | {"accuracy": 82.0, "teacher_accuracy": 95.0, "seconds_total": 40.0, "device": "a GPU"}
    student |= {"started": "2026-01-02T00:00:00Z", "finished": "2026-01-02T00:00:40Z"}
    kept = student | {"teacher": "", "student": "wrn_40_2", "method": "teacher", "scale": 1.0, "accuracy": 95.0}
    kept |= {"started": None, "finished": "2026-01-01T00:01:40Z", "seconds_total": 100.0}
    timeless = kept | {"finished": None, "seconds_total": None, "device": None}
    file = tmp_path / "results.csv"
    for rows, teacher, students in (
        ([kept], "| 100.0 | 100.0 | 95.00 | 1 | met, a GPU |", ""),
        ([timeless], "", ""),
        ([kept, timeless, student], "| 100.0 | 100.0 | 95.00 | 1 | met, a GPU |", "| 40.0 | 40.0 | 82.00 | 1 | met,"),
        ([kept | {"finished": None}, student], "| 100.0 | nan | 95.00 | 1 |", "| 40.0 | 40.0 | 82.00 | 1 | met,"),
    ):
        pd.DataFrame(rows).to_csv(file, index=False)
        text = "\n".join(verdicts.bars(file))
        assert ("teacher WRN-40-2, float32" in text) == bool(teacher)
        assert teacher in text
        assert students in text


@pytest.mark.parametrize(
    ("bf16", "verdict"),
    [([90.1, 91.3, 89.9], "equal within noise"), ([89.0, 90.1, 89.1], "DIFFERS"), ([90.1], "not decided")],
)
def test_bf16_is_judged_beside_float32_seed_by_seed(verdicts, bf16: list[float], verdict: str) -> None:
    rows = [ROW | {"seed": seed, "accuracy": value} for seed, value in enumerate((90.0, 91.0, 90.2))]
    rows += [ROW | {"seed": seed, "accuracy": value, "precision": "bf16"} for seed, value in enumerate(bf16)]
    *_, line = verdicts.precisions(pd.DataFrame(rows))
    assert line.startswith("| cifar10, wrn_40_2, wrn_16_1, ssdkd, full, 0.1 |")
    assert line.endswith(f"| {len(bf16)} | {verdict} |")
