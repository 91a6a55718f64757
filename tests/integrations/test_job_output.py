"""What a job of Snakemake writes to its log, and what of it comes to a terminal with the study's own lines."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kd.integrations.stopped_jobs import LINES_OF_STUDY

JOB = """
import sys
import warnings
from kd.integrations.jobs import job
from kd.runtime.messages import ConfigError
from kd.runtime.progress import Progress

with job(sys.argv[1]) as say:
    say("of its own: " + "a word, " * 20)
    print("a bar", file=sys.stderr)
    warnings.warn("of a library")
    {end}
"""


def run(log: Path, end: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", JOB.format(end=end), str(log)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})


def test_only_its_own_words_come_to_the_terminal_and_the_log_has_all(tmp_path: Path) -> None:
    log = tmp_path / "logs/job.txt"
    done = run(log, 'raise ConfigError("key: got 1; allowed: 2")', **{LINES_OF_STUDY: "1"})
    assert done.returncode == 1
    assert " ".join(done.stderr.split()) == "of its own: " + "a word, " * 19 + "a word,"
    assert max(map(len, done.stderr.splitlines())) <= 80
    text = log.read_text("utf-8")
    for words in (
        "of its own: a word, a word",
        "a bar\n",
        "UserWarning: of a library",
        "\nerror: key: got 1; allowed: 2\n",
    ):
        assert words in text


def test_without_the_studys_lines_all_is_on_stderr(tmp_path: Path) -> None:
    log = tmp_path / "logs/job.txt"
    done = run(log, 'raise ConfigError("key: got 1; allowed: 2")')
    for words in ("of its own", "a bar", "of a library", "error: key: got 1; allowed: 2"):
        assert words in done.stderr
    assert log.read_text("utf-8").endswith("\nerror: key: got 1; allowed: 2\n")


@pytest.mark.parametrize("lines", [{}, {LINES_OF_STUDY: "1"}])
def test_an_error_is_never_lost_where_the_log_cannot_be_written(tmp_path: Path, lines: dict[str, str]) -> None:
    done = run(tmp_path, 'raise ConfigError("key: got 1")', **lines)  # the log is a folder
    assert done.returncode == 1
    assert "error: key: got 1\n" in done.stderr


def test_a_wish_to_stop_while_torch_is_loaded_is_no_traceback(tmp_path: Path) -> None:
    code = "import kd.integrations.jobs\nraise {}"
    for error, said in (("KeyboardInterrupt", ""), ("ValueError('x')", "ValueError: x\n")):
        command, environment = [sys.executable, "-c", code.format(error)], {**os.environ, LINES_OF_STUDY: "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode != 0
        assert done.stderr.endswith(said)
        assert ("Traceback" in done.stderr) == bool(said)
