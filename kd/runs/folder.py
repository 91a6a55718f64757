"""The folder of a run: the names of its files, and whether the run is finished. Imports no torch.

RECORD is written last of all. So a run is *finished* when its record can be read and every file of its kind is there,
undamaged. Whether it is also up to date is a question of its identity (`kd.runs.provenance.outdated`). Tables and
estimates need only its *results*, which remain when weights and arrays have been removed or were left behind on another
machine.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kd.registry.kinds import KINDS
from kd.registry.models import find_spec, is_own
from kd.runtime.files import file_digest, read_json
from kd.runtime.messages import ConfigError
from kd.settings.run import Run, digest

METRICS = "metrics.json"  # final numbers only: equal runs have equal bytes
RECORD = "run.json"  # settings, identity, code, environment, seconds, counts
HISTORY = "history.csv"  # curves, a row per epoch
WEIGHTS = "weights.pt"  # a state dict
ENDED = "ended.json"  # how far a run came that stopped or failed, and why; gone at the next start
TRACKED = "mlflow.json"  # which MLflow run it is, and how many rows that has
LATENCY = "latency.json"  # how fast its network answers on some CPU, where somebody has measured that
SUGGESTION, TRIAL = "suggestion.json", "trial.json"  # of a trial of a search
OF_ALL = (METRICS, RECORD, HISTORY, WEIGHTS)  # files of every finished run


def files_of(kind: str) -> tuple[str, ...]:
    """Return the names of the files that a finished run of this kind has."""
    arrays = KINDS[kind].arrays
    return (*OF_ALL, array_file(arrays)) if arrays else OF_ALL


def array_file(name: str) -> str:
    """Return the file of the arrays that a loop returns under this name: correlations, synthetic."""
    return f"{name}.npz"


def inputs_of(run: Run, root: Path) -> tuple[Path, list[Path]]:
    """Return the data file and the weights that a run is made from: its teachers' in the results folder `root`, or, of
    a teacher that the user has trained, the user's own file.
    """
    given = [Path(run.weights.file)] if run.weights and run.weights.file else []
    return root / run.data_path, given + [root / teacher.path / WEIGHTS for teacher in run.teachers or ()]


def finished(folder: Path, thorough: bool = False) -> dict[str, Any] | None:
    """Return the record of a finished run; None where it is missing, partly done, damaged, or lacks today's fields."""
    record = with_results(folder)
    return record if record is not None and is_whole(folder, record, thorough) else None


def sealed(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Return a record with the size and digest of each file of its run, by which `is_whole` knows them."""
    files = [folder / name for name in OF_ALL if name != RECORD] + sorted(folder.glob(array_file("*")))
    noted = {file.name: [file.stat().st_size, file_digest(file)] for file in files}
    return record | {"files": noted | {RECORD: [0, digest(record)]}}


def is_whole(folder: Path, record: dict[str, Any], thorough: bool = False) -> bool:
    """Whether every file of the run's kind is there, and is the one that was written.

    Numbers and curves are compared by content; weights and arrays, which may be large, by size, or by content if
    `thorough`. Of runs that were made before records had `files` only the names are known.
    """
    try:
        there, noted = set(os.listdir(folder)), record.get("files")
        if not there.issuperset(files_of(record["settings"]["kind"])):
            return False
        if noted is None:
            return True
        unsealed = {key: value for key, value in record.items() if key != "files"}
        return noted[RECORD][1] == digest(unsealed) and all(
            (folder / name).stat().st_size == size
            and (not (thorough or name in (METRICS, HISTORY)) or file_digest(folder / name) == known)
            for name, (size, known) in noted.items()
            if name != RECORD
        )
    except (OSError, KeyError, TypeError, ValueError):  # removed in the meantime; damaged
        return False


def with_results(folder: Path) -> dict[str, Any] | None:
    """Return the record of a run that was finished once and still has its results, whatever became of its weights."""
    try:
        record, numbers = read_json(folder / RECORD), metrics(folder)
        known = record["settings"]["kind"] in KINDS and "total" in record["seconds"]
        return record if known and _is_sound(record, numbers) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _is_sound(record: dict[str, Any], numbers: dict[str, Any]) -> bool:
    """Whether what a record and its numbers hold is of its kind, so that nobody who reads it has to look again."""
    git, computed = record.get("git", {"commit": ""}), record.get("computed") or {}
    texts = [record.get("device") or "", numbers.get("scored", ""), git["commit"], *git.values()]
    counted = [computed.get(key, 1) for key in ("together", "processes")] + [record.get("peak_memory_mb", 0.0)]
    counted += [*record["seconds"].values(), *record.get("counts", {}).values()]
    counted += [value for key, value in numbers.items() if key != "scored" and value is not None]
    teachers = all(isinstance(teacher, dict) for teacher in record["settings"].get("teachers") or ())
    sound = all(isinstance(text, str) for text in texts) and all(type(value) in (int, float) for value in counted)
    return teachers and sound


class Records(dict[str, dict[str, Any] | None]):
    """The records of runs with results, by path below a results folder, each read once; None for any other."""

    def __init__(self, root: Path):
        super().__init__()
        self.root = root

    def __missing__(self, path: str) -> dict[str, Any] | None:
        return self.setdefault(path, with_results(self.root / path))


def metrics(folder: Path) -> dict[str, float]:
    """Return the final numbers of a finished run. Raises OSError or ValueError where they cannot be read."""
    return read_json(folder / METRICS)


def ended(folder: Path) -> dict[str, Any] | None:
    """Return how a run ended that did not finish: `error` (None: it was stopped) and how far it came."""
    try:
        note = read_json(folder / ENDED)
        return note | {"error": None if note["error"] is None else str(note["error"])}
    except (OSError, ValueError, TypeError, KeyError):
        return None


def arrays_in(file: Path) -> dict[str, Any]:
    """Return the arrays in an .npz file. Raises ConfigError for one that is damaged, or holds anything but numbers."""
    import numpy as np

    try:
        with np.load(file) as content:
            return dict(content)
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        hint = "remove the folder, and it is made again"
        raise ConfigError(f"{file}: holds no arrays of numbers ({type(error).__name__}); {hint}") from None


def run_folders(root: Path, below: str = "runs", depth: int = 4) -> Iterator[str]:
    """Yield the paths, from `root`, of all folders that may be a run's, finished or not."""
    try:
        entries = sorted(entry.name for entry in os.scandir(root / below) if entry.is_dir())
    except OSError:
        return
    for name in entries:
        if depth == 1:
            yield f"{below}/{name}"
        else:
            yield from run_folders(root, f"{below}/{name}", depth - 1)


def refuse_code_of_results(run: Run, root: Path, source: Path) -> None:
    """Raise ConfigError where settings from a file, `source`, name code in the results folder `root` as a network.

    Whoever can write there may have put both. Results are data; code comes from elsewhere.
    """
    root = root.resolve()
    for name in filter(is_own, (run.model, *(teacher.model for teacher in run.teachers or ()))):
        spec = find_spec(name.split(":")[0].split(".")[0])
        places = [spec.origin, *(spec.submodule_search_locations or ())] if spec else []
        if any(place and Path(place).resolve().is_relative_to(root) for place in places):
            hint = "its code lies in the results folder, where kd runs none; if you know it, move it elsewhere"
            raise ConfigError(f"{source}: model {name}: {hint}")
