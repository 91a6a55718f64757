"""The lock on a run when only heartbeats show that its owner lives: on another machine, suspended, on a full disk."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lock_owners import Entrant, elsewhere, leave, names, owning, quiet, unheard, until

from kd.runtime import run_lock as module
from kd.runtime.run_lock import Busy, RunLock, TakenOver, newest, peek


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> float:
    """Shorten the silence that means death, heartbeats and polls; return that silence in seconds."""
    monkeypatch.setattr(module, "DEAD_AFTER_SECONDS", 0.4)
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(module, "POLL_SECONDS", 0.02)
    return 0.4


# ---------------------------------------------------------------------------------------------------- on other machines


def test_an_owner_elsewhere_is_waited_for_while_its_heart_beats(tmp_path: Path, soon: float) -> None:
    elsewhere(tmp_path)
    second = Entrant(tmp_path)
    for beat in range(1, 25):  # three times as long as the silence that means death
        silent_since = time.monotonic()
        elsewhere(tmp_path, beat=beat)
        time.sleep(3 * soon / 24)
        assert not second.inside.is_set()
    assert second.inside.wait(30)
    assert time.monotonic() - silent_since >= soon  # since the last beat
    assert second.said[0] == "process 1 on far is working on this run; waiting for it"
    assert second.said[1:] == ["taking over from process 1 on far, which is gone"]
    second.lock.check()
    second.end()
    assert names(tmp_path) == []


def test_clocks_do_not_matter_to_one_who_waits(tmp_path: Path, soon: float) -> None:
    """The other machine's clock or the disk's may be wrong: only changes count."""
    file = elsewhere(tmp_path)
    os.utime(file, (0, 0))
    second = Entrant(tmp_path)
    assert not second.inside.wait(0.6 * soon)
    assert second.inside.wait(30)
    second.end()


def test_asking_again_and_again_without_waiting_finds_a_silent_owner_dead(tmp_path: Path, soon: float) -> None:
    """As `work_through` does, which has other work meanwhile. After a power cut all owners look like this."""
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
    """Its owner is still writing it, or died while writing."""
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


# ------------------------------------------------------------------------------------------------------------ suspended


@contextlib.contextmanager
def suspended(folder: Path) -> Iterator[subprocess.Popen]:
    """Start an owner that only its heartbeat shows alive, and suspend it."""
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
        time.sleep(0.3)  # a few heartbeats
        assert names(tmp_path) == [], "a lock that was lost does not come back"
        assert leave(sleeper).startswith("taken over: ")
    assert names(tmp_path) == []


def test_one_who_slept_leaves_those_who_came_later_alone(tmp_path: Path, soon: float) -> None:
    """Its place was taken and left, and someone else now has a lock with the sleeper's number."""
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


# ----------------------------------------------------------------------------------------------------------- heartbeats


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
