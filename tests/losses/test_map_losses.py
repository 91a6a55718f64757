"""AT, SP, NST and KD-SVD against float64 loops written from the equations."""

import pytest
import torch
from map_reference import (
    ALL,
    LARGER,
    PER_SAMPLE,
    SAME_CHANNELS,
    SMALLER,
    STEM,
    STUDENT,
    WIDER,
    assert_alike,
    at_loop,
    call,
    kdsvd_loop,
    maps,
    nst_loop,
    sp_loop,
)
from slow import formula

from kd.losses.at import at
from kd.losses.kdsvd import kdsvd
from kd.losses.nst import nst
from kd.losses.sp import sp


@pytest.mark.parametrize("teacher", [WIDER, LARGER, SMALLER], ids=["wider", "larger", "smaller"])
@pytest.mark.parametrize(("loss", "loop"), [formula(at, at_loop), formula(nst, nst_loop)])
def test_stage_by_stage_losses_equal_their_equations(loss, loop, teacher):
    assert_alike(loss, loop, STUDENT, teacher)


@pytest.mark.formula("at")
@pytest.mark.parametrize("p", [1, 3])
def test_at_takes_other_powers_of_the_magnitude(p):
    assert_alike(at, at_loop, STUDENT, LARGER, p=p)


@pytest.mark.formula("sp")
@pytest.mark.parametrize("teacher", [WIDER, SMALLER], ids=["wider", "smaller"])
def test_sp_equals_its_equation_for_any_two_shapes(teacher):
    assert_alike(sp, sp_loop, STUDENT, teacher)


@pytest.mark.formula("kdsvd")
@pytest.mark.parametrize("k", [1, 2])
def test_kdsvd_equals_its_equation_with_torchs_own_singular_vectors(k):
    assert_alike(kdsvd, kdsvd_loop, STUDENT, SAME_CHANNELS, k=k)


def test_kdsvd_students_nearest_vectors_are_not_always_the_first():
    chosen = []
    kdsvd_loop(maps(STUDENT, 0), maps(SAME_CHANNELS, 1), chosen=chosen)
    assert len(set(chosen)) > 1  # so the test above sees the choice


def test_nst_is_alike_by_channels_and_by_positions():
    """A stage of many channels over few positions uses the other product; repeated channels change no mean."""
    student, teacher = maps([STEM, (2, 2, 2)], 2), maps([STEM, (2, 2, 2)], 3)
    many = [[m.repeat(1, 6, 1, 1) for m in side] for side in (student, teacher)]
    torch.testing.assert_close(call(nst, *many), call(nst, student, teacher), rtol=1e-12, atol=0)


def test_default_settings_are_the_references():
    student, teacher = maps(STUDENT, 0), maps(SAME_CHANNELS, 1)
    torch.testing.assert_close(call(at, student, teacher), call(at, student, teacher, p=2), rtol=0, atol=0)
    torch.testing.assert_close(call(kdsvd, student, teacher), call(kdsvd, student, teacher, k=1), rtol=0, atol=0)


def test_at_of_one_active_position_by_hand():
    student, teacher = torch.zeros(1, 2, 2, 2), torch.zeros(1, 1, 2, 2)
    student[:, :, 0, 0], teacher[:, :, 1, 1] = 5.0, -2.0
    assert call(at, [student, student], [teacher, teacher]).item() == pytest.approx(2 / 4)


# --- precision ---


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("loss", ALL.values(), ids=ALL)
def test_half_precision_maps_are_raised_to_float32_under_autocast_too(loss, dtype):
    student, teacher = ([(300 * m).to(dtype) for m in maps(shapes, 15)] for shapes in (STUDENT, SAME_CHANNELS))
    expected = call(loss, [m.float() for m in student], [m.float() for m in teacher])  # 300² overflows in float16
    for map_ in student:
        map_.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        actual = call(loss, student, teacher)
    assert actual.dtype == torch.float32
    assert actual.isfinite().all()
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    for gradient in torch.autograd.grad(actual.sum(), student, materialize_grads=True):
        assert gradient.isfinite().all()


# --- refusals ---


@pytest.mark.parametrize("name", PER_SAMPLE)
def test_unlike_numbers_of_stages_are_refused(name):
    with pytest.raises(ValueError, match=rf"^{name}: 2 stages of the student .* 1 of the teacher \[3x3x3\]; .*$"):
        call(PER_SAMPLE[name], maps(STUDENT, 0), maps(SAME_CHANNELS[:2], 1))


@pytest.mark.parametrize("name", ALL)
def test_networks_without_maps_are_refused(name):
    with pytest.raises(ValueError, match=rf"^{name}: needs at least \d stages, .*$"):
        call(ALL[name], [], [])


def test_kdsvd_refuses_one_stage_and_unlike_channels():
    with pytest.raises(ValueError, match=r"^kdsvd: needs at least 2 stages, .*$"):
        call(kdsvd, maps(STUDENT[:2], 0), maps(SAME_CHANNELS[:2], 1))
    with pytest.raises(
        ValueError,
        match=r"^kdsvd: maps of \[3, 5\] channels .* \[4, 2\] in the teacher; choose networks of equal width$",
    ):
        call(kdsvd, maps(STUDENT, 0), maps(WIDER, 1))
    with pytest.raises(ValueError, match=r"^kdsvd: the teacher's map \(3, 3, 3\) has no 4 singular vectors; .*$"):
        call(kdsvd, maps(STUDENT, 0), maps(SAME_CHANNELS, 1), k=4)


@pytest.mark.parametrize(("loss", "setting"), [(at, "p"), (kdsvd, "k")], ids=["at", "kdsvd"])
def test_settings_below_1_are_refused(loss, setting):
    with pytest.raises(ValueError, match=rf"{setting} must be at least 1; got 0"):
        call(loss, maps(STUDENT, 0), maps(SAME_CHANNELS, 1), **{setting: 0})
