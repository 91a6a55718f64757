"""What a user sees of a whole study: run by Snakemake, with a run that fails, then without it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from conftest import PAIR, copy_project
from forked_dry_runs import DryRuns
from tiny_study import finish, snakemake, write_study

SLOW, BROKEN = ({"kind": "train", "training": {"lr": lr}} for lr in (0.01, 1e9))
PROFILE = "Using workflow specific profile"  # Snakemake's first line, 92 columns wide, which nothing can change


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess, str]:
    """A study that is finished after a start in which a run failed: its folder, that start, what the last one said."""
    project = copy_project(tmp_path_factory.mktemp("terminal"))
    only = {"data": {"methods": ["scratch", "slow"], "seeds": [0, 1]}, "scale": None}
    broken = {"broken": {"pairs": [PAIR], "methods": ["broken"], "seeds": [0]}}
    settings = {"tracking": {"enabled": False}}
    write_study(project, settings=settings, methods={"slow": SLOW, "broken": BROKEN}, experiments=only | broken)
    failed = snakemake(project, "--cores", "2")
    write_study(project, settings=settings, methods={"slow": SLOW}, experiments=only)
    return project, failed, finish(project).stderr


def lines_of(said: str) -> list[str]:
    return [line for line in said.splitlines() if not line.startswith(PROFILE)]


def test_a_start_shows_a_header_a_line_per_run_and_failures_with_their_log(study: tuple) -> None:
    project, failed, _ = study
    assert failed.returncode != 0
    assert failed.stdout == ""
    title, runs, *lines = lines_of(failed.stderr)
    assert title == "Tiny (study tiny)"
    assert runs == "runs     0 of 5 done, 5 to do: 5 trained on labels"
    made = [line for line in lines if re.match(r"\d/5  ", line)]
    assert [line[:4] for line in made] == [f"{number}/5 " for number in range(1, 5)]
    assert all(re.search(r" seed [01] +\d+\.\d\d % +\d+ s", line) for line in made)
    assert {line.split()[1] for line in made} == {"scratch", "slow"}
    assert "\nFAILED   broken, seed 0\n" in failed.stderr
    assert failed.stderr.count("error: epoch 1: loss is nan; ") == 1
    for log in re.findall(r"^  log: (\S+)$", failed.stderr, re.M):
        assert "error: epoch 1: loss is nan; " in (project / log).read_text("utf-8")
    assert "1 job failed; 4 of 5 runs are finished." in failed.stderr
    assert max(map(len, lines)) <= 80
    assert not re.search("Traceback|RuleException|\033", failed.stderr)


def test_the_end_shows_a_table_and_what_to_do_next(study: tuple) -> None:
    project, _, said = study
    lines = lines_of(said)
    assert "runs     4 of 4 done, 0 to do" in lines
    assert re.search(r"^drawn: tables, figures, report, in \d+ s$", said, re.M), said
    table = said[said.index("accuracy %") :]
    assert re.search(r"^  scratch +\d+\.\d\d ± \d+\.\d\d  2 +\d+\.\d$", table, re.M)
    interval = r"[+-]\d+\.\d\d \([+-]\d+\.\d\d to [+-]\d+\.\d\d\)"
    assert re.search(rf"^  slow +\d+\.\d\d ± \d+\.\d\d  2  {interval} +\d+\.\d$", table, re.M)
    assert "compare   python -m kd compare slow scratch --study tiny" in lines
    for name in ("table", "figures"):
        [path] = re.findall(rf"^{name} +(\S+)$", said, re.M)
        assert (project / path).exists()
    assert max(map(len, lines)) <= 80


def test_snakemakes_log_keeps_everything_and_verbose_shows_it(study: tuple) -> None:
    project, _, _ = study
    first = min((project / ".snakemake/log").iterdir()).read_text("utf-8")
    assert "Finished jobid: " in first
    assert first.count("Error in rule train:") == 1
    with DryRuns(project) as dry:
        ours, theirs, graph = dry(
            *(["--config", "study=tiny", *arguments] for arguments in (["-n"], ["-n", "--verbose"], ["--rulegraph"]))
        )
    assert ours[0] == theirs[0] == graph[0] == 0
    assert lines_of(ours[1]) == ["Nothing to be done: 4 of 4 runs of study tiny are finished."]
    assert "Building DAG of jobs..." in theirs[1]
    assert "Nothing to be done (all requested files" in theirs[1]
    assert "digraph" in graph[1]
    assert "study tiny" not in graph[1]
