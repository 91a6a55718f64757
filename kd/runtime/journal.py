"""What a run has done so far: curves, counts and seconds. Training code writes here and knows no tracker."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import torch

LINE_EVERY_SECONDS = 10.0

Sink = Callable[[list[dict[str, float]]], None]


class Journal:
    """Part of a checkpoint, so that a resumed run ends with the same curves and counts as an undisturbed one.

    `history` is a list of rows, one per epoch; `counts` how often something was done (student_steps, images, ...);
    `seconds` wall-clock time by phase, over all attempts. `sink` receives the whole history after each row.
    """

    def __init__(self, progress: Progress, sink: Sink | None = None):
        self.progress, self.sink = progress, sink
        self.history: list[dict[str, float]] = []
        self.counts: Counter[str] = Counter()
        self.seconds: Counter[str] = Counter()
        self._open: tuple[str, float] | None = None
        self.pending: dict[str, float] = {}  # values of the epoch under way, for its row

    @contextmanager
    def phase(self, name: str, device: torch.device) -> Iterator[None]:
        """Add the time spent inside to `seconds[name]`; waits for the device once, at the end."""
        self._open = (name, time.perf_counter())
        try:
            yield
            if device.type == "cuda":
                torch.cuda.synchronize(device)
        finally:
            self.seconds, self._open = self._seconds_now(), None

    def _seconds_now(self) -> Counter[str]:
        """With the time so far in the phase under way, so that a checkpoint in its middle forgets none of it."""
        seconds = Counter(self.seconds)
        if self._open is not None:
            name, start = self._open
            seconds[name] += time.perf_counter() - start
        return seconds

    def log(self, epoch: int, epochs: int, values: dict[str, torch.Tensor | float]) -> dict[str, float]:
        """Append a row for an epoch that is complete. Tensors [] are read here: one wait for the device per epoch."""
        row = {"epoch": float(epoch)} | self.pending | {name: float(value) for name, value in values.items()}
        self.pending = {}
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
        self.history = [dict(row) for row in state["history"]]
        self.counts = Counter(state["counts"])
        self.seconds = Counter(state["seconds"])
        self.pending = dict(state["pending"])


class Progress:
    """A bar with rate and time left on a terminal; a line now and then in a log file."""

    def __init__(self, title: str, log: Path | None = None, terminal: TextIO = sys.stderr):
        self.title = title
        self.position: dict[str, float] = {}  # epochs done and in all, seconds spent: what others are told
        self._bar = None
        self._terminal = terminal if terminal.isatty() else None
        self._log = None
        self._owns_log = log is not None
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
            self._log = log.open("a", buffering=1)
        elif self._terminal is None:
            self._log = terminal
        self._next_line = 0.0

    def say(self, text: str) -> None:
        """One line of text, now."""
        if self._log is not None:
            print(f"{time.strftime('%H:%M:%S')} {self.title}: {text}", file=self._log, flush=True)
        elif self._bar is not None:
            self._bar.write(f"{self.title}: {text}", file=self._terminal)
        else:
            print(f"{self.title}: {text}", file=self._terminal)

    def show(self, done: int, total: int, text: str) -> None:
        """`done` of `total` epochs are complete."""
        if self._terminal is not None:
            if self._bar is None:
                from tqdm import tqdm

                self._bar = tqdm(
                    total=total, initial=done - 1, unit="epoch", desc=self.title, leave=False, file=self._terminal
                )
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(done - self._bar.n)
        if self._log is not None and (time.monotonic() >= self._next_line or done == total):
            self.say(f"epoch {done}/{total}, {text}")
            self._next_line = time.monotonic() + LINE_EVERY_SECONDS

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._owns_log:
            self._log.close()
