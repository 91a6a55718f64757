"""Searches without runs: trials whose value is a function of what they were given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from kd.integrations.trial_storage import TrialStorage
from kd.integrations.tuning import trial, work
from kd.studies.search import Tuning
from kd.studies.trials import read_results

SPACE = {"x": {"low": 0.0, "high": 1.0, "integer": False}}


class TinySearch:
    """A search in a folder; `said` is what it told its user."""

    def __init__(
        self, folder: Path, space: dict[str, Any] = SPACE, settings: dict[str, Any] | None = None, **options: Any
    ):
        self.folder, self.said = folder, []
        self.tuning = Tuning("s", settings or {}, space, seed=0, **options)
        self.storage = TrialStorage(self.tuning, folder, "s", self.said.append)

    def trial(self, number: int, objective: Callable[..., float] = lambda params: params["x"]) -> dict[str, Any]:
        def say(text: str) -> None:
            if not text.startswith("trial "):  # how it ended
                self.said.append(text)

        return trial(self.storage, number, lambda params, *_: objective(params), say)

    def work(self, objective: Callable[..., float] = lambda params, run, report: params["x"]) -> list[int]:
        return work(self.storage, objective, self.results, self.said.append)

    def results(self) -> dict[int, dict[str, Any]]:
        return read_results(self.folder, self.tuning)

    @property
    def trials(self) -> list[optuna.trial.FrozenTrial]:
        """The trials as Optuna knows them."""
        return in_journal(self.folder / "optuna.log")


def in_journal(journal: Path) -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name="s", storage=JournalStorage(JournalFileBackend(str(journal)))).trials
