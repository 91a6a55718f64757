"""The prepared file of a data set and, next to it, the record of what was read. Imports no torch when loaded.

The record says which code prepared the file and what the user's folder held. Without a record (it was left behind on
another machine) the file counts as up to date: it may be all that there is.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd.data.listing import listing
from kd.runs.provenance import data_code
from kd.runtime.files import file_digest, read_json, write_json
from kd.runtime.progress import inform
from kd.settings.run import Run
from kd.settings.shapes import Dataset

if TYPE_CHECKING:
    from kd.data.raw import Source


def prepare_step(dataset: Dataset, path: Path, source: Source, say: Callable[[str], Any] = inform) -> None:
    """Prepare a data set into the file `path` and write its record. Raises as kd.data.prepare.prepare."""
    from kd.data.prepare import prepare

    read = prepare(dataset, path, source, say)
    made = {"code": data_code(dataset), "dataset": dataset.prepared, "read": read, "digest": file_digest(path)}
    write_json(_record_file(path), made)


def outdated_data(dataset: Dataset, path: Path, freeze_code: bool = False) -> str:
    """Say why a data set that is there has to be prepared again; empty where it need not be."""
    record = _record(path)
    if record.get("code", data_code(dataset)) != data_code(dataset):
        return "" if freeze_code else "prepared by other code"
    return "damaged" if path.is_file() and record.get("digest", file_digest(path)) != file_digest(path) else ""


def changed_folder(path: Path, root: Path) -> bool:
    """Whether the user's folder holds other files than when its data set was prepared; False where nobody can tell."""
    before = (_record(path).get("read") or {}).get("listing")
    now = listing(root) if before else ""
    return now != "" and now != before


def reads_training_images(run: Run) -> bool:
    """Whether a run learns from the training images; others need of them only mean, std and number."""
    return run.kind != "given" if run.inversion is None else not run.inversion.entry.synthesises


def _record_file(path: Path) -> Path:
    return path.with_suffix(".json")


def _record(path: Path) -> dict[str, Any]:
    try:
        record = read_json(_record_file(path))
        return record if isinstance(record, dict) else {}
    except (OSError, ValueError):
        return {}
