"""The generator's losses against float64 references, and the hooks that note batch statistics."""

import numpy as np
import pytest
import torch
from torch import nn

from kd.inversion.priors import BatchStatistics, batchnorm_loss, blend, channel_statistics


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed))


class Net(nn.Module):
    """Two BatchNorm layers on inputs far from normalised; `reverse` declares them against their order of use."""

    dense = False

    def __init__(self, reverse=False):
        super().__init__()
        layers = {"first": nn.BatchNorm2d(4), "second": nn.BatchNorm2d(4)}
        for name in reversed(layers) if reverse else layers:
            self.add_module(name, layers[name])
        self.conv = nn.Conv2d(4, 4, 3)
        for seed, parameter in enumerate(self.conv.parameters()):
            parameter.data = randn(*parameter.shape, seed=seed)
        for seed, layer in enumerate((self.first, self.second)):
            layer.running_mean = randn(4, seed=10 + seed)
            layer.running_var = 0.5 + torch.rand(4, generator=generator(20 + seed))
        self.eval().requires_grad_(False)

    def forward(self, x):
        return self.second(self.conv(self.first(x).relu()))

    def inputs(self, x):
        """What each BatchNorm layer gets, in the order of use."""
        return [x, self.conv(self.first(x).relu())]


def slow_statistics(inputs):
    """Mean and biased variance per channel in float64, channel by channel."""
    values = inputs.detach().numpy().astype(np.float64)
    means = [values[:, c].sum() / values[:, c].size for c in range(values.shape[1])]
    variances = [((values[:, c] - mean) ** 2).sum() / values[:, c].size for c, mean in enumerate(means)]
    return np.array(means), np.array(variances)


IMAGES = 3 * randn(6, 4, 5, 7, seed=3) + 2


# --- batch statistics ---


def test_statistics_are_means_and_biased_variances_of_the_inputs():
    net = Net()
    passes = (IMAGES, IMAGES[:2] ** 2)  # what is taken belongs only to the last pass
    slow = [[slow_statistics(inputs) for inputs in net.inputs(images)] for images in passes]
    with BatchStatistics(net) as statistics:
        for images, expected in zip(passes, slow, strict=True):
            net(images)
            for (slow_mean, slow_variance), (mean, variance) in zip(expected, statistics.collect(), strict=True):
                np.testing.assert_allclose(mean.numpy(), slow_mean, rtol=1e-5, atol=1e-5)
                np.testing.assert_allclose(variance.numpy(), slow_variance, rtol=1e-5)
    assert statistics.layers == [net.first, net.second]


def test_hooks_live_only_inside_the_block():
    net = Net()
    assert not any(module._forward_pre_hooks for module in net.modules())
    with BatchStatistics(net):
        assert [len(layer._forward_pre_hooks) for layer in (net.first, net.second, net.conv)] == [1, 1, 0]
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_hooks_are_removed_after_an_exception():
    net = Net()
    with pytest.raises(KeyboardInterrupt), BatchStatistics(net):  # noqa: PT012
        net(IMAGES)
        raise KeyboardInterrupt
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_statistics_pass_gradients_to_the_images():
    net = Net()
    images = IMAGES.clone().requires_grad_()
    with BatchStatistics(net) as statistics:
        net(images)
        (mean, variance), _ = statistics.collect()
    (gradient,) = torch.autograd.grad((mean * randn(4) + variance).sum(), images)
    size = IMAGES[:, 0].numel()
    centred = IMAGES - IMAGES.mean((0, 2, 3), keepdim=True)
    torch.testing.assert_close(gradient, (randn(4).view(4, 1, 1) + 2 * centred) / size, rtol=1e-4, atol=1e-6)


gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=gpu)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_statistics_of_bf16_maps_are_float32_and_their_gradient_is_rounded_only_once(layout, device):
    maps = (3 * randn(32, 4, 8, 8, seed=3) + 2 * randn(4, 1, 1)).to(device, torch.bfloat16, memory_format=layout)
    weights = randn(2, 4, seed=4).to(device)
    found = {}
    for dtype in (torch.bfloat16, torch.float64):
        inputs = maps.to(dtype).requires_grad_()
        mean, variance = channel_statistics(inputs)
        (gradient,) = torch.autograd.grad((mean * weights[0].to(mean) + variance * weights[1].to(mean)).sum(), inputs)
        found[dtype] = mean.detach(), variance.detach(), gradient
    (mean, variance, gradient), exact = found[torch.bfloat16], found[torch.float64]
    torch.testing.assert_close(mean, exact[0].float(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(variance, exact[1].float(), rtol=1e-4, atol=1e-6)
    once = exact[2].to(torch.bfloat16)
    torch.testing.assert_close(gradient, once, rtol=2**-7, atol=0)  # the next number where float32 rounds to a tie
    assert (gradient != once).float().mean() < 0.01


def test_each_layer_is_compared_with_its_own_statistics_whatever_the_order_of_declaration():
    losses = []
    for reverse in (False, True):
        net = Net(reverse)
        with BatchStatistics(net) as statistics:
            net(IMAGES)
            losses.append(batchnorm_loss(statistics.layers, statistics.collect()))
    torch.testing.assert_close(losses[1], losses[0])


# --- the prior ---


def layers_and_batch(seed=0):
    layers = [nn.BatchNorm2d(width) for width in (3, 5)]
    for number, layer in enumerate(layers):
        layer.running_mean = randn(layer.num_features, seed=seed + number)
        layer.running_var = randn(layer.num_features, seed=seed + 10 + number) ** 2
    return layers, statistics(seed + 20)


def statistics(seed):
    return [(randn(width, seed=seed + width), randn(width, seed=seed + 2 * width) ** 2) for width in (3, 5)]


def slow_loss(layers, batch, past, momentum):
    """The equations of loss and blend in float64, one channel at a time."""
    total = 0.0
    for number, layer in enumerate(layers):
        for kind, running in enumerate((layer.running_mean, layer.running_var)):
            squares = 0.0
            for channel, target in enumerate(running.double()):
                value = batch[number][kind][channel]
                value = momentum * past[number][kind][channel].double() + (1 - momentum) * value
                squares = squares + (target - value) ** 2
            total = total + squares.sqrt()
    return total


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_batchnorm_loss_and_its_gradient_equal_the_reference(momentum, as_tensor):
    layers, batch = layers_and_batch()
    past = statistics(70)
    leaves = [value.requires_grad_() for layer in batch for value in layer]
    doubles = [value.detach().double().requires_grad_() for value in leaves]
    expected = slow_loss(layers, [doubles[:2], doubles[2:]], past, momentum)
    share = torch.tensor(momentum, dtype=torch.float64) if as_tensor else momentum
    actual = batchnorm_loss(layers, blend(past, batch, share))
    assert actual.shape == ()
    assert actual.item() == pytest.approx(expected.item(), rel=1e-6)
    for gradient, wanted in zip(
        torch.autograd.grad(actual, leaves), torch.autograd.grad(expected, doubles), strict=True
    ):
        torch.testing.assert_close(gradient.double(), wanted, rtol=1e-5, atol=1e-7)


def test_gradient_is_scaled_by_the_share_of_the_current_batch():
    layers, batch = layers_and_batch()
    past = [tuple(value.clone() for value in layer) for layer in batch]  # so that the blend equals the batch
    leaves = [value.requires_grad_() for layer in batch for value in layer]
    alone = torch.autograd.grad(batchnorm_loss(layers, batch), leaves)
    blended = torch.autograd.grad(batchnorm_loss(layers, blend(past, batch, 0.8)), leaves)
    for plain, scaled in zip(alone, blended, strict=True):
        torch.testing.assert_close(scaled, 0.2 * plain)


def test_batchnorm_loss_is_zero_at_the_running_statistics_with_a_finite_gradient():
    layers, _ = layers_and_batch()
    batch = [(layer.running_mean.clone(), layer.running_var.clone()) for layer in layers]
    leaves = [value.requires_grad_() for layer in batch for value in layer]
    loss = batchnorm_loss(layers, batch)
    assert loss.item() == 0
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, leaves))


# --- what is remembered ---


def test_blend_keeps_a_share_of_the_past_and_none_at_momentum_0():
    batch, past = statistics(1), statistics(2)
    for layer in batch:
        layer[0].requires_grad_()
    for layer, kept in zip(batch, blend(past, batch, torch.zeros((), dtype=torch.float64)), strict=True):
        assert all(torch.equal(new, value) for new, value in zip(kept, layer, strict=True))
    for old, new, kept in zip(past, batch, blend(past, batch, 0.9), strict=True):
        for kind in (0, 1):
            assert kept[kind].requires_grad == new[kind].requires_grad
            expected = 0.9 * old[kind].double() + 0.1 * new[kind].detach().double()
            torch.testing.assert_close(kept[kind].detach().double(), expected, rtol=1e-6, atol=1e-6)
