"""CRD with a queue of past embeddings in place of the memory banks."""

import pytest
import torch
from crd_reference import FEAT_DIM, LABELS, Reference, build, features, nce_loop, relative, step

from kd.batch import Output


class QueueReference:
    """The same contrast against lists of past embeddings, in float64 and one scalar product at a time."""

    def __init__(self, crd, labels):
        self.labels = labels
        self.inner = Reference(crd)
        self.rows, self.length = {side: [] for side in self.inner.banks}, crd.negatives

    def step(self, index, student, teacher):
        anchors = {"student": self.inner.project("student", student), "teacher": self.inner.project("teacher", teacher)}
        for side, rows in self.rows.items():
            rows += [(anchor.detach(), int(self.labels[i])) for anchor, i in zip(anchors[side], index, strict=True)]
            del rows[: -self.length]
        total = 0
        for side, other in (("student", "teacher"), ("teacher", "student")):
            positives = [torch.dot(a, b.detach()) for a, b in zip(anchors[side], anchors[other], strict=True)]
            negatives = [
                [torch.dot(a, row) for row, group in self.rows[other] if group != self.labels[i]]
                for a, i in zip(anchors[side], index.tolist(), strict=True)
            ]
            total = total + self.loss(side, positives, negatives)
        return total

    def loss(self, side, positives, negatives):
        tau, inner = self.inner.tau, self.inner
        if inner.estimator == "infonce":
            values = [
                (sum((n / tau).exp() for n in row) + (p / tau).exp()).log() - p / tau
                for p, row in zip(positives, negatives, strict=True)
            ]
            return torch.stack(values)
        flat = [(x / tau).exp().item() for p, row in zip(positives, negatives, strict=True) for x in [p, *row]]
        size = len(self.labels)
        z = inner.z.setdefault(side, sum(flat) / len(flat) * size)
        values = []
        for p, row in zip(positives, negatives, strict=True):
            scores = torch.stack([(n / tau).exp() / z for n in row])
            values.append(nce_loop(((p / tau).exp() / z)[None], scores[None], len(row), size)[0])
        return torch.stack(values)


@pytest.mark.formula("crd")
@pytest.mark.parametrize("negatives_from", ["other_classes", "other_indices"])
@pytest.mark.parametrize("estimator", ["nce", "infonce"])
def test_queue_equals_lists_of_past_embeddings(estimator, negatives_from):
    """Seven entries and batches of three: the queue is full after three steps and its oldest entries are replaced."""
    crd = build(memory="queue", negatives=7, estimator=estimator, negatives_from=negatives_from)
    groups = LABELS if negatives_from == "other_classes" else torch.arange(len(LABELS))
    reference = QueueReference(crd, groups)
    for number in range(5):
        student, teacher = features(3, seed=number)
        index = torch.tensor([[0, 2, 9], [1, 3, 4], [5, 6, 7], [0, 2, 9], [8, 10, 11]][number])
        student64, teacher64 = student.double().requires_grad_(), teacher.double()
        student.requires_grad_()
        expected = reference.step(index, student64, teacher64)
        actual = step(crd, index, student, teacher)
        assert relative(actual.detach(), expected.detach()) < 1e-5
        (gradient,) = torch.autograd.grad(actual.mean(), student)
        (wanted,) = torch.autograd.grad(expected.mean(), student64)
        assert relative(gradient, wanted) < 1e-5


def test_queue_does_not_grow_with_the_data_and_takes_the_last_of_a_large_batch():
    crd = build(torch.arange(500) % 5, memory="queue", negatives=4)
    assert crd.student_bank.shape == crd.teacher_bank.shape == (4, FEAT_DIM)
    index = torch.arange(10, 16)
    student, teacher = features(6)
    step(crd, index, student, teacher, torch.arange(500) % 5)
    projected, _ = crd.project(Output(None, student), Output(None, teacher))
    for number in range(2, 6):  # the last four of six
        torch.testing.assert_close(crd.student_bank[number % 4], projected[number])
    assert int(crd.queue_next) == 2


def test_no_entry_of_a_queue_counts_before_it_holds_an_embedding():
    """A queue far longer than the data seen so far returns the same as one of just that length."""
    losses = []
    for length in (6, 1000):
        crd = build(memory="queue", negatives=length)
        losses.append([step(crd, torch.tensor(index), *features(3, seed=index[0])) for index in ([0, 2, 9], [1, 3, 4])])
        assert int((crd.queue_group >= 0).sum()) == 6
    torch.testing.assert_close(losses[0], losses[1])


@pytest.mark.parametrize("estimator", ["nce", "infonce"])
def test_a_queue_without_negatives_gives_finite_gradients(estimator):
    crd = build(memory="queue", negatives=2, estimator=estimator)
    index = torch.tensor([2, 3])  # both of class 1
    for _ in range(2):
        student, teacher = features(2)
        loss = step(crd, index, student.requires_grad_(), teacher)
        loss.mean().backward()
    assert loss.isfinite().all()
    assert student.grad.isfinite().all()
    assert crd.logged["bound"].isfinite()
