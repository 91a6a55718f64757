"""The finder of waits finds planted ones, says where they are, and takes nothing else for one."""

import copy
import re
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from host_waits import expects_a_wait, noted, on_each_device, watched

from kd.training.step import Sums


def index_by_mask(x):
    return x[x > 0]


def write_by_mask(x):
    x[x > 0] = x[x > 0]


def one_argument_where(x):
    return torch.where(x > 0)


def compare_on_the_host(x):
    return 1 if x.sum() > 0 else 0


def slice_by_a_tensor(x):
    return x[: (x > 0).sum()]


def index_by_a_number_on_the_device(x):
    return x[x.argmax()]


def repeat_by_a_tensor(x):
    return torch.repeat_interleave(x, torch.ones_like(x, dtype=torch.int64))


def index_by_a_list(x):
    return x[[0, 2]]


def write_a_number_by_index(x):
    x[torch.arange(2, device=x.device)] = 1.0


PLANTED = [
    lambda x: x.sum().item(),
    lambda x: float(x.sum()),
    lambda x: f"{x.sum():.2f}",
    lambda x: x.tolist(),
    lambda x: x.cpu(),
    lambda x: np.asarray(x.cpu()),
    lambda x: range(x.argmax()),
    lambda x: x.nonzero(),
    lambda x: x.unique(),
    lambda x: x.masked_select(x > 0),
    lambda x: torch.equal(x, x + 1),
    lambda x: torch.bincount(x.long().abs()),
    lambda x: torch.tensor([1.0, 2.0], device=x.device),
    compare_on_the_host,
    index_by_mask,
    write_by_mask,
    one_argument_where,
    slice_by_a_tensor,
    index_by_a_number_on_the_device,
    repeat_by_a_tensor,
    index_by_a_list,
]


def numbers(device):
    return torch.tensor([1.0, -2.0, 3.0, -4.0], device=device)


@on_each_device
@pytest.mark.parametrize("plant", PLANTED)
def test_a_planted_wait_is_found(plant, device):
    x = numbers(device)
    with expects_a_wait(device), watched(device):
        plant(x)


def test_a_number_written_by_index_is_found():
    """On a GPU too, but whether torch waits there depends on its version."""
    x = numbers("cpu")
    with expects_a_wait(x.device), watched(x.device):
        write_a_number_by_index(x)


def test_a_wait_is_shown_with_its_place():
    with noted() as found:
        sums = Sums(["loss"], torch.device("cpu"))
        sums.add(torch.ones(()))
        sums.read_and_reset()
        if numbers("cpu").sum() > 0:
            pass
    here = r"tests/training/test_host_waits\.py:\d+"
    for wait, expected in zip(
        found,
        [
            r"call tolist at kd/training/step\.py:\d+, read_and_reset",
            rf"call tensor at {here}, numbers",
            rf"aten::is_nonzero in call __bool__ at {here}, test_a_wait_is_shown_with_its_place",
        ],
        strict=True,
    ):
        assert re.fullmatch(expected, wait)


@on_each_device
def test_arithmetic_choice_and_indices_are_no_waits(device):
    x = numbers(device).requires_grad_()
    y = x.detach().clone()
    index = torch.arange(2, device=device)
    with watched(device):
        torch.where(x > 0, x, 0.0).sum().backward()
        y[index] = x.detach()[index]
        y[1:] = 0.0
        y.index_fill_(0, index, 1.0)
        y.scatter_reduce_(0, index, y[index], "amax")
        y.masked_fill_(y > 0, 1.0)
        y.sort(stable=True).indices[:2]
        (y / y.max()).to(torch.float64).cumsum(0)
        torch.full((), torch.inf, device=device)
        copy.deepcopy(y)


def test_only_adams_own_step_counters_are_read_in_its_step():
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([parameter], 0.1, (0.5, 0.999), fused=True)
    for hooked in (False, True):
        hook = optimizer.register_step_post_hook(lambda *_: parameter.sum().item()) if hooked else None
        with expects_a_wait(torch.device("cpu")) if hook else nullcontext(), watched(torch.device("cpu")):
            parameter.sum().backward()
            optimizer.step()
