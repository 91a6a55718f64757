"""Lines on a terminal or in a file: as wide as fits, coloured only where a person looks, above a line that changes."""

from __future__ import annotations

import os
import shutil
import textwrap
import threading
from collections.abc import Callable
from typing import TextIO

from kd.runtime.messages import escaped
from kd.runtime.progress import QUIETLY, inform

BOLD, DIM, RED, YELLOW = "1", "2", "31", "33"
WIDTH, NARROWEST, WIDEST = 80, 60, 120
CLEAR = "\r\033[K"  # the line where the cursor is, whoever wrote it
INDENT = 9  # of what stands beside a name
KEEP_WORDS = {"break_long_words": False, "break_on_hyphens": False}  # a path can be copied as it is


class Lines:
    """Writes lines to a stream; on a terminal the last one may be changed until another line is written."""

    def __init__(self, stream: TextIO, nocolor: bool = False):
        self.stream, on_terminal = stream, False
        with QUIETLY:
            on_terminal = stream.isatty()
        self.width = max(NARROWEST, min(shutil.get_terminal_size().columns, WIDEST)) if on_terminal else WIDTH
        self.moves = on_terminal and os.environ.get("TERM") != "dumb"
        self.colours = self.moves and not nocolor and not os.environ.get("NO_COLOR")
        self._lock, self._changing = threading.RLock(), ""
        self._ticking: threading.Event | None = None

    def say(self, text: str, colour: str = "") -> None:
        """Write a line, or several that are ready."""
        with self._lock:
            self._changing = ""  # written over; what it would say now is asked for soon
            before, after = (f"\033[{colour}m", "\033[0m") if colour and self.colours else ("", "")
            inform(text, self.stream, (f"{CLEAR if self.moves else ''}{before}", after))

    def wrapped(self, text: str, colour: str = "", indent: str = "") -> None:
        """Write a text in lines that fit; no word is broken."""
        for line in text.rstrip().splitlines():
            for part in textwrap.wrap(
                line, self.width, initial_indent=indent, subsequent_indent=indent + "  ", **KEEP_WORDS
            ) or [""]:
                self.say(part, colour)

    def entry(self, name: str, text: str) -> None:
        """Write what a name stands for; what is too long for a line goes on below."""
        indent = " " * INDENT
        for line in textwrap.wrap(
            text, self.width, initial_indent=f"{name:<{INDENT}}", subsequent_indent=indent, **KEEP_WORDS
        ):
            self.say(line)

    def change(self, text: str) -> None:
        """Show a last line in place of the one that was shown this way; none for an empty text, and none in a file."""
        with self._lock, QUIETLY:
            if self.moves and text != self._changing:
                self.stream.write(f"{CLEAR}{escaped(text)[: self.width - 1]}")
                self.stream.flush()
                self._changing = text

    def keep_changing(self, text: Callable[[], str], seconds: float = 2.0) -> None:
        """Show what `text` returns as the last line, again and again until `rest`; nothing in a file."""
        if not self.moves or self._ticking is not None:
            return
        self._ticking = ended = threading.Event()

        def tick() -> None:
            while not ended.wait(seconds):
                now = text()
                with self._lock:
                    if not ended.is_set():
                        self.change(now)

        threading.Thread(target=tick, daemon=True).start()

    def rest(self) -> None:
        """Take the changing line away."""
        with self._lock:
            if self._ticking is not None:
                self._ticking.set()
            self._ticking = None
            self.change("")
