"""Files that are whole or not there at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from kd.runtime.messages import ConfigError, shown

LARGEST_JSON = 2**28  # characters
LEFT_AFTER_SECONDS = 3600.0  # without a write


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Let `write` fill a temporary file next to `path`, flush it to the disk, then rename it: never a torn file.

    Those that killed processes have left of the same path are removed. Raises OSError, with the path, for a disk that
    is full or fails.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        with temporary.open("xb") as file:  # never through a link that somebody has put there: the name can be guessed
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


def appended(path: Path) -> TextIO:
    """Open a file for lines at its end. Raises OSError where a link is in its place, which may lead anywhere."""
    opener = lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o666)  # noqa: E731
    return open(path, "a", buffering=1, encoding="utf-8", errors="backslashreplace", opener=opener)


def refuse_links_of_others(files: Iterable[Path]) -> None:
    """Raise ConfigError for the first of some files or folders that is a link which another user has made.

    In a folder that several users share it may lead to what only this one may read or write. Root's links count as own.
    """
    for file in files:
        if file.is_symlink() and file.lstat().st_uid not in (os.getuid(), 0):
            raise ConfigError(f"{file}: is a link that another user has made; look where it leads, and remove it")


def on_the_way(folder: Path, root: Path) -> list[Path]:
    """Return a folder and those above it, as far as they lie below `root`."""
    return [place for place in (folder, *folder.parents) if place != root and place.is_relative_to(root)]


def is_ours(folder: Path, above: bool = True) -> bool:
    """Whether nobody but this user and root can change what lies in a folder or, by the folders `above` it, put another
    one in its place.

    What is not there yet does not count. Of a folder such as /tmp (sticky) only owners may rename what lies in it.
    """
    folder = folder.resolve()
    for place in filter(Path.exists, (folder, *(folder.parents if above else ()))):
        found = place.stat()
        sticky = found.st_mode & stat.S_ISVTX and place != folder
        if found.st_uid not in (os.getuid(), 0) or (found.st_mode & 0o022 and not sticky):
            return False
    return True


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
    """Return what a file holds. Raises OSError, or ValueError for anything but JSON of a bearable length and depth.

    NaN and infinity are refused, as `write_json` refuses them. A pipe in its place is empty: somebody who writes to it
    could be waited for without end.
    """
    with open(path, encoding="utf-8", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        text = file.read(LARGEST_JSON)
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("too many levels") from None


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no number")
