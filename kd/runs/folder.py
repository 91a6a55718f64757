"""The folder of a run: the names of its files, and whether the run is finished. Imports no torch.

RECORD is written last of all. So a run is *finished* when its record can be read and every file of its kind is there,
undamaged. Whether it is also up to date is a question of its identity (`kd.runs.provenance.outdated`). Tables and
estimates need only its *results*, which remain when weights and arrays have been removed or were left behind on another
machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kd.registry.kinds import KINDS
from kd.runtime.files import file_digest, read_json
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
        return record if known and isinstance(numbers, dict) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


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
        return note if "error" in note else None
    except (OSError, ValueError, TypeError):
        return None


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
