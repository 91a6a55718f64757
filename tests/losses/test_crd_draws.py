"""The positives and negatives that CRD draws."""

import math

import torch
from crd_reference import LABELS, build, generator


def within_chi_square(draws, allowed):
    """Whether draws are uniform over `allowed`: the statistic within 6 of its standard deviations, and none outside."""
    counts = torch.bincount(draws.flatten(), minlength=int(max(allowed)) + 1).double()
    expected = draws.numel() / len(allowed)
    freedom = len(allowed) - 1
    statistic = float(((counts[allowed] - expected) ** 2).sum() / expected)
    return counts[allowed].sum() == draws.numel() and abs(statistic - freedom) < 6 * math.sqrt(2 * freedom)


def test_supervised_negatives_are_uniform_over_all_other_classes():
    labels = torch.randint(0, 7, (200,), generator=generator())
    crd = build(labels, negatives=20_000)
    index = torch.arange(0, 200, 11)
    positive, negatives = crd.draw(index)
    assert torch.equal(positive, index)
    assert negatives.shape == (len(index), 20_000)
    assert (labels[negatives] != labels[index][:, None]).all()
    for i, drawn in zip(index, negatives, strict=True):
        assert within_chi_square(drawn, (labels != labels[i]).nonzero().squeeze(1))


def test_unsupervised_negatives_are_uniform_over_all_other_indices():
    crd = build(LABELS, negatives=20_000, negatives_from="other_indices")
    index = torch.arange(len(LABELS))
    positive, negatives = crd.draw(index)
    assert torch.equal(positive, index)
    for i, drawn in zip(index, negatives, strict=True):
        assert within_chi_square(drawn, index[index != i])


def test_relaxed_positive_is_uniform_over_its_class():
    crd = build(positive="relax", negatives=1)
    for i in range(len(LABELS)):
        positive, _ = crd.draw(torch.full((6000,), i))
        same = (LABELS[i] == LABELS).nonzero().squeeze(1)
        assert (LABELS[positive] == LABELS[i]).all()
        assert len(same) == 1 or within_chi_square(positive, same)


def test_chi_square_bound_refuses_a_skewed_draw():
    allowed = torch.arange(10)
    skewed = torch.cat([allowed.repeat(2000), torch.zeros(400, dtype=torch.int64)])
    assert not within_chi_square(skewed, allowed)


def test_two_classes_draw_all_negatives_from_the_other():
    labels = torch.tensor([1, 0, 0, 0, 0])
    _, negatives = build(labels, negatives=500).draw(torch.tensor([0, 1]))
    assert set(negatives[0].tolist()) == {1, 2, 3, 4}
    assert set(negatives[1].tolist()) == {0}


def test_classes_without_samples_are_no_obstacle():
    labels = torch.tensor([5, 2, 2, 5])
    _, negatives = build(labels, negatives=100).draw(torch.tensor([0, 1]))
    assert set(negatives[0].tolist()) == {1, 2}
    assert set(negatives[1].tolist()) == {0, 3}


def test_draws_are_fresh_in_every_step_and_row():
    crd = build(negatives=50)
    index = torch.tensor([0, 0])
    first, second = crd.draw(index)[1], crd.draw(index)[1]
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])
