"""Works on a search: trials with values that Optuna draws, until its budget is used; then its best settings."""

from __future__ import annotations

import contextlib
import csv
import math
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from kd.integrations.trial_storage import TrialStorage
from kd.runs.folder import HISTORY, SUGGESTION, TRIAL, finished
from kd.runtime.files import on_the_way, read_json, refuse_links_of_others, write_atomically, write_json
from kd.runtime.messages import ConfigError
from kd.runtime.progress import inform
from kd.runtime.run_lock import Busy, RunLock, owner, peek
from kd.settings.run import digest
from kd.studies.search import Pruned, Tuning, Unfit, made_of, nested, tidy
from kd.studies.trials import BEST, CHECKSUM, SEARCH, TABLE, Results, is_of, read_results, told, trial_folders

if TYPE_CHECKING:
    import pandas as pd

ATTEMPTS = 3  # a trial whose worker dies that often has failed
Report = Callable[[int, float], None]  # (epoch, value) -> raises Pruned
Objective = Callable[[dict[str, Any], Path, Report], float]  # (values, folder of the run, report) -> percent
Say = Callable[[str], Any]


def begin(folder: Path, tuning: Tuning, say: Say = inform) -> None:
    """Make a folder that of this search. Trials of one with other settings or another space are put aside, and found
    again when it is changed back.

    Raises ConfigError while somebody works on the other one, and for a link that another user has put there.
    """
    refuse_links_of_others(on_the_way(folder, folder.parents[3]))  # below the results folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with RunLock(folder.parent, say, name=f"{tuning.name}.begin"):
        if is_of(folder, tuning):
            return
        others = folder.with_name(f"{folder.name}.aside")
        refuse_links_of_others([others])
        others.mkdir(exist_ok=True)
        if trial_folders(folder):
            for path in trial_folders(folder).values():
                if (lock := peek(path))[1]:
                    raise ConfigError(
                        f"{folder}: {owner(lock[0])} works on this search as it was; wait for it or stop it"
                    )
            aside = others / _digest_in(folder)
            folder.rename(aside)
            say(f"{folder}: settings or space have changed; the trials so far are put aside in {aside}")
        if (earlier := others / tuning.digest).exists() and not trial_folders(folder):
            if folder.exists():
                shutil.rmtree(folder)  # follows no link
            earlier.rename(folder)
            say(f"{folder}: the search is as it was before; its trials are back")
        if not any(others.iterdir()):
            others.rmdir()
        folder.mkdir(exist_ok=True)
        write_json(folder / SEARCH, {"digest": tuning.digest, **tuning.identity})


def _last_epoch(run: Path) -> int:
    """Return the last epoch of a finished run."""
    with (run / HISTORY).open(encoding="utf-8") as file:
        return max(int(float(row["epoch"])) for row in csv.DictReader(file))


def _digest_in(folder: Path) -> str:
    """Return the name for a search that is put aside: what identified it, or the time."""
    try:
        digest = read_json(folder / SEARCH)["digest"]
        if re.fullmatch("[0-9a-f]{10}", digest):  # no path, which would lead somewhere else
            return digest
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return f"unknown-{time.time_ns()}"


def work(
    storage: TrialStorage,
    objective: Objective,
    current: Callable[[], Results],
    say: Say = inform,
    code: Callable[[dict], str] = lambda params: "",
) -> list[int]:
    """Run trials until the budget is used and none is left to do; return the numbers of those that were run here.

    Any number of workers may do so at once, on one folder: each holds the lock of the trial that it is at. A trial
    whose worker has died goes on from its checkpoint, before a new one begins. `current` returns the finished trials.
    """
    storage.fail_the_dead()
    storage.learn(list(current().values()))
    done: list[int] = []
    while (number := _next(storage, objective, current, say, code)) is not None:
        done.append(number)
    return done


def _next(
    storage: TrialStorage, objective: Objective, current: Callable[[], Results], say: Say, code: Callable[[dict], str]
) -> int | None:
    """Run one trial that nobody else runs and return its number; None where there is none."""
    for number in _open_numbers(storage.folder, storage.tuning, current()):
        folder = storage.folder / f"trial{number}"
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with RunLock(folder, lambda text, number=number: say(f"trial {number}: {text}"), wait=False):
                if number not in (known := current()):
                    trial(storage, number, objective, say, code, known)
                    return number
        except Busy:
            continue
    return None


def _open_numbers(folder: Path, tuning: Tuning, results: Results) -> Iterator[int]:
    """Yield the numbers of trials that may be run now: those that somebody has begun, then new ones."""
    limit = math.inf if tuning.trials is None else tuning.trials
    started = sorted(number for number in set(trial_folders(folder)) - set(results) if number < limit)
    yield from started
    number = 0
    while number < limit and tuning.wants_more(results):
        if number not in results and number not in started:
            yield number
        number += 1


def trial(
    storage: TrialStorage,
    number: int,
    objective: Objective,
    say: Say = inform,
    code: Callable[[dict], str] = lambda params: "",
    known: Results | None = None,
) -> dict[str, Any]:
    """Run the `number`-th trial of a search and write trial.json into its folder; return its content.

    Optuna is asked for values once; they are kept in suggestion.json, so that a killed trial goes on with them. Each
    trial's sampler is seeded with its number. `objective` maps {dotted setting: value} to a value in percent; `code`
    maps them to the digest of the code that is run. Values that a trial in `known` has tried have its result.

    The state is COMPLETE, PRUNED (the value is the last one reported) or FAIL (none): the run diverged, its settings do
    not go together, the memory did not suffice, or its worker died ATTEMPTS times. A journal or suggestion that cannot
    be read is put aside, which `say` is told.
    """
    tuning, folder = storage.tuning, storage.folder / f"trial{number}"
    folder.mkdir(parents=True, exist_ok=True)
    given = _suggested(folder / SUGGESTION, tuning, say) or {**storage.ask(number), "attempts": 0}
    write_json(folder / SUGGESTION, given | {"attempts": given["attempts"] + 1})
    params, reported, started = given["params"], {}, time.monotonic()

    def report(epoch: int, value: float) -> None:
        reported[epoch] = value
        storage.report(given, epoch, value)

    state, value, note = "FAIL", None, ""
    try:
        if given["attempts"] >= ATTEMPTS:
            raise Unfit(f"its worker died {given['attempts']} times")
        if same := _with_result(params, known or {}):
            state, value, note = same["state"], same["value"], f"same values as trial {same['number']}"
        else:
            with storage.heartbeat(given):
                value = objective(params, folder / "run", report)
            if not math.isfinite(value):
                raise FloatingPointError(f"{tuning.objective} is {value}")
            state = "COMPLETE"
    except Pruned as error:
        state, value, note = "PRUNED", list(reported.values())[-1], str(error)
    except (FloatingPointError, Unfit) as error:  # that settings diverge is a result, too
        value, note = None, str(error)
    except (
        ConfigError,
        OSError,
        SystemExit,
        KeyboardInterrupt,
    ):  # a mistake, a disk, a wish to stop: no fault of the trial
        with contextlib.suppress(OSError):
            write_json(folder / SUGGESTION, given)
        raise
    except Exception as error:
        if type(error).__name__ != "OutOfMemoryError":  # of torch, of any device
            raise
        value, note = None, f"out of memory: {' '.join(str(error).split())[:200]}"
    record = finished(folder / "run") if state == "COMPLETE" else None
    spent = max(time.monotonic() - started, record["seconds"]["total"] if record else 0.0)
    result = {key: given[key] for key in ("optuna_trial", "params")} | {"number": number, "search": tuning.digest}
    last = max(reported, default=_last_epoch(folder / "run") if record else None)  # of a run that was complete: none
    result |= {"state": state, "value": value, "epoch": last, "seconds": round(spent, 3)}
    result |= {"note": note, "code": code(params)}
    result |= {CHECKSUM: digest(result)}
    storage.tell(given, state, value, reported)
    write_json(folder / SUGGESTION, given | {"attempts": 0})  # if it is made again one day, by other code
    write_json(folder / TRIAL, result)
    if state != "COMPLETE":  # nobody goes on from its checkpoint
        for file in (folder / "run").glob("checkpoint*.pt"):
            file.unlink(missing_ok=True)
    say(f"trial {number}: {_said(tuning, result)}")
    return result


def _with_result(params: dict[str, Any], known: Results) -> dict[str, Any] | None:
    """Return the finished trial with the same values, which would give the same numbers again."""
    return next((one for one in known.values() if one["params"] == params and one["state"] == "COMPLETE"), None)


def _said(tuning: Tuning, result: dict[str, Any]) -> str:
    """Say how a trial ended, and with which values."""
    value = "" if result["value"] is None else f" {tuning.score} {result['value']:.2f} %,"
    shown = ", ".join(f"{key.rsplit('.', 1)[-1]} {_short(result['params'][key])}" for key in tuning.space)
    note = f" ({result['note']})" if result["note"] else ""
    return f"{result['state'].lower()},{value} {result['seconds']:.0f} s: {shown}{note}"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _suggested(file: Path, tuning: Tuning, say: Say) -> dict[str, Any] | None:
    """Return what an earlier start of the trial was given; None where there was none or it cannot be read."""
    try:
        suggestion = read_json(file)
        fits = tuning.holds(suggestion["params"])
        if fits and isinstance(suggestion["optuna_trial"], int) and isinstance(suggestion["attempts"], int):
            return suggestion
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError):
        pass
    aside = file.with_suffix(".unusable.json")
    file.rename(aside)
    say(f"{file} cannot be read; put aside as {aside.name}; the trial begins again with new values")
    return None


class Best(NamedTuple):
    """What a search has found."""

    winner: dict[str, Any]  # trial.json of the best trial; of equal ones the first
    trials: pd.DataFrame  # a row per trial, as in trials.csv
    importances: dict[str, float]  # setting -> its share in how the objective varies


def best(folder: Path, tuning: Tuning) -> Best:
    """Write the best trial's settings (YAML that a study may name) and the table of all trials (CSV).

    Raises ConfigError when no trial is complete.
    """
    import pandas as pd

    results = read_results(folder, tuning)
    complete = [result for result in results.values() if result["state"] == "COMPLETE"]
    if not complete:
        note = next(iter(results.values()), {"note": "none was begun"})["note"]
        said = f"{told(results)} of {len(results)} trials; the first: {note}"
        raise ConfigError(f"tune.{tuning.name}: {said}; narrow the space")
    winner = max(complete, key=lambda result: result["value"])
    trials = pd.DataFrame(
        {"trial": one["number"], "state": one["state"], tuning.objective: one["value"]}
        | {key: one[key] for key in ("epoch", "seconds")}
        | {key: tidy(one["params"])[key] for key in tuning.space}
        | {"note": one["note"]}
        for one in results.values()
    )
    write_atomically(folder / TABLE, lambda file: file.write(trials.to_csv(index=False).encode()))
    head = f"# trial {winner['number']} of {len(results)}: {tuning.measured} {winner['value']:.2f} %\n"
    text = f"{head}{made_of(list(results.values()))}\n" + yaml.safe_dump(nested(tidy(winner["params"])), sort_keys=True)
    write_atomically(folder / BEST, lambda file: file.write(text.encode()))
    return Best(winner, trials, importances(tuning, complete))


def importances(tuning: Tuning, complete: list[dict[str, Any]]) -> dict[str, float]:
    """Return each setting's share in how the objective varies over the complete trials (fANOVA, Hutter et al., ICML
    2014); empty where they are too few, or all alike.
    """
    import optuna
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    if len(complete) < 4 or len({result["value"] for result in complete}) < 2:
        return {}
    from kd.integrations.trial_storage import distributions

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study, kinds = optuna.create_study(direction="maximize"), distributions(tuning.space)
    for result in complete:
        given = {"params": result["params"], "distributions": kinds, "value": result["value"]}
        study.add_trial(optuna.trial.create_trial(**given))
    try:
        return get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
    except (ValueError, RuntimeError):  # no setting varies
        return {}
