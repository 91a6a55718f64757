"""Functions that work in turns: one at a time, all meetings served, no error of one holds up another."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from kd.runtime import turns as module
from kd.runtime.turns import Turns

SECONDS = 20  # after which a test that waits for ever fails


def ended(turns: Turns, functions: list[Callable[[], Any]]) -> list[BaseException | None]:
    """Return what `work` returns; fail where it never ends."""
    found: list[list[BaseException | None]] = []
    thread = threading.Thread(target=lambda: found.append(turns.work(functions)), daemon=True)
    thread.start()
    thread.join(SECONDS)
    assert found, "it waits for ever"
    return found[0]


def all_asked(asked: dict[int, Any]) -> dict[int, Any]:
    return {number: f"served {what}" for number, what in asked.items()}


def test_one_works_at_a_time_and_meets_the_others_at_every_step() -> None:
    rounds, at_work, most = [], [], []

    def serve(asked: dict[int, Any]) -> dict[int, Any]:
        rounds.append(dict(asked))
        assert not at_work
        return all_asked(asked)

    def steps(count: int) -> None:
        for step in range(count):
            at_work.append(step)
            time.sleep(0.001)
            most.append(len(at_work))
            at_work.pop()
            assert turns.meet(step) == f"served {step}"

    turns = Turns(serve)
    assert ended(turns, [lambda: steps(2), lambda: steps(3), lambda: steps(1)]) == [None] * 3
    assert rounds == [{0: 0, 1: 0, 2: 0}, {0: 1, 1: 1}, {1: 2}]
    assert max(most) == 1


def test_who_is_not_served_waits_for_the_next_round() -> None:
    rounds = []

    def the_last(asked: dict[int, Any]) -> dict[int, Any]:
        rounds.append(sorted(asked))
        return {max(asked): "served"}

    turns = Turns(the_last)

    def twice() -> None:
        assert [turns.meet("step"), turns.meet("step")] == ["served"] * 2

    assert ended(turns, [twice, twice]) == [None, None]
    assert rounds == [[0, 1], [0, 1], [0], [0]]


@pytest.mark.parametrize("error", [ValueError("on purpose"), KeyboardInterrupt(), SystemExit(3)])
def test_an_error_of_one_holds_up_no_other(error: BaseException) -> None:
    turns, done = Turns(all_asked), []

    def fails() -> None:
        turns.meet("first")
        raise error

    def goes_on() -> None:
        for step in range(4):
            turns.meet(step)
        done.append(True)

    assert ended(turns, [goes_on, fails, goes_on]) == [None, error, None]
    assert done == [True, True]


@pytest.mark.parametrize("when", ["leave", "enter"])
def test_an_error_at_the_change_of_turns_ends_only_that_function(when: str) -> None:
    """A lost GPU may refuse to tell its generators' states."""

    def lost(number: int) -> None:
        if number == 0:
            raise RuntimeError("the GPU is lost")

    turns, done = Turns(all_asked, **{when: lost}), []
    errors = ended(turns, [lambda: turns.meet("step"), lambda: done.append(turns.meet("step"))])
    assert str(errors[0]) == "the GPU is lost"
    assert (errors[1], done) == (None, ["served step"])


def test_whoever_pauses_lets_others_work_and_goes_on_when_one_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE_SECONDS", 3 * SECONDS)
    order = []
    turns = Turns(lambda asked: order.append(sorted(asked)) or all_asked(asked))

    def waits() -> None:
        while 1 not in order:
            turns.pause()
        order.append(0)

    def works() -> None:
        turns.meet("step")
        turns.meet("step")
        order.append(1)

    assert ended(turns, [waits, works]) == [None, None]
    assert order == [[1], [1], 1, 0]


def test_two_that_pause_for_each_other_wait_and_do_not_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.05)
    turns, paused = Turns(all_asked), []

    def waits() -> None:
        begun = time.monotonic()
        while time.monotonic() - begun < 0.5:
            paused.append(True)
            turns.pause()

    assert ended(turns, [waits, waits]) == [None, None]
    assert len(paused) <= 2 * 12


def test_each_knows_its_number_and_is_told_of_its_turns() -> None:
    told: list[tuple[str, int]] = []
    turns = Turns(all_asked, lambda number: told.append(("leaves", number)), lambda number: told.append(("in", number)))

    def work() -> None:
        number = turns.number
        turns.meet(number)
        assert turns.number == number

    assert ended(turns, [work, work]) == [None, None]
    once = [[("in", number), ("leaves", number)] for number in (0, 1)]
    assert told == 2 * (once[0] + once[1])
