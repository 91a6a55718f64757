"""How far a run is, for people: a bar on a terminal, lines in a log file."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TextIO

LINE_EVERY_SECONDS = 10.0


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
            self._log = log.open("a", buffering=1, encoding="utf-8", errors="backslashreplace")
        elif self._terminal is None:
            self._log = terminal
        self._next_line = 0.0

    def say(self, text: str) -> None:
        """Write one line of text now."""
        if self._log is not None:
            print(f"{time.strftime('%H:%M:%S')} {self.title}: {text}", file=self._log, flush=True)
        elif self._bar is not None:
            self._bar.write(f"{self.title}: {text}", file=self._terminal)
        else:
            print(f"{self.title}: {text}", file=self._terminal)

    def show(self, done: int, total: int, text: str) -> None:
        """Show that `done` of `total` epochs are complete."""
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
