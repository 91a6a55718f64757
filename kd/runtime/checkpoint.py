"""Checkpoints, from which a killed run goes on exactly where it was."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import torch

from kd.runtime.files import write_atomically
from kd.runtime.messages import ConfigError

ODD = (TypeError, KeyError, IndexError, AttributeError, ValueError)  # what unfit state leads to, and no machine does
MAGIC = b"kd-checkpoint-1\n"
_AT_WORK: set[Checkpoint] = set()  # of the runs that this process makes
_ASKED: list[int] = []  # signals that have asked its runs to stop


class Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


class Stopped(SystemExit):
    """The run was asked to stop (SIGTERM, Ctrl-C), has saved its state and leaves with a non-zero code."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


@contextlib.contextmanager
def stopping_on_signals(note: Callable[[int], Any] = lambda number: None) -> Iterator[None]:
    """Let SIGTERM and Ctrl-C ask all runs of this process to stop, instead of ending it; `note` gets the number."""

    def stop(number: int, _frame: object) -> None:
        note(number)
        _ASKED.append(number)
        for checkpoint in list(_AT_WORK):
            checkpoint.stopping = number

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        _ASKED.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


class Checkpoint:
    """The saved state of one run, kept outside the declared outputs and removed when the run is complete.

    `parts` are the run's stateful objects by name. The file carries a checksum and the run's identity (settings, seed,
    code, data, teachers); one that is torn, damaged or foreign, or does not fit the parts, is put aside, which `say` is
    told, and the previous one is used. Inside `with checkpoint:` SIGTERM and Ctrl-C only set `stopping`; the loop calls
    `stop_or_save` at every boundary. `guard` is called before each save and raises where this process may no longer
    write here.
    """

    def __init__(
        self,
        folder: Path,
        identity: str,
        every_seconds: float,
        say: Callable[[str], None] = print,
        guard: Callable[[], None] = lambda: None,
    ):
        self.files = [folder / "checkpoint.pt", folder / "checkpoint.previous.pt"]
        self.identity, self.every_seconds, self.say, self.guard = identity, every_seconds, say, guard
        self.stopping = 0  # the signal that asked to stop
        self.told: Callable[[str | None], str | None] = lambda name: name  # tells it to processes that share the run
        self.parts: dict[str, Stateful] = {}  # of the run, once its loop has built them
        self._resumed_from: Path | None = None  # until another one is written
        self._saved_at = time.monotonic()

    def __enter__(self) -> Checkpoint:
        self._entered = contextlib.ExitStack()
        _AT_WORK.add(self)
        self._entered.callback(_AT_WORK.discard, self)
        if threading.current_thread() is threading.main_thread():  # else whoever started the thread handles signals
            self._entered.enter_context(stopping_on_signals())
        elif _ASKED:  # between two runs
            self.stopping = _ASKED[-1]
        return self

    def __exit__(self, _kind: type | None, error: BaseException | None, _trace: object) -> None:
        self._entered.close()
        if self._resumed_from is not None and isinstance(error, ODD) and not isinstance(error, ConfigError):
            with contextlib.suppress(OSError):
                self._put_aside(self._resumed_from, "may have led to this error", "the next start goes on without it")

    def stop_or_save(self, parts: dict[str, Stateful]) -> None:
        """Save if it is time to; when asked to stop, save and raise Stopped."""
        if self.stopping:
            if self.save(parts):
                self.say("asked to stop: state saved, the next start goes on from here")
            else:
                self.say("asked to stop: the next start goes on from the last good state")
            raise Stopped(self.stopping)
        if time.monotonic() - self._saved_at >= self.every_seconds:
            self.save(parts)

    def save(self, parts: dict[str, Stateful]) -> bool:
        """Write all parts and the random state; the previous file is kept. A full disk costs only this save.

        Parts that are not `healthy()`, where they can tell, are not saved: the last good state stays.
        """
        self.guard()
        if not all(part.healthy() for part in parts.values() if hasattr(part, "healthy")):
            self.say("checkpoint not written: a loss is not finite; the last good one is kept")
            return False
        buffer = io.BytesIO()
        torch.save({"identity": self.identity, **_state_of(parts)}, buffer)
        payload = buffer.getbuffer()
        newest, previous = self.files
        staged = newest.with_name("checkpoint.new.pt")
        try:
            write_atomically(staged, lambda file: _write(file, payload))
            if newest.exists():
                newest.replace(previous)
            staged.replace(newest)
            self._resumed_from = None
        except OSError as error:
            with contextlib.suppress(OSError):
                staged.unlink(missing_ok=True)
            self.say(f"checkpoint not written ({error}); the last good one is kept")
            return False
        finally:
            self._saved_at = time.monotonic()
        return True

    def restore(self, parts: dict[str, Stateful]) -> bool:
        """Load the newest checkpoint that fits into the parts; False where there is none, and nothing is changed."""
        self.parts = parts
        found = self._restore(parts)
        self.told(self._resumed_from and self._resumed_from.name)
        return found

    def _restore(self, parts: dict[str, Stateful]) -> bool:
        files = [file for file in self.files if file.exists()]
        fresh = _mapped(_state_of(parts), _host_copy) if files else {}
        for file in files:
            try:
                content = self._read(file)
                _require_alike(fresh, content, "its content")
                self._load(content, parts)
                self._resumed_from = file
            except (OSError, MemoryError, torch.OutOfMemoryError):  # of the machine: the file may be good
                raise
            except Exception as error:  # what a file holds may fail anywhere, on the way or in a part
                self._load(fresh, parts)
                then = "the run begins again" if file is files[-1] else "the one before it is tried"
                self._put_aside(file, f"{_reason(error)}", then)
            else:
                self.say(f"resumed from {file.name}")
                return True
        return False

    def _put_aside(self, file: Path, why: str, then: str) -> None:
        names = itertools.chain(["unusable"], (f"unusable-{number}" for number in itertools.count(2)))
        aside = next(name for name in (file.with_suffix(f".{each}.pt") for each in names) if not name.exists())
        file.rename(aside)  # it must not push out the one before it
        self.say(f"{file.name} {why}; put aside as {aside.name}; {then}")

    def _load(self, content: dict[str, Any], parts: dict[str, Stateful]) -> None:
        for name, part in parts.items():
            part.load_state_dict(content["state"][name])
            if isinstance(part, torch.optim.Optimizer):
                _require_fitting(name, part)
        set_global_rng(content["torch_rng"])

    def _read(self, file: Path) -> dict[str, Any]:
        if not file.is_file():
            raise _Unusable("is no file")
        if (payload := _payload(file.read_bytes())) is None:
            raise _Unusable("is damaged")
        content = torch.load(io.BytesIO(payload), weights_only=True, map_location="cpu")
        if content.get("halved"):
            self.say(f"{file.name} has travelled in half precision: the run goes on from it, but not bit for bit")
            content = _mapped(content, _to_float)
        if content["identity"] != self.identity:
            raise _Unusable("was made with other settings or other code")
        return content

    def remove(self) -> None:
        """Remove all files: the run is complete."""
        folder = self.files[0].parent
        for file in [*folder.glob("checkpoint*.pt"), *folder.glob(".checkpoint*.tmp")]:
            with contextlib.suppress(OSError):  # what stays is in nobody's way
                file.unlink(missing_ok=True)


def halved(data: bytes) -> bytes:
    """Shrink a checkpoint for transfer: return the file with its large float32 tensors in 16 bits.

    A run goes on from it, but not bit for bit. Raises ValueError for a damaged file.
    """
    if (payload := _payload(data)) is None:
        raise ValueError("the checkpoint is damaged")
    content = torch.load(io.BytesIO(payload), weights_only=True, map_location="cpu")
    buffer, file = io.BytesIO(), io.BytesIO()
    torch.save(_mapped(content, _to_half) | {"halved": True}, buffer)
    _write(file, buffer.getbuffer())
    return file.getvalue()


def _to_half(tensor: torch.Tensor) -> torch.Tensor:
    """Return a large tensor in half precision, or in bfloat16 where the range is too small.

    A second moment of Adam that became 0 would let the next step run away.
    """
    if tensor.dtype != torch.float32 or tensor.numel() <= 1000:
        return tensor
    half = tensor.half()
    lost = (half == 0) & (tensor != 0) | ~half.isfinite()
    return tensor.bfloat16() if lost.any() else half


def _host_copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to("cpu", copy=True)


def _to_float(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _mapped(content: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(content, torch.Tensor):
        return change(content)
    if isinstance(content, dict):
        return {key: _mapped(value, change) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return type(content)(_mapped(value, change) for value in content)
    return content


class RandomState:
    """A torch.Generator as a part of a checkpoint."""

    def __init__(self, generator: torch.Generator):
        self.generator = generator

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])


def _require_alike(fresh: Any, given: Any, where: str) -> None:
    """Raise ValueError where a checkpoint lacks what a part has at the start, or holds it as something else."""
    if isinstance(fresh, dict):
        if not isinstance(given, dict) or (missing := sorted(set(fresh) - set(given), key=str)):
            raise ValueError(f"{where} lacks {missing[0]}" if isinstance(given, dict) else f"no {where}")
        for key, value in fresh.items():
            _require_alike(value, given[key], str(key))
    elif fresh is not None and not isinstance(given, (int, float) if isinstance(fresh, float) else type(fresh)):
        raise ValueError(f"{where} is {type(given).__name__}, not {type(fresh).__name__}")
    elif isinstance(fresh, list):
        for one, other in zip(fresh, given, strict=False):
            _require_alike(one, other, where)


def _require_fitting(name: str, optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError where a momentum or the like has another shape than its parameter: fused kernels do not look."""
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, torch.Tensor) and value.numel() != 1 and value.shape != parameter.shape:
                raise ValueError(f"{key} in {name} is {list(value.shape)}, not {list(parameter.shape)}")


class _Unusable(ValueError):
    """Says what is wrong with a checkpoint."""


def _reason(error: Exception) -> str:
    """Say in one line why a checkpoint was not used."""
    if isinstance(error, _Unusable):
        return str(error)
    told = " ".join(str(error).split())[:150]
    return (
        f"cannot be loaded here ({type(error).__name__}: {told}): it is of another device, where it goes on once it is "
        "renamed back, or of an older kd"
    )


def _payload(data: bytes) -> memoryview | None:
    """Return what a checkpoint file holds behind its checksum; None where the checksum differs."""
    start = len(MAGIC) + 64
    payload = memoryview(data)[start:]
    good = data.startswith(MAGIC) and hashlib.sha256(payload).hexdigest().encode() == data[len(MAGIC) : start]
    return payload if good else None


def _write(file: BinaryIO, payload: memoryview) -> None:
    file.write(MAGIC + hashlib.sha256(payload).hexdigest().encode())
    file.write(payload)


def _state_of(parts: dict[str, Stateful]) -> dict[str, Any]:
    """Return all state of a run, by part, with that of torch's own generators."""
    return {"state": {name: part.state_dict() for name, part in parts.items()}, "torch_rng": global_rng()}


def global_rng() -> dict[str, Any]:
    """Return the state of torch's own generators, from which layers such as dropout draw."""
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_global_rng(state: dict[str, Any]) -> None:
    """Set torch's own generators to a state that `global_rng` returned."""
    torch.set_rng_state(state["cpu"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
