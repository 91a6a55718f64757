"""Which device a run uses, and how torch is set up there."""

from __future__ import annotations

import torch

from kd.config import Compute, ConfigError


def pick(compute: Compute) -> torch.device:
    """The device of this process; fixes the number of CPU threads. Raises ConfigError for a GPU that is not there."""
    torch.set_num_threads(compute.threads)
    if compute.device == "cpu" or (compute.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    name = "cuda" if compute.device == "auto" else compute.device
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    device = torch.device(name)
    if (device.index or 0) >= count:
        allowed = ", ".join(["auto", "cpu", *(f"cuda:{index}" for index in range(count))])
        raise ConfigError(f"compute.device: got {name!r}, but torch sees {count} GPUs; allowed: {allowed}")
    torch.cuda.set_device(device)  # the generators that a checkpoint saves are those of the current device
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    return torch.device("cuda", device.index or 0)


def describe(device: torch.device) -> str:
    """The device's name for run.json."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"


def peak_memory_mb(device: torch.device) -> float:
    """Largest memory so far in MB: of the GPU's allocator, or of this process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
