"""Functions of one process that work in turns, each in a thread of its own, and wait for each other at meetings."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

PAUSE_SECONDS = 1.0


class SharedClock:
    """Seconds of functions that share the time: while n of them use the clock, a second counts 1/n for each.

    What several users measure of one stretch of time adds up to it.
    """

    def __init__(self) -> None:
        self.users = 0
        self._now, self._read = 0.0, time.perf_counter()

    def __call__(self) -> float:
        """Return the seconds so far."""
        before, self._read = self._read, time.perf_counter()
        self._now += (self._read - before) / max(1, self.users)
        return self._now

    @contextmanager
    def used(self) -> Iterator[None]:
        """Count the caller as a user until the end of the block."""
        self()
        self.users += 1
        try:
            yield
        finally:
            self()
            self.users -= 1


class Turns:
    """Lets functions work one at a time; nothing is ever done by two of them at once.

    A function that calls `meet` gives up its turn. Once all others are at a meeting, too, or pause, or have ended,
    `serve` gets what they asked for, by function, and returns the answers to those that it has served; the others wait
    for the next round. It runs in the thread that called `work`, as do signal handlers. `leave` and `enter` are called
    with a function's number in its thread when it gives up its turn and when it gets one.
    """

    def __init__(
        self,
        serve: Callable[[dict[int, Any]], dict[int, Any]],
        leave: Callable[[int], Any] = lambda number: None,
        enter: Callable[[int], Any] = lambda number: None,
    ):
        self.serve, self.leave, self.enter = serve, leave, enter
        self._back = threading.Semaphore(0)  # released by whoever gives up its turn
        self._members: list[_Member] = []
        self._own = threading.local()

    def work(self, functions: list[Callable[[], Any]]) -> list[BaseException | None]:
        """Run the functions until all have ended; return what each has raised."""
        self._members = [_Member(number, function) for number, function in enumerate(functions)]
        for member in self._members:
            threading.Thread(target=self._run, args=(member,), name=f"run {member.number}", daemon=True).start()
        while alive := [member for member in self._members if not member.ended]:
            ready = [member for member in alive if member.ready(time.monotonic())]
            for member in ready:
                self._give_turn(member)
            asked = {member.number: member.asks for member in self._members if not member.ended and member.meets}
            if asked:
                for number, answer in self.serve(asked).items():
                    self._members[number].answered(answer)
            elif not ready:
                time.sleep(min(PAUSE_SECONDS, max(0.0, min(m.paused_until for m in alive) - time.monotonic())))
        return [member.error for member in self._members]

    @property
    def number(self) -> int:
        """Return which of the functions is at work in this thread."""
        return self._own.member.number

    def meet(self, asks: Any) -> Any:
        """Ask for something and wait until it has been served; return the answer."""
        member = self._own.member
        member.asks, member.meets = asks, True
        self._give_up_turn(member)
        return member.answer

    def pause(self) -> None:
        """Let the others work; go on when one of them has ended or after PAUSE_SECONDS."""
        member = self._own.member
        member.paused_until = time.monotonic() + PAUSE_SECONDS
        self._give_up_turn(member)

    def _give_turn(self, member: _Member) -> None:
        member.go.release()
        self._back.acquire()
        if member.ended:
            for other in self._members:
                other.paused_until = 0.0

    def _give_up_turn(self, member: _Member) -> None:
        self.leave(member.number)
        self._back.release()
        member.go.acquire()
        self.enter(member.number)

    def _run(self, member: _Member) -> None:
        member.go.acquire()
        self._own.member = member
        try:
            self.enter(member.number)
            member.function()
            self.leave(member.number)
        except BaseException as error:
            member.error = error
        finally:
            member.ended = True
            self._back.release()


class _Member:
    def __init__(self, number: int, function: Callable[[], Any]):
        self.number, self.function = number, function
        self.go = threading.Semaphore(0)  # released when it gets its turn
        self.asks: Any = None
        self.answer: Any = None
        self.meets = self.ended = False
        self.paused_until = 0.0
        self.error: BaseException | None = None

    def ready(self, now: float) -> bool:
        return not self.meets and now >= self.paused_until

    def answered(self, answer: Any) -> None:
        self.answer, self.asks, self.meets = answer, None, False
