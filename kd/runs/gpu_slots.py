"""GPU slots: every training job of a machine holds a slot of one device. Imports no torch.

Snakemake counts GPUs, but hands out none. Here a slot is an abstract Unix socket (Linux): whoever binds its name holds
it, and the kernel frees it when the holder ends, however that happens. No file can be left behind, and all users of the
machine see the same names. Containers with their own network do not: give each its own GPUs.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager

from kd.runtime.messages import ConfigError
from kd.settings.shapes import Compute

POLL_SECONDS = 0.005
TRY_AGAIN_SECONDS = 0.2  # at most, drawn: two jobs that want several devices must not block each other for ever
TURNS = "jobs that share a GPU take turns, more than 2 gain nothing; docs/gpu.md says what does"


@contextmanager
def slots(
    devices: Sequence[str], slots_per_device: int, count: int, say: Callable[[str], None] = print
) -> Iterator[list[int]]:
    """Hold a slot of each of `count` different devices; yield their positions. Waits until all can be had at once."""
    if count == 1:
        with slot(devices, slots_per_device, say) as position:
            yield [position]
        return
    told = False
    while True:
        with ExitStack() as held:
            positions: list[int] = []
            while len(positions) < count:
                left = [position for position in range(len(devices)) if position not in positions]
                holder = held.enter_context(closing(socket.socket(socket.AF_UNIX)))
                found = _bind_any(holder, [devices[position] for position in left], slots_per_device)
                if found is None:
                    break
                positions.append(left[found])
            if len(positions) == count:
                yield positions
                return
        if not told:
            say(f"fewer than {count} of {len(devices)} GPUs have a free slot; waiting")
            told = True
        time.sleep(random.uniform(POLL_SECONDS, TRY_AGAIN_SECONDS))


@contextmanager
def slot(devices: Sequence[str], slots_per_device: int, say: Callable[[str], None] = print) -> Iterator[int]:
    """Hold a slot of one of `devices` (names that are the same in all processes); yield the device's position.

    Slots with low numbers go first, so that jobs spread over the devices. Waits while all are taken, and says so.
    """
    holder = socket.socket(socket.AF_UNIX)
    try:
        position = _bind_any(holder, devices, slots_per_device)
        if position is None:
            say(f"all {slots_per_device * len(devices)} GPU slots are taken; waiting for one")
        while position is None:
            time.sleep(POLL_SECONDS)
            position = _bind_any(holder, devices, slots_per_device)
        yield position
    finally:
        holder.close()


def _bind_any(holder: socket.socket, devices: Sequence[str], slots_per_device: int) -> int | None:
    for number in range(slots_per_device):
        for position, device in enumerate(devices):
            try:
                holder.bind(f"\0kd/{device}/{number}")
                return position
            except OSError as error:
                if error.errno != errno.EADDRINUSE:  # not taken, but impossible: no reason to wait
                    raise
    return None


def check(compute: Compute, asked: int | None) -> str:
    """Compare what a workflow on this machine asks for (`--resources gpu=N`; None: no limit) with what is there.

    Return a line for the user, or an empty one. Raises ConfigError for more than there is.
    """
    gpus = visible_gpus()
    if compute.device == "cpu":
        return ""
    if gpus == 0:
        if compute.device != "auto":
            raise ConfigError(f"compute.device: got {compute.device!r}, but no GPU is seen here; allowed: auto, cpu")
        return "no GPU here: all runs use the CPU"
    if compute.device.startswith("cuda:"):
        if int(compute.device.removeprefix("cuda:")) >= gpus:
            allowed = ", ".join(["auto", "cpu", *(f"cuda:{index}" for index in range(gpus))])
            raise ConfigError(f"compute.device: got {compute.device!r}, but {gpus} GPUs are seen; allowed: {allowed}")
        gpus = 1  # all jobs want this one
    if compute.gpus > gpus:
        raise ConfigError(f"compute.gpu: got {compute.gpu}, but a run can have {gpus} of the GPUs here; lower it")
    slots = gpus * compute.slots_per_gpu
    have = f"{gpus} GPUs x compute.slots_per_gpu {compute.slots_per_gpu}"
    hints = [f"compute.slots_per_gpu: got {compute.slots_per_gpu}; {TURNS}"] if compute.slots_per_gpu > 2 else []
    if asked is None:
        wait = f"give --resources gpu={slots}, or jobs start that only wait for one"
        return "; ".join([f"{slots} GPU slots here ({have})", wait, *hints])
    if asked > slots:
        raise ConfigError(f"--resources gpu: got {asked}; allowed: at most {slots} on this machine ({have})")
    return "".join(hints)


def visible_gpus() -> int:
    """Return how many GPUs jobs of this machine see: those of $CUDA_VISIBLE_DEVICES where it is set, else all."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return len([name for name in chosen.split(",") if name.strip() not in ("", "-1", "NoDevFiles")])
    if shutil.which("nvidia-smi") is None:
        return 0
    done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, encoding="utf-8", errors="replace")
    return sum(line.startswith("GPU ") for line in done.stdout.splitlines())
