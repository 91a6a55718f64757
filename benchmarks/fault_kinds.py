"""What benchmarks/faults.py does to a step, and what came out: the fault, the same step again, the comparison."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from fault_attempts import FAILS, FULL, KILL, TERM, TORN, Ended, Plan, attempt
from fault_steps import URI, Step, checkpoints, differences

from kd.runs.folder import finished

AT_WRITES = (KILL, TORN, TERM, FULL, FAILS)
HALF, EMPTY, FLIP, FOLDER, LINK = "half a file", "an empty file", "a flipped byte", "a folder", "a link to nothing"
DAMAGES = (HALF, EMPTY, FLIP, FOLDER, LINK)
SMALL_DISK, ANY_MOMENT, ANY_TERM = "small disk (tmpfs)", "SIGKILL, any moment", "SIGTERM, any moment"
TWO, FOLLOWER = "two processes at once", "SIGKILL, a follower"
CLOSED, SILENT = "server: closed port", "server: silent"
DRAWN = (ANY_MOMENT, ANY_TERM, SMALL_DISK, TWO, FOLLOWER, CLOSED, SILENT)
HOURS_LATER = 2 * 3600
NOT_OURS = ("job.txt", "teacher.pt", "faults.yaml")  # a log, and what a user brings, whose bytes kd cannot know


class Fault(NamedTuple):
    """`place`: number of a write, a file of the world `start`, or a share of a duration or of a disk."""

    step: str
    kind: str
    start: str  # template, midway or finished
    place: str


class Outcome(NamedTuple):
    """What came out of a fault, as the table counts it."""

    step: str
    kind: str
    place: str
    ended: str  # how the disturbed attempt ended
    went_on: str  # resumed, complete, from the start
    result: str  # equal, differing, lost
    told: str  # the line that asked the user to act, or said why an attempt failed
    tracebacks: int
    left: str  # files that stayed
    aside: str  # files that were put aside
    differs: str
    seconds: float


class Prepared(NamedTuple):
    """The worlds of a step, and what its undisturbed attempt did."""

    step: Step
    worlds: Path
    events: list[str]
    seconds: float

    def world(self, name: str) -> Path:
        return self.worlds / name


def prepared(name: str, step: Step, folder: Path) -> Prepared:
    """Make what a step starts from, what it leaves, and what it leaves when it is killed midway. Raises RuntimeError
    where an undisturbed attempt fails, or two of them differ.
    """
    template, reference, again, midway = (folder / part for part in ("template", "finished", "again", "midway"))
    template.mkdir(parents=True)
    _undisturbed(name, attempt(step.before, template))
    for world in (reference, again, midway):
        shutil.copytree(template, world, symlinks=True)
    first = _undisturbed(name, attempt(step.do, reference))
    _undisturbed(name, attempt(step.do, again))
    if any(found := differences(again, reference)):
        raise RuntimeError(f"{name}: two undisturbed attempts differ: {found}")
    attempt(step.do, midway, Plan(KILL, len(first.events) * 6 // 10))
    return Prepared(step, folder, first.events, first.seconds)


def _undisturbed(name: str, ended: Ended) -> Ended:
    if ended.code or ended.traceback:
        raise RuntimeError(f"{name}: an undisturbed attempt ended with {ended.code}: {ended.said[-2000:]}")
    return ended


def possible(name: str, made: Prepared, draw: random.Random) -> dict[str, list[Fault]]:
    """Return every fault of a step that could be tried, by kind; moments are drawn."""
    writes = [str(number) for number in range(len(made.events))]
    signals = AT_WRITES if made.step.resumes else tuple(kind for kind in AT_WRITES if kind != TERM)
    found = {kind: [Fault(name, kind, "template", place) for place in writes] for kind in signals}
    for kind in DAMAGES:
        found[kind] = [
            Fault(name, kind, start, file.relative_to(made.world(start)).as_posix())
            for start in (("midway", "finished") if made.step.resumes else ("finished",))
            for file in sorted(made.world(start).rglob("*"))
            if _may_be_damaged(file, kind)
        ]
    shares = [f"{draw.uniform(0.02, 1.0):.3f}" for _ in range(10)]
    kinds = [ANY_MOMENT, *([ANY_TERM, TWO] if made.step.resumes else [])]
    kinds += [SMALL_DISK] if can_mount() else []
    kinds += [FOLLOWER] if name == "team" else []
    for kind in kinds:
        found[kind] = [Fault(name, kind, "template", share) for share in shares]
    if name == "tracked":
        found |= {kind: [Fault(name, kind, "template", share) for share in shares[:2]] for kind in (CLOSED, SILENT)}
    return found


def _may_be_damaged(file: Path, kind: str) -> bool:
    """Whether a file is kd's own and is read again: the run of a finished trial is not, and of a kept teacher only the
    weights have a checksum.
    """
    trial = next((above for above in file.parents if (above / "trial.json").exists()), None)
    if (
        not file.is_file()
        or file.name in NOT_OURS
        or "mlartifacts" in file.parts
        or (trial is not None and file.name != "trial.json")
    ):
        return False
    return kind != FLIP or file.parent.name != "kept" or file.suffix == ".pt"


def suffer(fault: Fault, made: Prepared, world: Path, seed: int) -> Outcome:
    """Bring a fault about in a new folder `world`, do the step again, and compare with the undisturbed one."""
    started, step = time.monotonic(), made.step
    shutil.copytree(made.world(fault.start), world, symlinks=True)
    place, first = fault.place, None
    if fault.kind in DAMAGES:
        damage(world / place, fault.kind, random.Random(f"{seed} {fault}"))
        place = f"{place} ({fault.start})"
    elif fault.kind in AT_WRITES:
        first, place = attempt(step.do, world, Plan(fault.kind, int(place))), made.events[int(place)]
    else:
        first = _drawn(fault, made, world)
    waits = sum(_goes_on(folder) for folder in checkpoints(world))
    _hours_pass(world)
    ended = again = attempt(step.do, world, Plan("none"))
    told = "" if first is None or not first.code else last_line(first.said)
    if again.code and fault.kind in DAMAGES:
        told = last_line(again.said)
        remove(world / fault.place)
        if fault.place.startswith("kept/"):
            shutil.copy(made.world(fault.start) / fault.place, world / fault.place)
        again = attempt(step.do, world, Plan("none"))
    differ, left, aside = differences(world, made.world("finished"))
    if (fault.kind in DAMAGES and Path(fault.place).match("results/data/*.json")) or fault.place.startswith("kept/"):
        # a damaged record of a data set counts as missing: it only informs; a kept teacher is read where it is used
        differ = [name for name in differ if name != fault.place]
    resumed = ended.said.count("resumed from") + (again is not ended) * again.said.count("resumed from")
    said = [one.said for one in (first, ended, again) if one is not None]
    untold = sum(len(aside) > text.count("aside") + text.count("as it was") for text in said[1:2] or said)
    result = "differing" if differ or again.code else "lost" if resumed < waits else "equal"
    tracebacks = sum(one.traceback for one in {id(one): one for one in (first, ended, again) if one}.values())
    ends = "" if first is None else "hung" if first.hung else f"exit code {first.code}"
    if again.code:
        differ = [*differ, f"the step ended with {again.code}: {again.said[-300:]}"]
    went_on = (
        "resumed" if resumed else "complete" if "already complete" in again.said and not waits else "from the start"
    )
    left += ["put aside without a line"] * bool(aside and untold)
    told = told.replace(f"{world.parent}/", "")  # where the worlds are is nobody's business
    texts = (told, tracebacks, "; ".join(left), "; ".join(aside), "; ".join(differ))
    outcome = Outcome(step.name, fault.kind, place, ends, went_on, result, *texts, round(time.monotonic() - started, 2))
    if result == "equal" and not tracebacks:
        shutil.rmtree(world, ignore_errors=True)
    else:
        (world / "said-again.txt").write_text("\n---\n".join(said), encoding="utf-8")
    return outcome


def _goes_on(folder: Path) -> bool:
    """Whether a run that is not complete has a checkpoint that is whole."""
    from kd.runtime.checkpoint import _payload

    if finished(folder) is not None:
        return False
    files = (folder / name for name in ("checkpoint.pt", "checkpoint.previous.pt"))
    return any(file.is_file() and _payload(file.read_bytes()) is not None for file in files)


def last_line(said: str) -> str:
    """Return the last line of an error that an attempt has told."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or [""])[-1][:300]


def _hours_pass(world: Path) -> None:
    """Let every temporary file of a dead writer be of some hours ago."""
    for file in (*world.rglob(".*.tmp"), *world.rglob("*.rename")):
        with contextlib.suppress(OSError):
            os.utime(file, times=(time.time() - HOURS_LATER,) * 2)


def damage(file: Path, kind: str, draw: random.Random) -> None:
    """Damage a file, or put something else in its place."""
    content = file.read_bytes()
    if kind == HALF:
        file.write_bytes(content[: len(content) // 2])
    elif kind == EMPTY:
        file.write_bytes(b"")
    elif kind == FLIP and content:
        place = draw.randrange(len(content))
        file.write_bytes(content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :])
    elif kind in (FOLDER, LINK):
        file.unlink()
        file.mkdir() if kind == FOLDER else file.symlink_to("nowhere/at/all")


def remove(file: Path) -> None:
    """Take away what is in a file's place, as the line on it asks for."""
    if file.is_dir() and not file.is_symlink():
        shutil.rmtree(file)
    else:
        file.unlink(missing_ok=True)


# --------------------------------------------------------------------------------------------------------- other faults


def _drawn(fault: Fault, made: Prepared, world: Path) -> Ended:
    """Bring about a fault whose moment or size is drawn."""
    share, do = float(fault.place), made.step.do
    if fault.kind in (ANY_MOMENT, ANY_TERM):
        return attempt(do, world, Plan(TERM if fault.kind == ANY_TERM else KILL, after=share * made.seconds))
    if fault.kind == SMALL_DISK:
        return _on_small_disk(do, world, share, size(made.world("template")), size(made.world("finished")))
    if fault.kind == TWO:
        other = threading.Thread(target=attempt, args=(do, world, Plan("none"), world.with_name(f"{world.name}.other")))
        other.start()
        time.sleep(share * made.seconds / 2)
        first = attempt(do, world, Plan("none"))
        other.join()
        return first
    if fault.kind == FOLLOWER:
        return attempt(lambda: _losing_a_follower(do, share * made.seconds), world, Plan("none"))
    with _server(fault.kind) as uri:
        os.environ[URI] = uri
        try:
            return attempt(do, world, Plan("none"))
        finally:
            del os.environ[URI]


def _losing_a_follower(do: Callable[[], object], after: float) -> None:
    def kill() -> None:
        time.sleep(after)
        children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text(encoding="utf-8").split()
        for child in children[-1:]:
            os.kill(int(child), signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    do()


def size(folder: Path) -> int:
    """Return the bytes that a folder's files take, in whole pages."""
    return sum(-(-file.stat().st_size // 4096) * 4096 for file in folder.rglob("*") if file.is_file())


def can_mount() -> bool:
    """Whether this user may mount a tmpfs."""
    return os.geteuid() == 0 and subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0


def _on_small_disk(do: Callable[[], object], world: Path, share: float, before: int, after: int) -> Ended:
    """Do the step on a disk that holds only a share of what it writes; then move everything to a larger one."""
    disk = world.with_name(f"{world.name}.disk")
    disk.mkdir()
    room = before + max(8192, int(share * 1.5 * (after - before)))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={room},mode=755", "tmpfs", str(disk)]
    subprocess.run(mount, check=True, capture_output=True)
    try:
        inside = disk / "world"
        shutil.copytree(world, inside, symlinks=True)
        first = attempt(do, inside, Plan("none"), said=world.with_name(f"{world.name}.said"))
        shutil.rmtree(world)
        shutil.copytree(inside, world, symlinks=True)
    finally:
        subprocess.run(["umount", str(disk)], check=True, capture_output=True)
        disk.rmdir()
    return first


@contextlib.contextmanager
def _server(kind: str) -> Iterator[str]:
    """Yield the address of a server that is away, or takes connections and never answers."""
    import socket

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        if kind == SILENT:
            listening.listen(16)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
