"""Images that stay in their files: processes decode them ahead of the steps that learn from them.

What a batch holds is decided by the run's seed, the epoch and the image alone, so neither the number of processes nor a
stop changes it. kd/data/crops.py makes one image; kd/data/file_list.py has listed the files.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import signal
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from subprocess import Popen
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kd.batch import Batch
from kd.data.augment import Augment
from kd.data.crops import CODE, Wanted, pixels, shared_memory
from kd.data.dataset import Data, Loader, Split, data_of
from kd.data.decoding import fresh_python
from kd.runtime.messages import ConfigError
from kd.settings.shapes import Dataset

AHEAD = 4  # batches that are in memory or on their way to it
KILLED = "a process that decodes images was killed; is there enough memory? The next start goes on from the checkpoint"


@contextmanager
def opened(
    path: Path,
    dataset: Dataset,
    root: Path,
    device: torch.device,
    workers: int,
    part: Callable[[int], tuple[int, int]] = lambda count: (0, count),
) -> Iterator[Data]:
    """Yield the data whose files below `root` a prepared file lists; what decodes them ends with the block.

    `workers` processes decode, with 0 this one does. `part` says which images of a training batch this process needs,
    of those that share a run; the others stay black. Raises ConfigError as kd.data.dataset.load.
    """
    if not os.path.isdir(root):
        raise ConfigError(f"dataset.root: {root} is not there; its images are read while runs learn from them")
    content = torch.load(path, weights_only=True)
    with ExitStack() as stack:
        for split in ("train", "test"):
            names = content[f"{split}_files"].numpy().tobytes().split(b"\0")
            files = Files(os.fsencode(root), names, dataset.image_size, dataset.flip, workers, part, stack, device)
            content[f"{split}_images"] = FileImages(files, np.arange(len(names)))
        yield data_of(content, FileSplit, path, dataset, device)


@dataclass(frozen=True)
class Files:
    """Image files below a root, and how they are read."""

    root: bytes
    names: list[bytes]
    size: int
    flip: bool
    workers: int
    part: Callable[[int], tuple[int, int]]
    stack: ExitStack  # ends what is still at work
    device: torch.device

    def wanted(self, place: int, key: tuple[int, int, int] | None) -> Wanted:
        return os.path.join(self.root, self.names[place]), key

    def batches(self, plans: Iterable[list[Wanted]], rows: int) -> Iterator[Tensor]:
        """Yield the images of each plan, [len(plan), 3, S, S] uint8 in memory; a plan has `rows` images at most.

        AHEAD of them are made at a time; one is overwritten when the next is asked for. Raises ConfigError for a file
        that cannot be decoded, and for a process that was killed.
        """
        make = self._with_workers if self.workers else self._alone
        with contextlib.closing(make(iter(plans), rows)) as made:
            self.stack.callback(made.close)
            yield from made

    def _alone(self, plans: Iterator[list[Wanted]], rows: int) -> Iterator[Tensor]:
        for plan in plans:
            images = np.stack([pixels(wanted, self.size, self.flip) for wanted in plan])
            yield torch.from_numpy(images).permute(0, 3, 1, 2)

    def _with_workers(self, plans: Iterator[list[Wanted]], rows: int) -> Iterator[Tensor]:
        with ExitStack() as started:
            file = os.memfd_create("kd") if hasattr(os, "memfd_create") else _unnamed()  # /dev/shm may be small
            started.callback(os.close, file)
            memory = torch.from_numpy(shared_memory(file, AHEAD, rows, self.size))
            workers = [started.enter_context(_worker(file)) for _ in range(min(self.workers, rows))]
            for worker in workers:
                _ask(worker, CODE)
            if not all([_answer(worker) for worker in workers]):  # kd was replaced on the disk since this run began
                yield from self._alone(plans, rows)
                return
            for worker in workers:
                _ask(worker, (file, AHEAD, rows, self.size, self.flip))
            asked: deque[tuple[int, int]] = deque()  # slot and number of images
            number = 0
            while True:
                while len(asked) < AHEAD and (plan := next(plans, None)) is not None:
                    slot, number = number % AHEAD, number + 1
                    for order, worker in enumerate(workers):
                        start, end = (place * len(plan) // len(workers) for place in (order, order + 1))
                        _ask(worker, (slot, start, plan[start:end]))
                    asked.append((slot, len(plan)))
                if not asked:
                    return
                slot, count = asked.popleft()
                for worker in workers:
                    if (error := _answer(worker)) is not None:
                        raise error
                yield memory[slot, :count].permute(0, 3, 1, 2)


def _unnamed() -> int:
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


@contextmanager
def _worker(file: int) -> Iterator[Popen]:
    worker = fresh_python("kd.data.crops", (file,))
    try:
        yield worker
    finally:
        worker.kill()
        worker.wait()
        worker.stdout.close()
        with contextlib.suppress(OSError):
            worker.stdin.close()


def _ask(worker: Popen, what: Any) -> None:
    try:
        pickle.dump(what, worker.stdin)
        worker.stdin.flush()
    except OSError:
        raise ConfigError(f"compute.workers: {_ended(worker)}") from None


def _answer(worker: Popen) -> Any:
    try:
        return pickle.load(worker.stdout)
    except (EOFError, pickle.UnpicklingError):
        raise ConfigError(f"compute.workers: {_ended(worker)}") from None


def _ended(worker: Popen) -> str:
    code = worker.wait()
    return f"{KILLED} ({signal.Signals(-code).name if code < 0 else f'exit code {code}'})"


@dataclass(frozen=True)
class FileImages:
    """Some of the images [N, 3, S, S], uint8, as far as a tensor of them is used; decoded when they are asked for."""

    files: Files
    places: np.ndarray  # [N], among all files

    def __len__(self) -> int:
        return len(self.places)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self), 3, self.files.size, self.files.size

    def __getitem__(self, index: Tensor | slice) -> FileImages:
        return replace(self, places=self.places[index.cpu().numpy() if isinstance(index, Tensor) else index])

    def to(self, device: torch.device) -> FileImages:
        return replace(self, files=replace(self.files, device=device))

    def split(self, rows: int) -> Iterator[Tensor]:
        """Yield the middles of the images, that many at a time, on the device."""
        plans = ([self.files.wanted(place, None) for place in part] for part in _parts(self.places, rows))
        for images in self.files.batches(plans, min(rows, len(self))) if len(self) else ():
            yield images.to(self.files.device, copy=True)


def _parts(places: np.ndarray, rows: int) -> Iterator[np.ndarray]:
    return (places[start : start + rows] for start in range(0, len(places), rows))


class FileSplit(Split):
    """A split whose images are FileImages."""

    def loader(self, augment: Augment, batch_size: int, generator: torch.Generator) -> FileLoader:
        return FileLoader(self, augment, batch_size, generator)


class FileLoader(Loader):
    """Batches as Loader makes them, from files. Order, crops and flips follow from the generator's seed and the epoch.

    So the place in the epochs is all that a checkpoint holds, and the generator is not drawn from.
    """

    def __init__(self, split: FileSplit, augment: Augment, batch_size: int, generator: torch.Generator):
        super().__init__(split, augment, batch_size, generator)
        device, images = split.labels.device, split.images
        self._seed = generator.initial_seed()
        self._own = slice(*images.files.part(self.batch_size))
        self._images = torch.zeros((self.batch_size, *images.shape[1:]), dtype=torch.uint8, device=device)
        self._images = self._images.contiguous(memory_format=torch.channels_last)  # as files are decoded
        self._index = torch.zeros(self.batch_size, dtype=torch.int64, device=device)
        self._drawn: tuple[int, Tensor] = (-1, self._index)  # an epoch and its order
        self._coming = self._made_from(0)

    def advance(self) -> None:
        """Wait for the next batch's images and bring them to the device; `batch` then returns them."""
        index, images = next(self._coming)
        self._index.copy_(self._on_its_way(index), non_blocking=True)
        self._images[self._own].copy_(self._on_its_way(images), non_blocking=True)
        self._step += 1

    def batch(self) -> Batch:
        images, index = self.augment.normalise(self._images), self._index.clone()
        labels = self.split.labels[index]
        return Batch(images, labels, index, torch.ones_like(labels, dtype=torch.float32))

    def _on_its_way(self, values: Tensor) -> Tensor:
        """Return values from where a GPU fetches them while the host goes on."""
        return values.pin_memory() if self._images.is_cuda else values

    def _made_from(self, step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield index [B] and own images of all batches from a step on."""
        indices: deque[Tensor] = deque()

        def plans() -> Iterator[list[Wanted]]:
            images, place = self.split.images, step
            while True:
                epoch, index = self._index_of(place)
                indices.append(index)
                own = index[self._own].tolist()
                yield [images.files.wanted(images.places[each], (self._seed, epoch, each)) for each in own]
                place += 1

        for made in self.split.images.files.batches(plans(), self._own.stop - self._own.start):
            yield indices.popleft(), made

    def _index_of(self, step: int) -> tuple[int, Tensor]:
        """Return a step's epoch and its images' positions [B] in the split."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._drawn[0] != epoch:
            seed = random.Random(f"{self._seed} {epoch}").getrandbits(63)
            self._drawn = epoch, torch.randperm(len(self.split), generator=torch.Generator().manual_seed(seed))
        return epoch, self._drawn[1][place * self.batch_size :][: self.batch_size]

    @property
    def place(self) -> tuple[int, int, bytes]:
        return self.batch_size, self._step, str(self._seed).encode()

    def state_dict(self) -> dict[str, Any]:
        return {"step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._coming.close()
        self._step = state["step"]
        self._coming = self._made_from(self._step)
