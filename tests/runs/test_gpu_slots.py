"""GPU slots: never more holders than slots, whoever dies; fast hand-over; the choice of a device."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from conftest import ROOT

from kd.runs import devices, gpu_slots
from kd.runs.gpu_slots import slot, visible_gpus
from kd.runtime.messages import ConfigError
from kd.settings.shapes import Compute

# Each byte of the common standard input is a job: take a slot, keep it for some time, write down when that was. Times
# are those of the machine's monotonic clock, read inside the slot: never longer than the slot was really held.
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
    except BlockingIOError:  # called off
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
    end: float | None  # None: the holder has it, or died with it


class Workers(NamedTuple):
    processes: list[subprocess.Popen]
    files: list[Path]
    jobs: int  # the pipe's two ends
    taken: int


@contextlib.contextmanager
def workers(
    count: int, names: list[str], slots_per_device: int, folder: Path, hold: tuple[float, float], pause: float
) -> Iterator[Workers]:
    """So many processes that are ready and wait for jobs; all are dead at the end."""
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
    """No more jobs (nor those that nobody has begun, without `keep`); wait for the workers that are alive."""
    if not keep:
        os.set_blocking(started.taken, False)  # for the workers, too
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
    """The largest number of holdings that share a moment."""
    changes = sorted([(one.begin, 1) for one in held] + [(one.end, -1) for one in held])
    return max((sum(change for _, change in changes[: n + 1]) for n in range(len(changes))), default=0)


def fresh(count: int) -> list[str]:
    """Names of devices that no other test knows: slots are common to the whole machine."""
    return [f"test-{uuid.uuid4()}" for _ in range(count)]


def unheard(text: str) -> None:
    raise AssertionError(f"said, though nothing had to be waited for: {text}")


def freeze(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGSTOP)
    while Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "T":
        time.sleep(0.0005)


def kill_while_holding(process: subprocess.Popen, file: Path, seconds: float = 30.0) -> float:
    """SIGKILL in a moment when the process has a slot; gives the time just before."""
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


# ---------------------------------------------------------------------------------------------------- many processes


@pytest.mark.parametrize(("device_count", "per_device"), [(4, 1), (2, 2)])
def test_no_slot_has_two_holders_whoever_is_killed(device_count: int, per_device: int, tmp_path: Path) -> None:
    names, draw, killed = fresh(device_count), random.Random(0), {}
    with workers(16, names, per_device, tmp_path / "records", hold=(0.002, 0.02), pause=0.0) as started:
        os.write(started.jobs, b"." * 60000)  # more than there is time for
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
    for number, moment in killed.items():  # its device has its full number of holders again
        position = holdings(started.files[number])[-1].position
        later = [one for one in everything if one.position == position and one.begin > moment]
        assert most_at_once(later) == per_device, f"the slot of killed worker {number} was not taken again"
    with contextlib.ExitStack() as stack:  # and nothing is left behind
        for _ in range(device_count * per_device):
            stack.enter_context(slot(names, per_device, unheard))


def test_a_released_slot_is_handed_over_in_milliseconds(tmp_path: Path) -> None:
    """From the holder's last moment in its slot to the first moment of one who waited for it already."""
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
    """From just before SIGKILL to the first moment of one who waited for the slot already."""
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
            time.sleep(0.03)  # so that the others certainly wait
            killed = time.monotonic()
            started.processes[holder].kill()
    assert min(waits) > 0
    print(f"hand-over after SIGKILL: median {statistics.median(waits) * 1e3:.1f} ms of {len(waits)}")
    assert statistics.median(waits) < 0.05


def seconds_for(jobs: int, slot_count: int, folder: Path) -> float:
    """Wall time of equal jobs of 0.1 s through eight processes that are ready, from the order to the last job's end.

    The better of two measurements.
    """
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
    """The jobs sleep, so that the number of processors does not count."""
    one, four = (seconds_for(16, slot_count, tmp_path / str(slot_count)) for slot_count in (1, 4))
    print(f"16 jobs of 0.1 s: one slot {one:.3f} s, four slots {four:.3f} s, ratio {one / four:.2f}")
    assert one >= 1.6
    assert one / four >= 3.7


# ------------------------------------------------------------------------------------------------------- one by one


def test_jobs_spread_over_devices_before_they_share_one() -> None:
    names = fresh(3)
    with contextlib.ExitStack() as stack:
        assert [stack.enter_context(slot(names, 2, unheard)) for _ in range(6)] == [0, 1, 2, 0, 1, 2]


def test_a_slot_that_is_free_again_goes_first() -> None:
    names = fresh(2)
    with slot(names, 2, unheard) as first:
        with slot(names, 2, unheard) as second:
            assert (first, second) == (0, 1)
        with slot(names, 2, unheard) as third, slot(names, 2, unheard) as fourth:
            assert (third, fourth) == (1, 0)


def test_a_slot_belongs_to_the_device_wherever_it_stands_in_the_list() -> None:
    """$CUDA_VISIBLE_DEVICES gives each process its own numbering."""
    first, second = fresh(2)
    with slot([first, second], 1, unheard) as position:
        assert position == 0
        with slot([second, first], 1, unheard) as other:
            assert other == 0
            with waiting([first], 1) as (said, got):
                assert len(said) == 1
                assert not got.is_set()


@contextlib.contextmanager
def waiting(names: list[str], per_device: int) -> Iterator[tuple[list[Any], threading.Event]]:
    """A thread that waits for a slot and says so; the event is set when it has one. Ends with the thread."""
    said, got = [], threading.Event()
    told = threading.Event()

    def wait() -> None:
        with slot(names, per_device, lambda text: (said.append(text), told.set())) as position:
            said.append(position)
            got.set()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    assert told.wait(30), "it did not wait"
    time.sleep(0.05)  # some turns of its loop
    yield said, got


def test_waiting_is_said_once_and_ends_with_the_first_slot_that_is_free() -> None:
    names = fresh(2)
    with contextlib.ExitStack() as others:
        others.enter_context(slot(names, 1, unheard))
        with slot(names, 1, unheard) as last, waiting(names, 1) as (said, got):
            assert last == 1
            assert said == ["all 2 GPU slots are taken; waiting for one"]
        assert got.wait(30)
        assert said[1:] == [1]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_exception_gives_the_slot_back(error: type[BaseException]) -> None:
    names = fresh(1)
    with pytest.raises(error), slot(names, 1, unheard):
        raise error
    with slot(names, 1, unheard) as position:
        assert position == 0


def test_an_exception_while_waiting_leaves_nothing_behind() -> None:
    names = fresh(1)

    def interrupt(text: str) -> None:
        raise KeyboardInterrupt

    with slot(names, 1, unheard), pytest.raises(KeyboardInterrupt), slot(names, 1, interrupt):
        pass
    with slot(names, 1, unheard):
        pass


def test_programs_that_a_job_starts_do_not_keep_its_slot() -> None:
    names = fresh(1)
    with slot(names, 1, unheard):
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        with slot(names, 1, unheard):
            pass
    finally:
        child.kill()
        child.wait()


def test_a_name_that_no_socket_can_have_is_an_error_and_no_reason_to_wait() -> None:
    with pytest.raises(OSError, match="too long"), slot(["x" * 200], 1, unheard):
        pass


# ------------------------------------------------------------------------------------------------------ visible GPUs


@pytest.mark.parametrize(
    ("chosen", "count"), [("", 0), ("-1", 0), ("NoDevFiles", 0), ("0", 1), ("2,3", 2), ("GPU-8932f937, GPU-a1", 2)]
)
def test_gpus_that_cuda_visible_devices_leaves(
    chosen: str, count: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nvidia_smi(tmp_path, monkeypatch, "GPU 0: NVIDIA H200 (UUID: GPU-1)")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert visible_gpus() == count


def nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, *lines: str, code: int = 0) -> None:
    """A stand-in for the driver's tool, the only program on $PATH."""
    script = "#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines) + f"exit {code}\n"
    (folder / "nvidia-smi").write_text(script)
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_gpus_without_a_choice_are_all_that_the_driver_lists(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_gpus() == 0  # no driver
    nvidia_smi(tmp_path, monkeypatch, *(f"GPU {n}: NVIDIA H200 (UUID: GPU-{n})" for n in range(3)))
    assert visible_gpus() == 3
    nvidia_smi(tmp_path, monkeypatch, "GPU 0: NVIDIA H200 (UUID: GPU-1)", "  MIG 1g.18gb Device 0: (UUID: MIG-2)")
    assert visible_gpus() == 1
    nvidia_smi(tmp_path, monkeypatch, "NVIDIA-SMI has failed: no driver is running", code=9)
    assert visible_gpus() == 0


@pytest.mark.parametrize(
    ("device", "per_gpu", "seen", "asked", "says"),
    [
        ("auto", 1, "0,1", 2, ""),
        ("auto", 1, "0,1", 1, ""),
        ("auto", 2, "0,1", 4, ""),
        ("cuda", 1, "0,1", None, "2 GPU slots here .* --resources gpu=2"),
        ("auto", 3, "0,1", None, "6 GPU slots here .* --resources gpu=6"),
        ("auto", 1, "", 8, "no GPU here: all runs use the CPU"),
        ("cpu", 1, "0,1", 8, ""),
    ],
)
def test_what_a_workflow_may_ask_for(
    device: str, per_gpu: int, seen: str, asked: int | None, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    assert re.match(
        f"{says}.*$" if says else "$", gpu_slots.check(Compute.by_hand(device=device, slots_per_gpu=per_gpu), asked)
    )


def test_a_workflow_that_asks_for_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(ConfigError, match=r"^--resources gpu: got 5; allowed: at most 4 "):
        gpu_slots.check(Compute.by_hand(slots_per_gpu=2), 5)
    with pytest.raises(ConfigError, match=r"^--resources gpu: got 2; allowed: at most 1 "):
        gpu_slots.check(Compute.by_hand(device="cuda:1"), 2)  # all jobs want the same one
    with pytest.raises(ConfigError, match=r"^compute.device: got 'cuda:2', .*; allowed: auto, cpu, cuda:0, cuda:1$"):
        gpu_slots.check(Compute.by_hand(device="cuda:2"), 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ConfigError, match=r"^compute.device: got 'cuda:0', but no GPU is seen here; allowed: auto"):
        gpu_slots.check(Compute.by_hand(device="cuda:0"), 1)


# ----------------------------------------------------------------------------------------- devices.reserved_device


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[str]]:
    """Makes torch see so many GPUs; gives their names and where `set_device` went."""
    for name in ("deterministic", "benchmark"):
        monkeypatch.setattr(torch.backends.cudnn, name, getattr(torch.backends.cudnn, name))  # put back at the end

    def pretend(count: int) -> SimpleNamespace:
        names, current = fresh(count), []
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=names[index]))
        monkeypatch.setattr(torch.cuda, "set_device", current.append)
        return SimpleNamespace(names=names, current=current)

    return pretend


def on(device: str, **given: Any) -> contextlib.AbstractContextManager[torch.device]:
    return devices.reserved_device(Compute.by_hand(device=device, **given), unheard)


@pytest.mark.parametrize("auto", ["auto", "cuda"])
def test_auto_takes_a_gpu_that_is_free(auto: str, gpus: Callable) -> None:
    seen = gpus(2)
    with on(auto) as first, on(auto) as second:
        assert [first, second] == [torch.device("cuda", 0), torch.device("cuda", 1)]
        assert seen.current == [first, second]
        with pytest.raises(AssertionError, match="all 2 GPU slots are taken"), on(auto):
            pass
    with slot(seen.names[:1], 1, unheard), on(auto) as left:  # another process, by the device's own name
        assert left == torch.device("cuda", 1)


def test_a_gpu_by_number_is_that_one_alone(gpus: Callable) -> None:
    seen = gpus(3)
    with on("cuda:1") as device:
        assert device == torch.device("cuda", 1)
        with pytest.raises(AssertionError, match="all 1 GPU slots are taken"), on("cuda:1"):
            pass
        with (
            slot(seen.names[:1], 1, unheard),
            slot(seen.names[2:], 1, unheard),
            pytest.raises(AssertionError, match="all 3"),
            on("auto"),
        ):
            pass
    assert seen.current == [device]


def test_so_many_jobs_share_a_gpu(gpus: Callable) -> None:
    gpus(2)
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(on("auto", slots_per_gpu=2)) for _ in range(4)]
        assert [device.index for device in taken] == [0, 1, 0, 1]


@pytest.mark.parametrize(("count", "device"), [(2, "cuda:7"), (2, "cuda:2"), (0, "cuda:0"), (0, "cuda")])
def test_a_gpu_that_is_not_there_is_refused(count: int, device: str, gpus: Callable) -> None:
    gpus(count)
    allowed = ", ".join(["auto", "cpu", *(f"cuda:{index}" for index in range(count))])
    refused = rf"^compute.device: got '{device}', .* {count} GPUs; allowed: {allowed}$"
    with pytest.raises(ConfigError, match=refused), on(device):
        pass


@pytest.mark.parametrize(("count", "device"), [(2, "cpu"), (0, "cpu"), (0, "auto")])
def test_the_cpu_takes_no_slot(count: int, device: str, gpus: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = gpus(count)
    monkeypatch.setattr(gpu_slots, "slot", unheard)
    with on(device) as first, on(device) as second:
        assert first == second == torch.device("cpu")
    assert seen.current == []


def test_the_number_of_threads_is_fixed(gpus: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    for count, device in ((1, "auto"), (0, "cpu")):
        gpus(count)
        with on(device, threads=3):
            pass
    assert given == [3, 3]
