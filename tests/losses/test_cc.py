"""Correlation congruence against loops written from its equation."""

import pytest
import torch
from slow import batch_of, build, outputs, require_equal, scatter

from kd.losses.cc import CC

SHAPES = ((3, 1, 1),), ((4, 1, 1),)


def embed_loop(loss, side, feature):
    p = dict(loss.named_parameters())
    weight, bias = p[f"{side}_embedding.weight"], p[f"{side}_embedding.bias"]
    return [
        [sum(w * x for w, x in zip(row, sample, strict=True)) + b for row, b in zip(weight, bias, strict=True)]
        for sample in feature
    ]


def cc_loop(loss, student, teacher):
    rows = []
    for s, t in zip(
        embed_loop(loss, "student", student.feature), embed_loop(loss, "teacher", teacher.feature), strict=True
    ):
        rows.append([a - b if a > b else b - a for a, b in zip(s, t, strict=True)])
    products = [sum(a * b for a, b in zip(rows[i], rows[i + 1], strict=True)) for i in range(len(rows) - 1)]
    return sum(products) / len(products)


@pytest.mark.formula("cc")
def test_equals_the_equation():
    loss = scatter(build(CC, *SHAPES, feat_dim=5))
    student, teacher = outputs(*SHAPES, size=4)
    require_equal(loss(student, teacher, batch_of(4)), cc_loop(loss, student, teacher), student, loss)


def test_is_zero_where_the_embeddings_agree():
    loss = build(CC, SHAPES[0], SHAPES[0], feat_dim=5).double()
    loss.teacher_embedding.load_state_dict(loss.student_embedding.state_dict())
    student, teacher = outputs(SHAPES[0], SHAPES[0])
    assert loss(student, teacher, batch_of(3)) > 0.01
    assert loss(student, student, batch_of(3)) == 0


def test_order_of_the_batch_matters_as_only_neighbours_are_related():
    loss = build(CC, *SHAPES).double()
    student, teacher = outputs(*SHAPES, size=4)
    first = loss(student, teacher, batch_of(4))
    order = torch.tensor([0, 2, 1, 3])
    permuted = [x._replace(feature=x.feature[order]) for x in (student, teacher)]
    assert (loss(*permuted, batch_of(4)) - first).abs() > 1e-3
    backwards = [x._replace(feature=x.feature.flip(0)) for x in (student, teacher)]
    torch.testing.assert_close(loss(*backwards, batch_of(4)), first, rtol=1e-12, atol=0)


def test_a_batch_of_one_gives_zero():
    loss = build(CC, *SHAPES).double()
    student, teacher = outputs(*SHAPES, size=1)
    value = loss(student, teacher, batch_of(1))
    value.backward()
    assert value == 0
    assert student.feature.grad.eq(0).all()


def test_feat_dim_is_128_and_at_least_1():
    assert build(CC, *SHAPES).student_embedding.weight.shape == (128, 3)
    assert build(CC, *SHAPES).teacher_embedding.weight.shape == (128, 4)
    with pytest.raises(ValueError, match=r"^cc: feat_dim must be at least 1; got 0$"):
        build(CC, *SHAPES, feat_dim=0)
