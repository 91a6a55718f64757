"""DKD and DIST against float64 loops written from the equations."""

import math

import pytest
import torch
from slow import formula

from kd.batch import Batch, Output
from kd.losses.dist import dist
from kd.losses.dkd import dkd
from kd.losses.kd import kd
from kd.losses.objective import build_loss

LABELS = [3, 0, 4, 4, 1]
LOSSES = {"dkd": dkd, "dist": dist}


def random_logits(seed, size=5, classes=5, scale=2.0):
    return scale * torch.randn(size, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def call(loss, student, teacher, labels=LABELS, **settings):
    size = len(student)
    batch = Batch(torch.empty(size, 0), torch.tensor(labels[:size]), torch.arange(size), torch.ones(size))
    return loss(Output(student, torch.empty(size, 0)), Output(teacher, torch.empty(size, 0)), batch, **settings)


def softmax(row):
    total = sum(x.exp() for x in row)
    return [x.exp() / total for x in row]


def kl(p, q):
    return sum(a * (a.log() - b.log()) for a, b in zip(p, q, strict=True))


def dkd_loop(student, teacher, alpha=1.0, beta=8.0, temperature=4.0):
    values = []
    for s_row, t_row, y in zip(student / temperature, teacher / temperature, LABELS, strict=True):
        s, t = softmax(s_row), softmax(t_row)
        target = kl([t[y], 1 - t[y]], [s[y], 1 - s[y]])
        s_others, t_others = ([p / (1 - side[y]) for c, p in enumerate(side) if c != y] for side in (s, t))
        values.append(temperature**2 * (alpha * target + beta * kl(t_others, s_others)))
    return torch.stack(values)


def dist_loop(student, teacher, beta=1.0, gamma=1.0, temperature=1.0):
    def distance(first, second):
        total = 0
        for a, b in zip(first, second, strict=True):
            a, b = ([x - sum(row) / len(row) for x in row] for row in (a, b))
            covariance = sum(x * y for x, y in zip(a, b, strict=True))
            lengths = [sum(x * x for x in row).sqrt() for row in (a, b)]
            total = total + 1 - covariance / (lengths[0] * lengths[1] + 1e-8)
        return total / len(first)

    s, t = ([softmax(row) for row in side / temperature] for side in (student, teacher))
    s_columns, t_columns = (list(zip(*side, strict=True)) for side in (s, t))
    return temperature**2 * (beta * distance(s, t) + gamma * distance(s_columns, t_columns))


SETTINGS = [
    formula(dkd, dkd_loop, {}),
    formula(dkd, dkd_loop, {"alpha": 1.0, "beta": 0.0, "temperature": 1.0}),
    formula(dkd, dkd_loop, {"alpha": 0.0, "beta": 1.0, "temperature": 2.0}),
    formula(dkd, dkd_loop, {"alpha": 0.5, "beta": 3.0, "temperature": 0.5}),
    formula(dist, dist_loop, {}),
    formula(dist, dist_loop, {"beta": 1.0, "gamma": 0.0, "temperature": 4.0}),
    formula(dist, dist_loop, {"beta": 0.0, "gamma": 2.0}),
]


@pytest.mark.parametrize(("loss", "loop", "settings"), SETTINGS)
def test_value_and_gradient_equal_the_equation(loss, loop, settings):
    student, teacher = random_logits(0).requires_grad_(), random_logits(1)
    actual, expected = call(loss, student, teacher, **settings), loop(student, teacher, **settings)
    assert actual.shape == ((5,) if loss is dkd else ())
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=0)
    weight = torch.arange(1.0, actual.numel() + 1, dtype=torch.float64).view_as(actual)
    (gradient,), (wanted,) = (torch.autograd.grad((weight * value).sum(), student) for value in (actual, expected))
    torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-7 * float(wanted.abs().max()))
    low = call(loss, student.detach().float(), teacher.float(), **settings)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low.double(), expected.detach(), rtol=1e-4, atol=1e-7)


def test_dkd_with_the_teachers_own_weight_is_kd():
    """KD = TCKD + (1 - p_y of the teacher) NCKD, the paper's decomposition."""
    student, teacher = random_logits(2), random_logits(3)
    for temperature in (1.0, 4.0):
        target = call(dkd, student, teacher, alpha=1.0, beta=0.0, temperature=temperature)
        others = call(dkd, student, teacher, alpha=0.0, beta=1.0, temperature=temperature)
        rest = 1 - (teacher / temperature).softmax(1).gather(1, torch.tensor(LABELS)[:, None]).squeeze(1)
        expected = call(kd, student, teacher, temperature=temperature)
        torch.testing.assert_close(target + rest * others, expected, rtol=1e-9, atol=0)


def test_dkd_by_hand():
    student, teacher = torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0.25, 0.5, 0.25]]).log()
    target = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    others = 2 / 3 * math.log((2 / 3) / 0.5) + 1 / 3 * math.log((1 / 3) / 0.5)
    value = call(dkd, student, teacher, [0], alpha=1.0, beta=8.0, temperature=1.0)
    assert value.item() == pytest.approx(target + 8 * others)


def test_dkd_of_the_other_classes_does_not_see_the_target():
    student, teacher = random_logits(4), random_logits(5)
    expected = call(dkd, student, teacher, alpha=0.0)
    moved = student.scatter_add(1, torch.tensor(LABELS)[:, None], torch.full((5, 1), 7.0, dtype=torch.float64))
    torch.testing.assert_close(call(dkd, moved, teacher, alpha=0.0), expected, rtol=1e-12, atol=0)
    assert not torch.allclose(call(dkd, moved, teacher, beta=0.0), call(dkd, student, teacher, beta=0.0))


def test_dkd_of_two_classes_is_kd():
    student, teacher = random_logits(6, classes=2), random_logits(7, classes=2)
    value = call(dkd, student, teacher, [0, 1, 1, 0, 1])
    torch.testing.assert_close(value, call(kd, student, teacher, [0, 1, 1, 0, 1]), rtol=1e-9, atol=0)


@pytest.mark.parametrize("scale", [1e2, 1e4, 1e20])
def test_huge_logits_give_finite_values_and_gradients(scale):
    teacher = random_logits(8).float() * scale
    for loss in LOSSES.values():
        student = (random_logits(9).float() * scale).requires_grad_()
        value = call(loss, student, teacher, temperature=1.0)
        (gradient,) = torch.autograd.grad(value.sum(), student)
        assert value.isfinite().all()
        assert gradient.isfinite().all()
        if loss is dkd:
            assert value.max() > scale / 10
            assert gradient.abs().max() > 0.5


def test_dist_sees_no_affine_change_of_the_predictions():
    """Correlation: softmax of these logits is a mixture of the teacher's predictions with the uniform one."""
    teacher = random_logits(10).softmax(1)
    student = 0.6 * teacher + 0.4 / 5
    value = call(dist, student.log(), teacher.log())
    assert 0 <= value < 1e-4  # 1e-8 is added to the norms
    assert call(dist, student.flip(0).log(), teacher.log()) > 0.1


def test_dist_of_opposite_predictions_is_four():
    teacher = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    value = call(dist, teacher.flip(1).log(), teacher.log())
    assert value.item() == pytest.approx(4.0, abs=1e-5)


def test_dist_of_predictions_without_variance_is_two_with_a_finite_gradient():
    teacher = random_logits(11)
    student = torch.zeros(5, 5, dtype=torch.float64).requires_grad_()
    value = call(dist, student, teacher)
    (gradient,) = torch.autograd.grad(value, student)
    assert value.item() == pytest.approx(2.0)
    assert gradient.isfinite().all()
    assert call(dist, student[:1], teacher[:1]).isfinite()  # one sample: no variance over the batch


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_equal_logits_give_zero_with_zero_gradient(loss):
    teacher = random_logits(12)
    student = (teacher + 17.0).requires_grad_()  # a shift of all logits changes no probability
    value = call(loss, student, teacher)
    (gradient,) = torch.autograd.grad(value.sum(), student)
    torch.testing.assert_close(value, torch.zeros_like(value), rtol=0, atol=1e-6)  # of DIST's 1e-8
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-6)


def test_default_settings_are_the_references():
    student, teacher = random_logits(13), random_logits(14)
    for loss, settings in (
        (dkd, {"alpha": 1.0, "beta": 8.0, "temperature": 4.0}),
        (dist, {"beta": 1.0, "gamma": 1.0, "temperature": 1.0}),
    ):
        expected = call(loss, student, teacher, **settings)
        torch.testing.assert_close(call(loss, student, teacher), expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_half_precision_logits_are_raised_to_float32_under_autocast_too(loss, dtype):
    student, teacher = random_logits(15).to(dtype), random_logits(16).to(dtype)
    expected = call(loss, student.float(), teacher.float())
    student.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        actual = call(loss, student, teacher)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    (gradient,) = torch.autograd.grad(actual.sum(), student)
    assert gradient.isfinite().all()
    assert gradient.any()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("temperature", [0, -1.0, float("nan")])
def test_temperature_must_be_above_0(name, temperature):
    with pytest.raises(ValueError, match=rf"^{name}: temperature must be above 0; got {temperature}$"):
        build_loss(name, None, temperature=temperature)
