"""Shapes known without building a network are those of the built one."""

import subprocess
import sys

import pytest

from kd.models.build import build
from kd.registry.models import MODELS, Model, map_shapes

LARGE = ("resnet110", "vgg16", "vgg19", "resnet34")
NAMES = [*(name for name, model in MODELS.items() if model.map_shapes), "resnet26", "wrn_10_1", "wrn_10_4"]


@pytest.mark.parametrize("size", [8, 30, 64])
@pytest.mark.parametrize("name", [name for name in NAMES if name not in LARGE])
def test_they_are_those_of_the_built_network(name, size):
    """Odd halves included: 30 -> 15 -> 8 by convolutions, 7 by pools."""
    assert map_shapes(name, size) == build(name, num_classes=3, image_size=size).map_shapes()


@pytest.mark.parametrize("name", LARGE)
def test_large_ones_too(name):
    assert map_shapes(name, 32) == build(name, num_classes=3).map_shapes()


def test_a_network_from_outside_or_an_entry_without_them_is_not_known(monkeypatch):
    monkeypatch.setitem(MODELS, "silent", Model("kd.models.silent:Silent", {"width": 3}))
    for name in ("torchvision:resnet18", "mine:net", "resnet9", "silent"):
        assert map_shapes(name, 32) is None


def test_an_entry_gives_them_by_what_it_is_built_from(monkeypatch):
    mine = Model("mine:Mine", {"width": 3}, map_shapes=lambda size, width: ((width, size, size),))
    monkeypatch.setitem(MODELS, "mine", mine)
    assert map_shapes("mine", 12) == ((3, 12, 12),)


def test_no_torch_is_needed():
    code = "import sys, kd.registry.models, kd.registry.loss_pairs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
