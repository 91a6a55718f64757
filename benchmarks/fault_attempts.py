"""One attempt at a step, in a fork of a process that has imported everything, with a fault at one of its writes.

Python's audit events tell of every file that is opened for writing, renamed, removed or made a folder, whoever asks for
it; so nothing of kd is changed or replaced to be hit. What C code writes by itself (SQLite) has no events: there the
moment is drawn (`Plan.after`).
"""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

SECONDS = 120  # after which an attempt counts as hung, and is killed by SIGALRM
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink")
KILL, TORN, TERM, FULL, FAILS = "SIGKILL", "SIGKILL, torn file", "SIGTERM", "disk full (ENOSPC)", "disk fails (EIO)"
ERRORS = {FULL: errno.ENOSPC, FAILS: errno.EIO}


class Plan(NamedTuple):
    """A fault: `kind` at event number `at`, or `after` seconds."""

    kind: str = ""
    at: int = -1
    after: float | None = None


UNDISTURBED = Plan()  # whose events are kept


class Ended(NamedTuple):
    """How an attempt ended."""

    code: int  # negative: the signal that killed it
    said: str
    events: list[str]  # where the plan has no fault
    seconds: float

    @property
    def traceback(self) -> bool:
        return "Traceback (most recent call last)" in self.said

    @property
    def hung(self) -> bool:
        return self.code == -signal.SIGALRM


def attempt(do: Callable[[], Any], world: Path, plan: Plan = UNDISTURBED, said: Path | None = None) -> Ended:
    """Fork, do the step inside the folder `world` with the plan's fault, and return how that ended.

    said: the file of what it says until then, by default next to the world.
    """
    said, started = said or world.with_name(f"{world.name}.said"), time.monotonic()
    events = said.with_suffix(".events")
    process = os.fork()
    if process == 0:
        _do(do, world, plan, said, events)
    status = os.waitpid(process, 0)[1]
    text = said.read_text("utf-8", errors="replace") if said.exists() else ""
    seen = json.loads(events.read_text("utf-8")) if events.exists() else []
    for file in (said, events):
        file.unlink(missing_ok=True)
    return Ended(os.waitstatus_to_exitcode(status), text, seen, time.monotonic() - started)


def _do(do: Callable[[], Any], world: Path, plan: Plan, said: Path, events: Path) -> None:
    """Be the child: never returns."""
    code = 1
    try:
        out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.chdir(world)
        signal.alarm(SECONDS)
        seen = _Watch(world, plan)
        if plan.after is not None:
            number = {TERM: signal.SIGTERM}.get(plan.kind, signal.SIGKILL)
            threading.Timer(plan.after, os.kill, (os.getpid(), number)).start()
        do()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        if not plan.kind:
            seen.active = False
            events.write_text(json.dumps(seen.events), encoding="utf-8")
        os._exit(code)


class _Watch:
    """Counts the events below a folder and brings the fault about at the planned one."""

    def __init__(self, world: Path, plan: Plan):
        self.world, self.plan, self.process = f"{world.resolve()}/", plan, os.getpid()
        self.events: list[str] = []
        self.opened: str | None = None  # by the planned event, to be torn at the next one
        self.active = plan.after is None
        sys.addaudithook(self.see)

    def see(self, event: str, given: tuple[Any, ...]) -> None:
        if not self.active or os.getpid() != self.process:
            return
        if (event == "open" and given[2] & WRITES) or event in CHANGES:
            path = self._inside(given[0])
            if path is not None:
                self._happens(event, path)

    def _inside(self, given: Any) -> str | None:
        if not isinstance(given, str | bytes | os.PathLike):
            return None
        path = os.path.abspath(os.fsdecode(given))
        return path if path.startswith(self.world) else None

    def _happens(self, event: str, path: str) -> None:
        number = len(self.events)
        self.events.append(f"{event.removeprefix('os.')} {named(path.removeprefix(self.world))}")
        kind, at = self.plan.kind, self.plan.at
        if self.opened is not None:
            self._torn(self.opened)
        if not kind or number < at:
            return
        if kind in ERRORS:
            if event in ("open", "os.mkdir"):  # a full disk renames and removes all the same
                raise OSError(ERRORS[kind], os.strerror(ERRORS[kind]), path)
        elif number > at:
            return
        elif kind == KILL:
            os.kill(self.process, signal.SIGKILL)
        elif kind == TERM:
            os.kill(self.process, signal.SIGTERM)
        elif event == "os.rename":
            self._torn(path)
        elif event == "open":
            self.opened = path
        else:
            os.kill(self.process, signal.SIGKILL)

    def _torn(self, path: str) -> None:
        """Leave the first half of a file, as a kill in the middle of its writing does."""
        self.active = False
        if os.path.isfile(path):
            os.truncate(path, os.path.getsize(path) // 2)
        os.kill(self.process, signal.SIGKILL)


def named(path: str) -> str:
    """Return a path without what differs from attempt to attempt: process numbers and digests."""
    return re.sub(r"\.\d+\.tmp$", ".tmp", re.sub(r"-[0-9a-f]{10}(?=/)", "", path))
