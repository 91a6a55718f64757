"""AB, FT and FSP against loops written from their equations, in both of their stages."""

from itertools import pairwise

import pytest
import torch
from slow import (
    batch_of,
    build,
    conv_loop,
    gradients,
    norm_loop,
    outputs,
    pool_both_loop,
    positions,
    rectify,
    require_equal,
    scatter,
    signed,
    transposed_loop,
)

from kd.losses.ab import AB
from kd.losses.fsp import FSP, fsp_matrix
from kd.losses.ft import FT

# the second stage alike in both networks, the third's sizes different
AB_SHAPES = ((1, 4, 4), (2, 2, 2), (2, 4, 4)), ((2, 4, 4), (2, 2, 2), (3, 2, 2))
FT_SHAPES = ((9, 1, 1), (2, 2, 2)), ((9, 1, 1), (5, 4, 4))
FSP_SHAPES = ((2, 4, 4), (3, 2, 2), (2, 4, 4)), ((2, 2, 2), (3, 2, 2), (2, 1, 1))
TWO_STAGE = [(AB, AB_SHAPES), (FT, FT_SHAPES), (FSP, FSP_SHAPES)]


def name_of(kind):
    return kind.__name__.lower()


@pytest.mark.parametrize(("kind", "shapes"), TWO_STAGE)
def test_the_first_stage_has_30_epochs_or_as_many_as_asked(kind, shapes):
    assert build(kind, *shapes).first_epochs == 30
    assert build(kind, *shapes, first_epochs=0).first_epochs == 0
    with pytest.raises(ValueError, match=f"^{name_of(kind)}: first_epochs must be at least 0; got -1$"):
        build(kind, *shapes, first_epochs=-1)


@pytest.mark.parametrize(("kind", "shapes"), [(AB, AB_SHAPES), (FSP, FSP_SHAPES)])
def test_nothing_is_added_in_the_main_stage_unless_kept(kind, shapes):
    student, teacher = ab_outputs(*shapes) if kind is AB else outputs(*shapes)
    value = build(kind, *shapes)(student, teacher, batch_of(3))
    assert torch.equal(value, torch.zeros(3))
    assert build(kind, *shapes, keep=True).double()(student, teacher, batch_of(3)).min() > 0


# --- AB ---


def ab_outputs(*shapes, **settings):
    """Pass only the signed maps: the loss reads no others."""
    return tuple(map(signed, outputs(*shapes, **settings)))


def ab_loop(loss, student, teacher, margin, statistics=None, learned=(0, 1)):
    p = dict(loss.named_parameters())
    values = torch.zeros(len(student.feature), dtype=torch.float64)
    for stage, share in ((0, 0.5), (1, 1.0)):
        s, t = student.signed[stage + 1], teacher.signed[stage + 1]
        if stage in learned:
            weight, bias, gamma, beta = (
                p[f"connectors.{stage}.{part}"] for part in ("0.weight", "0.bias", "1.weight", "1.bias")
            )
            s = conv_loop(s, weight, bias) if stage == 0 else conv_loop(s, weight, bias, stride=2, padding=1)
            s = norm_loop(s, gamma, beta, None if statistics is None else statistics[stage])
        sums = []
        for s_sample, t_sample in zip(s, t, strict=True):
            total = torch.zeros((), dtype=torch.float64)
            for source, target in zip(s_sample.flatten(), t_sample.flatten(), strict=True):
                if target > 0 and source <= margin:
                    total = total + (source - margin) ** 2
                elif target <= 0 and source > -margin:
                    total = total + (source + margin) ** 2
            sums.append(total)
        values = values + share * torch.stack(sums)
    return values / 1000 * 3


@pytest.mark.formula("ab")
@pytest.mark.parametrize("margin", [1.0, 0.3])
@pytest.mark.parametrize(("connectors", "learned"), [("all", (0, 1)), ("unequal", (1,))])
def test_ab_equals_the_equation(connectors, learned, margin):
    loss = scatter(build(AB, *AB_SHAPES, margin=margin, connectors=connectors))
    student, teacher = ab_outputs(*AB_SHAPES)
    teacher = teacher._replace(signed=tuple(map(rectify, teacher.signed)))  # zeros are on the negative side
    expected = ab_loop(loss, student, teacher, margin, learned=learned)
    require_equal(loss.first_stage(student, teacher, batch_of(3)), expected, student, loss)


def test_ab_does_not_see_a_relu_of_the_teacher():
    loss = build(AB, *AB_SHAPES).double()
    student, teacher = ab_outputs(*AB_SHAPES)
    rectified = teacher._replace(signed=tuple(map(torch.relu, teacher.signed)))
    value = loss.first_stage(student, teacher, batch_of(3))
    assert torch.equal(loss.first_stage(student, rectified, batch_of(3)), value)


def test_ab_is_zero_beyond_the_margin_on_the_teachers_side():
    loss = build(AB, AB_SHAPES[0], AB_SHAPES[0], connectors="unequal").double()
    student, teacher = ab_outputs(AB_SHAPES[0], AB_SHAPES[0])
    pairs = zip(student.signed, teacher.signed, strict=True)
    beyond = student._replace(signed=tuple(t.sign() * (1 + s.abs()) for s, t in pairs))
    value = loss.first_stage(beyond, teacher, batch_of(3))
    torch.testing.assert_close(value, torch.zeros_like(value), rtol=0, atol=0)


def test_ab_kept_uses_the_connectors_as_the_first_stage_left_them():
    loss = scatter(build(AB, *AB_SHAPES, connectors="all", keep=True))
    for seed in range(3):
        loss.first_stage(*ab_outputs(*AB_SHAPES, seed=seed), batch_of(3))
    left = {key: value.clone() for key, value in loss.state_dict().items()}
    statistics = [(c[1].running_mean.clone(), c[1].running_var.clone()) for c in loss.connectors]
    student, teacher = ab_outputs(*AB_SHAPES, seed=7)
    value = loss(student, teacher, batch_of(3))
    expected = ab_loop(loss, student, teacher, 1.0, statistics)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=0)
    count = 1 + len(student.signed)
    actual, wanted = gradients(value, student, loss), gradients(expected, student, loss)
    for a, e in zip(actual[2:count], wanted[2:count], strict=True):
        torch.testing.assert_close(a, e, rtol=1e-7, atol=1e-12)
    assert all(gradient is None for gradient in actual[count:])
    assert all(torch.equal(value, left[key]) for key, value in loss.state_dict().items())
    assert all(parameter.requires_grad for parameter in loss.parameters())
    assert all(module.training for module in loss.modules())


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"margin": 0.0}, "margin must be above 0; got 0.0"), ({"connectors": "some"}, "connectors must be one of")],
)
def test_ab_refuses_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=f"^ab: {message}"):
        build(AB, *AB_SHAPES, **settings)


def test_ab_refuses_sizes_that_no_convolution_relates():
    with pytest.raises(ValueError, match=r"^ab: .*2x1x1.*3x4x4.*; choose"):
        build(AB, ((1, 4, 4), (2, 1, 1)), ((1, 4, 4), (3, 4, 4)))


# --- FT ---


def encoder_loop(loss, x):
    p = dict(loss.named_parameters())
    for layer in (0, 2, 4):
        weight, bias = p[f"encoder.{layer}.weight"], p[f"encoder.{layer}.bias"]
        x = rectify(conv_loop(x, weight, bias, padding=1), 0.1)
    return x


@pytest.mark.formula("ft")
def test_ft_first_stage_equals_the_equation_and_does_not_reach_the_student():
    loss = scatter(build(FT, *FT_SHAPES))
    student, teacher = outputs(*FT_SHAPES, size=1)
    p = dict(loss.named_parameters())
    x = encoder_loop(loss, teacher.maps[-1])
    assert x.shape == (1, 2, 4, 4)  # half of 5 channels, rounded down
    for layer in (0, 2, 4):
        weight, bias = p[f"decoder.{layer}.weight"], p[f"decoder.{layer}.bias"]
        x = rectify(transposed_loop(x, weight, bias, padding=1), 0.1)
    squares = [(a - b) ** 2 for a, b in zip(x.flatten(), teacher.maps[-1].flatten(), strict=True)]
    expected = torch.stack([sum(squares) / len(squares)])
    value = loss.first_stage(student, teacher, batch_of(1))
    require_equal(value, expected, student, loss)
    reached = gradients(value, student, loss)
    assert all(gradient is None for gradient in reached[:3])
    names = [name for name, _ in loss.named_parameters()]
    learned = {name.split(".")[0] for name, g in zip(names, reached[3:], strict=True) if g is not None}
    assert learned == {"encoder", "decoder"}


@pytest.mark.formula("ft")
@pytest.mark.parametrize("sizes", [(2, 4), (4, 2), (2, 2)])
def test_ft_main_stage_equals_the_equation_and_leaves_the_paraphraser(sizes):
    shapes = ((1, 1, 1), (2, sizes[0], sizes[0])), ((1, 1, 1), (4, sizes[1], sizes[1]))
    loss = scatter(build(FT, *shapes))
    student, teacher = outputs(*shapes, size=2)
    p = dict(loss.named_parameters())
    x = student.maps[-1]
    for layer in (0, 3, 6):
        x = conv_loop(x, p[f"translator.{layer}.weight"], p[f"translator.{layer}.bias"], padding=1)
        x = rectify(norm_loop(x, p[f"translator.{layer + 1}.weight"], p[f"translator.{layer + 1}.bias"]), 0.1)
    pair = pool_both_loop(x, encoder_loop(loss, teacher.maps[-1]).detach())
    expected = []
    for samples in zip(*pair, strict=True):
        factors = []
        for sample in samples:
            means = [sum(sample[c, i, j] ** 2 for c in range(2)) / 2 for i, j in positions(pair[0])]
            length = sum(mean**2 for mean in means).sqrt()
            factors.append([mean / length for mean in means])
        expected.append(sum((a - b).abs() for a, b in zip(*factors, strict=True)) / len(factors[0]))
    value = loss(student, teacher, batch_of(2))
    require_equal(value, torch.stack(expected), student, loss)
    names = [name for name, _ in loss.named_parameters()]
    reached = gradients(value, student, loss)[3:]
    assert {name.split(".")[0] for name, g in zip(names, reached, strict=True) if g is not None} == {"translator"}


def test_ft_does_not_change_with_the_scale_of_the_factors():
    loss = build(FT, *FT_SHAPES).double()
    student, teacher = outputs(*FT_SHAPES)
    first = loss(student, teacher, batch_of(3))
    with torch.no_grad():  # the last layers, which are homogeneous, three and five times as strong
        for layer, scale in ((loss.encoder[4], 3.0), (loss.translator[7], 5.0)):
            layer.weight.mul_(scale)
            layer.bias.mul_(scale)
    torch.testing.assert_close(loss(student, teacher, batch_of(3)), first, rtol=1e-9, atol=0)


def test_ft_paraphraser_learns_to_reconstruct():
    loss = build(FT, *FT_SHAPES).double()
    student, teacher = outputs(*FT_SHAPES)
    alike = teacher.maps[-1][:, :1].abs().expand(-1, 5, -1, -1)  # five channels with one factor
    teacher = teacher._replace(maps=(*teacher.maps[:-1], alike))
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        value = loss.first_stage(student, teacher, batch_of(3)).mean()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < 0.5 * losses[0]


def test_ft_refuses_networks_without_maps_and_rates_that_leave_no_channel():
    with pytest.raises(ValueError, match=r"^ft: .*; choose networks"):
        build(FT, (), FT_SHAPES[1])
    with pytest.raises(ValueError, match=r"^ft: factor_rate must leave at least 1 of 5 channels; got 0.1$"):
        build(FT, *FT_SHAPES, factor_rate=0.1)


# --- FSP ---


def fsp_loop(maps):
    """Return the matrices of neighbouring maps, entry by entry, per sample."""
    matrices = []
    for bottom, top in pairwise(maps):
        bottom, top = pool_both_loop(bottom, top)
        area = len(positions(bottom))
        matrices.append(
            [
                [
                    [
                        sum(low[a, i, j] * high[b, i, j] for i, j in positions(bottom)) / area
                        for a in range(bottom.shape[1])
                    ]
                    for b in range(top.shape[1])
                ]
                for low, high in zip(bottom, top, strict=True)
            ]
        )
    return matrices


@pytest.mark.formula("fsp")
@pytest.mark.parametrize("keep", [False, True])
def test_fsp_equals_the_equation(keep):
    loss = build(FSP, *FSP_SHAPES, keep=keep)
    student, teacher = outputs(*FSP_SHAPES, size=2)
    expected = []
    for sample in range(2):
        total = 0
        for s, t in zip(fsp_loop(student.maps), fsp_loop(teacher.maps), strict=True):
            squares = [
                (a - b) ** 2
                for s_row, t_row in zip(s[sample], t[sample], strict=True)
                for a, b in zip(s_row, t_row, strict=True)
            ]
            total = total + sum(squares) / len(squares)
        expected.append(total)
    value = loss(student, teacher, batch_of(2)) if keep else loss.first_stage(student, teacher, batch_of(2))
    require_equal(value, torch.stack(expected), student, loss)


def test_fsp_matrix_by_hand():
    bottom = torch.tensor([[[[1.0, 3.0]], [[0.0, 2.0]]]])  # 2 channels, 2 positions
    top = torch.tensor([[[[5.0, 1.0]]]])
    torch.testing.assert_close(fsp_matrix(bottom, top), torch.tensor([[[4.0, 1.0]]]))


def test_fsp_is_zero_for_equal_maps():
    student, _ = outputs(FSP_SHAPES[0], FSP_SHAPES[0])
    value = build(FSP, FSP_SHAPES[0], FSP_SHAPES[0]).first_stage(student, student, batch_of(3))
    assert torch.equal(value, torch.zeros_like(value))


def test_fsp_refuses_unequal_widths_and_single_maps():
    with pytest.raises(ValueError, match=r"^fsp: maps of \[2, 3\] channels .* \[2, 4\] .*; choose networks"):
        build(FSP, ((2, 4, 4), (3, 2, 2)), ((2, 4, 4), (4, 2, 2)))
    with pytest.raises(ValueError, match=r"^fsp: needs at least 2 stages"):
        build(FSP, ((2, 4, 4),), ((2, 4, 4),))
