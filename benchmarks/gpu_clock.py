"""What gpu_steps.py measures with: a clock for calls that nobody waits for, operations, kernels by their kind."""

from __future__ import annotations

import re
import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

# The first that a name matches counts: convertTensor is no convolution, a copy's kernel is called elementwise, too.
KINDS = {
    "fused by the compiler": "^triton_",
    "copies and casts": "copy|converttensor|memcpy|memset|nchwtonhwc|nhwctonchw|catarray",
    "BatchNorm": "batch_?norm|bn_",
    "convolutions and products": "conv|gemm|xmma|cutlass|fprop|dgrad|wgrad|winograd|aten::(add)?mm",
    "elementwise": "elementwise|multi_tensor_apply",
}


class Clock:
    """Times calls that follow each other without a wait: `while clock.more(): call()`.

    After `warm_up` calls that do not count, it notes the time before every `each`-th call, on the device itself.
    """

    def __init__(self, device: torch.device, groups: int, each: int, warm_up: int):
        self.device, self.each, self.warm_up, self.last = device, each, warm_up, groups * each
        self.calls, self.noted = 0, []

    def more(self) -> bool:
        """Return whether one more call is wanted; to be asked before each."""
        counted = self.calls - self.warm_up
        if counted >= 0 and counted % self.each == 0:
            self.noted.append(self._now())
        self.calls += 1
        return counted < self.last

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    @property
    def milliseconds(self) -> float:
        """Return the time of a call: the median over the groups of `each` calls."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            spans = [one.elapsed_time(other) for one, other in zip(self.noted, self.noted[1:], strict=False)]
        else:
            spans = [1e3 * (other - one) for one, other in zip(self.noted, self.noted[1:], strict=False)]
        return statistics.median(spans) / self.each


def milliseconds(call: Callable[[], Any], clock: Clock) -> float:
    while clock.more():
        call()
    return clock.milliseconds


def flops(call: Callable[[], Any]) -> int:
    """Return the operations of convolutions and matrix products, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def kernels(call: Callable[[], Any], device: torch.device) -> dict[str, Any]:
    """Return which share of the kernels' summed time each kind takes in one call, their number and that sum.

    Only what ran on the device counts, so the profiler's own time does not. On a CPU operators count, without those
    that they call. Raises RuntimeError where the profiler has seen nothing.
    """
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(device)
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as found:
        call()
        if on_gpu:
            torch.cuda.synchronize(device)
    if on_gpu:
        events = [event for event in found.events() if event.device_type == DeviceType.CUDA]
        events = [(event.name, event.time_range.elapsed_us()) for event in events if not event.is_user_annotation]
    else:
        operators = (event for event in found.events() if event.name.startswith("aten::"))
        events = [(event.name, event.self_cpu_time_total) for event in operators]
    by_kind: Counter[str] = Counter()
    for name, microseconds in events:
        by_kind[kind(name)] += microseconds
    if not (total := sum(by_kind.values())):
        raise RuntimeError("the profiler has seen no kernel")
    shares = {name: f"{100 * spent / total:.1f} %" for name, spent in by_kind.most_common()}
    return {"ms": total / 1e3, "kernels": len(events), **shares}


def kind(name: str) -> str:
    """Return what a kernel does, by its name."""
    return next((each for each, pattern in KINDS.items() if re.search(pattern, name.lower())), "rest")
