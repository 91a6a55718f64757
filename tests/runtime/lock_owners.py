"""Owners of the lock on a run: in processes, in threads and on other machines."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from conftest import ROOT

from kd.runtime.files import write_json
from kd.runtime.run_lock import RunLock

# Takes the lock and keeps it until a line arrives; then checks that it still has it and leaves. `where` stands for the
# name of the machine: for an owner on another machine, only heartbeats show that it lives.
OWNER = """
import sys, time
from pathlib import Path
from kd.runtime import run_lock as lock
folder, where = Path(sys.argv[1]), sys.argv[2]
lock.HEARTBEAT_SECONDS = 0.05
if where:
    lock._machine = lambda: where
try:
    with lock.RunLock(folder, say=lambda text: None) as held:
        print("in", flush=True)
        sys.stdin.readline()
        held.check()
        print("still mine", flush=True)
except lock.TakenOver as error:
    print("taken over:", error, flush=True)
"""


@contextlib.contextmanager
def owning(folder: Path, where: str = "") -> Iterator[subprocess.Popen]:
    """Start a process that has the lock of a folder; kill it at the end."""
    command = [sys.executable, "-c", OWNER, str(folder), where]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, **pipes)
    try:
        assert process.stdout.readline() == "in\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def leave(process: subprocess.Popen) -> str:
    """Let the process check its lock and leave; return what it printed."""
    answer, _ = process.communicate("\n", timeout=30)
    return answer


def elsewhere(folder: Path, number: int = 1, **given: Any) -> Path:
    """Write the lock of an owner on another machine; return its file."""
    file = folder / f"lock.{number}.json"
    content = {"host": "far", "pid": 1, "process": 1, "machine": "far away", "slurm_job": None, "beat": 0}
    write_json(file, {**content, **given})
    return file


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def unheard(text: str) -> None:
    raise AssertionError(f"said, though there was nothing to say: {text}")


def quiet(text: str) -> None:
    pass


class Entrant(threading.Thread):
    """A thread that enters a lock and stays until told to leave."""

    def __init__(self, folder: Path):
        super().__init__(daemon=True)
        self.said: list[str] = []
        self.inside, self.leave = threading.Event(), threading.Event()
        self.lock = RunLock(folder, self.said.append)
        self.start()

    def run(self) -> None:
        with self.lock:
            self.inside.set()
            self.leave.wait(60)

    def said_something(self) -> bool:
        return until(lambda: bool(self.said))

    def end(self) -> None:
        self.leave.set()
        self.join(60)
        assert not self.is_alive()


def until(happened: Callable[[], Any], seconds: float = 30.0) -> bool:
    """Wait until something has happened; return False if it has not within that many seconds."""
    deadline = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True
