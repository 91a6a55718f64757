"""The multiply-adds that plans know without torch are those of the networks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from kd.models.build import build
from kd.registry.models import MODELS, entry


@pytest.mark.parametrize("name", [*MODELS, "resnet14", "wrn_10_1", "wrn_22_4"])
def test_multiply_adds_of_a_network(name: str) -> None:
    counted = []

    def count(layer: nn.Module, _: Any, made: torch.Tensor) -> None:
        counted.append(layer.weight[0].numel() * made[0].numel())

    network = build(name, num_classes=10, in_channels=3, image_size=32).eval()
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(count)
    with torch.no_grad():
        network(torch.zeros(1, 3, 32, 32))
    assert entry(name).multiply_adds == pytest.approx(sum(counted) / 1e6, rel=0.05)
