"""Sends the networks of the student's step through torch's compiler: the same formulas in fewer, larger GPU kernels.

Only what `train_step` calls is compiled. Scores, the inversion and its hooks, and what losses make of the networks
stay with the modules themselves, which share their parameters and statistics with what is compiled.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from kd.models.classifier import Ensemble
from kd.runtime.checkpoint import global_rng, set_global_rng
from kd.runtime.journal import Journal
from kd.settings.run import Run
from kd.training.step import outputs
from kd.training.stepper import Stepper

# Measured on one H200 with torch 2.11: 20 to 33 s of compiling, 0.8 to 1.6 ms less per captured step of 256 images of
# 32x32. The rule knows only a run's settings: resumed, next to others or with a warm cache its numbers are the same.
EARNED_PIXELS = 33.0 / 0.0008 * 256 * 32**2
HOW: dict[str, Any] = {"dynamic": False, "options": {"fallback_random": True}}  # dropout draws as it does without
RECOMPILE_LIMIT = 64  # as many pairs of networks in one process; torch's own 8 count what all networks have in common
CACHES = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}


def earns(shape: tuple[int, ...], steps: int) -> bool:
    """Return whether a run of so many steps on images [B, C, H, W] wins back the time of compiling."""
    return steps * shape[0] * shape[2] * shape[3] >= EARNED_PIXELS


def possible(device: torch.device) -> bool:
    """Return whether networks are compiled on a device: on a CPU numbers never change."""
    return device.type == "cuda"


def networks(
    run: Run,
    stepper: Stepper,
    journal: Journal,
    student: nn.Module,
    teacher: nn.Module | None,
    shape: tuple[int, ...],
    asked: dict[str, bool],
    steps: int,
) -> tuple[nn.Module, nn.Module | None]:
    """Return what train_step calls as student and teacher: compiled, if that is wanted, possible and earned.

    `shape` [B, C, H, W] is that of a step's images, `asked` is what a step asks of the networks, `steps` are those of
    the whole run. Compiling ends here, in a trial that leaves no trace in the networks. What cannot be compiled runs as
    it is, with a line.
    """
    device = stepper.device
    plain = student, teacher
    if stepper.compile == "off" or (stepper.compile == "auto" and not possible(device)):
        return plain
    if not possible(device):
        stepper.say(f"compute.compile: on, but nothing is compiled on a {device.type.upper()}")
        return plain
    if stepper.compile == "auto" and not earns(shape, steps):
        return plain
    if stepper.cache is not None:
        for variable, folder in CACHES.items():  # before the compiler is imported
            os.environ.setdefault(variable, str((stepper.cache / folder).resolve()))
    try:
        with journal.phase("compiling", device), _untouched(student):
            found = _compiled(student), teacher and _compiled(teacher)
            images = torch.zeros(shape, device=device).contiguous(memory_format=torch.channels_last)
            _try(*found, images, asked, run.precision)
    except Exception as error:  # whatever a compiler raises
        reason = " ".join(str(error).split("\n")[:2])  # the first line often only names the compiler
        stepper.say(
            f"compute.compile: the networks cannot be compiled ({type(error).__name__}: {reason}); "
            "they run as they are, which is slower"
        )
        return plain
    stepper.compiled = [run.model, *(each.model for each in run.teachers or ())]
    return found


def _compiled(network: nn.Module) -> nn.Module:
    """Return the network compiled at its first call, members one by one: their hooks then run outside."""
    if isinstance(network, Ensemble):
        return Ensemble([_compiled(member) for member in network.members])
    return torch.compile(network, **HOW)


def _try(student: nn.Module, teacher: nn.Module | None, images: Tensor, asked: dict[str, bool], precision: str) -> None:
    """Compile the networks by a step of theirs, forward and backward. Raises what the compiler raises."""
    import torch._dynamo

    teacher = teacher.each if isinstance(teacher, Ensemble) else teacher
    with torch._dynamo.config.patch(recompile_limit=RECOMPILE_LIMIT), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice on settings that decide numbers
        seen, _ = outputs(student, teacher, images, asked, precision)
        sum(part.float().sum() for part in tree_leaves(tuple(seen)) if part.requires_grad).backward()


@contextmanager
def _untouched(student: nn.Module) -> Iterator[None]:
    """Leave statistics, gradients and torch's own generators as they were."""
    before, random = [buffer.clone() for buffer in student.buffers()], global_rng()
    try:
        yield
    finally:
        for buffer, value in zip(student.buffers(), before, strict=True):
            buffer.copy_(value)
        student.zero_grad(set_to_none=True)
        set_global_rng(random)
