"""AT, SP, NST and KD-SVD against float64 loops written from the equations."""

import math

import pytest
import torch
from slow import formula

from kd.batch import Batch, LossContext, Output
from kd.losses.at import at
from kd.losses.kdsvd import kdsvd, right_singular_vectors
from kd.losses.nst import nst
from kd.losses.objective import build_loss
from kd.losses.sp import sp

SIZE = 3
STEM = (2, 4, 4)
STUDENT = [STEM, (3, 4, 4), (5, 2, 2)]  # (C, H, W); the stem comes first
WIDER = [STEM, (4, 4, 4), (2, 2, 2)]  # other channels
LARGER = [STEM, (4, 4, 4), (2, 4, 4)]  # and another size in the second stage
SMALLER = [STEM, (4, 3, 3), (2, 2, 2)]
SAME_CHANNELS = [STEM, (3, 3, 3), (5, 4, 4)]

PER_SAMPLE = {"at": at, "nst": nst, "kdsvd": kdsvd}
ALL = PER_SAMPLE | {"sp": sp}


def maps(shapes, seed, size=SIZE):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, *shape, generator=generator, dtype=torch.float64) for shape in shapes]


def output(maps_):
    return Output(torch.empty(len(maps_[0]) if maps_ else SIZE, 0), torch.empty(0), tuple(maps_))


def call(loss, student, teacher, **settings):
    size = len(student[0]) if student else SIZE
    batch = Batch(torch.empty(size, 0), torch.zeros(size).long(), torch.arange(size), torch.ones(size))
    shapes = [tuple(tuple(map_.shape[1:]) for map_ in maps_) for maps_ in (student, teacher)]
    context = LossContext(1, 1, batch.labels, 2, torch.Generator(), *shapes)
    return build_loss(loss.__name__, context, **settings)(output(student), output(teacher), batch)


def assert_alike(loss, reference, student_shapes, teacher_shapes, **settings):
    """Value and gradient to every map of the student, float64 to rounding and float32 nearly."""
    student, teacher = maps(student_shapes, 0), maps(teacher_shapes, 1)
    for map_ in student:
        map_.requires_grad_()
    actual, expected = call(loss, student, teacher, **settings), reference(student, teacher, **settings)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=0)
    weight = torch.arange(1.0, actual.numel() + 1, dtype=torch.float64).view_as(actual)
    gradients = torch.autograd.grad((weight * actual).sum(), student, materialize_grads=True)
    wanted = torch.autograd.grad((weight * expected).sum(), student, materialize_grads=True)
    for a, e in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-5 * float(e.abs().max()))
    assert not gradients[0].any()  # of the stem
    assert gradients[-1].any()
    low = call(loss, [m.detach().float() for m in student], [m.float() for m in teacher], **settings)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low.double(), expected.detach(), rtol=1e-4, atol=1e-7)


# --- the equations in loops ---


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def unit(values):
    length = sum(v * v for v in values).sqrt()
    return [v / length for v in values]


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def shrink(channel, height):
    """A square channel averaged over windows; they overlap where the sizes do not divide."""
    old = len(channel)
    window = [range(i * old // height, math.ceil((i + 1) * old / height)) for i in range(height)]
    return [mean(channel[y, x] for y in rows for x in columns) for rows in window for columns in window]


def channels(map_, height):
    """A sample's map [C, H, W] as C lists of its values at `height` x `height` positions."""
    return [shrink(channel, height) for channel in map_]


def stages(student, teacher):
    """Sample by sample, the stages' channels of student and teacher at the smaller size."""
    for i in range(SIZE):
        yield [
            (channels(s[i], min(s.shape[2], t.shape[2])), channels(t[i], min(s.shape[2], t.shape[2])))
            for s, t in zip(student[1:], teacher[1:], strict=True)
        ]


def at_loop(student, teacher, p=2):
    def attention(sample):
        return unit([mean(c[n].abs() ** p for c in sample) for n in range(len(sample[0]))])

    return torch.stack(
        [
            sum(mean((a - b) ** 2 for a, b in zip(attention(s), attention(t), strict=True)) for s, t in sample)
            for sample in stages(student, teacher)
        ]
    )


def nst_loop(student, teacher):
    def kernel(first, second):
        return mean(dot(unit(a), unit(b)) ** 2 for a in first for b in second)

    return torch.stack(
        [sum(kernel(t, t) + kernel(s, s) - 2 * kernel(s, t) for s, t in sample) for sample in stages(student, teacher)]
    )


def sp_loop(student, teacher):
    def similarity(map_):
        flat = [list(sample.flatten()) for sample in map_]
        return [unit([dot(a, b) for b in flat]) for a in flat]

    s, t = similarity(student[-1]), similarity(teacher[-1])
    return sum((t[i][j] - s[i][j]) ** 2 for i in range(SIZE) for j in range(SIZE)) / SIZE**2


def kdsvd_loop(student, teacher, k=1, chosen=None):
    """With torch's own singular vectors and their derivative; `chosen` collects which the student's nearest are."""
    losses = []
    for i in range(SIZE):
        total, before = 0, None
        for s_map, t_map in zip(student[1:], teacher[1:], strict=True):
            (_, _, s_rows), (_, t_values, t_rows) = (
                torch.linalg.svd(m[i].flatten(1).T, full_matrices=False) for m in (s_map, t_map)
            )
            scales = unit(t_values[:k])
            pair = ([], [])
            for scale, t_row in zip(scales, t_rows[:k], strict=True):
                turned = -t_row if t_row.sum() < 0 else t_row
                cosines = [float(dot(s_row, turned).detach()) for s_row in s_rows[: k + 3]]
                nearest = max(range(len(cosines)), key=lambda j: abs(cosines[j]))
                if chosen is not None:
                    chosen.append(nearest)
                pair[0].append(scale * math.copysign(1, cosines[nearest]) * s_rows[nearest])
                pair[1].append(scale * turned)
            if before is not None:
                for j in range(k):
                    (s, t), (s_before, t_before) = (x[j] for x in pair), (x[j] for x in before)
                    for a in range(len(s)):
                        for b in range(len(s_before)):
                            r_s, r_t = ((-((x[a] - y[b]) ** 2) / 8).exp() for x, y in ((s, s_before), (t, t_before)))
                            total = total + (r_s - r_t) ** 2
            before = pair
        losses.append(total)
    return torch.stack(losses)


# --- values and gradients ---


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
    """A stage of many channels over few positions takes the other product; repeated channels change no mean."""
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


# --- limits ---


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
    """Its bound is of the order of 1 / 1e-5; without damping it were 1 / apart, or none."""
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
