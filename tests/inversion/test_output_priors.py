"""The terms of an adversarial generator's loss against float64 references written from their equations."""

import math

import numpy as np
import pytest
import torch

from kd.inversion.output_priors import activation_loss, balance_loss, confidence_loss, divergence_loss


def logits(seed, scale=3.0, samples=7, classes=5):
    return scale * torch.randn(samples, classes, generator=torch.Generator().manual_seed(seed))


def softmax(row):
    powers = [math.exp(value - max(row)) for value in row]
    return [power / sum(powers) for power in powers]


def slow_confidence(teacher):
    return sum(-math.log(max(softmax(row))) for row in teacher) / len(teacher)


def slow_activation(features):
    return -sum(abs(value) for row in features for value in row) / (len(features) * len(features[0]))


def slow_balance(teacher):
    means = [sum(column) / len(teacher) for column in zip(*map(softmax, teacher), strict=True)]
    return sum(mean * math.log(mean) for mean in means)


def slow_divergence(teacher, student):
    total = 0.0
    for one, other in zip(teacher, student, strict=True):
        total += sum(p * math.log(p / q) for p, q in zip(softmax(one), softmax(other), strict=True))
    return -total / len(teacher)


CASES = [
    (confidence_loss, slow_confidence, 1),
    (activation_loss, slow_activation, 1),
    (balance_loss, slow_balance, 1),
    (divergence_loss, slow_divergence, 2),
]


@pytest.mark.parametrize(("fast", "slow", "count"), CASES)
def test_values_and_gradients_equal_the_reference(fast, slow, count):
    given = [logits(seed).requires_grad_() for seed in range(count)]
    value = fast(*given)
    assert value.shape == ()
    assert value.item() == pytest.approx(slow(*(each.tolist() for each in given)), rel=1e-5)
    gradients = torch.autograd.grad(value, given)
    for number, gradient in enumerate(gradients):
        exact = [each.detach().double().numpy() for each in given]
        for place in np.ndindex(exact[number].shape):
            around = []
            for shift in (1e-6, -1e-6):
                moved = [each.copy() for each in exact]
                moved[number][place] += shift
                around.append(slow(*(each.tolist() for each in moved)))
            assert gradient[place].item() == pytest.approx((around[0] - around[1]) / 2e-6, rel=1e-4, abs=1e-7)


def test_the_balance_ends_at_one_class_and_at_all_alike():
    one_class = torch.full((6, 4), -1000.0)
    one_class[:, 2] = 0
    assert balance_loss(one_class).item() == 0
    every_class = 1000 * torch.eye(4).repeat(3, 1)
    assert balance_loss(every_class).item() == pytest.approx(-math.log(4))
    assert balance_loss(torch.zeros(6, 4)).item() == pytest.approx(-math.log(4))


def test_huge_logits_give_finite_gradients():
    for fast, _, count in CASES:
        given = [(1e4 * torch.eye(4) - 5e3 * torch.ones(4)).roll(shift, 0).requires_grad_() for shift in range(count)]
        value = fast(*given)
        assert value.isfinite()
        assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(value, given))


def test_a_student_that_equals_its_teacher_leaves_the_adversary_nothing():
    teacher = logits(0).requires_grad_()
    value = divergence_loss(teacher, logits(0))
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert torch.autograd.grad(value, teacher)[0].abs().max() < 1e-6


def test_all_samples_count_for_the_divergence_also_where_the_classes_differ():
    teacher = torch.tensor([[2.0, 0.0], [2.0, 0.0]])
    student = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    (p, q) = softmax([2.0, 0.0])
    assert divergence_loss(teacher, student).item() == pytest.approx(-0.5 * (p - q) * math.log(p / q), rel=1e-5)


def test_half_precision_logits_are_raised_to_float32():
    for fast, _, count in CASES:
        given = [logits(seed).bfloat16() for seed in range(count)]
        assert fast(*given).dtype == torch.float32
        assert fast(*given).item() == pytest.approx(fast(*(each.float() for each in given)).item(), rel=1e-6)
