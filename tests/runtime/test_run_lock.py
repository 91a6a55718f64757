"""The lock on a run on one machine: one owner at a time, whether owners leave, are killed or race for the place."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from lock_owners import Entrant, leave, names, owning, quiet, unheard, until

from kd.runtime.files import read_json, write_json
from kd.runtime.run_lock import Busy, RunLock, newest, owner, peek

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
        assert not second.inside.wait(0.6)  # a few polls
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


# ------------------------------------------------------------------------------------------------- dead on this machine


@pytest.mark.parametrize("reaped", [False, True], ids=["zombie", "gone"])
def test_a_killed_owners_place_is_taken_at_once(reaped: bool, tmp_path: Path) -> None:
    """Long before its silence would mean death (60 s)."""
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
    """Within a poll or two, not after 60 s of silence."""
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
        assert held.number == 12  # compared as numbers, not as text
        held.check()
    assert names(tmp_path) == []


def test_what_a_killed_heartbeat_left_is_removed_at_the_end_too(tmp_path: Path) -> None:
    with owning(tmp_path) as dead:
        dead.kill()
    (tmp_path / f".lock.1.json.{dead.pid}.tmp").write_text('{"be')
    with RunLock(tmp_path, quiet):
        pass
    assert names(tmp_path) == []


# --------------------------------------------------------------------------------------------------------------- racing


RACER = """
import os, sys, time
from pathlib import Path
from kd.runtime import run_lock as lock
lock.POLL_SECONDS = 0.005
lock._machine = lambda machine=lock._machine(): machine  # the same name, read only once: more tries
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
def test_of_those_who_race_for_a_dead_owners_place_only_one_is_in_at_a_time(count: int, tmp_path: Path) -> None:
    """Times are read inside the lock, from the clock that all processes of the machine share."""
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
    """Between its look and its attempt, another owner had the place and left it, and a third has it since."""
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
