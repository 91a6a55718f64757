"""Two implementations measured in turn, after a check that they agree."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

if find_spec("kd") is None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from torch import Tensor

AGREEMENT = 1e-5  # relative
Seconds = list[tuple[float, float]]  # per round: A, B


def alternate(fast: Callable[[], Any], slow: Callable[[], Any], rounds: int, fast_calls: int = 1) -> Seconds:
    """Return CPU seconds of A and of B in each round, after one that is not counted.

    A quick A is called several times in its turn, so that the clock's grain and the turn's cold start weigh less.
    """

    def timed(call: Callable[[], Any], calls: int) -> float:
        start = time.process_time()
        for _ in range(calls):
            call()
        return (time.process_time() - start) / calls

    seconds = []
    for round_ in range(-1, rounds):
        if round_ % 2:
            b, a = timed(slow, 1), timed(fast, fast_calls)
        else:
            a, b = timed(fast, fast_calls), timed(slow, 1)
        seconds.append((a, b))
    return seconds[1:]


def close(what: str, a: Tensor, b: Tensor, tolerance: float = AGREEMENT) -> float:
    """Return the relative distance of A from B; end the benchmark above the tolerance: it would compare nothing."""
    distance = float((a - b).norm() / b.norm())
    if not distance <= tolerance:
        raise SystemExit(f"{what}: A and B differ by {distance:.1e}, allowed {tolerance:.0e}")
    return distance
