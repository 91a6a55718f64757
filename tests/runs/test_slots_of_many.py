"""GPU slots of many processes: never more holders than slots, whoever is killed; fast hand-over."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import ROOT
from slot_names import fresh, unheard

from kd.runs.gpu_slots import slot

# Each byte of the shared standard input is a job: take a slot, keep it for some time, write down when that was. Times
# are read inside the slot from the machine's monotonic clock, so a record is never longer than the slot was held.
WORKER = """
import os, random, sys, time
from kd.runs.gpu_slots import slot
devices, slots, records = sys.argv[1].split(","), int(sys.argv[2]), sys.argv[3]
shortest, longest, pause = map(float, sys.argv[4:])
file = os.open(records, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
draw = random.Random(records)
print("ready", flush=True)
def another_job():
    try:
        return os.read(0, 1)
    except BlockingIOError:  # the jobs are called off
        return b""
while another_job():
    asked = time.monotonic()
    with slot(devices, slots, say=lambda text: None) as position:
        os.write(file, f"{position} {asked} {time.monotonic()}".encode())
        time.sleep(draw.uniform(shortest, longest))
        os.write(file, f" {time.monotonic()}\\n".encode())
    time.sleep(pause)
"""


class Holding(NamedTuple):
    position: int  # of the device
    asked: float
    begin: float
    end: float | None  # None: still held, or the holder died with it


class Workers(NamedTuple):
    processes: list[subprocess.Popen]
    files: list[Path]
    jobs: int  # the writing end of the pipe; `taken` is the reading end
    taken: int


@contextlib.contextmanager
def workers(
    count: int, names: list[str], slots_per_device: int, folder: Path, hold: tuple[float, float], pause: float
) -> Iterator[Workers]:
    """Start that many processes, which are ready and wait for jobs; kill them all at the end."""
    folder.mkdir(exist_ok=True)
    taken, jobs = os.pipe()
    files = [folder / f"{number}.txt" for number in range(count)]
    head, tail = (
        [sys.executable, "-c", WORKER, ",".join(names), str(slots_per_device)],
        [*map(str, (*hold, pause))],
    )
    processes = [
        subprocess.Popen([*head, str(file), *tail], stdin=taken, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        for file in files
    ]
    started = Workers(processes, files, jobs, taken)
    try:
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        yield started
    finally:
        for process in processes:
            process.kill()
            process.wait()
            process.stdout.close()
        os.close(taken)
        with contextlib.suppress(OSError):
            os.close(jobs)


def work_off(started: Workers, keep: bool = True) -> None:
    """Send no more jobs, drop those not begun unless `keep`, and wait for the workers that are alive."""
    if not keep:
        os.set_blocking(started.taken, False)  # for the workers too: they share the pipe
        with contextlib.suppress(BlockingIOError):
            while os.read(started.taken, 65536):
                pass
    os.close(started.jobs)
    for process in started.processes:
        process.wait(timeout=60)


def holdings(file: Path) -> list[Holding]:
    lines = file.read_text().splitlines() if file.exists() else []
    parts = [line.split() for line in lines]
    return [Holding(int(part[0]), *map(float, part[1:3]), float(part[3]) if part[3:] else None) for part in parts]


def most_at_once(held: list[Holding]) -> int:
    """Return the largest number of holdings at one moment."""
    changes = sorted([(one.begin, 1) for one in held] + [(one.end, -1) for one in held])
    return max((sum(change for _, change in changes[: n + 1]) for n in range(len(changes))), default=0)


def freeze(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGSTOP)
    while Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "T":
        time.sleep(0.0005)


def kill_while_holding(process: subprocess.Popen, file: Path, seconds: float = 30.0) -> float:
    """Kill the process while it holds a slot; return the time just before."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        freeze(process)
        if (held := holdings(file)) and held[-1].end is None:
            killed = time.monotonic()
            process.kill()
            return killed
        process.send_signal(signal.SIGCONT)
        time.sleep(0.002)
    raise AssertionError(f"it held no slot in {seconds} s")


@pytest.mark.parametrize(("device_count", "per_device"), [(4, 1), (2, 2)])
def test_no_slot_has_two_holders_whoever_is_killed(device_count: int, per_device: int, tmp_path: Path) -> None:
    names, draw, killed = fresh(device_count), random.Random(0), {}
    with workers(16, names, per_device, tmp_path / "records", hold=(0.002, 0.02), pause=0.0) as started:
        os.write(started.jobs, b"." * 60000)  # more jobs than there is time for
        for number in range(5):
            time.sleep(draw.uniform(0.02, 0.1))
            killed[number] = kill_while_holding(started.processes[number], started.files[number])
        time.sleep(0.4)
        work_off(started, keep=False)
    everything = []
    for number, file in enumerate(started.files):
        held = holdings(file)
        assert held, f"worker {number} never had a slot"
        if number in killed:
            assert held[-1].end is None
            held[-1] = held[-1]._replace(end=killed[number])
        everything += held
    assert len(everything) > 100
    for position in range(device_count):
        here = [one for one in everything if one.position == position]
        assert most_at_once(here) == per_device, f"holders of device {position} at once"
    for number, moment in killed.items():  # its device has all its holders again
        position = holdings(started.files[number])[-1].position
        later = [one for one in everything if one.position == position and one.begin > moment]
        assert most_at_once(later) == per_device, f"the slot of killed worker {number} was not taken again"
    with contextlib.ExitStack() as stack:  # and nothing is left behind
        for _ in range(device_count * per_device):
            stack.enter_context(slot(names, per_device, unheard))


def test_a_released_slot_is_handed_over_in_milliseconds(tmp_path: Path) -> None:
    """Measured from the holder's last moment in the slot to the first moment of one that was already waiting."""
    with workers(2, fresh(1), 1, tmp_path / "records", hold=(0.02, 0.02), pause=0.012) as started:
        os.write(started.jobs, b"." * 20)
        work_off(started)
    held = sorted((one.begin, number, one) for number in range(2) for one in holdings(started.files[number]))
    waits = [
        after.begin - before.end
        for (_, first, before), (_, second, after) in itertools.pairwise(held)
        if first != second and after.asked < before.end
    ]
    assert len(waits) >= 5
    assert min(waits) >= 0
    print(f"hand-over after a release: median {statistics.median(waits) * 1e3:.1f} ms of {len(waits)}")
    assert statistics.median(waits) < 0.05


def test_a_killed_holders_slot_is_handed_over_in_milliseconds(tmp_path: Path) -> None:
    """Measured from just before SIGKILL to the first moment of one that was already waiting."""
    waits, killed = [], 0.0
    with workers(8, fresh(1), 1, tmp_path / "records", hold=(60.0, 60.0), pause=0.0) as started:
        os.write(started.jobs, b"." * 8)
        begun = {}
        for turn in range(8):
            deadline = time.monotonic() + 30
            while len(begun) <= turn:
                assert time.monotonic() < deadline, "nobody took the slot of the one that was killed"
                begun |= {
                    number: held[0].begin for number, file in enumerate(started.files) if (held := holdings(file))
                }
                time.sleep(0.002)
            holder = max(begun, key=begun.get)
            if turn:
                waits.append(begun[holder] - killed)
            time.sleep(0.03)  # so that the others are waiting for certain
            killed = time.monotonic()
            started.processes[holder].kill()
    assert min(waits) > 0
    print(f"hand-over after SIGKILL: median {statistics.median(waits) * 1e3:.1f} ms of {len(waits)}")
    assert statistics.median(waits) < 0.05


def seconds_for(jobs: int, slot_count: int, folder: Path) -> float:
    """Return the wall time, in seconds, in which eight ready processes do these jobs of 0.1 s; the better of two."""
    taken = []
    with workers(8, fresh(slot_count), 1, folder, hold=(0.1, 0.1), pause=0.0) as started:
        for turn in (1, 2):
            begun = time.monotonic()
            os.write(started.jobs, b"." * jobs)
            done = []
            while len(done) < turn * jobs:
                assert time.monotonic() < begun + 60
                time.sleep(0.05)
                done = [one for file in started.files for one in holdings(file) if one.end is not None]
            taken.append(max(one.end for one in done) - begun)
    return min(taken)


def test_four_slots_do_almost_four_times_the_work_of_one(tmp_path: Path) -> None:
    """The jobs sleep, so the number of processors does not matter."""
    one, four = (seconds_for(16, slot_count, tmp_path / str(slot_count)) for slot_count in (1, 4))
    print(f"16 jobs of 0.1 s: one slot {one:.3f} s, four slots {four:.3f} s, ratio {one / four:.2f}")
    assert one >= 1.6
    assert one / four >= 3.7
