"""Trials in a database, as Optuna keeps them: shared, marked as failed when silent, never with a password in sight."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from tiny_search import SPACE, TinySearch, in_journal

from kd.integrations.jobs import STORAGES, searches_of, tuning_of_job
from kd.integrations.trial_storage import TrialStorage
from kd.runtime.messages import ConfigError
from kd.studies.search import Tuning

URL = "postgresql://me:hidden-word@127.0.0.1:9/db"


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
    tuning = Tuning("s", {}, SPACE, seed=0, storage=URL)
    with pytest.raises(ConfigError) as refused:
        TrialStorage(tuning, tmp_path, "s", print)
    assert "tune.s.storage postgresql://***@127.0.0.1:9/db: " in str(refused.value)
    assert "hidden-word" not in str(refused.value) + repr(tuning)
    assert "storage" not in tuning.options | tuning.identity


def test_a_storage_that_is_away_costs_a_report_and_no_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search = TinySearch(tmp_path, trials=1)

    def objective(params, run, report):
        with monkeypatch.context() as away:
            away.setattr(
                search.storage, "_opened", lambda: (_ for _ in ()).throw(OSError("postgresql://me:word@x is away"))
            )
            report(1, 3.0)
        return 5.0

    assert search.work(objective) == [0]
    assert search.results()[0]["value"] == 5.0
    assert "epoch 1 not reported: OSError: postgresql://***@x is away" in "".join(search.said)


def test_the_url_of_a_database_reaches_jobs_by_their_environment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STORAGES, "{}")
    one, two = (Tuning(name, {}, SPACE, 0, trials=2, storage=url) for name, url in (("a", URL), ("b", None)))
    said = searches_of(SimpleNamespace(tunings={"a": one, "b": two}))
    assert "hidden-word" not in json.dumps(said) + json.dumps(one.identity)
    for tuning in (one, two):
        job = SimpleNamespace(params=SimpleNamespace(tuning=tuning.identity), config={"searches": said})
        assert tuning_of_job(job) == tuning
