"""What a start of Snakemake shows: a header, a line per finished run, warnings and errors; never imports Snakemake.

A handler of Python's logging, as Snakemake's logger plugins are, but attached by the workflow: a plugin is looked for
before the Snakefile is read, and only among installed packages. Snakemake's log file stays as it is.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd.integrations import snakemake_words as words
from kd.integrations.jobs import STORE_TROUBLE
from kd.registry.kinds import KINDS
from kd.runs.folder import Records, ended, with_results
from kd.runtime.lines import BOLD, DIM, RED, YELLOW, Lines
from kd.runtime.progress import QUIETLY
from kd.studies.announcing import announced, last_error, other_jobs, reasons, score_in, under_way
from kd.studies.command_line import command_for
from kd.studies.estimates import Estimates
from kd.studies.labels import fitted, run_labels, widest
from kd.studies.status import State, again_hints, expected_seconds, share_done, teachers_of
from kd.studies.study import Study
from kd.studies.time_left import TimeLeft, about

STREAM_HANDLER = "DefaultStreamHandler"  # the name of Snakemake's own handler for the terminal
FOLDED = ("collect", "tables", "figures", "page")  # jobs of a second or two, told together
SILENT = ("all", "tune")


@dataclass
class Job:
    """A job that Snakemake has announced."""

    rule: str
    wildcards: dict[str, str]
    reason: str
    began: float

    @property
    def path(self) -> str | None:
        """The path of a run below the results folder; None for any other job."""
        return f"runs/{self.wildcards['run']}" if self.rule in KINDS else None


def attach(
    logger: logging.Logger,
    output: Any,
    study: Study,
    found: dict[str, State],
    records: Records,
    slots: Callable[[], int],
    runs_to_do: Callable[[], list[str]],
) -> Terminal | None:
    """Replace what Snakemake shows on the terminal by lines of ours, from the planning of its jobs on.

    output: Snakemake's output settings. None, and nothing is changed, where they ask for more or for less (`--verbose`,
    `--quiet`, `--printshellcmds`, `--debug-dag`), or where a logger plugin has the terminal.
    slots: returns how many runs may be made at the same time; runs_to_do: the paths of the runs that jobs will make.
    Both are asked when the jobs are planned.
    """
    theirs = next((handler for handler in logger.handlers if handler.name == STREAM_HANDLER), None)
    if theirs is None or output.verbose or output.quiet or output.printshellcmds or output.debug_dag:
        return None
    lines = Lines(sys.stdout if output.dryrun else sys.stderr, bool(output.nocolor))
    ours = Terminal(study, found, records, slots, runs_to_do, lines, bool(output.dryrun))
    theirs.addFilter(ours.leaves)
    logger.addHandler(ours)
    logger.propagate = False  # to a handler that a library, such as MLflow, may add later
    return ours


class Terminal(logging.Handler):
    """Shows Snakemake's records in lines that fit the terminal; where that fails, Snakemake's own come back."""

    def __init__(
        self,
        study: Study,
        found: dict[str, State],
        records: Records,
        slots: Callable[[], int],
        runs_to_do: Callable[[], list[str]],
        lines: Lines,
        dry: bool = False,
    ):
        super().__init__(logging.INFO)
        self.study, self.found, self.records, self.lines, self.dry = study, found, records, lines, dry
        self.slots, self.runs_to_do = slots, runs_to_do
        self.when_nothing_is_to_be_done: Callable[[], None] = lambda: None
        self.active = self.stopped = False
        self.jobs: dict[int, Job] = {}
        self.running: dict[int, Job] = {}
        self.failed: set[str] = set()  # labels of jobs
        needed = set(found) & ({*study.students, *teachers_of(study)} or set(study.runs))  # of a search only: teachers
        self.runs, self.done_before = len(needed), sum(found[path].name == "done" for path in needed)
        self.made, self.to_do = 0, 0
        self._shown: set[str] = set()
        self._told: set[str] = set()  # runs that have their line
        self._began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())  # as in the records of runs
        self._labels: dict[str, str] = {}
        self._seed = 1  # digits
        self._announced, self._folded, self._folded_since = False, Counter[str](), 0.0
        self._program_failed: dict[int | None, str] = {}  # thread -> what Snakemake says of it
        self._estimates: Estimates | None = None
        self._time: TimeLeft | None = None

    def leaves(self, record: logging.LogRecord) -> bool:
        """Whether a record is left to Snakemake's own handler, which asks this: all that comes before jobs are planned.

        So `--lint`, `--report`, `--unlock`, `--dag` and the like are not touched.
        """
        if getattr(record, "event", None) == "workflow_started":
            self.active = True
        return not self.active and not str(record.msg).startswith("Assuming unrestricted shared")

    def emit(self, record: logging.LogRecord) -> None:
        if not self.active:
            return
        try:
            event = getattr(record, "event", None)
            if event in self._EVENTS:
                self._EVENTS[event](self, record)
            elif event is None:
                self._message(record)
        except Exception:
            self.active = False
            self.handleError(record)

    # ------------------------------------------------------------------------------------------------- the header

    def _run_info(self, record: logging.LogRecord) -> None:
        if self._announced:  # a dry run repeats it at its end
            return self._why() if self.dry else None
        self._announced = True
        self._labels = run_labels(self.study)
        self._seed = max(len(str(run.seed)) for run in self.study.runs.values())
        counts = {name: count for name, count in record.stats.items() if name != "total"}
        runs = self.runs_to_do()
        self.to_do = len(runs)
        others = sum(count for name, count in counts.items() if name not in (*KINDS, *SILENT))
        self._time = self._expect(runs, others)
        self.lines.wrapped(f"{self.study.title} (study {self.study.name})", BOLD)
        seconds = self._time.seconds(time.monotonic())
        for name, text in announced(counts, self.done_before, self.runs, seconds, self.slots()):
            self.lines.entry(name, text)
        if not self.dry:
            for hint in again_hints(self.found):
                self.lines.entry("again", hint)
            self.lines.entry("logs", f"{self.study.root}/logs/, Snakemake's in .snakemake/log/ (shown: --verbose)")

    def _expect(self, runs: list[str], others: int) -> TimeLeft:
        self._estimates = Estimates(self.records, self.study.runs)
        left = expected_seconds(self.study, self.found, self._estimates)

        def expected(path: str) -> float | None:
            seconds = left.get(path)
            return self._estimates.seconds(self.study.runs[path]) if seconds is None else seconds

        return TimeLeft(expected, runs, others, self.slots())

    def _why(self) -> None:
        jobs = [job for job in self.jobs.values() if job.rule not in SILENT]
        others = [(job.rule, job.reason) for job in jobs if not job.path]
        why = reasons([job.path for job in jobs if job.path], others, self.found)
        for place, reason in enumerate(why):
            self.lines.entry("" if place else "why", reason)
        self.lines.entry("dry run", "nothing was started; job by job: snakemake -n --quiet host")

    # ------------------------------------------------------------------------------------------------------- jobs

    def _job_info(self, record: logging.LogRecord) -> None:
        job = Job(record.rule_name, dict(record.wildcards or {}), str(record.reason or ""), time.monotonic())
        if not self.jobs and not self.dry:
            self.lines.say("")
            self.lines.keep_changing(self._under_way)
        self.jobs[record.jobid] = job
        if self.dry:
            return
        self.running[record.jobid] = job
        if job.path:
            self._time.began(job.path, job.began)
        if job.rule in FOLDED and not self._folded:
            self._folded_since = job.began

    def _warn_of_store(self) -> None:
        """Show once what a run has said of the MLflow store."""
        with QUIETLY:
            text = (self.study.root / "studies" / self.study.name / STORE_TROUBLE).read_text("utf-8")
            if text and text not in self._shown:
                self._shown.add(text)
                self.lines.wrapped(text, YELLOW)

    def _under_way(self) -> str:
        self._warn_of_store()
        with self.lock:
            running, seconds = list(self.running.values()), self._time.seconds(time.monotonic())
        shares = [share_done(self.study.root / job.path) if job.path else 0.0 for job in running[:4]]
        labels = map(self._label, running)
        return under_way(zip(labels, shares, strict=False), self.made, self.to_do, seconds)

    def _job_finished(self, record: logging.LogRecord) -> None:
        job = self.jobs.get(record.job_id)
        self.running.pop(record.job_id, None)
        if job is None or job.rule in SILENT:
            return
        self.failed.discard(self._label(job))
        if job.path:
            return self._run_finished(job.path)
        took = time.monotonic() - job.began
        self._time.other_done()
        if job.rule in FOLDED:
            self._folded[job.rule] += 1
        elif job.rule == "prepare_data":
            self.lines.say(f"data prepared: {job.wildcards['data']}, {took:.0f} s", DIM)
        else:
            self.lines.say(f"{self._label(job)}, {took:.0f} s")

    def _run_finished(self, path: str) -> None:
        if path in self._told:  # it was finished before the job in which it was grouped
            return
        self._told.add(path)
        self._warn_of_store()
        folder, run = self.study.root / path, self.study.runs[path]
        record = with_results(folder)  # None while a network disk does not show it
        seconds = record["seconds"]["total"] if record else None
        self._time.finished(path, seconds, time.monotonic())
        if record:
            self._estimates.learn(run, folder, record)
        self.made += 1
        digits = len(str(self.to_do))
        label = widest(self._labels.values(), self.lines.width - 2 * digits - self._seed - 43)
        left = self._time.seconds(time.monotonic())
        parts = [
            f"{self.made:>{digits}}/{self.to_do}",
            f"{fitted(self._labels[path], label):<{label}}",
            f"seed {run.seed:<{self._seed}}",
            f"{score_in(folder) if record else '':>8}",
            "" if seconds is None else f"{seconds:>6,.0f} s",
            f"{about(left)} left" if left is not None and self.made < self.to_do else "",
        ]
        self.lines.say("  ".join(parts).rstrip())

    def _left_by_its_group(self, path: str) -> None:
        """Tell a run that is finished although the job failed in which it was grouped with others."""
        record = with_results(self.study.root / path)
        if record and record["finished"] >= self._began:
            self._run_finished(path)

    def _label(self, job: Job) -> str:
        if job.path:
            return f"{self._labels[job.path]}, seed {self.study.runs[job.path].seed}"
        return " ".join([job.rule, *job.wildcards.values()])

    # ----------------------------------------------------------------------------------------- warnings and errors

    def _job_error(self, record: logging.LogRecord) -> None:
        said = self._program_failed.pop(record.thread, "")
        self.running.pop(record.jobid, None)
        job = self.jobs.get(record.jobid) or Job(record.rule_name, {}, "", 0.0)
        note = ended(self.study.root / job.path) if job.path else None
        if self.stopped or words.INTERRUPTED.search(said):
            return  # the wish to stop has a line of its own
        if note is not None and note["error"] is None:  # saved; an executor of a cluster knows who stopped it
            if record.rule_msg:
                self.lines.wrapped(f"stopped  {self._label(job)}: {record.rule_msg.partition(words.MORE)[0]}")
            return
        if getattr(record, "indent", False) and job.path and note is None:
            return self._left_by_its_group(job.path)
        logs = [str(file) for file in record.log or ()]
        if job.path:
            self._time.failed(job.path)
        self.failed.add(self._label(job))
        text = next(filter(None, (last_error(Path(file)) for file in logs)), "")
        self.lines.say(f"FAILED   {self._label(job)}", RED)
        self.lines.wrapped(text or "\n".join(filter(None, [record.rule_msg, said])) or "it says not why", RED, "  ")
        for file in [file for file in logs if Path(file).exists()] or logs:
            self.lines.say(f"  log: {min(file, os.path.relpath(file), key=len)}")

    def _error(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text.startswith(words.STOPPED):
            self.stopped = True
        elif words.PROGRAM_FAILED in text:
            self._program_failed[record.thread] = text
        elif not text.startswith(words.NOT_SHOWN):
            self.lines.wrapped(text, RED)

    def _message(self, record: logging.LogRecord) -> None:
        """Show warnings in full, and little of the rest."""
        text = record.getMessage()
        if text.startswith(words.STOPPED):
            self.stopped = True
        elif text.startswith(words.NOTHING):
            said = f"{self.done_before} of {self.runs} runs of study {self.study.name} are finished"
            self.lines.wrapped(f"{words.NOTHING}: {said}.", BOLD)
            if not self.dry:
                self.when_nothing_is_to_be_done()
        elif found := words.RESTART.match(text):
            job = self.jobs.get(int(found[1])) if found[1].isdigit() else None  # else several, grouped in one
            self.lines.say(f"  again: {self._label(job) if job else 'what this job has not finished'}")
        elif (record.levelno >= logging.WARNING or text.startswith(words.SHOWN)) and not text.startswith(
            words.NOT_SHOWN
        ):
            if text not in self._shown or record.levelno >= logging.ERROR:  # of a job's warning once is enough
                self.lines.wrapped(text, RED if record.levelno >= logging.ERROR else YELLOW)
            self._shown.add(text)

    _EVENTS = {  # noqa: RUF012
        "run_info": _run_info,
        "job_info": _job_info,
        "job_finished": _job_finished,
        "job_error": _job_error,
        "error": _error,
    }

    # ----------------------------------------------------------------------------------------------------- the end

    def close(self) -> None:
        self.lines.rest()
        super().close()

    def drawn(self) -> bool:
        """Say which tables and figures were made; whether there were any."""
        self.lines.rest()
        if self._folded:
            seconds = time.monotonic() - self._folded_since
            self.lines.say(f"drawn: {other_jobs(self._folded)}, in {seconds:.0f} s\n")
        return bool(self._folded)

    def broke_off(self) -> None:
        """Say how many runs there are, whether something failed, and how to go on."""
        self.lines.rest()
        finished = f"{self.done_before + self.made} of {self.runs} runs are finished."
        if self.stopped or not self.failed:
            self.lines.wrapped(f"Stopped: {finished} The same command goes on from the checkpoints.", BOLD)
            return
        failed = f"{len(self.failed)} job{'' if len(self.failed) == 1 else 's'} failed; {finished}"
        self.lines.say("")
        self.lines.wrapped(f"{failed} The same command goes on with what is missing.", BOLD)
        self.lines.say(f"state    {command_for(self.study.settings, 'status')}")
        if self.done_before + self.made:
            self.lines.say(f"so far   {command_for(self.study.settings, 'tables')}")
