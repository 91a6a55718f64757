"""What a run records as it goes on, and what it shows."""

import io
import threading
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from kd.runtime import journal as module
from kd.runtime.journal import Journal
from kd.runtime.progress import LINE_EVERY_SECONDS, Progress

CPU = torch.device("cpu")


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still unless it is set."""
    clock = SimpleNamespace(now=1000.0)
    for name in ("monotonic", "perf_counter"):
        monkeypatch.setattr(module.time, name, lambda: clock.now)
    return clock


def quiet():
    return Journal(Progress("run", terminal=io.StringIO()))


# ------------------------------------------------------------------------------------------------------------ journal


def test_rows_counts_and_seconds_survive_a_checkpoint():
    journal = quiet()
    journal.log(1, 3, {"loss": torch.tensor(0.5), "accuracy": 10.0})
    journal.counts["steps"] += 7
    journal.pending["generator"] = 0.25
    with journal.phase("training", CPU):
        pass
    stream = io.BytesIO()
    torch.save(journal.state_dict(), stream)
    again = quiet()
    again.load_state_dict(torch.load(io.BytesIO(stream.getvalue()), weights_only=True))
    assert again.state_dict() == journal.state_dict()
    for one in (journal, again):
        one.log(2, 3, {"loss": 0.25})
        one.counts["steps"] += 1
        one.counts["new"] += 1
    assert again.history == journal.history
    assert again.history[1] == {"epoch": 2.0, "generator": 0.25, "loss": 0.25}
    assert again.counts == {"steps": 8, "new": 1}
    assert again.seconds["training"] == journal.seconds["training"]


def test_a_loaded_journal_shares_nothing_with_its_source():
    journal = quiet()
    journal.log(1, 2, {"loss": 1.0})
    state = journal.state_dict()
    again = quiet()
    again.load_state_dict(state)
    again.history[0]["loss"] = 9.0
    again.log(2, 2, {"loss": 2.0})
    again.counts["x"] += 1
    again.pending["y"] = 1.0
    assert journal.history == [{"epoch": 1.0, "loss": 1.0}]
    assert (journal.counts, journal.pending) == ({}, {})


def test_phases_add_up_over_attempts_and_failures(clock):
    journal = quiet()

    def spend(name, seconds):
        with journal.phase(name, CPU):
            clock.now += seconds

    spend("training", 2.0)
    spend("evaluation", 1.0)
    spend("training", 3.0)
    clock.now += 100.0

    def fail():
        with journal.phase("training", CPU):
            clock.now += 4.0
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert journal.seconds == {"training": 9.0, "evaluation": 1.0}
    again = quiet()
    again.load_state_dict(journal.state_dict())
    journal = again
    spend("training", 0.5)
    assert journal.seconds == {"training": 9.5, "evaluation": 1.0}


def test_a_row_has_plain_numbers_and_what_was_pending_once():
    journal = quiet()
    journal.pending = {"images": 3.0, "loss": 7.0}
    row = journal.log(
        1, 2, {"loss": torch.tensor(2, dtype=torch.float64), "half": torch.tensor(0.5, dtype=torch.bfloat16)}
    )
    assert row == {"epoch": 1.0, "images": 3.0, "loss": 2.0, "half": 0.5}
    assert all(type(value) is float for value in row.values())
    assert journal.pending == {}
    assert journal.log(2, 2, {"loss": 1}) == {"epoch": 2.0, "loss": 1.0}
    assert journal.history == [row, {"epoch": 2.0, "loss": 1.0}]


def test_the_sink_gets_the_whole_history_after_each_row():
    seen = []
    journal = Journal(Progress("run", terminal=io.StringIO()), lambda history: seen.append(len(history)))
    for epoch in (1, 2, 3):
        journal.log(epoch, 3, {})
    assert seen == [1, 2, 3]


# ----------------------------------------------------------------------------------------------------------- progress


def test_a_log_gets_a_line_now_and_then_and_the_last(clock):
    log = io.StringIO()
    progress = Progress("run", terminal=log)
    for epoch in range(1, 98):
        progress.show(epoch, 97, f"loss {epoch}")
        clock.now += 0.99
    lines = log.getvalue().splitlines()
    shown = [int(line.split("epoch ")[1].split("/")[0]) for line in lines]
    assert shown[0] == 1
    assert shown[-1] == 97
    gaps = [0.99 * (after - before) for before, after in pairwise(shown[:-1])]
    assert all(LINE_EVERY_SECONDS <= gap < LINE_EVERY_SECONDS + 1 for gap in gaps)
    assert 9 <= len(shown) <= 11
    assert all("run: epoch " in line and "/97, loss " in line for line in lines)
    assert not set("\r\x1b") & set(log.getvalue())


def test_a_log_file_is_appended_to_and_readable_at_once(tmp_path, clock):
    file = tmp_path / "logs/deep/run.txt"
    terminal = io.StringIO()
    for attempt in (1, 2):
        progress = Progress("run", file, terminal)
        progress.say(f"attempt {attempt}")
        progress.show(attempt, 2, "loss 1")
        assert f"epoch {attempt}/2" in file.read_text()
        progress.close()
    assert [line.split(": ", 1)[1] for line in file.read_text().splitlines()] == [
        "attempt 1",
        "epoch 1/2, loss 1",
        "attempt 2",
        "epoch 2/2, loss 1",
    ]
    assert terminal.getvalue() == ""


def test_a_terminal_gets_a_bar():
    terminal = Terminal()
    progress = Progress("my run", terminal=terminal)
    for epoch in (1, 2, 3, 4):
        progress.show(epoch, 4, f"loss {epoch}")
    progress._bar.refresh()
    text = terminal.getvalue()
    progress.close()
    assert "my run" in text
    assert "4/4" in text
    assert "loss 4" in text
    assert "epoch 4/4" not in text


def test_a_bar_of_a_resumed_run_begins_where_it_was():
    progress = Progress("run", terminal=Terminal())
    progress.show(6, 8, "")
    bar = progress._bar
    assert (bar.initial, bar.n, bar.total) == (5, 6, 8)
    progress.show(8, 8, "")
    assert bar.n == 8
    progress.close()


def test_words_reach_the_terminal_and_the_log(tmp_path):
    terminal = Terminal()
    progress = Progress("run", terminal=terminal)
    progress.say("before the bar")
    progress.show(1, 2, "")
    progress.say("beside the bar")
    progress.close()
    for text in ("run: before the bar\n", "run: beside the bar\n"):
        assert text in terminal.getvalue()
    log = io.StringIO()
    Progress("run", terminal=log).say("hello")
    assert log.getvalue().endswith(" run: hello\n")


def test_a_terminal_and_a_log_file_get_a_bar_and_lines(tmp_path):
    terminal, file = Terminal(), tmp_path / "run.txt"
    progress = Progress("run", file, terminal)
    progress.show(1, 1, "loss 1")
    progress.say("done")
    progress._bar.refresh()
    assert "1/1" in terminal.getvalue()
    progress.close()
    assert "epoch 1/1, loss 1" in file.read_text()
    assert "done" in file.read_text()


def test_closing_leaves_a_stream_open_that_was_only_lent():
    for terminal in (io.StringIO(), Terminal()):
        progress = Progress("run", terminal=terminal)
        progress.show(1, 1, "")
        progress.close()
        assert not terminal.closed


class Failing(Terminal):
    """A stream that takes nothing."""

    def __init__(self, error, tty):
        super().__init__()
        self.error, self.tty = error, tty

    def isatty(self):
        return self.tty

    def write(self, _text):
        raise self.error


def closed(tty):
    stream = Terminal() if tty else io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("tty", [True, False])
@pytest.mark.parametrize("error", [OSError(28, "No space left"), BrokenPipeError(), ValueError("closed"), None])
@pytest.mark.parametrize("log", [None, "/dev/full", "/dev/null/no/folder"])
def test_what_cannot_be_shown_ends_nothing(log, error, tty, tmp_path, monkeypatch):
    stream = closed(tty) if error is None else Failing(error, tty)
    monkeypatch.setattr("sys.stderr", stream)
    progress = Progress("run", log and Path(log), stream)
    progress.say("before")
    for epoch in (1, 2):
        progress.show(epoch, 2, "loss 1")
        progress.say("between")
    progress.close()
    progress.say("after")
    progress.close()


def test_a_terminal_that_fails_holds_up_no_other_run():
    """Of several runs that are made together, each in its thread; tqdm's own lock would stay taken."""
    terminal = Failing(OSError("gone"), tty=True)
    failing, shown = Progress("run", terminal=terminal), Terminal()
    for epoch in (1, 2):
        failing.show(epoch, 9, "loss 1")
    other = Progress("other", terminal=shown)
    thread = threading.Thread(target=other.show, args=(1, 9, "loss 2"), daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()
    assert "other" in shown.getvalue()
    for progress in (failing, other):
        progress.close()


def test_without_a_terminal_there_is_nothing_to_show(monkeypatch):
    monkeypatch.setattr("sys.stderr", None)
    progress = Progress("run", terminal=None)
    progress.say("hello")
    progress.show(1, 1, "loss 1")
    progress.close()


def test_what_a_full_log_does_not_take_goes_to_stderr(capsys):
    progress = Progress("run", Path("/dev/full"), io.StringIO())
    progress.say("checkpoint not written")
    progress.close()
    assert capsys.readouterr().err.endswith(" run: checkpoint not written\n")
