"""How far a run is, for people: a bar on a terminal, lines in a log file. Nothing here ends a run."""

from __future__ import annotations

import contextlib
import functools
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TextIO

from kd.runtime.files import appended
from kd.runtime.messages import printable

LINE_EVERY_SECONDS = 10.0


QUIETLY = contextlib.suppress(OSError, ValueError)  # a disk or terminal that fails; a stream that is closed
_BARS: dict[int, Any] = {}  # on a terminal now: of several runs where they are made together


def inform(text: str, stream: TextIO | None = None, around: tuple[str, str] = ("", "")) -> bool:
    """Write a line to a stream, stderr by default; False where it cannot be written: that ends no run.

    around: what a terminal obeys, before and after the text, in which it can obey nothing.
    """
    stream = stream or sys.stderr
    with QUIETLY, _above_bars(stream):
        line = f"{printable(text).join(around)}\n"  # written in one piece: other processes write there, too
        print(line, end="", file=stream, flush=True)
        return True
    return False


def _above_bars(stream: TextIO | None) -> AbstractContextManager:
    """Take bars away from a terminal while something else is written there."""
    if not _BARS or stream is None or not stream.isatty():
        return contextlib.nullcontext()
    return next(iter(_BARS.values())).external_write_mode(stream)


@functools.cache
def _bar_class() -> type:
    """Return tqdm without its lock, which stays taken where a terminal fails: other threads would wait for ever.

    Runs that are made together draw one at a time, so none is needed.
    """
    from tqdm import tqdm

    class Bar(tqdm):
        _lock = _NoLock()
        monitor_interval = 0  # no thread that draws

    return Bar


class _NoLock(contextlib.nullcontext):
    def acquire(self, *_: Any, **__: Any) -> bool:
        return True

    def release(self) -> None:
        pass


class Progress:
    """A bar with rate and time left on a terminal; a line now and then in a log file.

    A full disk, a terminal that has gone or a closed stream cost what would have been shown, and never raise.
    """

    def __init__(self, title: str, log: Path | None = None, terminal: TextIO | None = sys.stderr):
        self.title = title
        self.position: dict[str, float] = {}  # epochs done and in all, seconds spent: what others are told
        self._bar = None
        self._terminal, self._log = None, None
        with QUIETLY:
            self._terminal = terminal if terminal is not None and terminal.isatty() else None
        if log is not None:
            with QUIETLY:
                log.parent.mkdir(parents=True, exist_ok=True)
                self._log = appended(log)
        self._owns_log = self._log is not None
        if self._log is None and self._terminal is None:
            self._log = terminal
        self._next_line = 0.0

    def say(self, text: str) -> None:
        """Write one line of text now: to the log, to the terminal without one, to stderr where the log fails."""
        if self._log is not None:
            line = f"{time.strftime('%H:%M:%S')} {self.title}: {text}"
            inform(line, self._log) or inform(line)
        else:
            inform(f"{self.title}: {text}", self._terminal)

    def show(self, done: int, total: int, text: str) -> None:
        """Show that `done` of `total` epochs are complete."""
        if self._terminal is not None:
            with QUIETLY:
                self._draw(done, total, text)
        if self._log is not None and (time.monotonic() >= self._next_line or done == total):
            self.say(f"epoch {done}/{total}, {text}")
            self._next_line = time.monotonic() + LINE_EVERY_SECONDS

    def _draw(self, done: int, total: int, text: str) -> None:
        if self._bar is None:
            self._bar = _bar_class()(
                total=total, initial=done - 1, unit="epoch", desc=self.title, leave=False, file=self._terminal
            )
            _BARS[id(self)] = self._bar
        self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(done - self._bar.n)

    def close(self) -> None:
        if _BARS.pop(id(self), None) is not None:
            with QUIETLY:
                self._bar.close()
                self._terminal.write("\r")  # tqdm leaves the cursor where a lower bar ended
        if self._owns_log:
            with QUIETLY:
                self._log.close()
