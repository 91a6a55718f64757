"""What is said of a study's jobs: what is to be done and why, what is under way, how they ended. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from kd.registry.datasets import SYNTHETIC
from kd.registry.kinds import KINDS
from kd.runs.folder import metrics
from kd.studies.status import State
from kd.studies.time_left import about

KIND_WORDS = {
    "given": "given",
    "train": "trained on labels",
    "distill": "distilled with data",
    "datafree": "distilled without data",
}
JOB_WORDS = {  # in the order in which they are named
    "prepare_data": "data set",
    "worker": "search worker",
    "best": "best settings",
    "tables": "tables",
    "figures": "figures",
    "page": "report",
}
UNCOUNTED, UNNAMED = ("best", "tables", "figures", "page"), ("collect", "all", "tune")
REASONS = {  # of Snakemake, in kd's words
    "missing output files": "not made yet",
    "updated input files": "older than what they are made of",
    "input files updated by another job": "they follow from other jobs",
    "forced execution": "made by other code, or of other results",  # common.smk asks for it where kd knows
}


def announced(
    counts: Mapping[str, int], done: int, runs_of_study: int, seconds: float | None, slots: int
) -> Iterable[tuple[str, str]]:
    """Yield name and text of each line of a header.

    counts: jobs by the name of their rule; done: how many of the study's runs are finished; seconds: expected, None if
    unknown; slots: how many runs are made at the same time.
    """
    runs = sum(counts.get(kind, 0) for kind in KINDS)
    kinds = ", ".join(f"{counts[kind]} {words}" for kind, words in KIND_WORDS.items() if counts.get(kind))
    yield "runs", f"{done} of {runs_of_study} done, {runs} to do" + (f": {kinds}" if kinds else "")
    if others := other_jobs(counts):
        jobs = sum(count for name, count in counts.items() if name not in ("all", "tune"))
        yield "jobs", f"{jobs}: {f'{_runs(runs)}, ' if runs else ''}{others}"
    together = f", {slots} runs at a time" if slots > 1 and runs > 1 else ""
    unknown = "not known yet, no finished run is like these"
    yield "time", unknown if seconds is None else f"about {about(seconds)}{together}"


def _runs(count: int) -> str:
    return f"{count} run{'s' if count > 1 else ''}"


def other_jobs(counts: Mapping[str, int]) -> str:
    """Say in words which jobs there are apart from runs."""
    said, order = [], list(JOB_WORDS)
    for name in sorted(counts, key=lambda name: order.index(name) if name in order else len(order)):
        if name in KINDS or name in UNNAMED:
            continue
        word, count = JOB_WORDS.get(name, name), counts[name]
        said.append(word if name in UNCOUNTED else f"{count} {word}{'s' if count > 1 else ''}")
    return ", ".join(said)


def reasons(runs: Iterable[str], others: Iterable[tuple[str, str]], found: Mapping[str, State]) -> list[str]:
    """Return a line per reason for which jobs would be made: of runs by what kd knows, of others by Snakemake's words.

    runs: paths; others: name of the rule and Snakemake's reason of each other job.
    """
    of_runs = Counter((path in found and found[path].note) or "not made yet" for path in runs)
    lines = [f"{_runs(count)}: {note}" for note, count in of_runs.items()]
    of_others: dict[str, Counter[str]] = {}
    for name, reason in others:
        reason = reason.partition(":")[0].lower()
        of_others.setdefault(REASONS.get(reason, reason), Counter())[name] += 1
    said = ((other_jobs(counts), reason) for reason, counts in of_others.items())
    return [*lines, *(f"{what}: {reason}" for what, reason in said if what)]


def under_way(labels: Iterable[tuple[str, float]], made: int, to_do: int, seconds: float | None) -> str:
    """Return a line on the jobs that are under way: label and share of the epochs that are done."""
    running = [f"{label} {100 * share:.0f} %" if share else label for label, share in labels]
    left = "" if seconds is None else f", about {about(seconds)} left"
    return f"{made}/{to_do}{left}; running: {', '.join(running)}" if running else ""


def score_in(folder: Path) -> str:
    """Return a finished run's accuracy; of synthetic images it is agreement with the teacher."""
    numbers = metrics(folder)
    if "accuracy" not in numbers:
        return "unscored"
    return f"{numbers['accuracy']:.2f} %" + (" agreement" if numbers.get("scored") == SYNTHETIC else "")


def last_error(log: Path) -> str:
    """Return what a job's log says of its end: its line `error: ...`, or its traceback; empty where it says nothing."""
    try:
        lines = log.read_text("utf-8", "replace").splitlines()
    except OSError:
        return ""
    for beginning in ("error: ", "Traceback (most recent call last)"):
        for place in range(len(lines) - 1, -1, -1):
            if lines[place].startswith(beginning):
                return "\n".join(lines[place:])
    return ""
