"""Variational information distillation against loops written from its equation."""

import math

import pytest
import torch
from slow import batch_of, build, conv_loop, outputs, pool_both_loop, positions, rectify, require_equal, scatter

from kd.losses.vid import VID

SHAPES = ((2, 4, 4), (2, 4, 4), (3, 2, 2)), ((5, 4, 4), (3, 2, 2), (2, 4, 4))  # the teacher's smaller, then larger


def vid_loop(loss, student, teacher, eps):
    p = dict(loss.named_parameters())
    total = 0
    for stage in (0, 1):
        x, target = pool_both_loop(student.maps[stage + 1], teacher.maps[stage + 1])
        for layer in (0, 2, 4):
            x = conv_loop(x, p[f"means.{stage}.{layer}.weight"])
            x = x if layer == 4 else rectify(x)
        scale = p[f"scales.{stage}"]
        values = []
        for mean, truth in zip(x, target, strict=True):
            terms = []
            for c in range(len(truth)):
                variance = (1 + scale[c].exp()).log() + eps
                terms += [
                    ((truth[c, i, j] - mean[c, i, j]) ** 2 / variance + variance.log()) / 2 for i, j in positions(x)
                ]
            values.append(sum(terms) / len(terms))
        total = total + torch.stack(values)
    return total


@pytest.mark.formula("vid")
@pytest.mark.parametrize("eps", [1e-5, 0.5])
def test_equals_the_equation(eps):
    loss = scatter(build(VID, *SHAPES, eps=eps))
    student, teacher = outputs(*SHAPES, size=2)
    require_equal(loss(student, teacher, batch_of(2)), vid_loop(loss, student, teacher, eps), student, loss)


@pytest.mark.parametrize(("settings", "variance"), [({}, 5.0), ({"init_pred_var": 0.25}, 0.25)])
def test_variances_begin_at_init_pred_var(settings, variance):
    loss = build(VID, *SHAPES, **settings).double()
    student, teacher = outputs(*SHAPES)
    with torch.no_grad():
        for parameter in loss.means.parameters():
            parameter.zero_()
    teacher = teacher._replace(maps=tuple(map(torch.zeros_like, teacher.maps)))
    value = loss(student, teacher, batch_of(3))  # no error: half the log of the variance, in each of two stages
    torch.testing.assert_close(value, torch.full_like(value, math.log(variance)), rtol=1e-5, atol=0)


def test_training_brings_the_variance_to_the_mean_squared_error():
    shapes = ((1, 1, 1), (1, 1, 1)), ((1, 1, 1), (1, 1, 1))
    loss = build(VID, *shapes).double()
    student, teacher = outputs(*shapes, size=6)
    with torch.no_grad():
        for parameter in loss.means.parameters():
            parameter.zero_()
    optimizer = torch.optim.SGD(loss.scales, lr=1.0)
    for _ in range(300):
        optimizer.zero_grad()
        loss(student, teacher, batch_of(6)).mean().backward()
        optimizer.step()
    error = teacher.maps[1].pow(2).mean().item()
    variance = (1 + loss.scales[0].exp()).log().item()
    assert error < 4
    assert variance == pytest.approx(error, rel=1e-3)


def test_the_first_map_is_left_out():
    loss = build(VID, *SHAPES).double()
    student, teacher = outputs(*SHAPES)
    other = outputs(*SHAPES, seed=5)[0].maps[0]
    changed = loss(student._replace(maps=(other, *student.maps[1:])), teacher, batch_of(3))
    assert torch.equal(changed, loss(student, teacher, batch_of(3)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eps": 0.0}, r"eps must be above 0; got 0\.0"),
        ({"init_pred_var": 1e-5}, "init_pred_var must be above eps; got 1e-05"),
        ({"init_pred_var": float("nan")}, "init_pred_var must be above eps; got nan"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=rf"^vid: {message}$"):
        build(VID, *SHAPES, **settings)
