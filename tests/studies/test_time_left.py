"""How long a study still takes: from what is expected of its runs, and from what its jobs took."""

from __future__ import annotations

import pytest

from kd.studies.time_left import OVERHEAD_SECONDS, TimeLeft, about


def left_of(expected: dict[str, float | None], others: int = 0, slots: int = 1) -> TimeLeft:
    return TimeLeft(expected.get, expected, others, slots)


def test_runs_share_the_slots_and_jobs_take_a_little_more_than_their_runs() -> None:
    three = left_of({"a": 100.0, "b": 60.0, "c": 90.0}, others=2, slots=2)
    assert three.seconds(0.0) == (250 + 3 * OVERHEAD_SECONDS) / 2 + 2 * OVERHEAD_SECONDS / 2
    assert left_of({"a": 100.0, "b": 1.0}, slots=8).seconds(0.0) == 100 + OVERHEAD_SECONDS, "no run is shared"
    assert left_of({}).seconds(0.0) == 0


def test_what_runs_has_less_to_go_and_what_is_done_tells_what_jobs_cost() -> None:
    left = left_of({"a": 100.0, "b": 100.0})
    left.began("a", 10.0)
    assert left.seconds(40.0) == 200 - 30 + 2 * OVERHEAD_SECONDS
    left.finished("a", 100.0, 130.0)  # the job took 20 seconds more than its run
    assert left.seconds(130.0) == 100 + 20
    left.began("b", 130.0)
    assert left.seconds(1000.0) == 0, "late, not negative"
    left.failed("b")
    assert left.seconds(1000.0) == 0


def test_nothing_is_said_while_most_runs_are_unknown() -> None:
    assert left_of({"a": None}).seconds(0.0) is None
    assert left_of({"a": 10.0, "b": None, "c": None}).seconds(0.0) is None
    assert left_of({"a": 10.0, "b": None}).seconds(0.0) == 2 * (10 + OVERHEAD_SECONDS), "as long as the other"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "5 s"), (31, "35 s"), (54, "55 s"), (55, "1 min"), (3569, "59 min"), (3570, "1.0 h"), (200_000, "2.3 d")],
)
def test_seconds_are_said_as_people_say_them(seconds: float, said: str) -> None:
    assert about(seconds) == said
