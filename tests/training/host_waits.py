"""Finds what would make a GPU wait: a value that comes to the host, or a size that depends on one.

On the CPU nothing waits, but the operators that would make a GPU wait run there too and carry the same names: torch's
profiler finds them, and where they come from. What the CPU cannot show is a copy from one device to another, so the
same code runs on a GPU, where there is one, with torch.cuda.set_sync_debug_mode("error"): there a wait is an exception.
"""

import json
import re
import sys
import tempfile
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile, record_function

# A value comes to the host, or a size depends on one. Python's own float(), bool(), if and [mask] end in these as well.
WAITING = re.compile(
    r"aten::(item|_local_scalar_dense|is_nonzero|equal|allclose|_to_cpu"
    r"|nonzero|nonzero_numpy|masked_select|bincount|histc|_?unique.*)"
)
# What reads a CPU tensor without any operator, or copies numbers of the host.
FUSED = {"aten::_fused_adam_", "aten::_fused_sgd_"}
HOST_CALLS = {"tolist", "numpy", "__array__", "cpu", "tensor", "as_tensor", "from_numpy", "copy_of_numbers"}
TORCH = str(Path(torch.__file__).parent)


class Labels(TorchFunctionMode):
    """Names every call into torch in the profile: "call item at kd/training/with_data.py:123, train"."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        frame = sys._getframe(1)
        while frame.f_code.co_filename.startswith(TORCH):
            frame = frame.f_back
        file = frame.f_code.co_filename.removeprefix(f"{ROOT}/")
        name = "copy_of_numbers" if copies_numbers(func, args) else func.__name__
        with record_function(f"call {name} at {file}:{frame.f_lineno}, {frame.f_code.co_name}"):
            return func(*args, **(kwargs or {}))


def copies_numbers(func, args):
    """x[index] = 1.0 and x[[0, 2]]: a GPU gets the numbers by a copy that it waits for; x[1:] = 1.0 needs none.

    torch did so at least until June 2026 (https://github.com/pytorch/pytorch/pull/186486); `index_fill_` never does.
    """
    if func not in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
        return False
    index = args[1] if isinstance(args[1], tuple) else (args[1],)
    if any(isinstance(part, list | np.ndarray) for part in index):
        return True
    sliced = all(part is None or part is Ellipsis or isinstance(part, slice) for part in index)
    return func is torch.Tensor.__setitem__ and not sliced and not isinstance(args[2], torch.Tensor)


@contextmanager
def noted():
    """The list that is given fills, on the way out, with what would have made a GPU wait, and from where."""
    found = []
    with profile(activities=[ProfilerActivity.CPU]) as profiled, Labels():
        yield found
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        profiled.export_chrome_trace(str(trace))  # `profiled.events()` takes several times as long
        events = [event for event in json.loads(trace.read_text())["traceEvents"] if event["ph"] == "X"]
    events.sort(key=lambda event: (event["ts"], -event["dur"]))  # what is around an event comes before it
    for position, event in enumerate(events):
        if not is_waiting(event):
            continue
        above = list(ancestors(event, events[:position]))
        if any(map(is_waiting, above)) or any(outer["name"] in FUSED for outer in above):
            continue  # on the CPU these read their step counters and learning rates, which on a GPU stay there
        call = next((outer["name"] for outer in [event, *above] if outer["name"].startswith("call ")), "backward")
        found.append(call if call == event["name"] else f"{event['name']} in {call}")


def ancestors(event, earlier):
    """What was going on around it in its thread, innermost first."""
    end = event["ts"] + event["dur"] - 5e-4  # in microseconds, noted to the nanosecond
    return (outer for outer in reversed(earlier) if outer["ts"] + outer["dur"] > end and outer["tid"] == event["tid"])


def is_waiting(event):
    name = event["name"]
    return bool(WAITING.fullmatch(name)) or (name.startswith("call ") and name.split()[1] in HOST_CALLS)


@contextmanager
def watched(device):
    """Fails when something inside waits; on a GPU the waiting line itself raises RuntimeError."""
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return
    with noted() as found:
        yield
    if found:
        times = Counter(found)
        raise AssertionError("\n".join(["a GPU would wait:", *(f"{times[wait]} x {wait}" for wait in times)]))


GPU = pytest.mark.gpu  # tests/conftest.py skips these where there is none
on_each_device = pytest.mark.parametrize(
    "device", [torch.device("cpu"), pytest.param(torch.device("cuda"), marks=GPU)], ids=["cpu", "cuda"]
)


def expects_a_wait(device, place=""):
    if device.type == "cuda":
        return pytest.raises(RuntimeError, match="synchronizing")
    return pytest.raises(AssertionError, match=rf"a GPU would wait:\n\d+ x .* at .*{place}")
