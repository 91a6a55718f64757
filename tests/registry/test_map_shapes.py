"""Shapes known without building a network are those of the built one."""

import subprocess
import sys

import pytest

from kd.registry.map_shapes import map_shapes
from kd.registry.models import MODELS, build

NAMES = [*MODELS, "resnet14", "wrn_10_1", "wrn_10_4"]


@pytest.mark.parametrize("size", [8, 30, 64])
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("resnet110", "vgg16", "vgg19", "resnet34")])
def test_they_are_those_of_the_built_network(name, size):
    """Odd halves included: 30 -> 15 -> 8 by convolutions, 7 by pools."""
    assert map_shapes(name, size) == build(name, num_classes=3, image_size=size).map_shapes()


@pytest.mark.parametrize("name", ["resnet110", "vgg16", "vgg19", "resnet34"])
def test_large_ones_too(name):
    assert map_shapes(name, 32) == build(name, num_classes=3).map_shapes()


def test_networks_from_outside_are_not_known():
    assert map_shapes("torchvision:resnet18", 32) is None
    assert map_shapes("mine:net", 32) is None
    assert map_shapes("resnet9", 32) is None


def test_no_torch_is_needed():
    code = "import sys, kd.registry.map_shapes, kd.registry.loss_pairs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
