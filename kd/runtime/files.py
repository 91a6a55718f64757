"""Files that are whole or not there at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from kd.runtime.messages import ConfigError, shown

LEFT_AFTER_SECONDS = 3600.0  # without a write


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Let `write` fill a temporary file next to `path`, flush it to the disk, then rename it: never a torn file.

    Those that killed processes have left of the same path are removed. Raises OSError, with the path, for a disk that
    is full or fails.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        remove_left(path.with_name(f".{path.name}."), ".tmp", temporary.stat().st_mtime)
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        fault = error.__context__ if isinstance(error, RuntimeError) else error  # torch.save hides what the disk said
        if not isinstance(fault, OSError):
            raise
        raise type(fault)(fault.errno, fault.strerror, str(path)) from None
    finally:
        with contextlib.suppress(OSError):  # a fault of the disk has been raised already
            temporary.unlink(missing_ok=True)


def remove_left(beginning: Path, ending: str, now: float) -> None:
    """Remove the files with this path's beginning and this ending that nobody has written to for an hour before `now`,
    the time of a file there: their writers are dead.
    """
    with contextlib.suppress(OSError):
        for entry in os.scandir(beginning.parent):
            ours = entry.name.startswith(beginning.name) and entry.name.endswith(ending)
            if ours and entry.stat().st_mtime < now - LEFT_AFTER_SECONDS:
                os.unlink(entry.path)


def stamp_now_if_later(files: Iterable[Path]) -> None:
    """Give the files that are there and stamped in the future the present time; nothing where that is not allowed."""
    now = time.time()
    for file in files:
        with contextlib.suppress(OSError):
            if file.stat().st_mtime > now:
                os.utime(file)


def whole_path(path: str, key: str = "") -> str:
    """Return a user's path with the home folder in place of `~`. Raises ConfigError where there is no such home."""
    whole = os.path.expanduser(path)
    if whole.startswith("~"):
        user = path.split("/")[0]
        hint = f"no home folder {shown(user)} here; write the whole path, or ./{user} for a folder of this name"
        raise ConfigError(f"{key and f'{key}: '}got {shown(path)}; {hint}")
    return whole


def is_file(path: Path) -> bool:
    """Return whether there is such a file; False for a name that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def file_digest(path: Path) -> str:
    """Return sixteen hex digits that identify a file's content."""
    stat = path.stat()
    return _digest(path, stat.st_mtime_ns, stat.st_size)


@cache
def _digest(path: Path, _changed: int, _size: int) -> str:
    """Read a file once per process and state: many runs share one data set."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def write_json(path: Path, content: Any) -> None:
    """Write JSON with sorted keys, two spaces and one final newline: equal content has equal bytes."""
    text = json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
