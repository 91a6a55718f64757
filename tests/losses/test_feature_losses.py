"""PKT and RKD against float64 loops written from the equations."""

import math

import pytest
import torch
from slow import formula

from kd.batch import Batch, Output
from kd.losses.pkt import pkt
from kd.losses.rkd import rkd

LOSSES = {"pkt": pkt, "rkd": rkd}


def features(seed, width, size=5):
    return torch.randn(size, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def call(loss, student, teacher, **settings):
    size = len(student)
    logits = torch.empty(size, 0)
    batch = Batch(logits, torch.zeros(size).long(), torch.arange(size), torch.ones(size))
    return loss(Output(logits, student), Output(logits, teacher), batch, **settings)


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def pkt_loop(student, teacher, eps=1e-7):
    def neighbours(rows):
        lengths = [dot(row, row).sqrt() + eps for row in rows]
        size = range(len(rows))
        similarity = [[(1 + dot(rows[i], rows[j]) / lengths[i] / lengths[j]) / 2 for j in size] for i in size]
        return [[value / sum(row) for value in row] for row in similarity]

    total, size = 0, len(student)
    for s_row, t_row in zip(neighbours(student), neighbours(teacher), strict=True):
        for s, t in zip(s_row, t_row, strict=True):
            total = total + t * ((t + eps).log() - (s + eps).log())
    return total / size**2


def huber(a, b):
    gap = (a - b).abs()
    return gap**2 / 2 if gap < 1 else gap - 0.5


def rkd_loop(student, teacher, distance_weight=25.0, angle_weight=50.0):
    size = range(len(student))
    pairs = [(i, j) for i in size for j in size if i != j]

    def relations(rows):
        arrow = {(i, j): rows[j] - rows[i] for i, j in pairs}
        length = {pair: dot(a, a).sqrt() for pair, a in arrow.items()}
        mean = sum(length.values()) / len(pairs)
        cosine = {
            (i, j, k): dot(arrow[i, j], arrow[i, k]) / length[i, j] / length[i, k]
            for i, j in pairs
            for k in size
            if k != i
        }
        return {pair: value / mean for pair, value in length.items()}, cosine

    (s_length, s_cosine), (t_length, t_cosine) = relations(student), relations(teacher)
    distance = sum(huber(s_length[pair], t_length[pair]) for pair in pairs) / len(size) ** 2
    angle = sum(huber(s_cosine[key], t_cosine[key]) for key in s_cosine) / len(size) ** 3
    return distance_weight * distance + angle_weight * angle


def assert_alike(loss, loop, student, teacher, **settings):
    student.requires_grad_()
    actual, expected = call(loss, student, teacher, **settings), loop(student, teacher, **settings)
    assert actual.shape == ()
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=0)
    (gradient,), (wanted,) = (torch.autograd.grad(value, student) for value in (actual, expected))
    torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-6 * float(wanted.abs().max()))
    low = call(loss, student.detach().float(), teacher.float(), **settings)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low.double(), expected.detach(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("teacher_width", [3, 7])
@pytest.mark.parametrize(("loss", "loop"), [formula(pkt, pkt_loop), formula(rkd, rkd_loop)])
def test_value_and_gradient_equal_the_equation(loss, loop, teacher_width):
    assert_alike(loss, loop, features(0, 3), features(1, teacher_width))


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (3.0, 0.5)])
def test_rkd_terms_have_their_own_weights(weights):
    student, teacher = features(2, 4), features(3, 6)
    assert_alike(rkd, rkd_loop, student, teacher, distance_weight=weights[0], angle_weight=weights[1])


def test_rkd_goes_over_to_the_absolute_difference():
    """One far sample: its distances differ by more than 1."""
    student, teacher = features(4, 3), features(5, 3)
    teacher[0] += 100.0
    student[1] += 100.0
    assert_alike(rkd, rkd_loop, student, teacher)


def test_rkd_default_weights_are_25_and_50():
    student, teacher = features(6, 3), features(7, 3)
    expected = call(rkd, student, teacher, distance_weight=25.0, angle_weight=50.0)
    torch.testing.assert_close(call(rkd, student, teacher), expected, rtol=0, atol=0)


def test_rkd_of_three_samples_by_hand():
    """Three points of a line, two of them exchanged."""
    student = torch.tensor([[0.0], [1.0], [2.0]])  # distances 1, 1 and 2, of mean 4/3: 3/4, 3/4 and 3/2
    teacher = torch.tensor([[1.0], [0.0], [2.0]])
    # distances: d_02 = 3/2 against 3/4, d_12 = 3/4 against 3/2, d_01 alike, each twice among the 9
    distance = 4 * (0.75**2 / 2) / 9
    # angles: at 0 the student sees 1 and 2 on one side (1), the teacher on two (-1); at 1 the reverse; at 2 alike
    angle = 4 * (2 - 0.5) / 27
    assert call(rkd, student, teacher, distance_weight=1.0, angle_weight=0.0).item() == pytest.approx(distance)
    assert call(rkd, student, teacher, distance_weight=0.0, angle_weight=1.0).item() == pytest.approx(angle)


def test_pkt_of_two_samples_by_hand():
    student = torch.tensor([[1.0, 0.0], [0.0, 3.0]])  # cosine 0: similarities 1 and 1/2
    teacher = torch.tensor([[2.0], [5.0]])  # cosine 1
    expected = (0.5 * math.log(0.5 / (2 / 3)) + 0.5 * math.log(0.5 / (1 / 3))) / 2
    assert call(pkt, student, teacher).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_equal_features_give_zero_with_zero_gradient(loss):
    student, teacher = features(8, 4).requires_grad_(), features(8, 4)
    value = call(loss, student, teacher)
    (gradient,) = torch.autograd.grad(value, student)
    torch.testing.assert_close(value, torch.zeros_like(value), rtol=0, atol=1e-13)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-7)  # PKT's eps leaves 1e-8


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_scale_and_rotation_do_not_matter_and_a_shift_only_to_pkt(loss):
    student, teacher = features(9, 4), features(10, 6)
    expected = call(loss, student, teacher)
    rotation = torch.linalg.qr(features(11, 4, size=4))[0]
    torch.testing.assert_close(call(loss, 100 * student @ rotation, 0.1 * teacher), expected, rtol=1e-5, atol=0)
    shifted = call(loss, student + 2.0, teacher)
    assert torch.allclose(shifted, expected) == (loss is rkd)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_dead_or_equal_samples_give_a_finite_value_and_gradient(loss):
    teacher = features(12, 4).float()
    some, all_equal = features(13, 3).float(), torch.ones(5, 3)
    some[1:3] = 0.0
    for student in (some, all_equal, torch.zeros(5, 3), features(14, 3).float()[:1]):
        for against in (teacher, torch.zeros_like(teacher)):
            student.requires_grad_()
            value = call(loss, student, against[: len(student)])
            (gradient,) = torch.autograd.grad(value, student)
            assert value.isfinite()
            assert gradient.isfinite().all()


def test_rkd_gradient_of_coinciding_samples_is_no_larger_than_of_others():
    student, teacher = features(15, 3).float(), features(16, 4).float()
    student[1] = student[0]
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(call(rkd, student, teacher), student)
    assert gradient[:2].norm() < 100 * gradient[2:].norm()


def test_rkd_tells_near_samples_apart_in_float32():
    student, teacher = features(17, 3), features(18, 3)
    student[1] = student[0] + 1e-4  # |a|² + |b|² - 2ab would have no digit left
    student += 10.0
    expected = rkd_loop(student, teacher)
    torch.testing.assert_close(call(rkd, student.float(), teacher.float()).double(), expected, rtol=1e-2, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_half_precision_features_are_raised_to_float32_under_autocast_too(loss, dtype):
    student, teacher = ((300 * features(seed, 4)).to(dtype) for seed in (19, 20))
    expected = call(loss, student.float(), teacher.float())  # 300² overflows in float16
    student.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        actual = call(loss, student, teacher)
    assert actual.dtype == torch.float32
    assert actual.isfinite()
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    (gradient,) = torch.autograd.grad(actual, student)
    assert gradient.isfinite().all()
    assert gradient.any()
