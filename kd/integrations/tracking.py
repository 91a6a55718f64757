"""MLflow as a view of a run's files.

The store is brought up to date from a run's files: for long runs during the run and at its end; for short runs when the
study ends, because opening MLflow takes seconds; or later by `python -m kd sync`. A run sends in a thread of its own:
its steps wait for no store, and its end not for long. When the store is away, one line says so, and nothing is lost.

mlflow.json in the run's folder says what is sent (`experiment`, `name`, `tags`, `params`, `dataset`) and, by store, how
much has arrived there. It names no place on this machine, so that a copied results folder is a project of its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from kd.integrations.networks import Networks
from kd.integrations.sending import NOTHING, now, send
from kd.integrations.store import EXPERIMENT, Store, quiet
from kd.runs.folder import HISTORY, METRICS, OF_ALL, TRACKED, WEIGHTS, ended, with_results
from kd.runtime.files import read_json, refuse_links_of_others, write_json
from kd.runtime.run_lock import peek

OPEN_AFTER_SECONDS = 90.0  # shorter runs are sent at the end of the study: opening MLflow takes two seconds
SEND_EVERY_SECONDS = 15.0
LONGEST_PAUSE_SECONDS = 300.0  # between two tries while the store is away
WAIT_AT_END_SECONDS = 30.0  # whatever the store does; after that the study's end sends the rest
WAIT_WHEN_STOPPED_SECONDS = 5.0  # the same where a run is stopped or fails: SLURM kills it 30 s after its signal
WAIT_IN_SYNC_SECONDS = 600.0
DESCRIBED = ("experiment", "name", "tags", "params", "dataset")  # by kd.integrations.jobs.description


class Tracker:
    """Context manager around one run; entering returns the journal's sink.

    description: what the MLflow run is (DESCRIBED); later: the command that sends what is missing.
    Nothing here raises because of the store: a failure is reported through `say`, and what it concerned is sent later.
    """

    def __init__(
        self,
        folder: Path,
        store: Store,
        description: dict[str, Any],
        say: Callable[[str], None] = print,
        later: str = "python -m kd sync",
    ):
        self.folder, self.store, self.say, self.later = folder, store, say, later
        self.arrived = dict(NOTHING)
        self.state = {**description, "sent": {store.name: self.arrived}}  # of another training nothing counts
        self._away = False
        self._pause = SEND_EVERY_SECONDS
        self._next = time.monotonic() + OPEN_AFTER_SECONDS
        self._started = now()
        self._sending: threading.Thread | None = None

    def __enter__(self) -> Callable[[list[dict[str, float]]], None]:
        noted = read_state(self.folder)
        before = arrived(noted, self.store)
        if not before["complete"]:
            self.arrived.update(before)
        if not noted:  # killed before it ends, the run could not be sent: `sync` asks this note what to send
            self._note()
        return self._sink

    def _sink(self, history: list[dict[str, float]]) -> None:
        if time.monotonic() >= self._next and self._ended(0.0):
            self._begin(list(history), "RUNNING", 0.0)

    def __exit__(self, kind: type | None, error: BaseException | None, _trace: object) -> None:
        wait = WAIT_AT_END_SECONDS if kind is None else WAIT_WHEN_STOPPED_SECONDS
        until = time.monotonic() + wait
        if self._ended(wait) and self.arrived["run_id"]:
            last = (read_history(self.folder), "FINISHED") if kind is None else ([], "KILLED")
            self._begin(*last, 0.6 * wait)
        if not self._ended(until - time.monotonic()):
            self._report(f"MLflow store {self.store.name} has not answered in {wait:.0f} s")
        elif kind is None and not self.arrived["run_id"]:  # else what was noted of an earlier training stays
            self._note()

    def _begin(self, history: list[dict[str, float]], status: str, turn: float) -> None:
        """Begin to send; `turn`: seconds to wait for other processes that write to an SQLite store."""
        self._sending = threading.Thread(target=self._send, args=(history, status, turn), daemon=True)
        self._sending.start()

    def _ended(self, wait: float) -> bool:
        """Whether nothing is being sent, after that many seconds at most."""
        if self._sending is not None:
            self._sending.join(max(wait, 0.0))
        return self._sending is None or not self._sending.is_alive()

    def _send(self, history: list[dict[str, float]], status: str, turn: float) -> None:
        try:
            with self.store.turn(turn) as mine:
                if mine:  # else a later send has these rows too
                    given = (self.folder, self.store, self.state, self.arrived)
                    send(*given, history, status, self._started, self._note)
            self._pause = SEND_EVERY_SECONDS
        except Exception as error:
            self._report(self.store.trouble(error))
            self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)
        finally:
            self._next = time.monotonic() + self._pause
            self._note()

    def _report(self, trouble: str) -> None:
        if not self._away:
            self.say(f"{trouble}; the run goes on, `{self.later}` sends the rest later")
        self._away = True

    def _note(self) -> bool:
        return note(self.folder, self.state, self.say)


def note(folder: Path, state: dict[str, Any], say: Callable[[str], None]) -> bool:
    """Write what was sent into mlflow.json; whether that could be done: what only informs ends no run."""
    try:
        write_json(folder / TRACKED, state)
    except OSError as error:
        say(f"{folder / TRACKED} not written ({error}); what was sent may be sent again")
        return False
    return True


def read_state(folder: Path) -> dict[str, Any]:
    """Return what mlflow.json of a run says; {} where it is missing, torn or of another version."""
    try:
        state = read_json(folder / TRACKED)
        named = EXPERIMENT.fullmatch(state["experiment"])  # else its files could be sent to any folder
        parts = [state[key] for key in ("tags", "params", "dataset", "sent")] + [*state["sent"].values()]
        return state if named and "name" in state and all(isinstance(part, dict) for part in parts) else {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def arrived(state: dict[str, Any], store: Store, known: set[str] | None = None) -> dict[str, Any]:
    """Return what has arrived in a store; nothing if its run is not among the `known` ones (None: all are)."""
    found = NOTHING | state.get("sent", {}).get(store.name, {})
    return found if known is None or found["run_id"] is None or found["run_id"] in known else dict(NOTHING)


def sync(
    folders: Iterable[Path], store: Store, say: Callable[[str], None] = print, later: str = "python -m kd sync"
) -> int:
    """Send what the store lacks of the finished runs in `folders`; return how many were brought up to date.

    A store that fails is tried and reported once; `later` is the command that goes on.
    """
    states = {folder: state for folder in folders if (state := read_state(folder))}
    experiments = {state["experiment"] for state in states.values() if arrived(state, store)["run_id"]}
    sent, no_models, networks = 0, [], Networks()
    try:
        store.settle()
        with quiet():
            known = store.patiently(lambda: store.runs(experiments)) if experiments else set()
        for folder, state in states.items():
            has = arrived(state, store, known)
            if has["complete"] and has["network"]:
                continue
            if not _may_be_sent(folder, say):
                if has["run_id"] and not has["complete"] and not peek(folder)[1]:
                    store.patiently(lambda has=has: _end(store.client(), has["run_id"]))
                continue
            try:
                with store.turn(WAIT_IN_SYNC_SECONDS):
                    if not has["complete"]:
                        given = (folder, store, state, has, read_history(folder), "FINISHED")
                        store.patiently(lambda given=given: send(*given))
                    if not has["network"]:
                        given = (store.client(), has["run_id"], folder)
                        has["network"], reason = store.patiently(lambda given=given: networks.log_weights(*given))
                        no_models += [reason] if reason else []
                sent += 1
            finally:
                noted = read_state(folder) or state  # another process may have sent it elsewhere in the meantime
                note(folder, noted | {"sent": noted["sent"] | {store.name: has}}, say)
    except Exception as error:
        finished = [folder for folder in states if (folder / METRICS).exists()]
        left = sum(not arrived(read_state(folder), store)["complete"] for folder in finished)
        missing = f" ({left} of {len(finished)} finished runs have not arrived)" if left else ""
        say(f"{store.trouble(error)}; `{later}` tries again{missing}")
    if no_models:
        say(f"networks in MLflow as {WEIGHTS}, not as models: {len(no_models)}; the first: {no_models[0]}")
    return sent


def _end(client: Any, run_id: str) -> None:
    """Let a run be no longer RUNNING in the store: it was killed, or could not say that it has ended."""
    if client.get_run(run_id).info.status == "RUNNING":
        client.set_terminated(run_id, "KILLED")


def _may_be_sent(folder: Path, say: Callable[[str], None]) -> bool:
    """Whether a run is finished and its files are whole; says so where they are not."""
    if not (folder / METRICS).exists():
        return False  # METRICS is written shortly before the run is finished: without it there is nothing to report
    if ended(folder) is not None or peek(folder)[0] is not None:
        return False  # what is there is of an earlier training, and what was noted of the one that did not finish
    try:
        refuse_links_of_others([folder, *(folder / name for name in OF_ALL)])
        if with_results(folder) is None:
            raise ValueError("record or numbers cannot be read")
        read_history(folder)
    except (OSError, ValueError) as error:
        say(f"{folder}: not sent to MLflow, its files are not whole ({type(error).__name__}: {error})")
        return False
    return True


def read_history(folder: Path) -> list[dict[str, float]]:
    """Return the rows of history.csv without their empty cells."""
    import csv

    with (folder / HISTORY).open(encoding="utf-8") as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
