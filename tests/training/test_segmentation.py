"""Segmentation through the same loops: scores against counting, losses per pixel, whole runs captured and resumed."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import tiny_run
from torch.nn import functional as F

from kd.batch import UNLABELLED, Batch, Output, per_sample
from kd.data.augment import Augment
from kd.data.dataset import Split
from kd.data.raw import IGNORED
from kd.inversion.layouts import draw_layouts
from kd.inversion.priors import adversarial_loss, class_loss
from kd.inversion.replay import ReplayBuffer
from kd.inversion.sources.descent import Descent
from kd.losses.ce import ce
from kd.losses.kd import kd
from kd.models.build import build
from kd.training.evaluate import evaluate, predict_classes
from kd.training.optimisers import learning_rate
from kd.training.segmentation import confusion, iou_by_class
from kd.training.synthetic_set import divergences

SIZE, K = 16, 13
PLAIN = Augment(torch.zeros(3), torch.ones(3) / 255, pad=0, flip=False)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def labels_of(*shape, classes=K, ignored=0.2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, shape, generator=generator).to(torch.uint8)
    return labels.masked_fill(torch.rand(shape, generator=generator) < ignored, IGNORED)


# --- scores ---


def counted_miou(predicted, labels, classes):
    """Count pixel by pixel; percent."""
    found = []
    for label in range(classes):
        both = either = 0
        for one, other in zip(predicted.flatten().tolist(), labels.flatten().tolist(), strict=True):
            if other != UNLABELLED:
                both += one == label and other == label
                either += one == label or other == label
        if either:
            found.append(both / either)
    return 100 * sum(found) / len(found)


@pytest.mark.parametrize(("classes", "there"), [(5, 5), (5, 3), (4, 1), (2, 2)])
def test_miou_is_what_counting_gives(classes, there):
    """Also of labels that some classes, or all but one, are missing from."""
    predicted = torch.randint(there, (3, 9, 7), generator=torch.Generator().manual_seed(1))
    labels = labels_of(3, 9, 7, classes=there).long()
    labels[labels == IGNORED] = UNLABELLED
    found = confusion(predicted, labels, classes)
    assert 100 * iou_by_class(found).nanmean().item() == pytest.approx(
        counted_miou(predicted, labels, classes), abs=1e-6
    )
    assert found.sum() == (labels != UNLABELLED).sum()


def test_labels_that_are_all_ignored_have_no_score():
    found = confusion(torch.zeros(2, 4, 4, dtype=torch.int64), torch.full((2, 4, 4), UNLABELLED), 3)
    assert found.sum() == 0
    assert iou_by_class(found).isnan().all()


def test_a_perfect_network_has_100_percent():
    labels = labels_of(4, 6, 6).long()
    iou = iou_by_class(confusion(labels, labels.masked_fill(labels == IGNORED, UNLABELLED), 256))
    assert (iou[iou.isfinite()] == 1).all()
    assert iou.isfinite().sum() == K


def a_network(seed=0, name="deeplabv3_tiny"):
    torch.manual_seed(seed)
    return build(name, num_classes=K, in_channels=3, image_size=SIZE)


def a_split(count=70, ignored=0.2):
    images = torch.randint(256, (count, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    return Split(images, labels_of(count, SIZE, SIZE, ignored=ignored))


def test_scores_are_those_of_all_logits_at_once(monkeypatch):
    monkeypatch.setattr("kd.training.segmentation.PIXELS", 30 * SIZE**2)  # three parts
    split, student, teacher = a_split(), a_network(), a_network(1)
    metrics, correlations = evaluate(student, split, PLAIN, teacher)
    with torch.no_grad():
        logits, answers = (net.eval()(PLAIN.normalise(split.images)).logits for net in (student, teacher))
    target = split.labels.long().masked_fill(split.labels == IGNORED, UNLABELLED)
    predicted, known = logits.argmax(1), target != UNLABELLED
    assert metrics["accuracy"] == pytest.approx(counted_miou(predicted, target, K), abs=1e-6)
    assert metrics["teacher_accuracy"] == pytest.approx(counted_miou(answers.argmax(1), target, K), abs=1e-6)
    assert metrics["pixel_accuracy"] == pytest.approx(100 * (predicted == target)[known].double().mean().item())
    assert metrics["agreement"] == pytest.approx(100 * (predicted == answers.argmax(1)).double().mean().item())
    assert metrics["loss"] == pytest.approx(F.cross_entropy(logits.double(), target).item(), rel=1e-6)
    rows = [each.double().movedim(1, -1).reshape(-1, K).numpy() for each in (logits, answers)]
    expected = [np.corrcoef(each, rowvar=False) for each in rows]
    np.testing.assert_allclose(correlations["student"], expected[0], atol=1e-6)
    np.testing.assert_allclose(correlations["difference"], expected[0] - expected[1], atol=1e-6)
    per_class = [metrics[f"iou_{label}"] for label in range(K) if f"iou_{label}" in metrics]
    assert np.mean(per_class) == pytest.approx(metrics["accuracy"])


def test_classes_and_divergences_are_those_of_all_logits_at_once(monkeypatch):
    monkeypatch.setattr("kd.training.segmentation.PIXELS", 30 * SIZE**2)
    images, student, teacher = a_split().images, a_network(), a_network(1)
    classes, confidence = predict_classes(teacher, images, PLAIN)
    with torch.no_grad():
        said, answers = (net.eval()(PLAIN.normalise(images)).logits.log_softmax(1) for net in (student, teacher))
    assert classes.dtype == torch.uint8
    assert (classes == answers.argmax(1)).all()
    torch.testing.assert_close(confidence, answers.exp().amax(1).mean((1, 2)))
    kl = (answers.exp() * (answers - said)).sum(1).mean((1, 2))
    torch.testing.assert_close(divergences(teacher, student, images, PLAIN), kl)


# --- losses ---


def a_batch(ignored=0.3):
    labels = labels_of(3, 5, 4, ignored=ignored).long()
    labels[labels == IGNORED] = UNLABELLED
    return Batch(torch.zeros(3, 3, 5, 4), labels, torch.arange(3), torch.ones(3))


def test_the_mean_of_a_loss_is_that_over_all_labelled_pixels():
    batch, student, teacher = a_batch(), randn(3, K, 5, 4), randn(3, K, 5, 4, seed=1)
    known = batch.labels != UNLABELLED
    found = per_sample(ce(Output(student, None), None, batch)).mean()
    torch.testing.assert_close(found, F.cross_entropy(student, batch.labels))
    p, q = (logits.div(4).log_softmax(1) for logits in (teacher, student))
    slow = 16 * (p.exp() * (p - q)).sum(1)[known].mean()
    torch.testing.assert_close(per_sample(kd(Output(student, None), Output(teacher, None), batch)).mean(), slow)


def test_pixels_without_a_class_give_no_gradient_and_a_batch_of_them_no_loss():
    batch, student = a_batch(), randn(3, K, 5, 4).requires_grad_()
    (
        ce(Output(student, None), None, batch)
        + kd(Output(student, None), Output(randn(3, K, 5, 4, seed=1), None), batch)
    ).sum().backward()
    ignored = (batch.labels == UNLABELLED)[:, None].expand_as(student)
    assert (student.grad[ignored] == 0).all()
    assert (student.grad[~ignored] != 0).all()
    nothing = batch._replace(labels=torch.full_like(batch.labels, UNLABELLED))
    assert ce(Output(student, None), None, nothing).sum() == 0


def test_terms_of_the_inversion_are_means_over_an_images_pixels():
    teacher, student, targets = randn(3, K, 5, 4), randn(3, K, 5, 4, seed=1), labels_of(3, 5, 4, ignored=0).long()
    rows = [each.movedim(1, -1).reshape(-1, K) for each in (teacher, student)]
    torch.testing.assert_close(class_loss(teacher, targets), class_loss(rows[0], targets.flatten()).view(3, -1).mean(1))
    torch.testing.assert_close(adversarial_loss(teacher, student), adversarial_loss(*rows).view(3, -1).mean(1))


def test_values_per_sample_stay_as_they_are():
    values = randn(4)
    assert per_sample(values) is values
    assert per_sample(values.sum()).shape == ()


# --- the buffer, layouts, schedule ---


def test_the_buffer_counts_pixels_and_a_share_is_the_mean_over_an_images():
    settings = tiny_run("ssdkd").replay
    buffer = ReplayBuffer(6, (3, 4, 4), K, settings, torch.device("cpu"), dense=True)
    generator = torch.Generator().manual_seed(0)
    for seed in range(5):  # until old ones are replaced
        maps = labels_of(4, 4, 4, ignored=0.1, seed=seed).long()
        buffer.add(torch.zeros(4, 3, 4, 4, dtype=torch.uint8), maps, torch.ones(4), generator)
        held = buffer.classes[: buffer.size].flatten().numpy()
        assert buffer.class_counts.tolist() == np.bincount(held[held != IGNORED], minlength=K).tolist()
    asked = torch.randint(K, (2, 4, 4), generator=generator)
    share = buffer.class_counts / (6 * 16)
    torch.testing.assert_close(buffer.class_share(asked), share[asked].mean((1, 2)))


def test_layouts_have_few_regions_and_over_many_all_classes_alike():
    maps = draw_layouts(600, 24, K, torch.Generator().manual_seed(0))
    shares = np.bincount(maps.flatten(), minlength=K) / maps.numel()
    assert abs(shares - 1 / K).max() < 0.03
    each = [len(layout.unique()) for layout in maps]
    assert min(each) >= 1
    assert 3 < np.mean(each) < 10
    changes = (maps[:, :, 1:] != maps[:, :, :-1]).float().mean()
    assert changes < 0.15, "regions, not noise"


def test_the_poly_schedule_falls_with_power_09():
    training = tiny_run("scratch", training__schedule="poly", training__lr=0.4, training__epochs=10).training
    for epoch in range(10):
        assert learning_rate(training, epoch) == pytest.approx(0.4 * math.pow(1 - epoch / 10, 0.9))


def test_layouts_move_with_the_images_that_are_asked_for_them():
    augment = Augment(torch.zeros(3), torch.ones(3) / 255, pad=3, flip=True)
    layouts = labels_of(8, SIZE, SIZE, ignored=0).long()
    source = SimpleNamespace(targets=layouts, augment=augment, random=torch.Generator().manual_seed(0))
    images = (10 * layouts[:, None].float() + 10).expand(-1, 3, -1, -1) / 255  # 0 only where padding is seen
    seen, asked = Descent._augmented(source, images)
    values = seen[:, 0].round().long()
    assert torch.equal(values == 0, asked == UNLABELLED)
    assert torch.equal(values[values > 0], 10 * asked[values > 0] + 10)
    assert (asked == UNLABELLED).any()
    assert source.targets is layouts
    assert layouts.min() == 0
