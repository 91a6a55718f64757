"""The generator against its published size and a literal restatement."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kd.models.generator import Generator


def test_published_size():
    with torch.device("meta"):
        generator = Generator()
    assert sum(parameter.numel() for parameter in generator.parameters()) == 2_328_899


@pytest.mark.parametrize(("size", "channels"), [(4, 1), (8, 1), (28, 1), (32, 3), (64, 3)])
def test_images_of_every_size(size, channels):
    torch.manual_seed(0)
    images = Generator(noise_dim=10, width=4, image_size=size, channels=channels)(torch.randn(3, 10))
    assert images.shape == (3, channels, size, size)
    assert images.min() >= 0
    assert images.max() <= 1
    assert images.std() > 0.01


@pytest.mark.parametrize("size", [30, 2, 0, -4])
def test_other_sizes_are_refused(size):
    with pytest.raises(ValueError, match=f"multiple of 4, not {size}"):
        Generator(image_size=size)


def test_the_layers_are_the_published_ones():
    torch.manual_seed(0)
    generator, noise = Generator(noise_dim=6, width=3, image_size=8), torch.randn(5, 6)
    linear = generator.first
    norm1, norm2, norm3 = (module for module in generator.modules() if isinstance(module, nn.BatchNorm2d))
    conv1, conv2, conv3 = (module for module in generator.modules() if isinstance(module, nn.Conv2d))
    x = norm1(linear(noise).view(5, 6, 2, 2)).repeat_interleave(2, 2).repeat_interleave(2, 3)
    x = F.leaky_relu(norm2(F.conv2d(x, conv1.weight, padding=1)), 0.2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    x = F.leaky_relu(norm3(F.conv2d(x, conv2.weight, padding=1)), 0.2)
    x = torch.sigmoid(F.conv2d(x, conv3.weight, conv3.bias, padding=1))
    torch.testing.assert_close(generator(noise), x)
    assert [conv.bias is None for conv in (conv1, conv2, conv3)] == [True, True, False]


def test_gradients_reach_noise_and_every_parameter():
    torch.manual_seed(0)
    generator, noise = Generator(noise_dim=6, width=3, image_size=8), torch.randn(5, 6, requires_grad=True)
    generator(noise).square().sum().backward()
    assert noise.grad.abs().sum() > 0
    for path, parameter in generator.named_parameters():
        assert parameter.grad is not None, path
        assert parameter.grad.isfinite().all(), path


def test_first_layer_and_its_normalisation_start_again_and_nothing_else():
    generator = Generator(noise_dim=50, width=8, image_size=16)
    first = generator.first.weight
    before = {key: value.clone() for key, value in generator.state_dict().items()}
    state = torch.get_rng_state()
    generator.reset_first_layer(torch.Generator().manual_seed(3))
    assert torch.equal(torch.get_rng_state(), state)  # only its own source of randomness
    assert generator.first.weight is first
    assert first.requires_grad
    assert first.mean().item() == pytest.approx(0, abs=0.001)
    assert first.std().item() == pytest.approx(0.02, rel=0.05)
    assert generator.body[1].weight.std().item() == pytest.approx(0.02, rel=0.6)  # of 16 numbers
    assert torch.all(generator.first.bias == 0)
    assert torch.all(generator.body[1].bias == 0)
    changed = {key for key, value in generator.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {"first.weight", "first.bias", "body.1.weight"}
    again = first.clone()
    generator.reset_first_layer(torch.Generator().manual_seed(3))
    assert torch.equal(first, again)
    generator.reset_first_layer(torch.Generator().manual_seed(4))
    assert not torch.equal(first, again)
    generator.reset_first_layer()
    assert first.std().item() == pytest.approx(0.02, rel=0.05)
