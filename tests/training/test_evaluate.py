"""Scores against hand-made logits, and what scoring leaves as it was."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from kd.batch import Output
from kd.data.augment import Augment
from kd.data.dataset import Split
from kd.models.classifier import Ensemble
from kd.training.evaluate import evaluate, predict

AUGMENT = Augment(torch.zeros(1), torch.ones(1), 2, True)  # scoring must not crop or flip


class Table(nn.Module):
    """Answers image number n with row n of a table; every pixel of an image says its number."""

    dense = False

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.as_tensor(logits))
        self.calls = []  # number of images and mode, per forward pass

    def forward(self, images):
        self.calls.append((len(images), self.training, torch.is_grad_enabled()))
        pixels = (images * 255).round().long()
        assert torch.equal(pixels, pixels[:, :, :1, :1].expand_as(pixels))
        return Output(self.logits[256 * pixels[:, 0, 0, 0] + pixels[:, 1, 0, 0]], None)


def split(labels):
    numbers = torch.arange(len(labels))
    pixels = torch.stack([numbers // 256, numbers % 256], 1).to(torch.uint8)
    return Split(pixels.view(-1, 2, 1, 1).expand(-1, 2, 3, 3).contiguous(), torch.as_tensor(labels))


def ranking(order, classes=7):
    """Logits by which the classes rank in the given order, the others after them."""
    logits = torch.zeros(classes)
    for place, label in enumerate(order):
        logits[label] = 10.0 - place
    return logits


def test_scores_of_hand_made_logits():
    orders = [[0, 1, 2, 3, 4, 5], [1, 0, 2, 3, 4, 5], [6, 5, 4, 3, 2, 1], [6, 5, 4, 3, 2, 1], [2, 0, 1, 3, 4, 5]]
    labels = [0, 0, 2, 1, 2]  # first; second; fifth; sixth; first
    student = Table(torch.stack([ranking(order) for order in orders]))
    teacher = Table(torch.stack([ranking([label]) for label in (0, 0, 2, 3, 3)]))
    scores, _ = evaluate(student, split(labels), AUGMENT, teacher)
    loss = [
        math.log(sum(math.exp(x) for x in row)) - row[label]
        for row, label in zip(student.logits.tolist(), labels, strict=True)
    ]
    assert scores == {
        "accuracy": pytest.approx(40.0),
        "top5": pytest.approx(80.0),
        "teacher_accuracy": pytest.approx(60.0),
        "agreement": pytest.approx(20.0),
        "loss": pytest.approx(sum(loss) / 5, rel=1e-6),
        "correlation_gap": pytest.approx(gap(student, teacher), rel=1e-6),
    }
    assert all(type(value) is float for value in scores.values())


@pytest.mark.parametrize(("classes", "names"), [(5, {"accuracy", "loss"}), (6, {"accuracy", "loss", "top5"})])
def test_top5_needs_more_than_five_classes_and_agreement_a_teacher(classes, names):
    student = Table(torch.stack([ranking([0], classes)] * 3))
    scores, correlations = evaluate(student, split([0, 0, 1]), AUGMENT)
    assert scores.keys() == names
    assert correlations.keys() == {"student"}
    scores, correlations = evaluate(student, split([0, 0, 1]), AUGMENT, student)
    assert scores.keys() == names | {"teacher_accuracy", "agreement", "correlation_gap"}
    assert correlations.keys() == {"student", "teacher", "difference"}
    assert scores["agreement"] == 100


@pytest.mark.parametrize("count", [1, 512, 1300])
def test_all_images_are_scored_in_their_order_and_in_parts(count):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(count, 6, generator=generator)
    labels = torch.randint(0, 6, (count,), generator=generator)
    student = Table(logits)
    assert torch.equal(predict(student, split(labels).images, AUGMENT), logits)
    assert sum(size for size, _, _ in student.calls) == count
    assert max(size for size, _, _ in student.calls) <= 512
    scores, _ = evaluate(student, split(labels), AUGMENT)
    right = sum(int(row.argmax()) == int(label) for row, label in zip(logits, labels, strict=True))
    assert scores["accuracy"] == pytest.approx(100 * right / count)


def test_images_are_normalised():
    class Sum(nn.Module):
        dense = False

        def forward(self, images):
            return Output(images.sum((2, 3)), None)

    images = torch.randint(0, 256, (3, 2, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    augment = Augment(torch.tensor([0.5, 0.2]), torch.tensor([0.1, 0.3]), 2, True)
    expected = (images.double() / 255 - torch.tensor([0.5, 0.2]).view(2, 1, 1)) / torch.tensor([0.1, 0.3]).view(2, 1, 1)
    torch.testing.assert_close(predict(Sum(), images, augment), expected.sum((2, 3)).float(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("training", [False, True])
def test_networks_score_in_eval_mode_without_gradient_and_go_back_to_their_mode(training):
    student, teacher = (Table(torch.randn(4, 6)).train(training) for _ in range(2))
    evaluate(student, split([0, 1, 2, 3]), AUGMENT, teacher)
    for network in (student, teacher):
        assert network.calls == [(4, False, False)]
        assert network.training is training
    assert not predict(student, split([0, 1, 2, 3]).images, AUGMENT).requires_grad


def test_half_precision_logits_are_raised_to_float32():
    class Half(nn.Module):
        dense = False

        def forward(self, images):
            return Output(images.mean((2, 3)).bfloat16(), None)

    assert predict(Half(), split([0, 1]).images, AUGMENT).dtype == torch.float32


def gap(student, teacher):
    """Mean absolute difference of correlations, where a logit that never changes correlates with none."""
    with np.errstate(invalid="ignore"):
        of, to = (
            np.nan_to_num(np.corrcoef(table.logits.detach().numpy(), rowvar=False)) for table in (student, teacher)
        )
    return np.abs(of - to).mean()


def test_the_difference_of_correlations_is_numpys():
    generator = torch.Generator().manual_seed(0)
    tables = [torch.randn(40, 4, generator=generator) for _ in range(2)]
    images = split([0] * 40)
    scores, actual = evaluate(Table(tables[0]), images, AUGMENT, Table(tables[1]))
    expected = [np.corrcoef(table.numpy(), rowvar=False) for table in tables]
    np.testing.assert_allclose(actual["student"].numpy(), expected[0], atol=1e-6)
    np.testing.assert_allclose(actual["teacher"].numpy(), expected[1], atol=1e-6)
    np.testing.assert_allclose(actual["difference"].numpy(), expected[0] - expected[1], atol=1e-6)
    assert scores["correlation_gap"] == pytest.approx(np.abs(expected[0] - expected[1]).mean(), abs=1e-6)
    same, _ = evaluate(Table(tables[0]), images, AUGMENT, Table(tables[0]))
    assert same["correlation_gap"] == 0
    constant = tables[0].clone()
    constant[:, 2] = 1.0
    _, actual = evaluate(Table(constant), images, AUGMENT, Table(tables[1]))
    assert actual["difference"].isfinite().all()


def test_a_student_equal_to_all_members_of_an_ensemble_correlates_as_they_do():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(200, 10, generator=generator)
    teacher = Ensemble([Table(logits), Table(logits)])
    scores, _ = evaluate(Table(logits), split([0] * 200), AUGMENT, teacher)
    assert scores["correlation_gap"] == pytest.approx(0, abs=1e-12)
    assert scores["agreement"] == 100


def test_an_ensembles_class_is_that_of_the_mean_probability():
    """Two of three prefer class 1 by little, the third class 0 by far."""
    members = [Table(torch.tensor([row])) for row in ([0.0, 0.1], [0.0, 0.1], [9.0, 0.0])]
    scores, _ = evaluate(members[0], split([0]), AUGMENT, Ensemble(members))
    assert (scores["teacher_accuracy"], scores["agreement"]) == (100, 0)
    assert [len(member.calls) for member in members] == [2, 1, 1], "each is asked once: the first also as student"
