"""How fast a network answers on this machine's CPU: nothing that belongs to a run, but kept in its folder."""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from kd.runs.folder import LATENCY
from kd.runs.provenance import processor
from kd.runtime.files import write_json

BATCH = 64  # images at once, where only their number per second counts
SECONDS = 1.0  # for which each of the two is repeated


@dataclass(frozen=True)
class Latency:
    """Milliseconds until one image has its logits, and images per second in batches of BATCH; medians over calls."""

    milliseconds: float
    images_per_second: float
    measured_on: str  # processor and threads

    def __str__(self) -> str:
        images = f"{self.images_per_second:.3g} images/s in batches of {BATCH}"
        return f"{self.milliseconds:.3g} ms for one image, {images}, {self.measured_on}"

    def keep(self, folder: Path) -> None:
        """Write it to a run's folder, where the table of the networks finds it."""
        write_json(folder / LATENCY, asdict(self))


def latency(network: nn.Module, image: Tensor, seconds: float = SECONDS) -> Latency:
    """Measure a network in eval mode on an image [1, C, S, S], with as many threads as torch has been given."""
    with torch.inference_mode():
        one = _seconds(network, image, seconds)
        many = _seconds(network, image.expand(BATCH, -1, -1, -1).contiguous(), seconds)
    threads = torch.get_num_threads()
    return Latency(1e3 * one, BATCH / many, f"{processor()}, {threads} thread{'s' * (threads > 1)}")


def _seconds(network: nn.Module, images: Tensor, seconds: float) -> float:
    """Return the median of the seconds that a call takes, over at least three, after two that do not count."""
    for _ in range(2):
        network(images)
    calls: list[float] = []
    while len(calls) < 3 or sum(calls) < seconds:
        start = time.perf_counter()
        network(images)
        calls.append(time.perf_counter() - start)
    return statistics.median(calls)
