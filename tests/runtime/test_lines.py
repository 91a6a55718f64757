"""Lines that fit a terminal or a file."""

from __future__ import annotations

import io
import time

import pytest

from kd.runtime.lines import RED, Lines
from kd.runtime.progress import inform


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")


def test_a_file_gets_80_columns_and_no_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    lines = Lines(io.StringIO())
    lines.wrapped("word " * 40, RED)
    lines.entry("name", "word " * 40)
    lines.change("never in a file")
    lines.keep_changing(lambda: "never in a file", 0.001)
    said = lines.stream.getvalue()
    assert max(map(len, said.splitlines())) <= 80
    assert said.count("word") == 80
    assert "\033" not in said
    assert "never" not in said
    assert said.splitlines()[-2].startswith("         word")


def test_no_word_is_broken() -> None:
    path = "results/logs/" + "a-long-name/" * 10
    lines = Lines(io.StringIO())
    lines.wrapped(f"see {path}")
    assert path in lines.stream.getvalue()


@pytest.mark.parametrize(("columns", "width"), [("20", 60), ("100", 100), ("500", 120)])
def test_a_terminal_is_filled_within_reason(monkeypatch: pytest.MonkeyPatch, columns: str, width: int) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert Lines(Tty()).width == width


def test_colours_are_for_terminals_that_want_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Lines(Tty()).colours
    assert not Lines(Tty(), nocolor=True).colours
    monkeypatch.setenv("NO_COLOR", "1")
    assert not Lines(Tty()).colours
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    lines = Lines(Tty())
    lines.say("plain", RED)
    assert lines.stream.getvalue() == "plain\n"


def test_the_last_line_changes_and_gives_way() -> None:
    lines = Lines(Tty())
    lines.change("one")
    lines.say("a line")
    assert lines.stream.getvalue() == "\r\033[Kone\r\033[Ka line\n"
    lines.keep_changing(lambda: "two", 0.001)
    deadline = time.monotonic() + 10
    while "two" not in lines.stream.getvalue() and time.monotonic() < deadline:
        time.sleep(0.001)
    lines.rest()
    said = lines.stream.getvalue()
    assert said.endswith("two\r\033[K"), "and is taken away"
    time.sleep(0.02)
    assert lines.stream.getvalue() == said


def test_a_terminal_that_has_gone_ends_nothing() -> None:
    stream = Tty()
    lines = Lines(stream)
    stream.close()
    lines.say("nobody reads this")
    lines.change("nor this")


def test_a_line_and_its_end_are_written_in_one_piece():
    """Two processes that write to one pipe never share a line."""
    pieces = []

    class Pipe(io.StringIO):
        def write(self, text: str) -> int:
            pieces.append(text)
            return len(text)

    assert inform("some text", Pipe())
    assert [piece for piece in pieces if piece] == ["some text\n"]
