"""Processes that share one run on one machine: the one that was started leads, and starts the others.

Followers do what the leader does (kd/training/team.py), but write nothing: no files, no curves, no checkpoints. They
end with the leader, however that ends.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from kd.registry.kinds import KINDS
from kd.runs.prepared_data import reading
from kd.runtime.checkpoint import Checkpoint, Stateful
from kd.runtime.journal import Journal
from kd.runtime.messages import ConfigError
from kd.runtime.progress import Progress
from kd.settings.run import Run
from kd.settings.shapes import Compute
from kd.training.stepper import Stepper
from kd.training.team import Team

PATIENCE = 60.0  # seconds in which a follower may end after the leader has
NOTICED = 5.0  # seconds until a process that has lost its connection is seen to have ended


class FollowerLost(ConfigError):
    """A process that shared the run has ended before it."""


@contextmanager
def leading(
    run: Run, data_file: Path, teacher_weights: list[Path], compute: Compute, stepper: Stepper, checkpoint: Checkpoint
) -> Iterator[None]:
    """Start a follower for each device of the run but the first, and share the steps inside with them.

    Raises FollowerLost where one of them ends early; the run's next start goes on from its checkpoint.
    """
    devices = stepper.devices
    if len(devices) == 1:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="kd-") as place, contextlib.ExitStack() as started:
        meeting = f"file://{place}/meeting"
        followers = [
            started.enter_context(
                _Follower(
                    place=Path(place),
                    number=number,
                    order={
                        "number": number,
                        "size": len(devices),
                        "meeting": meeting,
                        "device": str(device),
                        "threads": compute.threads,
                        "workers": compute.workers,
                        "run": run.as_dict(),
                        "checkpoints": str(checkpoint.files[0].parent.resolve()),
                        "identity": checkpoint.identity,
                        "data": str(data_file.resolve()),
                        "teachers": [str(file.resolve()) for file in teacher_weights],
                    },
                )
            )
            for number, device in enumerate(devices)
            if number
        ]
        try:
            stepper.team = _joined(meeting, 0, len(devices), devices[0])
            checkpoint.told = stepper.team.told
            yield
            for follower in followers:
                follower.process.wait(PATIENCE)
        except RuntimeError as error:  # what torch.distributed raises: soon one will be seen to have ended
            if (lost := _first_lost(followers)) is None:
                raise
            raise FollowerLost(
                f"process {lost.number + 1} of {len(devices)} that share this run has ended ({lost.last_words()}); "
                "the next start goes on from the last checkpoint"
            ) from error
        finally:
            checkpoint.told = lambda name: name
            stepper.team = Team()
            for follower in followers:
                follower.process.kill()
            if dist.is_initialized():
                dist.destroy_process_group()


def _first_lost(followers: list[_Follower]) -> _Follower | None:
    deadline = time.monotonic() + NOTICED
    while time.monotonic() < deadline:
        for follower in followers:
            if follower.process.poll():
                return follower
        time.sleep(0.05)
    return None


class _Follower:
    """Another process of the run; a context that ends it."""

    def __init__(self, place: Path, number: int, order: dict[str, Any]):
        self.number, self.said = number, place / f"{number}.txt"
        with self.said.open("wb") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "kd.runs.followers"],
                stdin=subprocess.PIPE,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C and SIGTERM are the leader's business: it decides after which step
            )
        self.process.stdin.write(json.dumps(order).encode() + b"\n")
        self.process.stdin.flush()

    def __enter__(self) -> _Follower:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        with contextlib.suppress(OSError):
            self.process.stdin.close()

    def last_words(self) -> str:
        """Return how it ended, in a line."""
        lines = self.said.read_text(encoding="utf-8", errors="replace").split("\n")
        told = [line.strip() for line in lines if line.strip()]
        code = self.process.returncode
        return f"signal {signal.Signals(-code).name}" if code < 0 else (told or [f"exit code {code}"])[-1][:300]


class _Followed(Checkpoint):
    """Another process' checkpoint: it is read where the leader says so, and never written."""

    def __enter__(self) -> _Followed:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def stop_or_save(self, parts: dict[str, Stateful]) -> None:
        pass

    def restore(self, parts: dict[str, Stateful]) -> bool:
        name = self.told(None)
        if name is not None:
            self._load(self._read(self.files[0].with_name(name)), parts)
        return name is not None


def _joined(meeting: str, number: int, size: int, device: torch.device) -> Team:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # one machine, which may have no other network
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=meeting, rank=number, world_size=size)
    return Team(number, size)


def follow(order: dict[str, Any]) -> None:
    """Share a run's steps, as its leader has ordered."""
    device, run = torch.device(order["device"]), Run.from_dict(order["run"])
    torch.set_num_threads(order["threads"])
    if device.type == "cuda":
        torch.cuda.set_device(device)
    stepper = Stepper(device, capture="off", compile="off")
    stepper.team = _joined(order["meeting"], order["number"], order["size"], device)
    checkpoint = _Followed(Path(order["checkpoints"]), order["identity"], float("inf"))
    checkpoint.told = stepper.team.told
    loop, teachers = importlib.import_module(KINDS[run.kind].loop), [Path(file) for file in order["teachers"]]
    with reading(run.dataset, Path(order["data"]), device, order["workers"], stepper.team.part) as data:
        data = replace(data, score=data.score.subset(torch.zeros(1, dtype=torch.int64)))  # the leader's scores count
        loop.compute(run, data, teachers, stepper, Journal(Progress("")), checkpoint)
    dist.destroy_process_group()


def _end_with_leader() -> None:
    sys.stdin.buffer.read()  # until the leader closes it, or is gone
    os._exit(1)


if __name__ == "__main__":
    given = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_leader, daemon=True).start()
    follow(given)
    os._exit(0)  # not through the thread that still reads
