"""What a study needs that is not there: found by a few looks at the disk, before anything runs. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from kd.registry.datasets import CONTENTS, DOWNLOADED, INSTALLED
from kd.runs.folder import finished
from kd.runtime.messages import ConfigError
from kd.settings.shapes import Dataset
from kd.studies.status import needs_preparing
from kd.studies.study import Study


def require_results_folder(root: Path) -> None:
    """Raise ConfigError where a file is in the place of the results folder or of one above it."""
    for place in (root, *root.parents):
        if _exists(place):
            if not place.is_dir():
                raise ConfigError(f"results: got {str(root)!r}; {place} is a file; set `results` to a folder")
            return


def require_data(study: Study) -> None:
    """Raise ConfigError, a line per data set that is neither prepared nor where the study says, if runs still need it.

    One that is streamed has to be where the study says although it is prepared.
    Only names of files and folders are looked at. What is there may still be broken, and a download may fail.
    """
    faults = []
    for path, dataset in study.datasets.items():
        again = needs_preparing(study, path, dataset)
        if not (again or dataset.stream) or not _is_needed(study, path, again):
            continue
        root, downloads = study.roots[path], study.root / "data/downloads"
        if fault := _missing(dataset, root, downloads, study.compute.download):
            there = again and (study.root / path).exists()
            why = f"; {path} was prepared by other code, compute.freeze_code: true keeps it" if there else ""
            faults.append(f"study {study.name}: {fault}{why}")
    if faults:
        raise ConfigError("\n".join(dict.fromkeys(faults)))


def _is_needed(study: Study, data_path: str, prepared_again: bool) -> bool:
    """Return whether a run or a search that reads a data set is to be made; all are where it is prepared again."""
    runs = (path for path, run in study.runs.items() if run.data_path == data_path)
    again = bool(study.tunings) or (prepared_again and (study.root / data_path).exists())
    return again or any(finished(study.root / path) is None for path in runs)


def _missing(dataset: Dataset, root: str | None, downloads: Path, download: bool) -> str:
    """Say what is missing and what to do; empty where the data set is there, or may be downloaded."""
    groups, name = CONTENTS.get(dataset.name, ()), dataset.name
    if not groups or (download and name in DOWNLOADED):
        return ""
    folder = Path(root) if root else downloads
    places = [folder, *([Path(INSTALLED[name])] if name in INSTALLED else [])]
    if any(all(_exists(place / part) for part in group) for place in places for group in groups):
        return ""
    wanted = " or ".join(" and ".join(part if "." in part else f"{part}/" for part in group) for group in groups)
    lacking = f"which lacks {wanted}" if _exists(folder) else f"which is not there; needed: a folder with {wanted}"
    hint = ", or allow the download with compute.download: true" if name in DOWNLOADED else ""
    hint += " (docs/imagenet.md: where ImageNet's come from)" if dataset.stream else ""
    return f"dataset.root: got {str(folder)!r}, {lacking}; put the data of dataset.name {name} there{hint}"


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that no file can have, or a folder that may not be looked into
        return False
