"""State that travels from one machine to the next in files of limited size, for benchmarks/gpu_evidence.py."""

from __future__ import annotations

import io
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from kd.runtime.checkpoint import halved
from kd.runtime.files import write_atomically
from kd.runtime.messages import ConfigError

NAMES, PART = "state.[0-9][0-9]", "state.{:02}"
Item = tuple[Path, str]  # a file, and its name on the way


def pack(
    out: Path, needed: list[Item], wanted: list[Item], checkpoints: list[Item], part: int, limit: int
) -> list[str]:
    """Fill state.00, state.01, ... of at most `part` bytes; return in words what was left behind or rounded.

    What is needed goes in any case, what is wanted as long as there are no more than `limit` bytes, in the order given;
    then checkpoints, in half precision where they do not fit in full.
    """
    said = []
    with tempfile.TemporaryDirectory() as folder:  # what is in `out` is whole, also when this is killed
        parts = Parts(Path(folder), part)
        with tarfile.open(fileobj=parts, mode="w|") as tar:

            def add(name: str, content: bytes) -> None:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))

            def fits(size: int) -> bool:
                return parts.written + size + 2 * tarfile.RECORDSIZE <= limit

            for file, name in needed:
                add(name, file.read_bytes())
            for file, name in wanted:
                if not file.exists():
                    said.append(f"{name} is not there")
                elif fits(file.stat().st_size):
                    add(name, file.read_bytes())
                else:
                    said.append(f"{name} does not fit and stays behind")
            for file, name in checkpoints:
                try:
                    content = file.read_bytes()
                except FileNotFoundError:  # its run is writing a new one, or has ended
                    continue
                if fits(len(content)):
                    add(name, content)
                elif fits(len(content) // 2) and fits(len(small := halved(content))):  # the cheap question first
                    add(name, small)
                    said.append(f"{name} travels in half precision")
                else:
                    said.append(f"{name} stays behind: its run starts again")
        parts.close()
        for number in range(parts.count):
            shutil.move(Path(folder, PART.format(number)), out / PART.format(number))
    for old in sorted(out.glob(NAMES))[parts.count :]:
        old.unlink()
    return [*said, f"{parts.written / 1e6:.1f} MB of state in {parts.count} parts"]


def unpack(state: Path, places: dict[str, Path], elsewhere: Path) -> int:
    """Put everything in its place (by the first part of its name) unless one is there; return the number of parts.

    Raises ConfigError where the folder holds no state, or not all of it.
    """
    files = sorted(state.glob(NAMES))
    if not files:
        raise ConfigError(f"--state: {state} holds no state.00; give the folder of an earlier --out")
    whole = io.BytesIO(b"".join(file.read_bytes() for file in files))
    try:
        with tarfile.open(fileobj=whole) as tar:
            for member in tar:
                first, _, rest = member.name.partition("/")
                place = places[first] / rest if first in places else elsewhere / member.name
                if member.isfile() and not place.exists():
                    place.parent.mkdir(parents=True, exist_ok=True)
                    content = tar.extractfile(member).read()
                    write_atomically(place, lambda file, content=content: file.write(content))
    except tarfile.TarError as error:
        raise ConfigError(f"--state: {state} is not whole ({error}); bring all of its state.NN") from None
    return len(files)


class Parts(io.RawIOBase):
    """A stream that is cut into files."""

    def __init__(self, folder: Path, part: int):
        self.folder, self.part = folder, part
        self.written = self.count = 0
        self.file: Any = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        rest = view = memoryview(data).cast("B")
        while len(rest):
            if self.written % self.part == 0:
                self._close()
                self.file = (self.folder / PART.format(self.count)).open("wb")
                self.count += 1
            piece = rest[: self.part - self.written % self.part]
            self.file.write(piece)
            self.written += len(piece)
            rest = rest[len(piece) :]
        return len(view)

    def _close(self) -> None:
        if self.file is not None:
            self.file.close()

    def close(self) -> None:
        self._close()
        super().close()
