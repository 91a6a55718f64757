"""Small data sets in files, and what is prepared from them."""

import numpy as np
import pytest
import torch
from PIL import Image

from kd.data.prepare import prepare
from kd.data.raw import Source
from kd.runtime.messages import ConfigError
from kd.settings.shapes import Dataset

SPLITS = ("train", "test")


def dataset(name, classes=None, size=8, root=None):
    return Dataset(name, root=root, classes=classes, image_size=size, validation=0.0, pad=0, flip=False)


def prepared(folder, settings, root=None, download=False):
    """Return what the prepared file of a data set holds; downloads are in `folder`."""
    prepare(settings, folder / "prepared" / "data.pt", Source(root, folder / "downloads", download))
    return torch.load(folder / "prepared" / "data.pt", weights_only=True)


def refusal(folder, settings, root=None, download=False, key="root"):
    """Return the one line that a user reads; nothing is prepared and no second exception is shown."""
    with pytest.raises(ConfigError, match=rf"^dataset\.{key}: [^\n]+\Z") as caught:
        prepare(settings, folder / "refused.pt", Source(root, folder / "downloads", download))
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert not (folder / "refused.pt").exists()
    return str(caught.value)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write(root, images):
    """Write images to their paths below `root`, lossless if the format allows it; return `root`."""
    for path, image in images.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / path, lossless=True)
    return root


def random_data(count, train, test, *shape):
    """Return {split: (images, labels)} with the given numbers of images of every class, in a random order."""
    rng, data = np.random.default_rng(count), {}
    for split, each in (("train", train), ("test", test)):
        labels = rng.permutation(np.repeat(np.arange(count), each))
        data[split] = rng.integers(0, 256, (len(labels), *shape), dtype=np.uint8), labels
    return data


def write_tree(root, data, ending=".png"):
    for split, (images, labels) in data.items():
        write(root, {f"{split}/{labels[n]:02}/{n}{ending}": image for n, image in enumerate(images)})
    return root


def small_tree(root):
    """Write one 8x8 image to each of train/00, test/00, train/01 and test/01; return `root`."""
    return write_tree(root, random_data(2, 1, 1, 8, 8, 3))


def assert_same(first, second):
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert value == second[key] if key == "classes" else torch.equal(value, second[key]), key


def assert_images(images, expected):
    """Compare a tensor [N, C, S, S] with arrays [S, S, C]."""
    np.testing.assert_array_equal(images.numpy().transpose(0, 2, 3, 1), np.stack(expected))
