"""Search for settings with Optuna: trials share one journal file. The only module that imports optuna."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from kd.runs.folder import SUGGESTION, TRIAL
from kd.runtime.files import read_json, write_atomically, write_json
from kd.runtime.messages import ConfigError
from kd.studies.search import nested

METRIC = "accuracy"  # on the validation split
RANDOM_TRIALS = 4  # drawn at random before the sampler learns from finished ones


def trial(
    journal: Path,
    name: str,
    space: dict[str, dict[str, Any]],
    number: int,
    folder: Path,
    objective: Callable[[dict], float],
) -> dict[str, Any]:
    """Run the `number`-th trial of a search and write trial.json into `folder`.

    Optuna is asked for parameters once; they are kept in suggestion.json, so that a killed trial goes on with them.
    Each trial's sampler is seeded with its number. `objective` maps {dotted setting: value} to the validation accuracy.
    Returns the content of trial.json; its accuracy is None where the run diverged.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder.mkdir(parents=True, exist_ok=True)
    study = _study(journal, name, seed=number)
    noted = folder / SUGGESTION
    if noted.exists():
        suggestion = read_json(noted)
    else:
        asked = study.ask()
        params = {key: _suggest(asked, key, values) for key, values in space.items()}
        suggestion = {"optuna_trial": asked.number, "params": params}
        write_json(noted, suggestion)
    try:
        value, note = objective(suggestion["params"]), ""
        study.tell(suggestion["optuna_trial"], value, skip_if_finished=True)
    except FloatingPointError as error:  # that settings diverge is a result, too
        value, note = None, str(error)
        study.tell(suggestion["optuna_trial"], state=optuna.trial.TrialState.FAIL, skip_if_finished=True)
    result = {**suggestion, "number": number, METRIC: value, "note": note}
    write_json(folder / TRIAL, result)
    return result


def best(trials: list[Path], output: Path, table: Path) -> dict[str, Any]:
    """Write the best trial's settings (YAML that an ablation may name) and the table of all trials (CSV).

    Returns the best trial; of equal ones the first. Raises ConfigError when every trial diverged.
    """
    import pandas as pd

    results = sorted((read_json(path) for path in trials), key=lambda result: result["number"])
    finished = [result for result in results if result[METRIC] is not None]
    if not finished:
        note = results[0]["note"]
        raise ConfigError(f"tune: all {len(results)} trials diverged; the first: {note}; narrow the space")
    winner = max(finished, key=lambda result: result[METRIC])
    frame = pd.DataFrame([{"trial": r["number"], METRIC: r[METRIC], **r["params"], "note": r["note"]} for r in results])
    write_atomically(table, lambda file: file.write(frame.to_csv(index=False).encode()))
    head = f"# trial {winner['number']} of {len(results)}: validation {METRIC} {winner[METRIC]:.2f} %\n"
    text = head + yaml.safe_dump(nested(winner["params"]), sort_keys=True)
    write_atomically(output, lambda file: file.write(text.encode()))
    return winner


def _study(journal: Path, name: str, seed: int) -> Any:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    journal.parent.mkdir(parents=True, exist_ok=True)
    return optuna.create_study(
        study_name=name,
        storage=JournalStorage(JournalFileBackend(str(journal))),
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=RANDOM_TRIALS),
        direction="maximize",
        load_if_exists=True,
    )


def _suggest(asked: Any, key: str, values: dict[str, Any]) -> Any:
    if "choices" in values:
        return asked.suggest_categorical(key, values["choices"])
    if values["integer"]:
        return asked.suggest_int(key, values["low"], values["high"], log=values.get("log", False))
    return asked.suggest_float(key, values["low"], values["high"], log=values.get("log", False))
