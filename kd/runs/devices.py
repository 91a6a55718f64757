"""Which device a run uses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from kd.runs import gpu_slots
from kd.runtime.messages import ConfigError
from kd.settings.shapes import Compute


@contextmanager
def reserved_devices(compute: Compute, say: Callable[[str], None] = print) -> Iterator[list[torch.device]]:
    """Reserve the device of each process of a run until the end of the block, and set the number of CPU threads.

    At most `compute.slots_per_gpu` jobs of this machine share a GPU: this waits while all slots are taken. Only GPUs
    listed in $CUDA_VISIBLE_DEVICES are considered, so that a scheduler's choice holds. Raises ConfigError for a GPU
    that is not there.
    """
    torch.set_num_threads(compute.threads)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if compute.device == "cpu" or (compute.device == "auto" and count == 0):
        yield [torch.device("cpu")] * compute.processes
        return
    wanted = torch.device("cuda" if compute.device == "auto" else compute.device)
    if (wanted.index or 0) >= count:
        allowed = ", ".join(["auto", "cpu", *(f"cuda:{index}" for index in range(count))])
        raise ConfigError(f"compute.device: got {compute.device!r}, but torch sees {count} GPUs; allowed: {allowed}")
    indices = range(count) if wanted.index is None else [wanted.index]
    names = [str(torch.cuda.get_device_properties(index).uuid) for index in indices]
    if compute.processes > len(names):
        raise ConfigError(f"compute.gpu: got {compute.gpu}, but a run can have {len(names)} of the GPUs here; lower it")
    with gpu_slots.slots(names, compute.slots_per_gpu, compute.processes, say) as positions:
        devices = [torch.device("cuda", indices[position]) for position in positions]
        torch.cuda.set_device(devices[0])  # the generators that a checkpoint saves are those of the current device
        yield devices


def describe(device: torch.device) -> str:
    """Return the device's name for run.json."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"


def peak_memory_mb(device: torch.device) -> float:
    """Return the largest memory so far in MB: of the GPU's allocator, or of this process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
