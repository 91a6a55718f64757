"""Preparing, loading and splitting a data set, and the batches made from it."""

import io
import re
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from kd.data.augment import Augment
from kd.data.dataset import Loader, Split, load, stratified
from kd.data.prepare import prepare
from kd.data.raw import Source
from kd.runtime.messages import ConfigError
from kd.settings.shapes import Dataset

DIGITS = Dataset(name="digits", root=None, classes=None, image_size=8, validation=0.0, pad=1, flip=False)
NOWHERE = Source(None, Path("nowhere"), download=False)  # the digits come inside a package
CPU = torch.device("cpu")
PARTS = ("train", "test")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "below" / "digits.pt"
    prepare(DIGITS, path, NOWHERE)
    return path


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pairs(images, labels):
    """How often each image with its label occurs."""
    return Counter(
        (np.ascontiguousarray(image).tobytes(), int(label)) for image, label in zip(images, labels, strict=True)
    )


def pairs_of(split):
    return pairs(split.images.numpy(), split.labels)


# --- preparing ---


def test_digits_are_prepared_untouched_each_in_one_split(prepared):
    content, digits = torch.load(prepared, weights_only=True), load_digits()
    assert {part: content[f"{part}_images"].shape for part in PARTS} == {
        "train": (1437, 1, 8, 8),
        "test": (360, 1, 8, 8),
    }
    assert all(content[f"{part}_images"].dtype == torch.uint8 for part in PARTS)
    assert all(content[f"{part}_labels"].dtype == torch.int64 for part in PARTS)
    assert content["classes"] == [str(digit) for digit in range(10)]
    stored = sum((pairs(content[f"{part}_images"].numpy(), content[f"{part}_labels"]) for part in PARTS), Counter())
    greys = np.array([round(level * 255 / 16) for level in range(17)], dtype=np.uint8)
    assert stored == pairs(greys[digits.images.astype(int)], digits.target)


def test_digits_are_stratified(prepared):
    content = torch.load(prepared, weights_only=True)
    held_out, all_of_class = torch.bincount(content["test_labels"]), np.bincount(load_digits().target)
    assert all(abs(int(held_out[c]) - 0.2 * all_of_class[c]) <= 1 for c in range(10))


def test_mean_and_std_are_those_of_the_training_images(prepared):
    content = torch.load(prepared, weights_only=True)
    values = content["train_images"].numpy().astype(np.float64) / 255
    np.testing.assert_allclose(content["mean"].numpy(), [values.mean()], rtol=1e-6)
    np.testing.assert_allclose(content["std"].numpy(), [values.std()], rtol=1e-6)


def test_preparing_again_gives_the_same_data(prepared, tmp_path):
    prepare(DIGITS, tmp_path / "again.pt", NOWHERE)
    first, again = (torch.load(path, weights_only=True) for path in (prepared, tmp_path / "again.pt"))
    assert first.keys() == again.keys()
    for name, value in first.items():
        assert again[name] == value if name == "classes" else torch.equal(again[name], value)


def test_larger_images_are_interpolated_bilinearly(prepared, tmp_path):
    prepare(replace(DIGITS, image_size=16), tmp_path / "large.pt", NOWHERE)
    small, large = (torch.load(path, weights_only=True) for path in (prepared, tmp_path / "large.pt"))
    assert large["train_images"].shape == (1437, 1, 16, 16)
    assert large["test_images"].shape == (360, 1, 16, 16)
    assert torch.equal(large["train_labels"], small["train_labels"])
    for n in (0, 5, 1436):
        image = small["train_images"][n, 0].double().numpy()
        for row in range(16):
            for column in range(16):
                y, x = (min(max((place + 0.5) / 2 - 0.5, 0), 7) for place in (row, column))
                top, left = int(y), int(x)
                bottom, right = min(top + 1, 7), min(left + 1, 7)
                upper = image[top, left] * (1 - (x - left)) + image[top, right] * (x - left)
                lower = image[bottom, left] * (1 - (x - left)) + image[bottom, right] * (x - left)
                value = upper * (1 - (y - top)) + lower * (y - top)
                assert abs(value - int(large["train_images"][n, 0, row, column])) <= 0.5 + 1e-3
    values = large["train_images"].numpy() / 255
    np.testing.assert_allclose(large["std"].numpy(), [values.std()], rtol=1e-6)


# --- loading ---


def test_loading_gives_the_prepared_splits(prepared):
    content, data = torch.load(prepared, weights_only=True), load(prepared, DIGITS, CPU)
    assert (len(data.train), len(data.score), data.full_size, data.scored) == (1437, 360, 1437, "test")
    assert (data.channels, data.image_size) == (1, 8)
    assert torch.equal(data.train.images, content["train_images"])
    assert torch.equal(data.train.labels, content["train_labels"])
    assert torch.equal(data.score.images, content["test_images"])
    assert torch.equal(data.score.labels, content["test_labels"])
    assert (data.augment.mean, data.augment.std) == (content["mean"], content["std"])
    assert (data.augment.pad, data.augment.flip) == (1, False)


def test_validation_split_is_cut_from_the_training_images_alone(prepared):
    content, data = torch.load(prepared, weights_only=True), load(prepared, replace(DIGITS, validation=0.2), CPU)
    assert data.scored == "validation"
    assert data.full_size == 1437
    every = pairs(content["train_images"].numpy(), content["train_labels"])
    assert pairs_of(data.train) + pairs_of(data.score) == every  # nothing twice, nothing lost, nothing of the test set
    share = torch.bincount(data.score.labels) / torch.bincount(content["train_labels"])
    assert ((share - 0.2).abs() < 0.005).all()
    again = load(prepared, replace(DIGITS, validation=0.2), CPU)
    assert torch.equal(again.score.images, data.score.images)


@pytest.mark.parametrize(
    ("labels", "validation", "named"),
    [
        ([0, 0, 0, 2], 0.5, "class 'c' (1);"),  # a class of one image, and one that has none anyway
        ([0, 1], 0.1, "class 'a' (1) and of 1 more classes;"),  # everything
        ([0] * 8 + [1] * 2 + [2] * 2, 0.8, "class 'b' (2) and of 1 more classes;"),
    ],
)
def test_a_validation_split_that_takes_every_image_of_a_class_is_refused(tmp_path, labels, validation, named):
    images = torch.zeros(len(labels), 1, 8, 8, dtype=torch.uint8)
    content = {"classes": ["a", "b", "c"], "mean": torch.zeros(1), "std": torch.ones(1)}
    for part in PARTS:
        content |= {f"{part}_images": images, f"{part}_labels": torch.tensor(labels)}
    torch.save(content, tmp_path / "d.pt")
    with pytest.raises(ConfigError, match=rf"^dataset.validation: got {validation}, .*{re.escape(named)}[^\n]+\Z"):
        load(tmp_path / "d.pt", replace(DIGITS, validation=validation), CPU)
    assert len(load(tmp_path / "d.pt", DIGITS, CPU).train) == len(labels)


# --- stratified fractions ---

LABELS = torch.randint(0, 5, (400,), generator=generator()).pow(2)  # unequal gaps between the class names
LABELS = torch.cat([LABELS, torch.full((200,), 4), torch.tensor([7, 7, 3])])


@pytest.mark.parametrize("fraction", [0.003, 0.01, 0.1, 0.35, 0.9, 1.0])
def test_every_class_keeps_its_share_and_at_least_one(fraction):
    index = stratified(LABELS, fraction, seed=1)
    assert index.dtype == torch.int64
    assert torch.equal(index, index.unique())  # sorted, none twice
    for label in LABELS.unique():
        of_class = int((label == LABELS).sum())
        assert int((LABELS[index] == label).sum()) == max(1, round(fraction * of_class))


def test_smaller_fractions_lie_inside_larger_ones():
    nested = [set(stratified(LABELS, fraction, seed=1).tolist()) for fraction in (0.01, 0.05, 0.2, 0.5, 0.51, 1.0)]
    assert all(small < large for small, large in pairwise(nested))
    assert nested[-1] == set(range(len(LABELS)))


def test_seed_decides_the_subset_and_every_sample_can_be_in_it():
    subsets = [set(stratified(LABELS, 0.3, seed).tolist()) for seed in range(40)]
    assert subsets[3] == set(stratified(LABELS, 0.3, 3).tolist())
    assert subsets[3] != subsets[4]
    assert set().union(*subsets) == set(range(len(LABELS)))


# --- batches ---


def numbered(count):
    """A split whose image number n is filled with the grey level n."""
    levels = torch.arange(count, dtype=torch.uint8)
    return Split(levels.view(-1, 1, 1, 1).expand(-1, 2, 4, 4).contiguous(), levels.long() * 7 % 5)


def loader(count, batch_size, pad=0, flip=False, seed=0):
    augment = Augment(torch.zeros(2), torch.ones(2), pad, flip)
    return Loader(numbered(count), augment, batch_size, generator(seed))


def following(batches):
    batches.advance()
    return batches.batch()


def epoch(batches):
    return torch.cat([following(batches).index for _ in range(batches.steps_per_epoch)]).tolist()


@pytest.mark.parametrize(
    ("count", "batch_size", "steps", "size"), [(24, 6, 4, 6), (23, 6, 3, 6), (9, 12, 1, 9), (9, 9, 1, 9)]
)
def test_an_epoch_visits_each_sample_at_most_once_in_a_new_order(count, batch_size, steps, size):
    batches = loader(count, batch_size)
    assert batches.steps_per_epoch == steps
    orders = [epoch(batches) for _ in range(30)]
    for order in orders:
        assert len(order) == len(set(order)) == steps * size
    assert all(before != after for before, after in pairwise(orders))
    assert set().union(*orders) == set(range(count))  # the dropped samples change


def test_one_image_makes_no_batch_for_batch_normalisation():
    with pytest.raises(ConfigError, match=r"^dataset: training images: got 1; batch normalisation needs two"):
        loader(1, 6)
    assert loader(2, 6).batch_size == 2


def test_a_batch_holds_the_images_and_labels_of_its_index():
    batches = loader(24, 6)
    for _ in range(8):
        batch = following(batches)
        assert torch.equal((batch.images * 255).round().long(), batch.index.view(-1, 1, 1, 1).expand(-1, 2, 4, 4))
        assert torch.equal(batch.labels, batch.index * 7 % 5)
        assert torch.equal(batch.weight, torch.ones(6))
        assert batch.images.dtype == torch.float32


@pytest.mark.parametrize("done", [0, 5, 6, 8])  # before the first epoch, within one, between two, within the second
def test_restored_loader_continues_with_the_same_batches(done):
    batches = loader(20, 3, pad=1, flip=True)
    for _ in range(done):
        following(batches)
    file = io.BytesIO()
    torch.save(batches.state_dict(), file)
    random_state = batches.generator.get_state()
    file.seek(0)
    resumed = loader(20, 3, pad=1, flip=True, seed=99)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    resumed.generator.set_state(random_state)
    for _ in range(14):
        for actual, expected in zip(following(resumed), following(batches), strict=True):
            assert torch.equal(actual, expected)
