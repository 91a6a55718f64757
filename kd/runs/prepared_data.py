"""The prepared file of a data set and, next to it, the record of what was read. Imports no torch when loaded.

The record says which code prepared the file and what the user's folder held. Without a record (it was left behind on
another machine) the file counts as up to date: it may be all that there is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kd.data.listing import listing
from kd.runs.provenance import data_code
from kd.runtime.files import file_digest, read_json, refuse_links_of_others, write_json
from kd.runtime.messages import ConfigError
from kd.runtime.progress import inform
from kd.settings.run import Run
from kd.settings.shapes import Dataset

if TYPE_CHECKING:
    import torch

    from kd.data.dataset import Data
    from kd.data.raw import Source


def prepare_step(dataset: Dataset, path: Path, source: Source, say: Callable[[str], Any] = inform) -> None:
    """Prepare a data set into the file `path` and write its record. Raises as kd.data.prepare.prepare, and ConfigError
    for a folder that is another user's link.
    """
    if dataset.stream:
        from kd.data.file_list import prepare
    else:
        from kd.data.prepare import prepare

    refuse_links_of_others([path.parent])
    read = prepare(dataset, path, source, say)
    made = {"code": data_code(dataset), "dataset": dataset.prepared, "read": read, "digest": file_digest(path)}
    write_json(_record_file(path), made)


@contextmanager
def reading(
    dataset: Dataset,
    path: Path,
    device: torch.device,
    workers: int = 0,
    part: Callable[[int], tuple[int, int]] = lambda count: (0, count),
    common: Callable[[Any, Callable[[], Data]], Data] = lambda key, make: make(),
    copy: Path | None = None,
) -> Iterator[Data]:
    """Yield the data of a prepared file, or of a `copy` of it, on a device, for as long as the block lasts.

    Of a data set that is streamed, `workers` processes decode the images of this process' `part` of each batch; data
    in memory is `common` to all who ask for the same. Raises ConfigError as kd.data.dataset.load, and for a file that
    is not what was prepared.
    """
    from kd.data import dataset as in_memory

    file = copy or path
    if not _is_whole(path, file):
        raise ConfigError(f"{file}: its checksum differs; delete {path}: the data set is then prepared again")
    if not dataset.stream:
        yield common((file_digest(file), dataset), lambda: in_memory.load(file, dataset, device))
        return
    from kd.data import streamed

    places = [os.path.expanduser(dataset.root), (_record(path).get("read") or {}).get("root")]
    root = next((place for place in places if place and os.path.isdir(place)), places[0])
    with streamed.opened(file, dataset, Path(root), device, workers, part) as data:
        yield data


def outdated_data(dataset: Dataset, path: Path, freeze_code: bool = False) -> str:
    """Say why a data set that is there has to be prepared again; empty where it need not be."""
    record = _record(path)
    if record.get("code", data_code(dataset)) != data_code(dataset):
        return "" if freeze_code else "prepared by other code"
    return "damaged" if path.is_file() and not _is_whole(path, path) else ""


def _is_whole(path: Path, copy: Path) -> bool:
    """Whether a copy of a prepared file, or the file itself, is what was prepared."""
    now = file_digest(copy)
    return _record(path).get("digest", now) == now


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
