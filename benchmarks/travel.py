"""State that goes from one machine to the next in files of a bearable size: for benchmarks/gpu_evidence.py."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

from kd.checkpoint import halve
from kd.files import write_atomically
from kd.messages import ConfigError

NAMES = "state.[0-9][0-9]"
Item = tuple[Path, str]  # a file, and its name on the way


def pack(
    out: Path, needed: list[Item], wanted: list[Item], checkpoints: list[Item], part: int, limit: int
) -> list[str]:
    """Fill state.00, state.01, ... of at most `part` bytes; gives what was left behind, or was rounded, in words.

    What is needed goes in any case, what is wanted as long as there are no more than `limit` bytes, in the order given;
    then checkpoints, in half precision where they do not fit in full.
    """
    for old in out.glob(NAMES):
        old.unlink()
    said, parts = [], Parts(out, part)
    with tarfile.open(fileobj=parts, mode="w|") as tar:

        def fits(file: Path, name: str) -> bool:
            if parts.written + file.stat().st_size + 2 * tarfile.RECORDSIZE > limit:
                return False
            tar.add(file, name)
            return True

        for file, name in needed:
            tar.add(file, name)
        said += [f"{name} does not fit and stays behind" for file, name in wanted if not fits(file, name)]
        for file, name in checkpoints:
            if fits(file, name):
                continue
            small = file.with_name("checkpoint.half.pt")
            halve(file, small)
            went = fits(small, name)
            said.append(f"{name} travels in half precision" if went else f"{name} stays behind: its run begins anew")
            small.unlink()
    parts.close()
    return [*said, f"{parts.written / 1e6:.1f} MB of state in {parts.count} parts"]


def unpack(state: Path, places: dict[str, Path], elsewhere: Path) -> int:
    """Put everything to its place (by the first part of its name) unless something is there; gives the number of parts.

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
    """A stream cut into files."""

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
                self.file = (self.folder / f"state.{self.count:02}").open("wb")
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
