"""How long a study will still take, from finished runs of all studies and from the jobs of this start."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from statistics import mean

OVERHEAD_SECONDS = 4.0  # of a job beside its computing: start-up, reading, files; until jobs have shown theirs


class TimeLeft:
    """Seconds until the jobs of a start are done, where `slots` runs are made at the same time."""

    def __init__(self, expected: Callable[[str], float | None], runs: Iterable[str], others: int, slots: int):
        """`expected` returns a run's seconds by its path, None while they are unknown; runs: paths of those to be made;
        others: the number of the other jobs, such as figures.
        """
        self._expected, self._slots, self._others = expected, max(slots, 1), others
        self._waiting = dict.fromkeys(runs)
        self._since: dict[str, float] = {}  # running -> when it began
        self._overheads: list[float] = []

    def began(self, path: str, now: float) -> None:
        self._since[path] = now

    def failed(self, path: str) -> None:
        """A run that failed, and what waited for it, will not be made; the latter is not known here."""
        self._since.pop(path, None)
        self._waiting.pop(path, None)

    def finished(self, path: str, seconds: float | None, now: float) -> None:
        """Note that a run is done, and what its job took beside its own `seconds`, where these are known."""
        if (since := self._since.pop(path, None)) is not None and seconds is not None:
            self._overheads.append(max(now - since - seconds, 0.0))
        self._waiting.pop(path, None)

    def other_done(self) -> None:
        self._others = max(self._others - 1, 0)

    def seconds(self, now: float) -> float | None:
        """Return the seconds left; None while most runs are of unknown length. The others count as the known ones."""
        overhead = mean(self._overheads[-20:]) if self._overheads else OVERHEAD_SECONDS
        expected = {path: self._expected(path) for path in self._waiting}
        known = [seconds for seconds in expected.values() if seconds is not None]
        if len(known) < len(expected) / 2:
            return None
        usual, left = mean(known) if known else 0.0, []
        for path, seconds in expected.items():
            whole = (usual if seconds is None else seconds) + overhead
            left.append(max(whole - (now - self._since[path]), 0.0) if path in self._since else whole)
        return max(sum(left) / self._slots, max(left, default=0.0)) + self._others * overhead / self._slots


def about(seconds: float) -> str:
    """Write seconds in one rounded number: 40 s, 4 min, 2.2 h, 3.1 d."""
    if seconds < 55:
        return f"{max(5 * math.ceil(seconds / 5), 5)} s"
    if seconds < 3570:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} d"
