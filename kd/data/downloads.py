"""Data sets that torchvision knows: read if their files are there, downloaded if that is allowed."""

from __future__ import annotations

import contextlib
import sys
from http.client import HTTPException
from typing import Any

from kd.data.raw import Source
from kd.runtime.messages import ConfigError
from kd.runtime.run_lock import RunLock
from kd.runtime.torchvision_compat import import_torchvision


def torchvision_splits(name: str, source: Source) -> tuple[Any, Any]:
    """Return torchvision's training and test split; torchvision verifies the checksums.

    Raises ConfigError if they are not found and cannot or may not be downloaded: it says which file belongs where.
    """
    kind = getattr(import_torchvision().datasets, name)
    folder = source.root or source.downloads
    try:
        return _open(kind, folder, download=False)
    except (RuntimeError, OSError):
        problem = "compute.download is false"
    if source.download:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with RunLock(folder, name=name):  # two sizes of one data set may be prepared at once
                return _open(kind, folder, download=True)
        except (RuntimeError, OSError, HTTPException) as error:
            problem = f"the download failed ({' '.join(str(error).split())[:200]})"
    raise ConfigError(f"dataset.root: {name} was not found in {folder} and {problem}; {_remedy(kind, folder)}")


def _open(kind: Any, folder: Any, download: bool) -> tuple[Any, Any]:
    with contextlib.redirect_stdout(sys.stderr):
        return kind(str(folder), train=True, download=download), kind(str(folder), train=False)


def _remedy(kind: Any, folder: Any) -> str:
    if hasattr(kind, "base_folder"):  # CIFAR
        return (
            f"unpack {kind.url.rsplit('/', 1)[1]} there, so that {folder / kind.base_folder} exists, "
            "or set dataset.root to a folder with train/<class>/ and test/<class>/ images"
        )
    return (
        "set dataset.root to a folder with the four *-ubyte.gz files, or install Debian's package dataset-fashion-mnist"
    )
