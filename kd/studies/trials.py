"""The files of a search: its trials, whether they are up to date, its best settings. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kd.registry.models import is_own
from kd.runs.folder import SUGGESTION, TRIAL, finished, inputs_of
from kd.runs.prepared_data import outdated_data
from kd.runs.provenance import outdated, run_code
from kd.runtime.files import read_json
from kd.runtime.messages import ConfigError
from kd.runtime.yaml_files import read_yaml
from kd.settings.run import digest
from kd.studies.search import SEARCHED, STATES, Tuning, figures_of, flatten, made_of

BEST, TABLE, SEARCH = "best.yaml", "trials.csv", "search.json"  # in the folder of a search
CHECKSUM = "checksum"  # of trial.json, over all else in it
FIELDS = {"number", "params", "state", "value", "epoch", "seconds", "note"}  # of trial.json
Results = dict[int, dict[str, Any]]  # number of a trial -> content of trial.json


def trial_folders(folder: Path) -> dict[int, Path]:
    """Return the folders of a search's trials that were begun, by their number."""
    found = {path.name.removeprefix("trial"): path for path in folder.glob("trial*") if path.is_dir()}
    return {int(number): found[number] for number in sorted(found, key=lambda text: text.zfill(9)) if number.isdigit()}


def read_results(folder: Path, tuning: Tuning) -> Results:
    """Return the finished trials of a search, whatever has become of the code since. Others' and torn ones are none."""
    found = {number: _read(path / TRIAL) for number, path in trial_folders(folder).items()}
    return {
        number: result | {"number": number}
        for number, result in found.items()
        if result and result.get("search") == tuning.digest
        if tuning.holds(result["params"])  # they become the settings of runs
    }


def current_results(folder: Path, tuning: Tuning, root: Path, freeze_code: bool) -> Results:
    """Return the finished trials of a search that need not be run again: made from what would make them today."""
    return {
        number: result
        for number, result in read_results(folder, tuning).items()
        if not _outdated(folder / f"trial{number}/run", result, tuning, root, freeze_code)
    }


def begun(folder: Path) -> set[int]:
    """Return the numbers of the trials that were given values and have no result."""
    paths = trial_folders(folder)
    return {number for number, path in paths.items() if (path / SUGGESTION).exists() and not _read(path / TRIAL)}


def is_complete(folder: Path, tuning: Tuning, results: Results) -> bool:
    """Whether the budget of a search is used and each of its trials has a result."""
    asked = {number for number in begun(folder) if tuning.trials is None or number < tuning.trials}
    return is_of(folder, tuning) and not asked and bool(results) and not tuning.wants_more(results)


def is_of(folder: Path, tuning: Tuning) -> bool:
    """Whether a folder holds this search, and not one of the same name with other settings or another space. Where that
    cannot be read, its trials say so.
    """
    try:
        held = read_json(folder / SEARCH)
        said = held.pop("digest")
        if said == digest(held):
            return said == tuning.digest
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return bool(read_results(folder, tuning))


def best_is_outdated(folder: Path, tuning: Tuning, results: Results) -> bool:
    """Whether the best settings are there, but were chosen among other results than those that are there now, or lack
    their figures.
    """
    try:
        text = (folder / BEST).read_text("utf-8")
    except OSError:
        return False
    figures = (folder / f"figures/{name}.png" for name in figures_of(tuning.space))
    return made_of(list(results.values())) not in text.splitlines() or not all(file.exists() for file in figures)


def best_settings(folder: Path, tuning: Tuning | None) -> dict[str, Any] | None:
    """Return what a search chose, as overrides; None where it has not, or (its `tuning` given) was another search.

    Raises ConfigError for what no search chooses: a setting outside of its space, a network that names code.
    """
    if not (folder / BEST).is_file() or (tuning is not None and not is_of(folder, tuning)):
        return None
    found = read_yaml(folder / BEST)
    if odd := [key for key, value in flatten(found).items() if not _may_be_chosen(key, value, tuning)]:
        raise ConfigError(f"{folder / BEST}: {odd[0]}: is not what this search chooses; remove the file and tune again")
    return found


def _may_be_chosen(key: str, value: Any, tuning: Tuning | None) -> bool:
    """Whether a search may have chosen a setting; of another study's search the space is not known."""
    if tuning is None:
        return key.split(".")[0] in SEARCHED and not (key == "student.model" and is_own(str(value)))
    return key in tuning.space and (key != "student.model" or value in tuning.space[key]["choices"])


def told(results: Results) -> str:
    """Say how trials ended: 20 complete, 3 pruned, 1 failed."""
    words = dict(zip(STATES, ("complete", "pruned", "failed"), strict=True))
    counts = {word: sum(result["state"] == state for result in results.values()) for state, word in words.items()}
    return ", ".join(f"{count} {word}" for word, count in counts.items() if count) or "none"


def _read(file: Path) -> dict[str, Any] | None:
    try:
        result = read_json(file)
        numbers = [result["seconds"], *([] if result["state"] == "FAIL" else [result["value"]])]
        sound = result["state"] in STATES and all(type(number) in (int, float) for number in numbers)
        now = digest({key: value for key, value in result.items() if key != CHECKSUM})
        return result if set(result) >= FIELDS and sound and result.get(CHECKSUM, now) == now else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _outdated(folder: Path, result: dict[str, Any], tuning: Tuning, root: Path, freeze_code: bool) -> bool:
    """Whether what a trial was made from has changed; of one without a finished run only the code is known."""
    try:
        run = tuning.run(result["params"])
    except (ConfigError, ValueError, KeyError, TypeError, AttributeError):
        return True
    if result["state"] == "COMPLETE" and (record := finished(folder)) is not None:
        data, teachers = inputs_of(run, root)
        return bool(outdated(record, run, data, teachers, freeze_code) or outdated_data(run.dataset, data, freeze_code))
    return not freeze_code and result.get("code") != run_code(run)
