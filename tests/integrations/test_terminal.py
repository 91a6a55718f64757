"""What the terminal shows of Snakemake's records, without Snakemake: a study's lines, errors, the end."""

from __future__ import annotations

import io
import json
import logging
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_results import fake_end, fake_finished, find, loaded

from kd.integrations.jobs import open_study, tracker_of
from kd.integrations.terminal import STREAM_HANDLER, Terminal, attach
from kd.runs.folder import Records
from kd.runtime.lines import Lines
from kd.settings.run import Run
from kd.studies.announcing import last_error
from kd.studies.status import states
from kd.studies.study import Study

RUN = {"train": 1, "distill": 1}


def record(event: str | None, text: str = "", level: int = logging.INFO, **extra: Any) -> logging.LogRecord:
    made = logging.LogRecord("snakemake", level, "", 0, text, (), None)
    made.__dict__.update({"event": event} if event else {}, **extra)
    return made


class Shown:
    """A terminal of the study `watched`, of which some runs are to be made, and what is written on it."""

    def __init__(self, study: Study, runs: list[Run], dry: bool = False, **stats: int):
        self.study, self.runs, self.jobs = study, runs, 0
        found, records = states(study), Records(study.root)
        lines = Lines(io.StringIO())
        self.terminal = Terminal(study, found, records, lambda: 2, lambda: [run.path for run in runs], lines, dry)
        assert not self.terminal.leaves(record("workflow_started"))
        self("run_info", stats=RUN | stats | {"total": 99})

    def __call__(self, event: str | None, text: str = "", level: int = logging.INFO, **extra: Any) -> str:
        """Show a record and return the lines that it added."""
        before = len(self.text)
        self.terminal.emit(record(event, text, level, **extra))
        return self.text[before:]

    @property
    def text(self) -> str:
        return self.terminal.lines.stream.getvalue()

    def begin(self, rule: str, reason: str = "", **wildcards: str) -> int:
        self.jobs += 1
        self("job_info", jobid=self.jobs, rule_name=rule, wildcards=wildcards, reason=reason)
        return self.jobs

    def begin_run(self, run: Run, rule: str = "train") -> int:
        return self.begin(rule, run=run.path.removeprefix("runs/"))


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return loaded(tmp_path)


def test_a_line_per_finished_run_says_what_it_is_its_accuracy_seconds_and_time_left(study: Study) -> None:
    fake_finished(study, find(study, "teacher"))
    runs = [find(study, "ssdkd", seed) for seed in (0, 1)]
    shown = Shown(study, runs, train=0, distill=0, datafree=2, figures=1, page=1, tables=1, collect=1, all=1)
    assert shown.text.splitlines()[:4] == [
        "Watched (study watched)",
        "runs     1 of 6 done, 2 to do: 2 distilled without data",
        "jobs     6: 2 runs, tables, figures, report",
        "time     not known yet, no finished run is like these",
    ]
    assert f"logs {study.root}/logs/, Snakemake's in .snakemake/log/" in " ".join(shown.text.split())
    for run, left in zip(runs, ("  20 min left", ""), strict=True):
        job = shown.begin_run(run, "datafree")
        fake_finished(study, run, {"distillation": 1200.4})
        line = shown("job_finished", job_id=job)
        assert line == f"{run.seed + 1}/2  ssdkd, 50 %      seed {run.seed}   50.00 %   1,200 s{left}\n"
    assert "\ntime     about 20 min, 2 runs at a time\n" in Shown(study, runs).text


def test_a_store_that_is_away_is_told_once_whatever_many_runs_say_of_it(study: Study) -> None:
    runs = [find(study, "ssdkd", seed) for seed in (0, 1)]
    shown, noted = Shown(study, runs, train=0, distill=0, datafree=2), []
    open_study(study, noted.append)
    config = {"results": study.root, "study_name": study.name, "tracking": study.tracking, **study.settings}
    lines = []
    for run in runs:
        tracker = tracker_of(
            SimpleNamespace(config=config), run, study.root / run.path, lambda *said: noted.append(said)
        )
        tracker._report(f"MLflow store http://127.0.0.1:9 is away ({run.seed})")
        job = shown.begin_run(run, "datafree")
        fake_finished(study, run)
        lines.append(" ".join(shown("job_finished", job_id=job).split()))
    assert [said for said in noted if said[1]] == [], "in the log of each, not on the terminal"
    assert len(noted) == 2
    told = "MLflow store http://127.0.0.1:9 is away (0); the run goes on, `python -m kd sync "
    assert [told in line for line in lines] == [True, False]
    assert ["is away" in line for line in lines] == [True, False]
    open_study(study, print)
    assert not list(study.root.rglob("store-trouble.txt")), "the next start tells it again"


def test_no_line_is_wider_than_80_columns(tmp_path: Path) -> None:
    long = "a-method-whose-name-is-as-long-as-a-sentence-may-be"
    data = {"methods": ["kd", long], "seeds": [0, 1000]}
    methods = {long: {"kind": "distill", "objective": {"kd": {"weight": 1.0}}}}
    study = loaded(tmp_path, methods=methods, experiments={"data": data})
    shown = Shown(study, [find(study, long), find(study, long, 1000)])
    for seed in (0, 1000):
        job = shown.begin_run(find(study, long, seed), "distill")
        fake_finished(study, find(study, long, seed), {"training": 10_000.0})
        line = shown("job_finished", job_id=job)
        assert len(line) <= 81
        assert "a-method-w" in line
        assert f"seed {seed}" in line


def test_what_is_drawn_is_told_together_and_other_jobs_alone(study: Study) -> None:
    shown = Shown(study, [], train=0, distill=0, figures=1, tables=1)
    data = shown.begin("prepare_data", data="digits-1")
    assert shown("job_finished", job_id=data) == "data prepared: digits-1, 0 s\n"
    trial = shown.begin("trial", tuning="phi", number="3")
    assert shown("job_finished", job_id=trial) == "trial phi 3, 0 s\n"
    for rule in ("figures", "tables", "page", "all"):
        assert shown("job_finished", job_id=shown.begin(rule)) == ""
    assert shown.terminal.drawn()
    assert shown.text.endswith("drawn: tables, figures, report, in 0 s\n\n")


def fail(shown: Shown, job: int, log: Path, program: str = "") -> str:
    if program:
        shown("error", f"RuleException:\nCalledProcessError in file x:\n{program}", logging.ERROR)
    extra = {"jobid": job, "rule_name": "train", "rule_msg": None, "log": [str(log)]}
    return shown("job_error", "", logging.ERROR, thread=threading.get_ident(), **extra)


def test_a_failed_run_shows_its_error_in_full_and_its_log(study: Study, tmp_path: Path) -> None:
    run, log = find(study, "scratch"), tmp_path / "log.txt"
    shown = Shown(study, [run])
    words = "error: epoch 1: loss is nan; " + "lower training.lr or inversion.generator.lr_generator, " * 4
    log.write_text(f"12:00:00 epoch 1\nerror: an older one\n{words}\n")
    fake_end(study, run, "FloatingPointError: loss is nan")
    said = fail(shown, shown.begin_run(run), log, "Command 'x' returned non-zero exit status 1.")
    head, *text, last = said.splitlines()
    assert head == "FAILED   scratch, 100 %, seed 0"
    assert " ".join(" ".join(text).split()) == words.strip()
    assert max(map(len, text)) <= 80
    assert last == f"  log: {log}", "whole, to be copied"
    assert "exit status" not in said, "the log says more"
    shown.terminal.broke_off()
    assert "\n1 job failed; 0 of 6 runs are finished." in shown.text
    assert f"state    python -m kd status {tmp_path / 'watched.yaml'}" in shown.text
    job = shown.begin_run(run)
    fake_finished(study, run)
    shown("job_finished", job_id=job)
    assert not shown.terminal.failed, "a retry made it"


def test_a_run_that_a_cluster_stopped_shows_what_its_executor_says(study: Study) -> None:
    run = find(study, "scratch")
    shown = Shown(study, [run])
    job = shown.begin_run(run)
    fake_end(study, run, None)
    said = "SLURM-job '7' failed, SLURM status is: 'TIMEOUT'. For further error details see the log files."
    extra = {"jobid": job, "rule_name": "train", "rule_msg": said, "log": []}
    lines = shown("job_error", "", logging.ERROR, **extra)
    assert (
        " ".join(lines.split()) == "stopped scratch, 100 %, seed 0: SLURM-job '7' failed, SLURM status is: 'TIMEOUT'."
    )
    assert not shown.terminal.failed


def test_of_runs_in_one_job_only_the_one_that_failed_is_told_as_failed(study: Study) -> None:
    done, wrong, never = find(study, "scratch"), find(study, "kd"), find(study, "ssdkd")
    shown = Shown(study, [done, wrong, never])
    jobs = [shown.begin_run(run) for run in (done, wrong, never)]
    fake_finished(study, done, finished="2999-01-01T00:00:00Z")
    fake_end(study, wrong, "FloatingPointError: loss is nan")

    def job_fails() -> str:
        extra = {"rule_name": "distill", "rule_msg": None, "log": [], "indent": True}
        return "".join(shown("job_error", "", logging.ERROR, jobid=job, **extra) for job in jobs)

    first, failed, *_ = job_fails().splitlines()
    assert first.startswith("1/3  scratch, 100 %")
    assert failed.startswith("FAILED   kd")
    assert len(shown.terminal.failed) == 1
    again = "  again: what this job has not finished\n"
    assert shown(None, "Trying to restart job 7c9e6679-7425-40de-944b-e07fc1f90ae7.") == again
    assert "scratch" not in job_fails(), "it has had its line"
    assert shown("job_finished", job_id=jobs[0]) == ""


def test_a_run_that_was_killed_shows_what_snakemake_knows(study: Study, tmp_path: Path) -> None:
    shown = Shown(study, [find(study, "scratch")])
    job = shown.begin_run(find(study, "scratch"))
    (tmp_path / "log.txt").write_text("12:00:00 epoch 1\n")
    assert "SIGKILL" in fail(shown, job, tmp_path / "log.txt", "Command 'x' died with <Signals.SIGKILL: 9>.")
    assert shown(None, f"Trying to restart job {job}.") == "  again: scratch, 100 %, seed 0\n"


def test_a_wish_to_stop_is_no_failure(study: Study, tmp_path: Path) -> None:
    run = find(study, "scratch")
    shown = Shown(study, [run])
    fake_end(study, run, None)
    assert fail(shown, shown.begin_run(run), tmp_path / "log.txt", "returned non-zero exit status 1") == ""
    assert fail(shown, shown.begin("figures"), tmp_path / "log.txt", "returned non-zero exit status 130") == ""
    assert shown(None, "Terminating processes on user request, this might take some time.") == ""
    assert fail(shown, shown.begin("figures"), tmp_path / "log.txt", "exit status 1") == ""
    before = len(shown.text)
    shown.terminal.broke_off()
    said = " ".join(shown.text[before:].split())
    assert said == "Stopped: 0 of 6 runs are finished. The same command goes on from the checkpoints."


def test_warnings_and_errors_are_shown_in_full_and_little_else(study: Study) -> None:
    shown = Shown(study, [])
    assert shown(None, "Select jobs to execute...") == ""
    assert shown("progress", done=1, total=2) == ""
    assert shown("error", "WorkflowError:\nAt least one job did not complete successfully.", logging.ERROR) == ""
    warning = "No account was given. " * 10
    assert " ".join(shown(None, warning, logging.WARNING).split()) == warning.strip()
    assert shown(None, warning, logging.WARNING) == "", "once"
    assert shown("error", "LockException:\nlocked", logging.ERROR) == "LockException:\nlocked\n"
    assert shown(None, "Will exit after finishing.") == "Will exit after finishing.\n"
    assert shown(None, "Will exit after finishing.") == "", "once"


def test_a_dry_run_says_what_would_be_made_and_why(study: Study) -> None:
    for run in study.runs.values():
        fake_finished(study, run)
    fake_finished(study, find(study, "kd"), code="0123456789")
    runs = [find(study, "kd"), find(study, "scratch")]
    (study.root / find(study, "scratch").path / "run.json").unlink()
    shown = Shown(study, runs, dry=True, figures=1, page=1, all=1)
    for run in runs:
        shown.begin_run(run)
    for rule, reason in (("page", "Missing output files: report.html"), ("figures", "Forced execution")):
        shown.begin(rule, reason)
    shown.begin("all", "Input files updated by another job: x")
    lines = shown("run_info", stats=RUN).splitlines()
    assert any(line.startswith("why      1 run: ") and "will be made again" in line for line in lines)
    assert "         1 run: not made yet" in lines
    assert "         report: not made yet" in lines
    assert "         figures: made by other code, or of other results" in lines
    assert lines[-1] == "dry run  nothing was started; job by job: snakemake -n --quiet host"


def test_where_nothing_is_to_be_done_the_results_are_shown_again(study: Study) -> None:
    for run in study.runs.values():
        fake_finished(study, run)
    shown, results = Shown(study, []), []
    shown.terminal.when_nothing_is_to_be_done = lambda: results.append("shown")
    said = shown(None, "Nothing to be done (all requested files are present and up to date).")
    assert said == "Nothing to be done: 6 of 6 runs of study watched are finished.\n"
    assert results == ["shown"]


def test_snakemakes_own_lines_come_back_where_ours_fail(
    study: Study, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    shown = Shown(study, [])
    monkeypatch.setattr(logging, "raiseExceptions", False)
    shown("job_info", jobid="no rule is named")
    assert shown.terminal.leaves(record("job_info"))
    assert shown(None, "a warning", logging.WARNING) == ""


OUTPUT = {
    "verbose": False,
    "quiet": None,
    "printshellcmds": False,
    "debug_dag": False,
    "dryrun": False,
    "nocolor": True,
}


@pytest.mark.parametrize(
    ("output", "handler", "ours"),
    [
        ({}, STREAM_HANDLER, True),
        ({"verbose": True}, STREAM_HANDLER, False),
        ({"quiet": {"progress"}}, STREAM_HANDLER, False),
        ({"printshellcmds": True}, STREAM_HANDLER, False),
        ({}, "a logger plugin", False),
    ],
)
def test_who_asks_for_snakemakes_lines_gets_them(study: Study, output: dict, handler: str, ours: bool) -> None:
    logger, theirs = logging.Logger("snakemake"), logging.StreamHandler(io.StringIO())
    theirs.name = handler
    logger.addHandler(theirs)
    found = states(study)
    terminal = attach(logger, SimpleNamespace(**OUTPUT | output), study, found, Records(study.root), lambda: 1, list)
    assert (terminal is not None) == ours
    logger.info("Building DAG of jobs...")
    for event in ("workflow_started", "progress"):
        logger.handle(record(event, "many words"))
    assert theirs.stream.getvalue().count("many words") == (0 if ours else 2)
    assert "Building DAG" in theirs.stream.getvalue(), "what is said before is left as it was"


@pytest.mark.parametrize(
    ("log", "found"),
    [
        ("12:00 x\nerror: one\n", "error: one"),
        ("error: one\nerror: two\nof two lines\n", "error: two\nof two lines"),
        (
            "Traceback (most recent call last):\n  x\nValueError: y\n",
            "Traceback (most recent call last):\n  x\nValueError: y",
        ),
        ("12:00 all is well\n", ""),
    ],
)
def test_the_end_of_a_log_is_found(tmp_path: Path, log: str, found: str) -> None:
    (tmp_path / "log.txt").write_text(log)
    assert last_error(tmp_path / "log.txt") == found
    assert last_error(tmp_path / "nothing.txt") == ""


def test_agreement_is_not_called_accuracy(study: Study) -> None:
    run = find(study, "ssdkd")
    shown = Shown(study, [run])
    job = shown.begin_run(run, "datafree")
    folder = fake_finished(study, run)
    (folder / "metrics.json").write_text(json.dumps({"accuracy": 81.5, "scored": "synthetic"}))
    assert "81.50 % agreement" in shown("job_finished", job_id=job)
