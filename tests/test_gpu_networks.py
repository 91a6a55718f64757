"""Candidates for a faster step (benchmarks/gpu_networks.py) compute what the networks themselves do."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from conftest import ROOT
from torch import nn

from kd.models.build import build

sys.path.insert(0, str(ROOT / "benchmarks"))
import gpu_networks


def lived(name: str) -> nn.Module:
    """Return a network whose statistics are not those of a new one."""
    torch.manual_seed(0)
    network = build(name, num_classes=5, in_channels=3, image_size=16)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for value in (norm.weight, norm.bias, norm.running_mean):
                nn.init.normal_(value, 0.5, 0.5)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return network.eval().requires_grad_(False)


def count(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


@pytest.mark.parametrize(
    ("name", "left"), [("wrn_16_1", 7), ("wrn_16_2", 7), ("resnet18", 0), ("resnet50", 0), ("resnet8", 0)]
)
def test_a_folded_teacher_is_the_teacher(name, left):
    teacher = lived(name).double()
    before = copy.deepcopy(teacher.state_dict())
    folded = gpu_networks.folded(teacher)
    images = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(folded(images).logits, teacher(images).logits, rtol=1e-9, atol=1e-9)
    asked = {"maps": True, "signed": True}
    for one, other in zip(folded(images, **asked)[2], teacher(images, **asked)[2], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    assert count(folded) == left < count(teacher)
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())


@pytest.mark.parametrize("name", ["wrn_16_1", "resnet8"])
def test_weights_cast_once_give_the_same_bits(name):
    teacher = lived(name)
    images = torch.randn(4, 3, 16, 16)
    cast = gpu_networks.cast_once(teacher)
    assert {parameter.dtype for parameter in teacher.parameters()} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(cast(images).logits, teacher(images).logits)


@pytest.mark.parametrize("kind", [gpu_networks.HalfBatchNorm, gpu_networks.FullBatchNorm])
def test_another_batchnorm_learns_the_same(kind):
    network = lived("resnet8").train()
    other = gpu_networks.with_batchnorm(network, kind)
    assert count(other) == count(network)
    assert type(other.stem[1]) is kind
    images = torch.randn(8, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        one, two = network(images).logits, other(images).logits
    torch.testing.assert_close(two, one, rtol=0.05, atol=0.1)
    assert other.state_dict().keys() == network.state_dict().keys()
    for (name, value), moved in zip(network.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(moved, value, rtol=0.05, atol=0.02, msg=name)


def test_the_backend_of_a_cpu_is_torch_itself():
    assert gpu_networks.backend(torch.randn(2, 4, 3, 3), nn.BatchNorm2d(4)) == "Native"
