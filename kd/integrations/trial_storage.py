"""Optuna's side of a search: where its trials are kept, who draws their values, who ends them early."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from kd.integrations.optuna_journal import file_lock, open_journal
from kd.runtime.messages import ConfigError, masked
from kd.runtime.plain_pickle import read_plain_pickles
from kd.studies.search import Pruned, Tuning, grid

JOURNAL = "optuna.log"
HEARTBEAT_SECONDS, DEAD_AFTER_SECONDS = 20, 90  # of trials in a database


class TrialStorage:
    """The trials of one search as Optuna knows them: in a journal file of the search's folder, or in a database.

    A journal is read again for each call: it may have been torn or replaced since. `name`: the search's in the storage.
    Raises ConfigError for a database that cannot be used, with
    the user's part of its URL hidden.
    """

    def __init__(self, tuning: Tuning, folder: Path, name: str, say: Callable[[str], Any]):
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.tuning, self.folder, self.name, self.say = tuning, folder, name, say
        self.distributions = distributions(tuning.space)
        self._database = self._open_database() if tuning.storage else None

    def study(self, number: int = 0) -> Any:
        """Return the search as Optuna's study; its sampler is seeded by the number of the trial that asks."""
        import optuna

        given = {"storage": self._opened(), "sampler": self._sampler(number), "pruner": self._pruner()}
        try:
            return optuna.load_study(study_name=self.name, **given)
        except KeyError:
            with self._asking():  # parallel workers: only one makes it
                return optuna.create_study(study_name=self.name, direction="maximize", load_if_exists=True, **given)

    def ask(self, number: int) -> dict[str, Any]:
        """Return values for the `number`-th trial, and Optuna's own number for it."""
        study = self.study(number)
        with self._asking():
            if self.tuning.sampler == "grid":
                points = grid(self.tuning.space, self.tuning.seed)
                study.enqueue_trial(points[number % len(points)])
            with _quiet():
                asked = study.ask(self.distributions)
        return {"optuna_trial": asked.number, "params": asked.params}

    def tell(self, suggestion: dict[str, Any], state: str, value: float | None, reported: dict[int, float]) -> None:
        """Write a trial's end: under its number, or as a new one where the storage lacks it or says otherwise."""
        from optuna.trial import TrialState

        study, params, ends = self.study(), suggestion["params"], TrialState[state]
        same = {trial.number: trial for trial in study.get_trials(deepcopy=False) if trial.params == params}
        mine = same.get(suggestion["optuna_trial"])
        if mine is not None and mine.state == TrialState.RUNNING:
            told = None if state == "PRUNED" else value  # of a pruned one Optuna takes the last report
            study.tell(mine.number, told, ends, skip_if_finished=True)
        elif not any(trial.state == ends and (value is None or trial.value == value) for trial in same.values()):
            self._add(study, params, state, value, reported)

    def learn(self, results: list[dict[str, Any]]) -> None:
        """Tell the storage of finished trials that it does not know: it was lost, or is another one."""
        study = self.study()
        with self._asking():
            known = [trial.params for trial in study.get_trials(deepcopy=False)]
            for result in results:
                if result["params"] not in known:
                    self._add(study, result["params"], result["state"], result["value"], {})

    def _add(self, study: Any, params: dict, state: str, value: float | None, reported: dict[int, float]) -> None:
        from optuna.trial import TrialState, create_trial

        given = {"params": params, "distributions": self.distributions, "intermediate_values": reported}
        study.add_trial(create_trial(state=TrialState[state], value=value, **given))

    def fail_the_dead(self) -> None:
        """Let a database mark the trials whose workers have gone silent as failed; those that go on are told anew."""
        if self._database is not None:
            from optuna.storages import fail_stale_trials

            with _quiet():
                fail_stale_trials(self.study())

    @contextmanager
    def heartbeat(self, suggestion: dict[str, Any]) -> Iterator[None]:
        """Let a database know that this worker is alive, until the context ends."""
        ended = threading.Event()

        def beat() -> None:
            while not ended.is_set():
                try:
                    self._database.record_heartbeat(self._id(self._database, suggestion))
                except Exception as error:  # away for a while: the trial goes on
                    self.say(f"{self._place()}: {_line(error)}")
                ended.wait(HEARTBEAT_SECONDS)

        thread = threading.Thread(target=beat, daemon=True)
        if self._database is not None:
            thread.start()
        try:
            yield
        finally:
            ended.set()

    def report(self, suggestion: dict[str, Any], epoch: int, value: float) -> None:
        """Tell how good a trial is after an epoch. Raises Pruned where others were better by then.

        A storage that cannot be reached costs the report, never the trial.
        """
        try:
            study, storage = self.study(), self._opened()
            trial_id = self._id(storage, suggestion)
            storage.set_trial_intermediate_value(trial_id, epoch, value)
            verdict = study.pruner.prune(study, storage.get_trial(trial_id))
        except Exception as error:
            self.say(f"{self._place()}: epoch {epoch} not reported: {_line(error)}")
            return
        if verdict:
            raise Pruned(f"{value:.2f} % after epoch {epoch}")

    def _opened(self) -> Any:
        return self._database or open_journal(self.folder / JOURNAL, self.say)

    def _id(self, storage: Any, suggestion: dict[str, Any]) -> int:
        """Return how the storage itself calls a trial."""
        study = storage.get_study_id_from_name(self.name)
        return storage.get_trial_id_from_study_id_trial_number(study, suggestion["optuna_trial"])

    @contextmanager
    def _asking(self) -> Iterator[None]:
        lock = file_lock(self.folder / "asking")
        lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _open_database(self) -> Any:
        from optuna.storages import RDBStorage

        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with self._asking(), _quiet():  # its tables can be made by one process at a time
                beats = {"heartbeat_interval": HEARTBEAT_SECONDS, "grace_period": DEAD_AFTER_SECONDS}
                return RDBStorage(self.tuning.storage, **beats)
        except Exception as error:
            hint = "check the URL, that the server runs and that its driver is installed"
            raise ConfigError(f"{self._place()}: {_line(error)}; {hint}") from None

    def _place(self) -> str:
        storage = self.tuning.storage
        return f"tune.{self.tuning.name}.storage {masked(storage)}" if storage else str(self.folder / JOURNAL)

    def _sampler(self, number: int) -> Any:
        from optuna import samplers

        seed = self.tuning.seed * 1_000_003 + number
        if self.tuning.sampler == "tpe":
            return samplers.TPESampler(seed=seed, n_startup_trials=self.tuning.startup)
        if self.tuning.sampler == "cmaes":
            # its state is a pickle in the trials, which whoever can write to the storage may have written
            read_plain_pickles(import_module("optuna.samplers._cmaes"), ("cmaes._cma", "CMA"))
            return samplers.CmaEsSampler(
                seed=seed, n_startup_trials=self.tuning.startup, warn_independent_sampling=False
            )
        return samplers.RandomSampler(seed=seed)  # a grid's points are given to Optuna, one by one

    def _pruner(self) -> Any:
        from optuna import pruners

        given = self.tuning.pruner
        if given["name"] == "none":
            return pruners.NopPruner()
        every, epochs = self.tuning.looks_every, self.tuning.epochs
        begin = {"n_startup_trials": self.tuning.startup, "n_warmup_steps": given.get("warmup", epochs // 2)}
        factor = {"reduction_factor": given.get("reduction", 3)}
        if given["name"] == "median":
            return pruners.MedianPruner(**begin)
        if given["name"] == "percentile":
            return pruners.PercentilePruner(given.get("percentile", 50.0), **begin)
        if given["name"] == "halving":
            return pruners.SuccessiveHalvingPruner(min_resource=every, **factor)
        return pruners.HyperbandPruner(min_resource=every, max_resource=max(every + 1, epochs), **factor)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep from users that heartbeats are experimental, and that they are meant for a loop of Optuna's own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _line(error: Exception) -> str:
    """Return an error of Optuna's or of a database in one line, without what may be secret."""
    text = masked(" ".join(str(error).split()))
    return f"{type(error).__name__}: {text[:200]}"


def distributions(space: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return Optuna's distributions of a space."""
    return {key: _distribution(values) for key, values in space.items()}


def _distribution(values: dict[str, Any]) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if "choices" in values:
        return CategoricalDistribution(values["choices"])
    low, high, log, step = values["low"], values["high"], values.get("log", False), values.get("step")
    if values["integer"]:
        return IntDistribution(low, high, log=log, step=step or 1)
    return FloatDistribution(low, high, log=log, step=step)
