"""Total variation, norm, competition and contrast against float64 references written from their equations."""

import math

import numpy as np
import pytest
import torch

from kd.inversion.image_priors import (
    competition_loss,
    contrastive_loss,
    pixel_norm,
    total_variation_l1,
    total_variation_l2,
)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


IMAGES = randn(3, 2, 5, 6)
NEIGHBOURS = ((0, 1), (1, 0), (1, -1), (1, 1))  # right, lower, lower left, lower right


def slow_differences(images):
    """For each kind of neighbour, the list of all differences in the batch."""
    batch, channels, height, width = images.shape
    for down, right in NEIGHBOURS:
        found = []
        for b in range(batch):
            for c in range(channels):
                for y in range(height):
                    for x in range(width):
                        if 0 <= y + down < height and 0 <= x + right < width:
                            found.append(images[b, c, y, x] - images[b, c, y + down, x + right])
        yield found


def slow_l2(images):
    return sum(sum(d * d for d in found) ** 0.5 for found in slow_differences(images))


def slow_l1(images):
    return sum(sum(abs(d) for d in found) / len(found) for found in slow_differences(images))


def slow_norm(images):
    return sum(value * value for value in images.flatten()) ** 0.5


def check(fast, slow, *inputs):
    """Compare value, of any shape, and gradient of its sum with those of the reference in float64."""
    singles = [value.clone().requires_grad_() for value in inputs]
    doubles = [value.double().requires_grad_() for value in inputs]
    actual, expected = fast(*singles), slow(*doubles)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-6)
    for gradient, wanted in zip(
        torch.autograd.grad(actual.sum(), singles), torch.autograd.grad(expected.sum(), doubles), strict=True
    ):
        torch.testing.assert_close(gradient.double(), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("fast", "slow"), [(total_variation_l2, slow_l2), (total_variation_l1, slow_l1), (pixel_norm, slow_norm)]
)
def test_image_priors_and_their_gradients_equal_the_references(fast, slow):
    check(fast, slow, IMAGES)


def test_an_even_image_has_no_variation_and_a_finite_gradient():
    even = torch.full((2, 1, 4, 4), 0.7, requires_grad=True)
    for variation in (total_variation_l2, total_variation_l1):
        value = variation(even)
        assert value.item() == 0
        assert torch.autograd.grad(value, even)[0].isfinite().all()


def slow_competition(temperature):
    def slow(teacher, student):
        losses = []
        for pair in zip(teacher, student, strict=True):
            p, q = ([math.e ** (z / temperature) for z in row] for row in pair)
            p, q = [value / sum(p) for value in p], [value / sum(q) for value in q]
            m = [(one + other) / 2 for one, other in zip(p, q, strict=True)]
            divergences = [sum(a * torch.log(a / b) for a, b in zip(side, m, strict=True)) for side in (p, q)]
            losses.append(1 - sum(divergences) / 2)
        return torch.stack(losses)

    return slow


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_competition_equals_the_reference(temperature):
    logits = 3 * randn(4, 5, seed=1), 3 * randn(4, 5, seed=2)
    check(lambda *both: competition_loss(*both, temperature), slow_competition(temperature), *logits)


def test_competition_is_1_where_both_agree_and_1_minus_log_2_where_they_are_sure_of_different_classes():
    sure = torch.eye(3) * 1000
    torch.testing.assert_close(competition_loss(sure, sure, 1.0), torch.ones(3))
    apart = competition_loss(sure, sure.roll(1, 0), 1.0)
    torch.testing.assert_close(apart, torch.full((3,), 1 - math.log(2)))
    torch.testing.assert_close(apart, competition_loss(sure.roll(1, 0), sure, 1.0))


COUNTED = torch.tensor([True, True, False, True, True, False])


def slow_contrast(temperature):
    def slow(anchors, others):
        losses = []
        for i in range(len(anchors)):
            scores = [sum(a * o for a, o in zip(anchors[i], other, strict=True)) / temperature for other in others]
            total = sum(torch.exp(score) for score, counts in zip(scores, COUNTED.tolist(), strict=True) if counts)
            losses.append(-torch.log(torch.exp(scores[i]) / total))
        return torch.stack(losses)[COUNTED]

    return slow


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_contrast_equals_the_reference(temperature):
    views = [torch.nn.functional.normalize(randn(6, 4, seed=seed), dim=1) for seed in (3, 4)]
    check(lambda *both: contrastive_loss(*both, temperature, COUNTED)[COUNTED], slow_contrast(temperature), *views)


def test_contrast_is_log_n_where_all_are_alike_and_0_where_each_is_its_own_only_neighbour():
    alike, every = torch.eye(4)[[0] * 5], torch.ones(5, dtype=torch.bool)
    torch.testing.assert_close(contrastive_loss(alike, alike, 0.1, every), torch.full((5,), math.log(5)))
    apart = torch.eye(5)
    assert contrastive_loss(apart, apart, 0.01, every).abs().max() < 1e-6
    np.testing.assert_array_equal(contrastive_loss(apart, apart, 0.1, torch.arange(5) == 0)[0], 0.0)
