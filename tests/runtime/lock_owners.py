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

# Takes the lock and keeps it until a line comes; then asks whether it still has it and leaves. `where` stands for the
# name of the machine: with another one, only heartbeats tell of it.
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
    """A process that has the lock of a folder."""
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
    """Let it check and leave; gives what it said."""
    answer, _ = process.communicate("\n", timeout=30)
    return answer


def elsewhere(folder: Path, number: int = 1, **given: Any) -> Path:
    """The lock of an owner on another machine."""
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
    """Enters a lock in a thread of its own and stays until told to leave."""

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
    deadline = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True
