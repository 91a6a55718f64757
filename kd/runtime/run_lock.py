"""One trainer per run: a lock on the run's folder, with a heartbeat and the owner's name. Imports no torch.

File locks of the system fail on network disks, so this lock is a file that its owner keeps rewriting. Locks are
numbered: whoever takes over from a dead owner creates the next number, which only one process can do; whoever finds a
higher number than its own has lost the run and stops.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kd.runtime.files import read_json, write_json

HEARTBEAT_SECONDS = 5.0
DEAD_AFTER_SECONDS = (
    60.0  # without a heartbeat, for owners on other machines; on this one a dead process is seen at once
)
POLL_SECONDS = 0.2
REMIND_SECONDS = 600.0


# Last content seen of each lock, and since when: lets callers that never wait detect a silent owner.
_watched: dict[tuple[str, str], tuple[dict[str, Any] | None, float]] = {}


class Busy(RuntimeError):
    """Another process that is alive has the run."""


class TakenOver(RuntimeError):
    """Another process has the run now, and this one was thought dead (a machine that slept, a disk that was away)."""


class RunLock:
    """Context manager: inside it this process is the only one that works on `folder` (on what `name` says in it).

    Entering waits for an owner that is alive, for example an orphan of a killed workflow (raises Busy with
    `wait=False`), and takes over from a dead one. `progress` returns what the heartbeat tells others, such as
    {"done": 3, "total": 20}.
    """

    def __init__(
        self,
        folder: Path,
        say: Callable[[str], None] = print,
        progress: Callable[[], dict[str, Any]] = dict,
        wait: bool = True,
        name: str = "lock",
    ):
        self.folder, self.say, self.progress, self.wait, self.name = folder, say, progress, wait, name
        self.number = 0
        self._token = uuid.uuid4().hex  # numbers are used again once all have left
        self.lost = False
        self._beats = 0
        self._ended = threading.Event()

    def __enter__(self) -> RunLock:
        reminded = None
        while True:
            number, content = newest(self.folder, self.name)
            now = time.monotonic()
            if content is None or _is_dead(content, _silent(self.folder, self.name, content)):
                if self._create(number + 1, content):
                    if content is not None:
                        self.say(f"taking over from {owner(content)}, which is gone")
                    break
                continue
            if not self.wait:
                raise Busy(f"{owner(content)} is working on {self.folder}")
            if reminded is None or now - reminded >= REMIND_SECONDS:
                self.say(f"{owner(content)} is working on this run; waiting for it")
                reminded = now
            time.sleep(POLL_SECONDS)
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        if not self._is_lost():
            with contextlib.suppress(OSError):  # a lock that stays is a dead owner's, and hides no error
                for number, file in sorted(_files(self.folder, self.name)):  # this one last: it keeps others out
                    if number <= self.number:
                        for torn in self.folder.glob(f".{file.name}.*.tmp"):
                            torn.unlink(missing_ok=True)
                        file.unlink(missing_ok=True)

    def check(self) -> None:
        """Raise TakenOver when another process has the run; call it before anything is written."""
        if self._is_lost():
            content = newest(self.folder, self.name)[1]
            other = content is not None and content.get("token") != self._token
            raise TakenOver(
                f"{owner(content) if other else 'another process'} has taken over this run; this process stops"
            )

    def _is_lost(self) -> bool:
        if not self.lost:
            try:
                number, content = newest(self.folder, self.name)
            except OSError:  # the disk is away: nobody can tell
                return False
            self.lost = number != self.number or content.get("token") != self._token
        return self.lost

    def _create(self, number: int, dead: dict[str, Any] | None) -> bool:
        """Create lock `number` in place of a `dead` one; return False when another process was faster."""
        try:
            file = self._file(number).open("x", encoding="utf-8")
        except FileExistsError:
            return False
        try:
            with file:
                json.dump(self._content(), file)
            fast = dead is None or _read(self._file(number - 1)) == dead  # else its place was taken and left since
        except OSError:
            self._file(number).unlink(missing_ok=True)
            raise
        if not fast:
            self._file(number).unlink(missing_ok=True)
            return False
        self.number = number
        return True

    def _file(self, number: int) -> Path:
        return self.folder / f"{self.name}.{number}.json"

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_SECONDS):
            try:
                if self._is_lost():
                    return
                self._beats += 1
                write_json(self._file(self.number), self._content())
            except OSError:  # a full disk, or one that is away: the next beat may work
                continue

    def _content(self) -> dict[str, Any]:
        me = {"host": platform.node(), "pid": os.getpid(), "process": _process(os.getpid()), "machine": _machine()}
        me |= {"token": self._token}
        return {**me, "slurm_job": os.environ.get("SLURM_JOB_ID"), "beat": self._beats, **self.progress()}


def newest(folder: Path, name: str = "lock") -> tuple[int, dict[str, Any] | None]:
    """Return number and content of the lock with the highest number; 0 and None when nobody has the run."""
    for number, file in sorted(_files(folder, name), reverse=True):
        if (content := _read(file)) is not None:  # else released in this moment
            return number, content
    return 0, None


def _read(file: Path) -> dict[str, Any] | None:
    try:
        content = read_json(file)
        if isinstance(content, dict) and {"host", "process"} <= set(content) and type(content.get("pid")) is int:
            return content
    except FileNotFoundError:
        return None
    except ValueError:
        pass
    return {"host": "an unknown machine", "pid": "?", "beat": None}  # its owner is just writing it, or died there


def _silent(folder: Path, name: str, content: dict[str, Any]) -> float:
    """Return the seconds since this process first saw the lock as it is."""
    key, now = (str(folder.absolute()), name), time.monotonic()
    if _watched.get(key, (None, now))[0] != content:
        _watched[key] = (content, now)
    return now - _watched[key][1]


def peek(folder: Path, name: str = "lock") -> tuple[dict[str, Any] | None, bool]:
    """Return what the newest lock says, and whether its owner is alive, by the file's time: one look, no waiting.

    None where nobody has the run, or the folder is not there.
    """
    try:
        number, content = newest(folder, name)
        silent = time.time() - (folder / f"{name}.{number}.json").stat().st_mtime
    except OSError:  # nobody has it, or it was released in this moment
        return None, False
    return content, not _is_dead(content, silent)


def owner(content: dict[str, Any]) -> str:
    """Return an owner's process, machine and SLURM job in words."""
    job = f", SLURM job {content['slurm_job']}" if content.get("slurm_job") else ""
    return f"process {content['pid']} on {content['host']}{job}"


def _is_dead(content: dict[str, Any], silent_seconds: float) -> bool:
    here = _machine()
    if here is not None and content.get("machine") == here:  # the kernel knows
        return _process(content["pid"]) != content["process"]
    return silent_seconds >= DEAD_AFTER_SECONDS


def _files(folder: Path, name: str) -> list[tuple[int, Path]]:
    numbered = re.compile(rf"{re.escape(name)}\.(\d+)\.json")
    found = ((numbered.fullmatch(entry.name), folder / entry.name) for entry in os.scandir(folder))
    return [(int(match[1]), file) for match, file in found if match]


def _machine() -> str | None:
    """Return what identifies this boot and this process namespace; None where it cannot be told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{platform.node()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _process(pid: int) -> int | None:
    """Return when the process started, which tells it from a later one with the same number; None when it is gone."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
    except OSError:
        return None
    return None if state in "ZX" else int(fields[18])
