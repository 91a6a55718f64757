"""A copy of a prepared data set on a machine's own disk, for all runs there; no number depends on it."""

from __future__ import annotations

import glob
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kd.runtime.files import file_digest, write_atomically
from kd.runtime.run_lock import RunLock


def staged(data: Path, place: str, say: Callable[[str], Any]) -> Path:
    """Return a copy of a prepared data file below the folder `place`, made where there is none yet.

    `place` may hold $VARIABLES and `~`; empty: `data` itself is returned. Jobs that begin together share one copy. Its
    name holds the digest of its content, which is compared once per process. A copy that the prepared file has changed
    since is replaced. Where none can be made, a line says why and `data` is returned.
    """
    if not place:
        return data
    folder = os.path.expanduser(os.path.expandvars(place))
    try:
        if "$" in folder:
            raise OSError(0, "a variable is not set on this machine")
        return _copy_of(data, Path(folder) / f"kd-data-{os.getuid()}")
    except OSError as error:
        say(f"compute.stage: {folder}: {error.strerror}; the data are read from {data}")
        return data


def _copy_of(data: Path, folder: Path) -> Path:
    name = f"{data.stem}-{hashlib.sha256(bytes(data.resolve())).hexdigest()[:8]}"
    now = data.stat()
    state = f"{name}.{now.st_size}.{now.st_mtime_ns}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if (copy := _found(folder, state)) is not None:
        return copy
    with RunLock(folder, say=lambda text: None, name=name):
        if (copy := _found(folder, state)) is not None:  # another job has just made it
            return copy
        for old in (*_files(folder, f"{name}."), *_files(folder, f".{name}.", ".tmp")):  # out of date, damaged, torn
            old.unlink(missing_ok=True)  # whoever still reads it keeps it open
        copy = folder / f"{state}.{file_digest(data)}.pt"
        with data.open("rb") as source:
            write_atomically(copy, lambda file: shutil.copyfileobj(source, file, 1 << 22))
        if not _is_whole(copy):
            copy.unlink(missing_ok=True)
            raise OSError(0, "the copy is not what was copied")
        return copy


def _found(folder: Path, state: str) -> Path | None:
    return next(filter(_is_whole, _files(folder, f"{state}.")), None)


def _files(folder: Path, beginning: str, ending: str = ".pt") -> list[Path]:
    return list(folder.glob(f"{glob.escape(beginning)}*{ending}"))


def _is_whole(copy: Path) -> bool:
    return file_digest(copy) == copy.name.split(".")[-2]
