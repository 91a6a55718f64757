"""Cross entropy and logit distillation against float64 loops written from the equations."""

import math

import pytest
import torch

from kd.batch import Batch, Output
from kd.losses.ce import ce
from kd.losses.kd import kd, kl_divergence
from kd.losses.objective import build_loss


def output(logits):
    return Output(logits, torch.empty(len(logits), 0))


def batch_of(labels):
    size = len(labels)
    return Batch(torch.empty(size, 0), torch.as_tensor(labels), torch.arange(size), torch.ones(size))


def random_logits(seed, size=5, classes=7, scale=3.0):
    return scale * torch.randn(size, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax_loop(row):
    total = sum(x.exp() for x in row)
    return [x.exp() / total for x in row]


def kl_loop(teacher, student, temperature):
    """Return KL by its definition, sample by sample and class by class."""
    values = []
    for t_row, s_row in zip(teacher, student, strict=True):
        p, q = softmax_loop(t_row / temperature), softmax_loop(s_row / temperature)
        values.append(sum(a * (a.log() - b.log()) for a, b in zip(p, q, strict=True)))
    return torch.stack(values)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_kl_equals_its_definition_with_gradients_to_both_sides(temperature):
    teacher, student = random_logits(0).requires_grad_(), random_logits(1).requires_grad_()
    expected = kl_loop(teacher, student, temperature)
    actual = kl_divergence(teacher, student, temperature)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-14)
    weight = torch.arange(1.0, 6.0, dtype=torch.float64)
    for a, e in zip(
        torch.autograd.grad((weight * actual).sum(), (teacher, student)),
        torch.autograd.grad((weight * expected).sum(), (teacher, student)),
        strict=True,
    ):
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-13)


def test_kl_in_float32_is_near_float64():
    teacher, student = random_logits(2, size=32, classes=100), random_logits(3, size=32, classes=100)
    expected = kl_loop(teacher, student, 4.0)
    torch.testing.assert_close(
        kl_divergence(teacher.float(), student.float(), 4.0).double(), expected, rtol=1e-5, atol=0
    )


def test_kl_gradcheck():
    teacher, student = random_logits(4, 2, 3, 1.0).requires_grad_(), random_logits(5, 2, 3, 1.0).requires_grad_()
    assert torch.autograd.gradcheck(lambda t, s: kl_divergence(t, s, 2.0), (teacher, student))


def test_kl_is_zero_with_zero_gradient_when_student_equals_teacher():
    teacher = random_logits(6)
    student = (teacher + 17.0).requires_grad_()  # a shift of all logits changes no probability
    value = kd(output(student), output(teacher), batch_of([0] * 5))
    value.sum().backward()
    torch.testing.assert_close(value, torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-13)
    torch.testing.assert_close(student.grad, torch.zeros_like(teacher), rtol=0, atol=1e-13)


def test_kl_direction_and_value_by_hand():
    teacher, student = torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.5, 0.5]]).log()
    assert kl_divergence(teacher, student, 1.0).item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert kl_divergence(student, teacher, 1.0).item() == pytest.approx(0.5 * math.log(2 / 3) + 0.5 * math.log(2))


@pytest.mark.formula("kd")
def test_kd_scales_with_temperature():
    teacher, student = random_logits(7), random_logits(8)
    for temperature in (1.0, 4.0, 20.0):
        expected = temperature**2 * kl_loop(teacher / temperature, student / temperature, 1.0)
        actual = kd(output(student), output(teacher), batch_of([0] * 5), temperature=temperature)
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=0)


def test_kd_default_temperature_is_4():
    teacher, student, batch = output(random_logits(7)), output(random_logits(8)), batch_of([0] * 5)
    torch.testing.assert_close(kd(student, teacher, batch), kd(student, teacher, batch, temperature=4.0))


def test_kd_at_high_temperature_is_half_the_variance_of_the_logit_difference():
    teacher, student = random_logits(9), random_logits(10)
    expected = (teacher - student).var(dim=1, correction=0) / 2
    actual = kd(output(student), output(teacher), batch_of([0] * 5), temperature=1e4)
    torch.testing.assert_close(actual, expected, rtol=2e-3, atol=0)


@pytest.mark.parametrize("scale", [1e2, 1e4, 1e20])
def test_huge_logits_give_finite_values_and_gradients(scale):
    teacher = (random_logits(11).float() * scale).requires_grad_()
    student = (random_logits(12).float() * scale).requires_grad_()
    value = kl_divergence(teacher, student, 1.0)
    gradients = torch.autograd.grad(value.sum(), (teacher, student))
    assert value.isfinite().all()
    assert value.max() > scale / 10
    assert all(g.isfinite().all() for g in gradients)
    assert gradients[1].abs().max() > 0.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_raised_to_float32(dtype):
    teacher, student, labels = random_logits(13).to(dtype), random_logits(14).to(dtype), [0, 1, 2, 3, 4]
    value = kl_divergence(teacher, student, 3.0)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), kl_loop(teacher.double(), student.double(), 3.0), rtol=1e-4, atol=1e-7)
    entropy, exact = (ce(output(x), None, batch_of(labels)) for x in (student, student.double()))
    assert entropy.dtype == torch.float32
    torch.testing.assert_close(entropy.double(), exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("temperature", [0, -1.0, float("nan")])
def test_temperature_must_be_above_0(temperature):
    with pytest.raises(ValueError, match=rf"^kd: temperature must be above 0; got {temperature}$"):
        build_loss("kd", None, temperature=temperature)


@pytest.mark.formula("ce")
def test_ce_equals_minus_log_probability_of_the_label_and_needs_no_teacher():
    student, labels = random_logits(16).requires_grad_(), [3, 0, 6, 6, 1]
    expected = torch.stack([-softmax_loop(row)[label].log() for row, label in zip(student, labels, strict=True)])
    actual = ce(output(student), None, batch_of(labels))
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=0)
    (gradient,) = torch.autograd.grad(actual.sum(), student)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), student)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-14)
