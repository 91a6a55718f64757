"""Everything that can go wrong with a step, tried: python benchmarks/faults.py

Tiny steps of every kind are killed at their writes, stopped, torn, flipped, put on a full disk or away from their
server; then each is started again, as a user or Snakemake would, and what it leaves is compared with what an
undisturbed one leaves: byte for byte, but for seconds, memory and dates. At last whole studies are killed with their
Snakemake. A process that has imported everything is forked for each attempt, so that one costs half a second.

It needs Linux and the suite's environment (`make .venv/.ready`), and root for disks of a given size. Exit code 1 where
anything was lost, differs or ended with a traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.extend(str(Path(__file__).resolve().parents[1] / name) for name in ("", "tests"))  # whose tiny runs these are
os.environ["KD_TEACHERS"] = "kept"  # below the folder in which a step is done

import fault_studies
from fault_kinds import AT_WRITES, DAMAGES, DRAWN, Fault, Outcome, Prepared, possible, prepared, suffer
from fault_steps import STEPS, warm_up

from kd.runs.provenance import git_state, processor
from kd.runtime.files import write_atomically
from kd.runtime.messages import ConfigError, suggest

KINDS = (*AT_WRITES, *DRAWN, *DAMAGES, *fault_studies.KINDS)
HEAD = ("step", "fault", "possible", "tried", "resumed", "complete", "from the start", "told", "equal", "differing")
HEAD += ("lost", "tracebacks")


def main() -> int:
    given = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    warm_up()
    git = git_state()  # of the code that is tried, whatever is committed meanwhile
    started, folder = time.monotonic(), Path(tempfile.mkdtemp(prefix="kd-faults-", dir=given.folder))
    try:
        outcomes, counts = tried(
            given.only, given.faults, given.studies, given.seed, given.jobs, folder, given.minutes, _progress
        )
    except ConfigError as error:
        sys.exit(f"error: {error}")
    minutes = (time.monotonic() - started) / 60
    text = markdown(outcomes, counts, git, given.seed, given.jobs, minutes)
    if given.out:
        publish(outcomes, text, given.out)
    print(f"\n{text}", flush=True)
    bad = [outcome for outcome in outcomes if is_bad(outcome)]
    for outcome in bad:
        print(f"{outcome.step}, {outcome.kind}, {outcome.place}: {outcome.result}: {outcome.differs or outcome.told}")
    if bad:
        print(f"what they left: {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if bad else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    names = (*STEPS, "study")
    parser.add_argument("--only", nargs="+", default=list(names), metavar="STEP", help=f"of {', '.join(names)}")
    parser.add_argument("--faults", type=int, default=750, help="to steps, at most; drawn evenly over step and fault")
    parser.add_argument(
        "--studies", type=int, default=10, help="studies whose Snakemake is killed (half a minute each)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="faults at a time (default: cores)")
    parser.add_argument("--minutes", type=float, default=30.0, help="after which no other fault is begun (default: 30)")
    parser.add_argument("--folder", type=Path, help="where the worlds are made (default: that of temporary files)")
    parser.add_argument("--out", type=Path, help="folder for table.md and faults.csv")
    given = parser.parse_args()
    for name in given.only:
        if name not in names:
            parser.error(f"--only: got {name!r}; {suggest(name, list(names))}")
    for name, least in (("faults", 1), ("studies", 0), ("jobs", 1), ("seed", 0), ("minutes", 0)):
        if getattr(given, name) < least:
            parser.error(f"--{name}: got {getattr(given, name)}; allowed: {least} or more")
    if given.folder and not given.folder.is_dir():
        parser.error(f"--folder: got {str(given.folder)!r}, which is no folder")
    return given


def tried(
    only: Iterable[str],
    faults: int,
    studies: int,
    seed: int,
    jobs: int,
    folder: Path,
    minutes: float = 30.0,
    progress: Callable[[int, int, Outcome], Any] = lambda done, total, outcome: None,
) -> tuple[list[Outcome], dict[tuple[str, str], int]]:
    """Try faults on the steps named in `only`; return what came out, and how many there could be by step and fault.

    Raises ConfigError where an undisturbed attempt fails.
    """
    until = time.monotonic() + 60 * minutes
    names = [name for name in only if name in STEPS]
    making = [lambda name=name: prepared(name, STEPS[name], folder / name)._replace(step=None) for name in names]
    made: dict[str, Prepared] = {}
    for number, found in in_forks(making, jobs, folder):
        if isinstance(found, str):
            raise ConfigError(found)
        made[names[number]] = Prepared(STEPS[names[number]], Path(found[1]), *found[2:])
    counts, chosen = {}, []
    for name, step in made.items():
        cells = possible(name, step, random.Random(f"{seed} {name}"))
        counts |= {(step.step.name, kind): len(found) for kind, found in cells.items()}
        chosen += [(name, kind, found) for kind, found in cells.items() if found]
    picked = list(drawn(chosen, faults, seed))
    todo = [
        lambda number=number, fault=fault: suffer(fault, made[fault.step], folder / f"fault{number}", seed)
        for number, fault in enumerate(picked)
    ]
    if "study" in only and studies:
        killed = fault_studies.Studies(folder / "study", seed)
        counts |= {(killed.name, kind): -1 for kind in fault_studies.KINDS}
        todo = [*killed.faults(studies), *todo]
    outcomes = []
    for number, found in in_forks(todo, jobs, folder, until):
        if isinstance(found, str):
            found = Outcome("the benchmark itself", "", str(number), "", "", "lost", found, 1, "", "", "", 0.0)
        outcomes.append(Outcome(*found))
        progress(len(outcomes), len(todo), outcomes[-1])
    return outcomes, counts


def drawn(cells: list[tuple[str, str, list[Fault]]], number: int, seed: int) -> Iterator[Fault]:
    """Yield that many faults, one after the other from each cell (a step and a kind of fault) until it is used up."""
    order = [random.Random(f"{seed} {name} {kind}").sample(found, len(found)) for name, kind, found in cells]
    flat = [
        fault for turn in range(max(map(len, order), default=0)) for each in order for fault in each[turn : turn + 1]
    ]
    yield from flat[:number]


def in_forks(
    todo: list[Callable[[], Any]], jobs: int, folder: Path, until: float = math.inf
) -> Iterator[tuple[int, Any]]:
    """Call each function in a fork of its own, `jobs` at a time; yield its number and result as JSON holds it, or what
    it raised as text, in the order in which they end. After `until` (time.monotonic) no other one is begun.
    """
    running: dict[int, int] = {}
    waiting = list(enumerate(todo))[::-1]
    try:
        yield from _in_forks(waiting, running, jobs, folder, until)
    finally:  # interrupted, or nobody wants the rest: attempts in the middle go with the forks that wait for them
        for process in running:
            with contextlib.suppress(ProcessLookupError):  # it has just begun
                os.killpg(process, signal.SIGKILL)
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
        for disk in folder.glob("*.disk"):
            subprocess.run(["umount", str(disk)], capture_output=True)


def _in_forks(
    waiting: list[tuple[int, Callable[[], Any]]], running: dict[int, int], jobs: int, folder: Path, until: float
) -> Iterator[tuple[int, Any]]:
    while waiting or running:
        while waiting and len(running) < jobs and time.monotonic() < until:
            number, do = waiting.pop()
            if (process := os.fork()) == 0:
                os.setpgrp()
                _answer(do, folder / f"answer{number}.json")
            running[process] = number
        if not running:
            return
        process, _ = os.wait()
        number = running.pop(process)
        file = folder / f"answer{number}.json"
        yield number, json.loads(file.read_text("utf-8")) if file.exists() else "it was killed"


def _answer(do: Callable[[], Any], file: Path) -> None:
    """Be the fork: never returns."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        answer: Any = do()
    except BaseException as error:
        answer = f"{type(error).__name__}: {error}"
    write_atomically(file, lambda opened: opened.write(json.dumps(answer, default=str).encode()))
    os._exit(0)


def is_bad(outcome: Outcome) -> bool:
    return outcome.result != "equal" or outcome.tracebacks > 0 or bool(outcome.left)


# ------------------------------------------------------------------------------------------------------------ the table


@dataclass
class Row:
    """What came out of one fault of one kind of step."""

    step: str
    kind: str
    possible: int
    outcomes: list[Outcome]

    def cells(self) -> list[str]:
        went_on = [outcome.went_on for outcome in self.outcomes]
        results = [outcome.result for outcome in self.outcomes]
        counted = [went_on.count(name) for name in HEAD[4:7]] + [sum(bool(each.told) for each in self.outcomes)]
        counted += [results.count(name) for name in HEAD[8:11]] + [sum(each.tracebacks for each in self.outcomes)]
        possible = "" if self.possible < 0 else str(self.possible)
        return [self.step, self.kind, possible, str(len(self.outcomes)), *(str(each or "") for each in counted)]


def rows(outcomes: list[Outcome], counts: dict[tuple[str, str], int]) -> list[Row]:
    """Return a row for each kind of step and fault that was tried, in the order of both."""
    steps = [step.name for step in STEPS.values()]
    cells: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        cells.setdefault((outcome.step, outcome.kind), []).append(outcome)

    def place(cell: tuple[str, str]) -> tuple[int, int]:
        names = (cell[0] in steps and steps.index(cell[0]), cell[1] in KINDS and KINDS.index(cell[1]))
        return (len(steps) if names[0] is False else names[0]), int(names[1])

    return [Row(*cell, counts.get(cell, -1), cells[cell]) for cell in sorted(cells, key=place)]


def markdown(
    outcomes: list[Outcome],
    counts: dict[tuple[str, str], int],
    git: dict[str, str],
    seed: int,
    jobs: int,
    minutes: float,
) -> str:
    """Return the table, with what it was measured on and how to read it."""
    table = [row.cells() for row in rows(outcomes, counts)]
    all_of = Row("(together)", "", -1, outcomes).cells()
    lines = [HEAD, ["---"] * len(HEAD), *table, all_of]
    commit = git["commit"][:10] + (" with local changes" if git["diff"] else "")
    return f"""## Faults

{len(outcomes)} faults in {minutes:.0f} minutes, {jobs} at a time. Commit {commit}, seed {seed}; {processor()},
{os.cpu_count()} cores.

`python benchmarks/faults.py --seed {seed}` makes this table; `faults.csv` has a line per fault. Possible: writes (files
opened, renamed, removed, folders made) of an undisturbed step, or files times states that could be damaged; where fewer
were tried they were drawn. Resumed: went on from a checkpoint. Complete: found complete. From the start: there was no
checkpoint that was whole. Told: a line asked the user to act, or said why the disturbed attempt failed. Equal: what the
step left at last is what an undisturbed one leaves, byte for byte but for seconds, memory and dates. Lost: there was a
checkpoint, and the run began again.

{chr(10).join(f"| {' | '.join(cells)} |" for cells in lines)}
"""


def publish(outcomes: list[Outcome], text: str, folder: Path) -> None:
    """Write table.md and faults.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.md").write_text(text, encoding="utf-8")
    with (folder / "faults.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Outcome._fields)
        writer.writerows(sorted(outcomes))


def _progress(done: int, total: int, outcome: Outcome) -> None:
    bad = f": {outcome.result}, {outcome.tracebacks} tracebacks, left: {outcome.left or 'nothing'}"
    told = f"{outcome.step}, {outcome.kind}, {outcome.place}{bad if is_bad(outcome) else ''}"
    print(f"{done}/{total} {told}", flush=True) if is_bad(outcome) or done % 25 == 0 or done == total else None


if __name__ == "__main__":
    sys.exit(main())
