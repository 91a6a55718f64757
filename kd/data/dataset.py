"""Prepared data as tensors on the training device: splits, nested fractions, batches."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kd.batch import UNLABELLED, Batch
from kd.data.augment import Augment
from kd.data.raw import IGNORED
from kd.registry.datasets import SYNTHETIC
from kd.runtime.messages import ConfigError
from kd.settings.shapes import Dataset

WHOLE = "remove it, so that the whole data set is prepared"
VALIDATION_SEED = 0  # the validation split belongs to the data set, not to a run


@dataclass(frozen=True)
class Split:
    """Images [N, C, S, S] uint8 and labels [N] int64 on one device; of segmentation maps [N, S, S] uint8."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def dense(self) -> bool:
        """Whether each pixel has a label."""
        return self.labels.dim() > 1

    def targets(self) -> Tensor:
        """Return the labels as losses take them."""
        return targets(self.labels)

    def subset(self, index: Tensor | slice) -> Split:
        """Return the images and labels at these positions."""
        return replace(self, images=self.images[index], labels=self.labels[index])

    def loader(self, augment: Augment, batch_size: int, generator: torch.Generator) -> Loader:
        """Return what makes batches of them. Raises ConfigError as Loader does."""
        return Loader(self, augment, batch_size, generator)


@dataclass(frozen=True)
class Data:
    """A prepared data set. `score` is the test set, or the validation split where one is held out (tuning).

    Without any images (`dataset.name: none`) both splits are empty; what is `scored` then are synthetic images.
    """

    train: Split
    score: Split
    scored: str  # test, validation or synthetic
    full_size: int  # images in the whole training set, before any split
    classes: list[str]
    augment: Augment
    palette: Tensor | None = None  # [K, 3] uint8, colours of the classes in figures, where the data set has them

    @property
    def channels(self) -> int:
        return self.train.images.shape[1]

    @property
    def image_size(self) -> int:
        return self.train.images.shape[-1]


def load(path: Path, dataset: Dataset, device: torch.device) -> Data:
    """Return a prepared file's data on a device; without the test images if a validation split is held out.

    A file of test images alone (benchmarks/gpu_test_images.py) has no training images, but says how many there are.
    Images are normalised with the data set's own `mean` and `std` where these are given.

    Raises ConfigError for a validation split that would hold out every image of a class, or has none to hold out.
    """
    return data_of(torch.load(path, weights_only=True, mmap=True), Split, path, dataset, device)


def data_of(content: dict[str, Any], split: type[Split], path: Path, dataset: Dataset, device: torch.device) -> Data:
    """Return the data of a prepared file's content, in splits of a kind. Raises as `load`."""
    train = split(content["train_images"], content["train_labels"])
    full_size = content.get("full_size", len(train))
    described = not len(train) and not len(content["test_labels"])  # dataset.name: none
    if dataset.validation and not len(train) and not described:
        raise ConfigError(f"dataset.validation: got {dataset.validation}; {path} holds test images alone; {WHOLE}")
    if dataset.validation and not described:
        held_out = stratified(train.labels, dataset.validation, VALIDATION_SEED)
        rest = torch.ones(full_size, dtype=torch.bool)
        rest[held_out] = False
        if not train.dense:
            _require_every_class(train.labels[rest], train.labels, content["classes"], dataset.validation)
        score, train = train.subset(held_out), train.subset(rest.nonzero()[:, 0])
        if train.dense:
            _require_labelled(train, score, dataset.validation)
    else:
        score = split(content["test_images"], content["test_labels"])
    mean, std = (
        content[name] if values is None else _per_channel(name, values, train.images.shape[1])
        for name, values in (("mean", dataset.mean), ("std", dataset.std))
    )
    augment = Augment(mean.to(device), std.to(device), dataset.pad, dataset.flip, dataset.rescale)
    on_device = (split(part.images.to(device), part.labels.to(device)) for part in (train, score))
    scored = SYNTHETIC if described else "validation" if dataset.validation else "test"
    return Data(*on_device, scored, full_size, content["classes"], augment, content.get("palette"))


def _per_channel(name: str, values: tuple[float, ...], channels: int) -> Tensor:
    """Return dataset.mean or dataset.std as a tensor [C]. Raises ConfigError where there are not C of them."""
    if len(values) != channels:
        raise ConfigError(f"dataset.{name}: got {len(values)} numbers; needed: one for each of {channels} channels")
    return torch.tensor(values, dtype=torch.float32)


def _require_every_class(left: Tensor, labels: Tensor, classes: list[str], validation: float) -> None:
    """Raise ConfigError where a class that has images has none left."""
    before, after = (values.bincount(minlength=len(classes)) for values in (labels, left))
    if empty := ((before > 0) & (after == 0)).nonzero()[:, 0].tolist():
        others = f" and of {len(empty) - 1} more classes" if len(empty) > 1 else ""
        raise ConfigError(
            f"dataset.validation: got {validation}, which holds out all training images of class {classes[empty[0]]!r} "
            f"({before[empty[0]]}){others}; lower it, or give each class at least two images"
        )


def _require_labelled(train: Split, score: Split, validation: float) -> None:
    """Raise ConfigError where no image is left to learn from, or the maps of one of both parts have no class."""
    for part, what in ((train, "left to learn from"), (score, "held out")):
        if not len(part) or (part.labels == IGNORED).all():
            count = f"no map with a class among the {len(part)}" if len(part) else "none"
            raise ConfigError(
                f"dataset.validation: got {validation}; of {len(train) + len(score)} training images {count} is "
                f"{what}; choose another fraction"
            )


def stratified(labels: Tensor, fraction: float, seed: int) -> Tensor:
    """Return the sorted positions [m] of a stratified random subset; with one seed, larger fractions contain smaller.

    Every class keeps its share, rounded, and at least one sample. Of label maps [N, S, S] it is any random subset: an
    image has no class.
    """
    rng = np.random.default_rng(seed)
    labels_array = np.zeros(len(labels)) if labels.dim() > 1 else labels.cpu().numpy()
    kept = []
    for label in np.unique(labels_array):
        positions = rng.permutation(np.flatnonzero(labels_array == label))
        kept.append(positions[: max(1, round(fraction * len(positions)))])
    return torch.from_numpy(np.sort(np.concatenate(kept)))


def targets(labels: Tensor) -> Tensor:
    """Return labels as losses take them: int64, in maps UNLABELLED instead of IGNORED."""
    return labels if labels.dim() < 2 else labels.long().masked_fill(labels == IGNORED, UNLABELLED)


class Loader:
    """Endless batches of a split in a new random order each epoch; the last, smaller batch of an epoch is dropped.

    If the split is smaller than the batch, a batch is the whole split. Order and position are part of a checkpoint.
    Raises ConfigError for fewer than two images.
    """

    def __init__(self, split: Split, augment: Augment, batch_size: int, generator: torch.Generator):
        if len(split) < 2:
            raise ConfigError(
                f"dataset: training images: got {len(split)}; batch normalisation needs two or more: raise scale, "
                "lower dataset.validation, or add images"
            )
        self.split, self.augment, self.generator = split, augment, generator
        self.batch_size = min(batch_size, len(split))
        self.steps_per_epoch = len(split) // self.batch_size
        device = split.labels.device
        self._order = torch.zeros(len(split), dtype=torch.int64, device=device)
        self._batch = torch.arange(self.batch_size, device=device)
        self._start = torch.zeros((), dtype=torch.int64, device=device)  # place of the next batch in the order
        self._step = 0

    def advance(self) -> None:
        """Go on to the next batch, which `batch` then returns: an epoch's first one begins a new order."""
        if self._step % self.steps_per_epoch == 0:
            order = torch.randperm(len(self.split), generator=self.generator, device=self._order.device)
            self._order.copy_(order)
            self._start.zero_()
        self._step += 1

    def batch(self) -> Batch:
        """Return a batch, augmented and normalised; to be called once after each `advance`. Only tensors change."""
        index = self._order[self._start + self._batch]
        self._start += self.batch_size
        images, labels = self.split.images[index], self.split.labels[index]
        if self.split.dense:
            images, labels = self.augment.pair(images, labels, self.generator)
        else:
            images = self.augment(images, self.generator)
        return Batch(images, targets(labels), index, torch.ones_like(index, dtype=torch.float32))

    @property
    def place(self) -> tuple[int, int, bytes]:
        """What identifies the next batch among loaders of one split: batch size, step, state of the generator."""
        return self.batch_size, self._step, self.generator.get_state().numpy().tobytes()

    def state_dict(self) -> dict[str, Any]:
        return {"order": self._order, "step": self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._order.copy_(state["order"])
        self._step = state["step"]
        self._start.fill_(self._step % self.steps_per_epoch * self.batch_size)
