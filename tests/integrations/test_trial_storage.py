"""Trials in a database, as Optuna keeps them: shared, marked as failed when silent, never with a password in sight."""

from __future__ import annotations

import time
from pathlib import Path

import optuna
import pytest
from tiny_search import SPACE, TinySearch, in_journal

from kd.integrations.trial_storage import TrialStorage
from kd.runtime.messages import ConfigError
from kd.studies.search import Tuning


def test_trials_of_a_database_are_kept_there(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/optuna.db"
    search = TinySearch(tmp_path / "s", trials=2, storage=url)
    assert search.work() == [0, 1]
    [study] = optuna.get_all_study_summaries(url)
    assert (study.study_name, study.n_trials) == ("s", 2)
    assert not (tmp_path / "s/optuna.log").exists()
    moved = TinySearch(tmp_path / "s", trials=3)
    assert moved.work() == [2], "a search goes on in another storage"
    assert len(in_journal(tmp_path / "s/optuna.log")) == 3, "which is told what was found before"


def test_a_silent_trial_of_a_database_is_marked_as_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kd.integrations.trial_storage.HEARTBEAT_SECONDS", 1)
    monkeypatch.setattr("kd.integrations.trial_storage.DEAD_AFTER_SECONDS", 1)
    url = f"sqlite:///{tmp_path}/optuna.db"
    search = TinySearch(tmp_path / "s", trials=1, storage=url)

    def dies(params, run, report):
        time.sleep(0.2)  # the first beat
        raise RuntimeError

    with pytest.raises(RuntimeError):
        search.work(dies)
    time.sleep(2.1)
    assert search.work() == [0]
    states = [one.state.name for one in optuna.load_study(study_name="s", storage=url).trials]
    assert states == ["FAIL", "COMPLETE"], "the trial went on with its values, under another number"


def test_a_database_that_is_away_is_named_without_its_password(tmp_path: Path) -> None:
    tuning = Tuning("s", {}, SPACE, seed=0, storage="postgresql://me:hidden-word@127.0.0.1:9/db")
    with pytest.raises(ConfigError) as refused:
        TrialStorage(tuning, tmp_path, "s", print)
    assert "tune.s.storage postgresql://***@127.0.0.1:9/db: " in str(refused.value)
    assert "hidden-word" not in str(refused.value) + repr(tuning)
    assert "storage" not in tuning.options | tuning.identity
