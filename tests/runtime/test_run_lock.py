"""The lock on a run: one owner at a time, whoever is killed, suspended, silent or on another machine."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from kd.runtime import run_lock as module
from kd.runtime.files import read_json, write_json
from kd.runtime.run_lock import Busy, RunLock, TakenOver, newest, owner, peek

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


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> float:
    """Silence means death after so many seconds; heartbeats and polls come more often."""
    monkeypatch.setattr(module, "DEAD_AFTER_SECONDS", 0.4)
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(module, "POLL_SECONDS", 0.02)
    return 0.4


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


# ---------------------------------------------------------------------------------------------------- alive and leaving


def test_alone_it_says_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    with RunLock(tmp_path, unheard) as held:
        assert names(tmp_path) == ["lock.1.json"]
        held.check()
        content = read_json(tmp_path / "lock.1.json")
        assert content["pid"] == os.getpid()
        assert newest(tmp_path) == (1, content)
        assert peek(tmp_path) == (content, True)
    assert names(tmp_path) == []
    assert newest(tmp_path) == (0, None)
    assert peek(tmp_path) == (None, False)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_exception_gives_the_lock_back(error: type[BaseException], tmp_path: Path) -> None:
    with pytest.raises(error), RunLock(tmp_path, unheard):
        raise error
    assert names(tmp_path) == []


def test_a_second_one_waits_for_the_first_and_says_so_once(tmp_path: Path) -> None:
    with owning(tmp_path) as first:
        second = Entrant(tmp_path)
        assert second.said_something()
        assert not second.inside.wait(0.6)  # some polls
        assert leave(first) == "still mine\n"
        assert second.inside.wait(30)
    assert second.said == [f"process {first.pid} on {os.uname().nodename} is working on this run; waiting for it"]
    assert names(tmp_path) == ["lock.1.json"]
    second.end()
    assert names(tmp_path) == []


def test_without_waiting_a_busy_folder_is_an_error_that_names_the_owner(tmp_path: Path) -> None:
    with owning(tmp_path) as first:
        with pytest.raises(Busy, match=rf"process {first.pid} on .* is working on {tmp_path}"):
            RunLock(tmp_path, unheard, wait=False).__enter__()
        assert leave(first) == "still mine\n"
    with RunLock(tmp_path, unheard, wait=False):
        pass


def test_locks_of_other_names_and_other_files_do_not_matter(tmp_path: Path) -> None:
    for name in ("lock.json", "lock.x.json", "lock.7.json.bak", "other.lock.3.json", "release.4.json"):
        (tmp_path / name).write_text("{}")
    before = names(tmp_path)
    with (
        RunLock(tmp_path, unheard, name="digits"),
        RunLock(tmp_path, unheard),
        RunLock(tmp_path, unheard, name="digits-1.5"),
    ):
        assert set(names(tmp_path)) - set(before) == {"digits.1.json", "digits-1.5.1.json", "lock.1.json"}
        assert newest(tmp_path, "digits")[0] == 1
    assert names(tmp_path) == before


def test_owners_are_named_with_their_slurm_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    with RunLock(tmp_path, unheard):
        assert owner(newest(tmp_path)[1]) == f"process {os.getpid()} on {os.uname().nodename}, SLURM job 4711"


# ------------------------------------------------------------------------------------------------ dead on this machine


@pytest.mark.parametrize("reaped", [False, True], ids=["zombie", "gone"])
def test_a_killed_owners_place_is_taken_at_once(reaped: bool, tmp_path: Path) -> None:
    """At once: long before its silence would tell (60 s)."""
    with owning(tmp_path) as first:
        first.kill()
        if reaped:
            first.wait()
        else:
            assert until(lambda: Path(f"/proc/{first.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z")
        content, alive = peek(tmp_path)
        assert content["pid"] == first.pid
        assert not alive
        said, begun = [], time.monotonic()
        with RunLock(tmp_path, said.append, wait=False) as held:
            assert time.monotonic() - begun < 5
            held.check()
            assert said == [f"taking over from process {first.pid} on {os.uname().nodename}, which is gone"]
    assert names(tmp_path) == []


def test_one_who_waits_notices_that_the_owner_is_killed(tmp_path: Path) -> None:
    """Within a poll or two, not after the silence of 60 s."""
    with owning(tmp_path) as first:
        second = Entrant(tmp_path)
        assert second.said_something()
        begun = time.monotonic()
        first.kill()
        assert second.inside.wait(30)
        assert time.monotonic() - begun < 5
        assert "which is gone" in second.said[1]
    second.end()
    assert names(tmp_path) == []


def test_another_process_with_the_number_of_the_owner_is_not_the_owner(tmp_path: Path) -> None:
    with RunLock(tmp_path, unheard):
        mine = read_json(tmp_path / "lock.1.json")
    write_json(tmp_path / "lock.1.json", {**mine, "process": mine["process"] - 1})  # started earlier
    said = []
    with RunLock(tmp_path, said.append, wait=False):
        assert len(said) == 1
        assert names(tmp_path) == ["lock.1.json", "lock.2.json"]
    write_json(tmp_path / "lock.1.json", mine)
    with pytest.raises(Busy):
        RunLock(tmp_path, unheard, wait=False).__enter__()


def test_a_whole_row_of_dead_owners_is_cleared_away(tmp_path: Path) -> None:
    with owning(tmp_path) as dead:
        dead.kill()
    content = read_json(tmp_path / "lock.1.json")
    for number in (2, 9, 10, 11):
        write_json(tmp_path / f"lock.{number}.json", content)
    with RunLock(tmp_path, quiet) as held:
        assert held.number == 12  # as numbers, not as text
        held.check()
    assert names(tmp_path) == []


def test_what_a_killed_heartbeat_left_is_removed_at_the_end_too(tmp_path: Path) -> None:
    with owning(tmp_path) as dead:
        dead.kill()
    (tmp_path / f".lock.1.json.{dead.pid}.tmp").write_text('{"be')
    with RunLock(tmp_path, quiet):
        pass
    assert names(tmp_path) == []


# ------------------------------------------------------------------------------------------------ on other machines


def test_an_owner_elsewhere_is_waited_for_while_its_heart_beats(tmp_path: Path, soon: float) -> None:
    elsewhere(tmp_path)
    second = Entrant(tmp_path)
    for beat in range(1, 25):  # three times as long as silence is taken for death
        elsewhere(tmp_path, beat=beat)
        time.sleep(3 * soon / 24)
        assert not second.inside.is_set()
    silent_since = time.monotonic()
    assert second.inside.wait(30)
    assert time.monotonic() - silent_since >= 0.9 * soon
    assert second.said[0] == "process 1 on far is working on this run; waiting for it"
    assert second.said[1:] == ["taking over from process 1 on far, which is gone"]
    second.lock.check()
    second.end()
    assert names(tmp_path) == []


def test_clocks_do_not_matter_to_one_who_waits(tmp_path: Path, soon: float) -> None:
    """The other machine's clock is wrong, or the disk's: only changes count."""
    file = elsewhere(tmp_path)
    os.utime(file, (0, 0))
    second = Entrant(tmp_path)
    assert not second.inside.wait(0.6 * soon)
    assert second.inside.wait(30)
    second.end()


def test_asking_again_and_again_without_waiting_finds_a_silent_owner_dead(tmp_path: Path, soon: float) -> None:
    """As `work_through` does, which has other work meanwhile; after a power cut all owners look like this."""
    elsewhere(tmp_path)
    begun = time.monotonic()

    def entered() -> bool:
        with contextlib.suppress(Busy), RunLock(tmp_path, quiet, wait=False):
            return True
        return False

    assert until(entered, 10 * soon)
    assert time.monotonic() - begun >= 0.9 * soon


@pytest.mark.parametrize(
    "text", ["", '{"host": "fa', "\0\0\0\0", "[]", "{}", '{"host": "far", "pid": \udcff'], ids=ascii
)
def test_a_torn_lock_is_given_time_and_then_replaced(text: str, tmp_path: Path, soon: float) -> None:
    """Its owner is just writing it, or died there."""
    (tmp_path / "lock.1.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(Busy, match="an unknown machine"):
        RunLock(tmp_path, unheard, wait=False).__enter__()
    begun, said = time.monotonic(), []
    with RunLock(tmp_path, said.append):
        assert time.monotonic() - begun >= 0.9 * soon
        assert len(said) == 2
    assert names(tmp_path) == []


def test_a_look_from_outside_goes_by_the_files_time(tmp_path: Path) -> None:
    file = elsewhere(tmp_path, beat=7)
    content, alive = peek(tmp_path)
    assert (content["beat"], alive) == (7, True)
    long_ago = time.time() - 2 * module.DEAD_AFTER_SECONDS
    os.utime(file, (long_ago, long_ago))
    assert peek(tmp_path) == (content, False)


# ------------------------------------------------------------------------------------------------------------ racing

RACER = """
import os, sys, time
from pathlib import Path
from kd.runtime import run_lock as lock
lock.POLL_SECONDS = 0.005
lock._machine = lambda machine=lock._machine(): machine  # the same, read once: more tries
folder, file = Path(sys.argv[1]), open(sys.argv[2], "a", buffering=1)
print("ready", flush=True)
for line in sys.stdin:
    with lock.RunLock(folder, say=lambda text: None) as held:
        begin = time.monotonic()
        time.sleep(0.02)
        held.check()
        file.write(f"{begin} {time.monotonic()}\\n")
    print("done", flush=True)
"""


@pytest.mark.parametrize("count", [2, 8])
def test_of_those_who_race_for_a_dead_owners_place_one_is_in_at_a_time(count: int, tmp_path: Path) -> None:
    """Times are read inside the lock, from the clock that all processes of a machine share."""
    (tmp_path / "run").mkdir()
    files = [tmp_path / f"{number}.txt" for number in range(count)]
    with owning(tmp_path / "run") as dead:
        dead.kill()
    content = (tmp_path / "run/lock.1.json").read_text()
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(tmp_path / "run"), str(file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for file in files
    ]
    try:
        for racer in racers:
            assert racer.stdout.readline() == "ready\n"
        for turn in range(4):
            (tmp_path / "run/lock.1.json").write_text(content)
            for racer in racers:
                racer.stdin.write("go\n")
                racer.stdin.flush()
            for racer in racers:
                assert racer.stdout.readline() == "done\n", f"turn {turn}"
            assert names(tmp_path / "run") == []
    finally:
        for racer in racers:
            racer.kill()
            racer.communicate()
    inside = sorted(tuple(map(float, line.split())) for file in files for line in file.read_text().splitlines())
    assert len(inside) == 4 * count
    for (_, end), (begin, _) in itertools.pairwise(inside):
        assert end <= begin


def test_one_who_was_too_slow_to_take_a_dead_owners_place_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its look and its taking, one had the place and left it, and another one has it since."""
    with owning(tmp_path) as dead:
        dead.kill()
    slow, third = RunLock(tmp_path, quiet, wait=False), RunLock(tmp_path, quiet)
    create = slow._create

    def late(*given: Any) -> bool:
        monkeypatch.setattr(slow, "_create", create)
        with RunLock(tmp_path, quiet):
            pass
        third.__enter__()
        return create(*given)

    monkeypatch.setattr(slow, "_create", late)
    try:
        with pytest.raises(Busy), slow:
            pass
        third.check()
    finally:
        third.__exit__()
    assert names(tmp_path) == []


# --------------------------------------------------------------------------------------------------------- suspended


@contextlib.contextmanager
def suspended(folder: Path) -> Iterator[subprocess.Popen]:
    """An owner that only its heartbeat tells of, which stands still."""
    with owning(folder, where="a machine that sleeps") as process:
        process.send_signal(signal.SIGSTOP)
        assert until(lambda: Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T")
        yield process


def test_one_who_slept_finds_that_another_has_the_run(tmp_path: Path, soon: float) -> None:
    with suspended(tmp_path) as sleeper, RunLock(tmp_path, quiet) as held:
        mine = f"process {os.getpid()} on {os.uname().nodename}"
        sleeper.send_signal(signal.SIGCONT)
        assert leave(sleeper) == f"taken over: {mine} has taken over this run; this process stops\n"
        held.check()
        number, content = newest(tmp_path)
        assert (number, content["pid"]) == (2, os.getpid())
    assert names(tmp_path) == []


def test_one_who_slept_finds_that_another_has_finished_the_run(tmp_path: Path, soon: float) -> None:
    with suspended(tmp_path) as sleeper:
        with RunLock(tmp_path, quiet):
            pass
        sleeper.send_signal(signal.SIGCONT)
        time.sleep(0.3)  # some heartbeats
        assert names(tmp_path) == [], "a lock that was lost does not come back"
        assert leave(sleeper).startswith("taken over: ")
    assert names(tmp_path) == []


def test_one_who_slept_leaves_those_who_came_later_alone(tmp_path: Path, soon: float) -> None:
    """The place was taken, left, and is someone's with the sleeper's own number."""
    with suspended(tmp_path) as sleeper:
        with RunLock(tmp_path, quiet):
            pass
        with RunLock(tmp_path, quiet) as third:
            sleeper.send_signal(signal.SIGCONT)
            time.sleep(0.3)
            third.check()
            assert newest(tmp_path)[1]["pid"] == os.getpid()
            assert leave(sleeper).startswith("taken over: ")
            third.check()
            assert newest(tmp_path)[1]["pid"] == os.getpid()
    assert names(tmp_path) == []


def test_one_whose_place_was_taken_knows_it_after_the_other_has_left(tmp_path: Path, soon: float) -> None:
    with RunLock(tmp_path, quiet) as first:
        file = elsewhere(tmp_path, number=2)
        with pytest.raises(TakenOver, match="process 1 on far has taken over"):
            first.check()
        for gone in (file, tmp_path / "lock.1.json"):
            gone.unlink()
        with pytest.raises(TakenOver):
            first.check()
    assert names(tmp_path) == []


# --------------------------------------------------------------------------------------------------------- heartbeats


def test_the_heartbeat_tells_the_progress(tmp_path: Path, soon: float) -> None:
    position = {}
    with RunLock(tmp_path, unheard, lambda: position):
        first = newest(tmp_path)[1]
        assert "done" not in first
        position |= {"done": 3, "total": 20, "seconds": 1.5}
        assert until(lambda: newest(tmp_path)[1].get("done") == 3)
        content = newest(tmp_path)[1]
        assert (content["total"], content["seconds"]) == (20, 1.5)
        assert content["beat"] > first["beat"]
        assert until(lambda: newest(tmp_path)[1]["beat"] > content["beat"])
    assert names(tmp_path) == []


def test_a_heartbeat_on_a_full_disk_stops_nothing(tmp_path: Path, soon: float, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = []

    def full(*_: Any) -> None:
        failed.append(True)
        raise OSError(errno.ENOSPC, "No space left on device")

    with RunLock(tmp_path, unheard) as held:
        with monkeypatch.context() as patched:
            patched.setattr(module, "write_json", full)
            assert until(lambda: len(failed) >= 3)
            held.check()
            before = newest(tmp_path)[1]["beat"]
        assert until(lambda: newest(tmp_path)[1]["beat"] > before)
    assert names(tmp_path) == []


def test_a_full_disk_at_the_start_leaves_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(module.json, "dump", full)
        patched.setattr(module.json, "dumps", full)
        patched.setattr(module, "write_json", full)
        with pytest.raises(OSError, match="No space"):
            RunLock(tmp_path, unheard).__enter__()
    assert names(tmp_path) == []
    with RunLock(tmp_path, unheard, wait=False):
        pass


def test_leaving_does_not_wait_for_the_next_heartbeat(tmp_path: Path) -> None:
    begun = time.monotonic()
    with RunLock(tmp_path, unheard):
        pass
    assert time.monotonic() - begun < 0.5 * module.HEARTBEAT_SECONDS
