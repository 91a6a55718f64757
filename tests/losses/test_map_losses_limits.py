"""AT, SP, NST and KD-SVD at their limits: equal, dead and reordered maps, equal singular values."""

import pytest
import torch
from map_reference import ALL, PER_SAMPLE, SAME_CHANNELS, SIZE, STUDENT, call, maps

from kd.losses.kdsvd import kdsvd, right_singular_vectors
from kd.losses.sp import sp


@pytest.mark.parametrize("loss", ALL.values(), ids=ALL)
def test_equal_maps_give_zero_with_zero_gradient(loss):
    teacher = maps(STUDENT, 4)
    student = [m.clone().requires_grad_() for m in teacher]
    value = call(loss, student, teacher)
    torch.testing.assert_close(value, torch.zeros_like(value), rtol=0, atol=1e-14)
    for gradient in torch.autograd.grad(value.sum(), student, materialize_grads=True):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-10)


@pytest.mark.parametrize("loss", ALL.values(), ids=ALL)
def test_value_has_one_entry_per_sample_and_no_others_influence_except_for_sp(loss):
    student, teacher = maps(STUDENT, 5), maps(SAME_CHANNELS, 6)
    value = call(loss, student, teacher)
    if loss is sp:
        assert value.shape == ()
    else:
        assert value.shape == (SIZE,)
        alone = call(loss, [m[1:2] for m in student], [m[1:2] for m in teacher])
        torch.testing.assert_close(alone, value[1:2])


@pytest.mark.parametrize("loss", ALL.values(), ids=ALL)
def test_scale_of_a_network_does_not_matter(loss):
    student, teacher = maps(STUDENT, 7), maps(SAME_CHANNELS, 8)
    expected = call(loss, student, teacher)
    assert (expected > 1e-6).all()
    torch.testing.assert_close(call(loss, [1e3 * m for m in student], [1e-2 * m for m in teacher]), expected)


@pytest.mark.parametrize("name", ["at", "nst", "kdsvd"])
def test_order_of_positions_matters_to_at_and_nst_but_not_to_kdsvd(name):
    student, teacher = maps(STUDENT, 9), maps(SAME_CHANNELS[:1] + STUDENT[1:], 10)
    moved = [student[0], student[1].flip(3), student[2].flip(3)]
    alike = torch.allclose(call(ALL[name], moved, teacher), call(ALL[name], student, teacher), rtol=1e-9)
    assert alike == (name == "kdsvd")


def test_order_of_channels_matters_to_kdsvd_but_not_to_at_and_nst():
    student, teacher = maps(STUDENT, 9), maps(SAME_CHANNELS, 10)
    moved = [student[0], student[1].flip(1), student[2].flip(1)]
    for name, loss in PER_SAMPLE.items():
        alike = torch.allclose(call(loss, moved, teacher), call(loss, student, teacher), rtol=1e-9)
        assert alike == (name != "kdsvd"), name


def test_sp_orthogonal_samples_against_one_direction_by_hand():
    student = torch.eye(4).view(4, 1, 2, 2)  # similarity: identity
    teacher = torch.ones(4, 3, 1, 1)  # every row 1/2
    assert call(sp, [student], [teacher]).item() == pytest.approx((4 * 0.25 + 12 * 0.25) / 16)


@pytest.mark.parametrize("loss", ALL.values(), ids=ALL)
def test_dead_maps_give_a_finite_value_and_gradient(loss):
    teacher = maps(SAME_CHANNELS, 11)
    student = [torch.zeros_like(m).requires_grad_() for m in maps(STUDENT, 0)]
    for against in (teacher, [torch.zeros_like(m) for m in teacher]):
        value = call(loss, student, against)
        gradients = torch.autograd.grad(value.sum(), student, materialize_grads=True)
        assert value.isfinite().all()
        assert all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("apart", [0.0, 1e-12, 1e-7])
def test_equal_singular_values_leave_the_gradient_bounded(apart):
    """Its bound is of the order of 1 / 1e-5; without damping it would be 1 / apart, or none."""
    turn, other = (torch.linalg.qr(m)[0] for m in maps([(4, 4)], 12, size=2)[0])
    x = (turn @ torch.diag(torch.tensor([2.0, 1.0 + apart, 1.0, 0.5], dtype=torch.float64)) @ other)[None]
    x.requires_grad_()
    _, vectors = right_singular_vectors(x, 2)
    weight = maps([(4, 2)], 13, size=1)[0]
    (gradient,) = torch.autograd.grad((weight * vectors).sum(), x)
    assert gradient.isfinite().all()
    assert gradient.norm() < 1e5


def test_kdsvd_of_maps_of_rank_one_is_finite():
    """The second singular value is 0 up to rounding, of either sign in its square."""
    teacher = [m.mean(1, keepdim=True).repeat(1, m.shape[1], 1, 1) for m in maps(SAME_CHANNELS, 14, size=20)]
    assert call(kdsvd, maps(STUDENT, 0, size=20), teacher, k=2).isfinite().all()


@pytest.mark.parametrize("shape", [(6, 4), (4, 4), (3, 5)], ids=["tall", "square", "wide"])
def test_right_singular_vectors_are_torchs_with_their_derivative(shape):
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(13), dtype=torch.float64).requires_grad_()
    values, vectors = right_singular_vectors(x, 3)
    _, s, rows = torch.linalg.svd(x, full_matrices=False)
    theirs = rows.mT[:, :, :3]
    torch.testing.assert_close(values, s[:, :3].detach(), rtol=1e-9, atol=0)
    sign = (theirs * vectors).sum(1, keepdim=True).detach().sign()
    torch.testing.assert_close(vectors, theirs * sign, rtol=0, atol=1e-9)
    weight = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(14), dtype=torch.float64)
    (ours,) = torch.autograd.grad((weight * vectors).sum(), x)
    (expected,) = torch.autograd.grad((weight * sign * theirs).sum(), x)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
