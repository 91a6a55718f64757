"""Seconds of runs that are made together: each has its share, so that they add up to the time that passed."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import COMPUTE, tiny_run
from made_runs import SCRATCH, made_by_one_process, prepared_copy, source

from kd.runs.worker import work_through
from kd.runtime import turns
from kd.runtime.files import read_json
from kd.runtime.turns import SharedClock


def test_a_second_counts_for_each_user_by_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    passed = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(turns.time, "perf_counter", lambda: passed.seconds)
    clock = SharedClock()

    def after(seconds: float) -> float:
        passed.seconds += seconds
        return clock()

    with clock.used():
        assert after(3.0) == 3.0
        with clock.used():
            assert after(3.0) == 4.5
            passed.seconds += 1.0  # read by nobody before one of the two goes
        assert clock() == 5.0
        assert after(2.0) == 7.0


def test_runs_made_together_share_the_seconds(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    results = prepared_copy(made_by_one_process(tmp_path_factory.getbasetemp() / "made"), tmp_path)
    runs, begun = [SCRATCH, tiny_run("scratch", 1), tiny_run("scratch", 2)], time.perf_counter()
    assert work_through(runs, results, COMPUTE, source(results), lambda text: None, together=2) == {}
    passed = time.perf_counter() - begun
    records = [read_json(results / run.path / "run.json") for run in runs]
    assert [record["computed"]["together"] for record in records] == [2, 2, 2]
    assert 0.3 * passed < sum(record["seconds"]["total"] for record in records) < passed
