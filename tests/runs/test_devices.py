"""The choice of a device: the visible GPUs, what a workflow may ask for, and the GPU of a run."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from slot_names import fresh, unheard

from kd.runs import devices, gpu_slots
from kd.runs.gpu_slots import slot, visible_gpus
from kd.runtime.messages import ConfigError
from kd.settings.shapes import Compute

# --------------------------------------------------------------------------------------------------------- visible GPUs


@pytest.mark.parametrize(
    ("chosen", "count"), [("", 0), ("-1", 0), ("NoDevFiles", 0), ("0", 1), ("2,3", 2), ("GPU-8932f937, GPU-a1", 2)]
)
def test_gpus_that_cuda_visible_devices_leaves(
    chosen: str, count: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nvidia_smi(tmp_path, monkeypatch, "GPU 0: NVIDIA H200 (UUID: GPU-1)")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert visible_gpus() == count


def nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, *lines: str, code: int = 0) -> None:
    """Write a stand-in for the driver's tool and make it the only program on $PATH."""
    script = "#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines) + f"exit {code}\n"
    (folder / "nvidia-smi").write_text(script)
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_gpus_without_a_choice_are_all_that_the_driver_lists(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_gpus() == 0  # no driver
    nvidia_smi(tmp_path, monkeypatch, *(f"GPU {n}: NVIDIA H200 (UUID: GPU-{n})" for n in range(3)))
    assert visible_gpus() == 3
    nvidia_smi(tmp_path, monkeypatch, "GPU 0: NVIDIA H200 (UUID: GPU-1)", "  MIG 1g.18gb Device 0: (UUID: MIG-2)")
    assert visible_gpus() == 1
    nvidia_smi(tmp_path, monkeypatch, "NVIDIA-SMI has failed: no driver is running", code=9)
    assert visible_gpus() == 0


@pytest.mark.parametrize(
    ("device", "per_gpu", "seen", "asked", "says"),
    [
        ("auto", 1, "0,1", 2, ""),
        ("auto", 1, "0,1", 1, ""),
        ("auto", 2, "0,1", 4, ""),
        ("cuda", 1, "0,1", None, "2 GPU slots here .* --resources gpu=2"),
        (
            "auto",
            3,
            "0,1",
            None,
            "6 GPU slots here .* --resources gpu=6, .*; compute.slots_per_gpu: got 3; .* take turns",
        ),
        ("auto", 3, "0,1", 6, "compute.slots_per_gpu: got 3; jobs that share a GPU take turns"),
        ("auto", 1, "", 8, "no GPU here: all runs use the CPU"),
        ("cpu", 1, "0,1", 8, ""),
    ],
)
def test_what_a_workflow_may_ask_for(
    device: str, per_gpu: int, seen: str, asked: int | None, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", seen)
    assert re.match(
        f"{says}.*$" if says else "$", gpu_slots.check(Compute.by_hand(device=device, slots_per_gpu=per_gpu), asked)
    )


def test_a_workflow_that_asks_for_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(ConfigError, match=r"^--resources gpu: got 5; allowed: at most 4 "):
        gpu_slots.check(Compute.by_hand(slots_per_gpu=2), 5)
    with pytest.raises(ConfigError, match=r"^--resources gpu: got 2; allowed: at most 1 "):
        gpu_slots.check(Compute.by_hand(device="cuda:1"), 2)  # all jobs want the same GPU
    with pytest.raises(ConfigError, match=r"^compute.device: got 'cuda:2', .*; allowed: auto, cpu, cuda:0, cuda:1$"):
        gpu_slots.check(Compute.by_hand(device="cuda:2"), 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ConfigError, match=r"^compute.device: got 'cuda:0', but no GPU is seen here; allowed: auto"):
        gpu_slots.check(Compute.by_hand(device="cuda:0"), 1)


# ---------------------------------------------------------------------------------------------- reserved_devices


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[str]]:
    """Return a function that makes torch see that many GPUs; it returns their names and the calls of `set_device`."""
    for name in ("deterministic", "benchmark"):
        monkeypatch.setattr(torch.backends.cudnn, name, getattr(torch.backends.cudnn, name))  # restored after the test

    def pretend(count: int) -> SimpleNamespace:
        names, current = fresh(count), []
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=names[index]))
        monkeypatch.setattr(torch.cuda, "set_device", current.append)
        return SimpleNamespace(names=names, current=current)

    return pretend


@contextlib.contextmanager
def on(device: str, **given: Any) -> Iterator[torch.device]:
    with devices.reserved_devices(Compute.by_hand(device=device, **given), unheard) as (only,):
        yield only


def test_a_run_on_several_gpus_has_all_of_them_or_waits(gpus: Callable) -> None:
    seen = gpus(3)
    two = Compute.by_hand(device="auto", gpu=2)
    with devices.reserved_devices(two, unheard) as reserved:
        assert reserved == [torch.device("cuda", 0), torch.device("cuda", 1)]
        assert seen.current == [reserved[0]]
        with pytest.raises(AssertionError, match="fewer than 2 of 3 GPUs have a free slot"):
            devices.reserved_devices(two, unheard).__enter__()
        with on("auto") as left:
            assert left == torch.device("cuda", 2), "the one that was taken in vain is free again"
    with pytest.raises(ConfigError, match=r"compute.gpu: got 4, but a run can have 3 of the GPUs here; lower it"):
        devices.reserved_devices(Compute.by_hand(device="auto", gpu=4), unheard).__enter__()
    with devices.reserved_devices(Compute.by_hand(device="cpu", gpu=3), unheard) as reserved:
        assert reserved == [torch.device("cpu")] * 3


@pytest.mark.parametrize("auto", ["auto", "cuda"])
def test_auto_takes_a_free_gpu(auto: str, gpus: Callable) -> None:
    seen = gpus(2)
    with on(auto) as first, on(auto) as second:
        assert [first, second] == [torch.device("cuda", 0), torch.device("cuda", 1)]
        assert seen.current == [first, second]
        with pytest.raises(AssertionError, match="all 2 GPU slots are taken"), on(auto):
            pass
    with slot(seen.names[:1], 1, unheard), on(auto) as left:  # as another process would, by the device's name
        assert left == torch.device("cuda", 1)


def test_a_gpu_by_number_is_only_that_one(gpus: Callable) -> None:
    seen = gpus(3)
    with on("cuda:1") as device:
        assert device == torch.device("cuda", 1)
        with pytest.raises(AssertionError, match="all 1 GPU slots are taken"), on("cuda:1"):
            pass
        with (
            slot(seen.names[:1], 1, unheard),
            slot(seen.names[2:], 1, unheard),
            pytest.raises(AssertionError, match="all 3"),
            on("auto"),
        ):
            pass
    assert seen.current == [device]


def test_jobs_share_a_gpu_up_to_its_number_of_slots(gpus: Callable) -> None:
    gpus(2)
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(on("auto", slots_per_gpu=2)) for _ in range(4)]
        assert [device.index for device in taken] == [0, 1, 0, 1]


@pytest.mark.parametrize(("count", "device"), [(2, "cuda:7"), (2, "cuda:2"), (0, "cuda:0"), (0, "cuda")])
def test_a_gpu_that_is_not_there_is_refused(count: int, device: str, gpus: Callable) -> None:
    gpus(count)
    allowed = ", ".join(["auto", "cpu", *(f"cuda:{index}" for index in range(count))])
    refused = rf"^compute.device: got '{device}', .* {count} GPUs; allowed: {allowed}$"
    with pytest.raises(ConfigError, match=refused), on(device):
        pass


@pytest.mark.parametrize(("count", "device"), [(2, "cpu"), (0, "cpu"), (0, "auto")])
def test_the_cpu_takes_no_slot(count: int, device: str, gpus: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = gpus(count)
    monkeypatch.setattr(gpu_slots, "slot", unheard)
    with on(device) as first, on(device) as second:
        assert first == second == torch.device("cpu")
    assert seen.current == []


def test_the_number_of_threads_is_fixed(gpus: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    for count, device in ((1, "auto"), (0, "cpu")):
        gpus(count)
        with on(device, threads=3):
            pass
    assert given == [3, 3]
