"""How fast a network answers on this machine: nothing that belongs to a run."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

BATCH = 64  # images at once, where only their number per second counts
SECONDS = 1.0  # for which each of the two is repeated


@dataclass(frozen=True)
class Latency:
    """Milliseconds until one image has its logits, and images per second in batches of BATCH; medians over calls."""

    milliseconds: float
    images_per_second: float

    def __str__(self) -> str:
        return f"{self.milliseconds:.3g} ms for one image, {self.images_per_second:.3g} images/s in batches of {BATCH}"


def latency(network: nn.Module, image: Tensor, seconds: float = SECONDS) -> Latency:
    """Measure a network in eval mode on an image [1, C, S, S], with as many threads as torch has been given."""
    with torch.inference_mode():
        one = _seconds(network, image, seconds)
        many = _seconds(network, image.expand(BATCH, -1, -1, -1).contiguous(), seconds)
    return Latency(1e3 * one, BATCH / many)


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
