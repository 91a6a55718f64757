"""What a run has done so far: curves, counts and seconds. Training code writes here and knows no tracker."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from kd.runtime.progress import Progress

Sink = Callable[[list[dict[str, float]]], None]
Look = Callable[[int, int, dict[str, float]], dict[str, float]]


class Journal:
    """Curves, counts and seconds; part of a checkpoint, so that a resumed run ends with those of an undisturbed one.

    `history`: a list of rows, one per epoch; `counts`: how often something was done (student_steps, images, ...);
    `seconds`: time by phase as `clock` counts it, over all attempts; runs that are made together share it. `sink`
    receives the whole history after each row. `look`, where it is set, is called with epoch, number of epochs and row
    before that, and returns what else belongs into the row.
    """

    def __init__(self, progress: Progress, sink: Sink | None = None, clock: Callable[[], float] | None = None):
        self.progress, self.sink, self.clock = progress, sink, clock or time.perf_counter
        self.history: list[dict[str, float]] = []
        self.counts: Counter[str] = Counter()
        self.seconds: Counter[str] = Counter()
        self._open: tuple[str, float] | None = None
        self.pending: dict[str, float] = {}  # values of the epoch under way, for its row
        self.look: Look = lambda epoch, epochs, row: {}

    @contextmanager
    def phase(self, name: str, device: torch.device) -> Iterator[None]:
        """Add the time spent inside to `seconds[name]`; waits for the device once, at the end."""
        self._open = (name, self.clock())
        try:
            yield
            if device.type == "cuda":
                torch.cuda.synchronize(device)
        finally:
            self.seconds, self._open = self._seconds_now(), None

    def _seconds_now(self) -> Counter[str]:
        """Return the seconds with the phase under way so far, so that a checkpoint in its middle forgets none of it."""
        seconds = Counter(self.seconds)
        if self._open is not None:
            name, start = self._open
            seconds[name] += self.clock() - start
        return seconds

    def log(self, epoch: int, epochs: int, values: dict[str, torch.Tensor | float]) -> dict[str, float]:
        """Append and return the row of a complete epoch. Tensors [] are read here: one wait for the device each."""
        row = {"epoch": float(epoch)} | self.pending | {name: float(value) for name, value in values.items()}
        self.pending = {}
        row |= self.look(epoch, epochs, row)
        self.history.append(row)
        if self.sink is not None:
            self.sink(self.history)
        spent = round(sum(self._seconds_now().values()), 3)
        self.progress.position = {"done": epoch, "total": epochs, "seconds": spent}
        shown = ", ".join(f"{name} {value:.4g}" for name, value in row.items() if name != "epoch")
        self.progress.show(epoch, epochs, shown)
        return row

    def state_dict(self) -> dict[str, Any]:
        return {
            "history": self.history,
            "counts": dict(self.counts),
            "seconds": dict(self._seconds_now()),
            "pending": self.pending,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned. Raises TypeError or ValueError for anything that is no number."""
        self.history = [_numbers(row, float) for row in state["history"]]
        self.counts = Counter(_numbers(state["counts"], int))
        self.seconds = Counter(_numbers(state["seconds"], float))
        self.pending = _numbers(state["pending"], float)


def _numbers(values: dict[str, Any], kind: type) -> dict[str, Any]:
    if odd := [f"{name} is {value!r}" for name, value in values.items() if not isinstance(value, int | kind)]:
        raise TypeError(f"{odd[0]}, no {kind.__name__}")
    return dict(values)
