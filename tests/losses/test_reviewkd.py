"""ReviewKD against loops written from its equations."""

import math

import pytest
import torch
from slow import batch_of, build, conv_loop, norm_loop, outputs, pool_loop, positions, require_equal, scatter, signed

from kd.losses.reviewkd import ReviewKD, hierarchical_context_loss

# student: 2 and 4 wide; the teacher's last map larger than the student's, the one before smaller
SHAPES = ((1, 4, 4), (2, 4, 4), (3, 1, 1)), ((1, 4, 4), (2, 2, 2), (2, 2, 2))


def levels():
    """Return outputs with the student's maps and the teacher's signed ones."""
    student, teacher = outputs(*SHAPES)
    return student, signed(teacher)


def mean_square(a, b):
    squares = [(x - y) ** 2 for x, y in zip(a.flatten(), b.flatten(), strict=True)]
    return sum(squares) / len(squares)


def hcl_loop(student, teacher):
    weights = {1: {}, 2: {1: 0.5}, 4: {2: 0.5, 1: 0.25}, 8: {4: 0.5, 2: 0.25, 1: 0.125}}[student.shape[2]]
    values = []
    for s, t in zip(student[:, None], teacher[:, None], strict=True):
        terms = [mean_square(s, t)]
        terms += [weight * mean_square(pool_loop(s, size), pool_loop(t, size)) for size, weight in weights.items()]
        values.append(sum(terms) / (1 + sum(weights.values())))
    return torch.stack(values)


def nearest_loop(x, size):
    columns = []
    for i, j in ((i, j) for i in range(size) for j in range(size)):
        columns.append(x[:, :, math.floor(i * x.shape[2] / size), math.floor(j * x.shape[3] / size)])
    return torch.stack(columns, dim=2).unflatten(2, (size, size))


def review_loop(loss, student, teacher):
    p = dict(loss.named_parameters())
    levels = [student.feature[:, :, None, None], student.maps[2], student.maps[1]]
    targets = [teacher.feature[:, :, None, None], teacher.signed[2], teacher.signed[1]]
    total, fused = 0, None
    for index, (level, target) in enumerate(zip(levels, targets, strict=True)):
        q = {key.removeprefix(f"fusions.{index}."): value for key, value in p.items()}
        x = norm_loop(conv_loop(level, q["transform.weight"]), q["transform_norm.weight"], q["transform_norm.bias"])
        if index > 0:
            y = nearest_loop(fused, level.shape[2])
            score = conv_loop(torch.cat([x, y], dim=1), q["attention.weight"], q["attention.bias"])
            share = 1 / (1 + (-score).exp())
            mixed = torch.empty_like(x)
            for i, j in positions(x):
                for c in range(x.shape[1]):
                    mixed[:, c, i, j] = share[:, 0, i, j] * x[:, c, i, j] + share[:, 1, i, j] * y[:, c, i, j]
            x = mixed
        fused = nearest_loop(x, target.shape[2])
        out = norm_loop(conv_loop(fused, q["out.weight"], padding=1), q["out_norm.weight"], q["out_norm.bias"])
        total = total + hcl_loop(out, target)
    return total


@pytest.mark.formula("reviewkd")
@pytest.mark.parametrize("max_mid_width", [512, 2])
def test_equals_the_equation(max_mid_width):
    loss = scatter(build(ReviewKD, *SHAPES, max_mid_width=max_mid_width))
    assert loss.fusions[0].transform.weight.shape[0] == min(3, max_mid_width)  # the student's feature has 3
    student, teacher = levels()
    value = loss(student, teacher, batch_of(3))
    require_equal(value, review_loop(loss, student, teacher), student, loss)


def test_every_level_of_the_student_and_every_layer_learns_but_not_the_first_map():
    loss = build(ReviewKD, *SHAPES).double()
    student, teacher = levels()
    loss(student, teacher, batch_of(3)).mean().backward()
    assert student.maps[0].grad is None
    assert all(x.grad.norm() > 1e-9 for x in (student.feature, *student.maps[1:], *loss.parameters()))


@pytest.mark.parametrize("height", [1, 2, 4, 8])
def test_hcl_equals_the_equation(height):
    g = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 2, height, height, generator=g, dtype=torch.float64) for _ in range(2))
    student.requires_grad_()
    actual, expected = hierarchical_context_loss(student, teacher), hcl_loop(student, teacher)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0)
    weight = torch.tensor([1.0, 2.0])
    (a,) = torch.autograd.grad((weight * actual).sum(), student)
    (e,) = torch.autograd.grad((weight * expected).sum(), student)
    torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-14)


def test_hcl_of_a_constant_difference_is_its_square():
    teacher = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(hierarchical_context_loss(teacher + 3, teacher), torch.full((2,), 9.0))
    assert torch.equal(hierarchical_context_loss(teacher, teacher), torch.zeros(2))


def test_initial_weights_are_the_authors():
    shapes = ((1, 1, 1), (64, 1, 1)), ((1, 1, 1), (64, 1, 1))
    for fusion in build(ReviewKD, *shapes).fusions:
        for layer, fan_in in ((fusion.transform, 64), (fusion.out, 9 * 64)):
            bound = math.sqrt(3 / fan_in)
            assert 0.99 * bound < layer.weight.abs().max() <= bound * (1 + 1e-6)
            assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
        if fusion.attention is not None:
            assert fusion.attention.weight.abs().max() <= 1 / math.sqrt(128)


def test_max_mid_width_is_at_least_1():
    with pytest.raises(ValueError, match=r"^reviewkd: max_mid_width must be at least 1; got 0$"):
        build(ReviewKD, *SHAPES, max_mid_width=0)
