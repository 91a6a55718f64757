"""Search for settings with Optuna: trials share one journal file. The only module that imports optuna."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from kd.runs.folder import SUGGESTION, TRIAL
from kd.runtime.files import read_json, write_atomically, write_json
from kd.runtime.messages import ConfigError
from kd.runtime.progress import inform
from kd.studies.search import made_of, nested

METRIC = "accuracy"  # on the validation split
RECORD_BEGINS = '{"op_code":'  # in Optuna's journal, a line each
OPERATIONS = 11  # of Optuna's journal: op_code counts from 0
RANDOM_TRIALS = 4  # drawn at random before the sampler learns from finished ones


def trial(
    journal: Path,
    name: str,
    space: dict[str, dict[str, Any]],
    number: int,
    folder: Path,
    objective: Callable[[dict], float],
    say: Callable[[str], Any] = inform,
    code: Callable[[dict], str] = lambda params: "",
) -> dict[str, Any]:
    """Run the `number`-th trial of a search and write trial.json into `folder`.

    Optuna is asked for parameters once; they are kept in suggestion.json, so that a killed trial goes on with them.
    Each trial's sampler is seeded with its number. `objective` maps {dotted setting: value} to the validation accuracy,
    `code` to the digest of the code that it runs, which is all that is known later of a run that diverged.
    Returns the content of trial.json; its accuracy is None where the run diverged or its accuracy is not finite. A
    journal or suggestion that cannot be read is put aside, which `say` is told.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    distributions = {key: _distribution(values) for key, values in space.items()}
    suggestion = _suggested(folder / SUGGESTION, space, say)
    if suggestion is None:
        asked = _study(journal, name, number, say).ask(distributions)
        suggestion = {"optuna_trial": asked.number, "params": asked.params}
        write_json(folder / SUGGESTION, suggestion)
    try:
        value, note = objective(suggestion["params"]), ""
        if not math.isfinite(value):
            raise FloatingPointError(f"{METRIC} is {value}")
    except FloatingPointError as error:  # that settings diverge is a result, too
        value, note = None, str(error)
    _tell(_study(journal, name, number, say), suggestion, value, distributions)  # read again, hours later
    result = {**suggestion, "number": number, METRIC: value, "note": note, "code": code(suggestion["params"])}
    write_json(folder / TRIAL, result)
    return result


def _suggested(file: Path, space: dict[str, Any], say: Callable[[str], Any]) -> dict[str, Any] | None:
    """Return what an earlier start of the trial was given; None where there was none or it cannot be read."""
    try:
        suggestion = read_json(file)
        params = suggestion["params"]
        fits = params.keys() == space.keys() and all(_is_in(params[key], values) for key, values in space.items())
        if fits and isinstance(suggestion["optuna_trial"], int):
            return suggestion
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError):
        pass
    aside = file.with_suffix(".unusable.json")
    file.rename(aside)
    say(f"{file} cannot be read; put aside as {aside.name}; the trial begins again with new values")
    return None


def _is_in(value: Any, values: dict[str, Any]) -> bool:
    return value in values["choices"] if "choices" in values else values["low"] <= value <= values["high"]


def _tell(study: Any, suggestion: dict[str, Any], value: float | None, distributions: dict[str, Any]) -> None:
    """Write a trial's end into the journal: under its number, or as a new one where the journal has lost it."""
    from optuna.trial import TrialState, create_trial

    number, params = suggestion["optuna_trial"], suggestion["params"]
    state = TrialState.FAIL if value is None else TrialState.COMPLETE
    same = [trial.number for trial in study.get_trials(deepcopy=False) if trial.params == params]
    if same:
        study.tell(number if number in same else same[0], value, state, skip_if_finished=True)
    else:
        study.add_trial(create_trial(state=state, value=value, params=params, distributions=distributions))


def best(trials: list[Path], output: Path, table: Path) -> dict[str, Any]:
    """Write the best trial's settings (YAML that an ablation may name) and the table of all trials (CSV).

    Returns the best trial; of equal ones the first. Raises ConfigError when every trial diverged, or where a trial's
    file cannot be read.
    """
    import pandas as pd

    results = sorted(map(_result, trials), key=lambda result: result["number"])
    finished = [result for result in results if result[METRIC] is not None]
    if not finished:
        note = results[0]["note"]
        raise ConfigError(f"tune: all {len(results)} trials diverged; the first: {note}; narrow the space")
    winner = max(finished, key=lambda result: result[METRIC])
    frame = pd.DataFrame([{"trial": r["number"], METRIC: r[METRIC], **r["params"], "note": r["note"]} for r in results])
    write_atomically(table, lambda file: file.write(frame.to_csv(index=False).encode()))
    head = f"# trial {winner['number']} of {len(results)}: validation {METRIC} {winner[METRIC]:.2f} %\n"
    text = f"{head}{made_of(results)}\n" + yaml.safe_dump(nested(winner["params"]), sort_keys=True)
    write_atomically(output, lambda file: file.write(text.encode()))
    return winner


def _result(file: Path) -> dict[str, Any]:
    try:
        result = read_json(file)
        if {"number", "params", "note", METRIC} <= set(result):
            return result
    except (ValueError, TypeError):
        pass
    raise ConfigError(f"{file}: cannot be read; delete it: the trial's run is complete and gives it again")


def _study(journal: Path, name: str, seed: int, say: Callable[[str], Any]) -> Any:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    journal.parent.mkdir(parents=True, exist_ok=True)
    _mend(journal, say)
    return optuna.create_study(
        study_name=name,
        storage=JournalStorage(JournalFileBackend(str(journal), _lock(journal))),
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=RANDOM_TRIALS),
        direction="maximize",
        load_if_exists=True,
    )


def _mend(journal: Path, say: Callable[[str], Any]) -> None:
    """Leave only whole records in a journal: one torn by a kill or a full disk fails all readers that come after it.

    The file as it was stays next to it. Appending processes hold the same lock, so that nobody's record is lost.
    """
    lock = _lock(journal)
    lock.acquire()
    try:
        found = journal.read_bytes().decode("latin-1") if journal.exists() else ""  # any byte is a character
        records = list(_records(found))
        mended = "".join(f"{record}\n" for record in records)
        if mended != found:
            aside = journal.with_name(f"{journal.name}.damaged-{time.time_ns()}")
            write_atomically(aside, lambda file: file.write(found.encode("latin-1")))
            write_atomically(journal, lambda file: file.write(mended.encode("latin-1")))
            whole = set(records)
            torn = sum(line.strip() != "" and line not in whole for line in found.split("\n"))
            say(f"{journal}: {torn} torn lines left out, {len(records)} records kept; as it was: {aside.name}")
    finally:
        lock.release()


def _lock(journal: Path) -> Any:
    """Return the lock of all that read or write a journal; one that a killed process left is taken over after 30 s.

    Optuna's default, a link to the journal, would be waited for without end where that path leads nowhere.
    """
    from optuna.storages.journal import JournalFileOpenLock

    left = journal.with_name(f"{journal.name}.lock")
    if left.is_symlink():  # of an older kd, or of Optuna used otherwise
        left.unlink(missing_ok=True)
    return JournalFileOpenLock(str(journal))


def _records(text: str) -> Iterator[str]:
    """Yield the whole records in a journal, also those that were appended to a torn one."""
    decoder, start = json.JSONDecoder(), text.find(RECORD_BEGINS)
    while start >= 0:
        try:
            record, end = decoder.raw_decode(text, start)
            if record["op_code"] in range(OPERATIONS) and "worker_id" in record:  # others fail every reader
                yield text[start:end]
        except (ValueError, KeyError, TypeError):
            end = start + 1
        start = text.find(RECORD_BEGINS, end)


def _distribution(values: dict[str, Any]) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if "choices" in values:
        return CategoricalDistribution(values["choices"])
    kind = IntDistribution if values["integer"] else FloatDistribution
    return kind(values["low"], values["high"], log=values.get("log", False))
