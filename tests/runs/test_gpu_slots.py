"""GPU slots in one process: the order in which they are taken, waiting, and release after an exception."""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from slot_names import fresh, unheard

from kd.runs.gpu_slots import slot


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
    """$CUDA_VISIBLE_DEVICES numbers the devices differently in each process."""
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
    """Start a thread that waits for a slot; yield what it said and an event that is set when it has the slot."""
    said, got = [], threading.Event()
    told = threading.Event()

    def wait() -> None:
        with slot(names, per_device, lambda text: (said.append(text), told.set())) as position:
            said.append(position)
            got.set()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    assert told.wait(30), "it did not wait"
    time.sleep(0.05)  # a few turns of its loop
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
