"""What the losses on maps share: pooling to one size, pairing of stages, layers drawn from a generator."""

import math
from itertools import product

import pytest
import torch
from torch import nn

from kd.losses.maps import at_least_float32, connection, conv, linear, pool_to_smaller
from kd.registry.loss_pairs import connectable

CPU = torch.device("cpu")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("given", "raised"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_half_precision_is_raised_and_float64_stays(given, raised):
    assert at_least_float32(torch.ones(2, dtype=given)).dtype == raised


def test_the_larger_map_is_averaged_to_the_smaller():
    small = torch.randn(2, 3, 2, 2, generator=generator())
    large = torch.arange(32.0).view(2, 1, 4, 4)
    expected = torch.tensor([[2.5, 4.5], [10.5, 12.5]])
    for pooled, same in (pool_to_smaller(large, small), reversed(pool_to_smaller(small, large))):
        assert same is small
        torch.testing.assert_close(pooled, torch.stack([expected, expected + 16])[:, None])


def test_height_and_width_shrink_apart():
    a, b = pool_to_smaller(torch.ones(1, 1, 4, 3), torch.ones(1, 1, 2, 5))
    assert a.shape == b.shape == (1, 1, 2, 3)


SIZES = list(product(range(1, 7), repeat=4))


def test_a_convolution_brings_a_map_to_the_other_size_wherever_the_registry_says_so():
    """`connectable` needs no torch; `connection` is built and run, for each pair of sizes."""
    made = 0
    for height, width, teacher_height, teacher_width in SIZES:
        shapes = (2, height, width), (3, teacher_height, teacher_width)
        if not connectable(*shapes):
            with pytest.raises(ValueError, match="no convolution"):
                connection(*shapes)
            continue
        layer = conv(2, 3, **connection(*shapes), generator=generator(), device=CPU)
        assert layer(torch.zeros(1, *shapes[0])).shape[1:] == shapes[1]
        made += 1
    assert 0 < made < len(SIZES)


LAYERS = {
    "linear": (lambda g, **bias: linear(50, 60, generator=g, device=CPU, **bias), nn.Linear(50, 60)),
    "conv": (
        lambda g, **bias: conv(6, 80, 3, generator=g, device=CPU, stride=2, padding=1, **bias),
        nn.Conv2d(6, 80, 3, stride=2, padding=1),
    ),
    "transposed": (
        lambda g, **bias: conv(80, 6, 4, generator=g, device=CPU, stride=2, padding=1, transposed=True, **bias),
        nn.ConvTranspose2d(80, 6, 4, stride=2, padding=1),
    ),
}


@pytest.mark.parametrize(("build", "torchs"), LAYERS.values(), ids=LAYERS)
def test_layers_are_torchs_with_its_distribution_from_the_generator_alone(build, torchs):
    before = torch.get_rng_state()
    layer = build(generator())
    assert torch.equal(torch.get_rng_state(), before)
    assert repr(layer) == repr(torchs)
    assert torch.equal(layer.weight, build(generator()).weight)
    assert not torch.equal(layer.weight, build(generator(1)).weight)
    assert build(generator(), bias=False).bias is None
    for ours, theirs in ((layer.weight, torchs.weight), (layer.bias, torchs.bias)):
        assert isinstance(ours, nn.Parameter)
        assert ours.requires_grad
        assert ours.shape == theirs.shape
    bound = torchs.weight.abs().max().item()  # of thousands of uniform values, so near the distribution's
    assert layer.weight.max().item() == pytest.approx(bound, rel=0.01)
    assert layer.weight.min().item() == pytest.approx(-bound, rel=0.01)
    assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert 0 < layer.bias.abs().max().item() <= bound * 1.01
