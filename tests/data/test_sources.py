"""Where data sets are read from: image folders, torchvision's files, IDX files; and what that means for identities."""

import gzip
import hashlib
import http.client
import json
import pickle
import re
import shutil
import struct
import tarfile
import tempfile
import time
import urllib.error
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, tiny_run
from PIL import Image

from kd.config import ConfigError, Dataset, Run
from kd.data import DATASETS, cifar, fashion_mnist
from kd.data.dataset import load
from kd.data.prepare import _mean_std, prepare
from kd.data.raw import RawData, Source
from kd.torchvision_compat import import_torchvision

ARCHIVES = [ROOT.parent / f"shared/data/cifar100-webp.part{part}.tar.gz" for part in (1, 2)]
SPLITS = ("train", "test")


def dataset(name, classes=None, size=8, root=None):
    return Dataset(name, root=root, classes=classes, image_size=size, validation=0.0, pad=0, flip=False)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write(root, images):
    """Files by their path below `root`, lossless where the ending allows it."""
    for path, image in images.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / path, lossless=True)
    return root


def small_tree(root):
    """Two classes with one 8x8 image in each split."""
    paths = [f"{split}/{name}/0.png" for split in SPLITS for name in ("cat", "dog")]
    return write(root, {path: noise(8, 8, 3, seed=seed) for seed, path in enumerate(paths)})


@pytest.fixture
def prepared(tmp_path):
    """What the prepared file of a data set holds."""

    def content(settings, root=None, download=False):
        path = tmp_path / "prepared" / "data.pt"
        prepare(settings, path, Source(root, tmp_path / "downloads", download))
        return torch.load(path, weights_only=True)

    return content


@pytest.fixture
def refusal(tmp_path):
    """The line that a user reads; nothing is prepared and no second exception is shown."""

    def message(settings, root=None, download=False):
        with pytest.raises(ConfigError) as caught:
            prepare(settings, tmp_path / "refused.pt", Source(root, tmp_path / "downloads", download))
        assert not (tmp_path / "refused.pt").exists()
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__ or caught.value.__context__ is None
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return message


def assert_same(first, second):
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert value == second[key] if key == "classes" else torch.equal(value, second[key]), key


def assert_images(images, expected):
    """Tensor [N, C, S, S] against arrays [S, S, C]."""
    np.testing.assert_array_equal(images.numpy().transpose(0, 2, 3, 1), np.stack(expected))


# --- a folder of images ---


def test_images_of_the_wanted_size_are_kept_byte_for_byte_in_the_order_of_class_and_name(prepared, tmp_path):
    names = ["ox/b.png", "ox/B.PNG", "ox/c.webp", "ox/a.WebP", "ape/10.png", "ape/9.WEBP"]
    images = {f"{split}/{name}": noise(8, 8, 3, seed=len(split + name)) for split in SPLITS for name in names}
    content = prepared(dataset("folder"), write(tmp_path / "data", images))
    assert content["classes"] == ["ape", "ox"]
    for split in SPLITS:
        assert content[f"{split}_labels"].tolist() == [0, 0, 1, 1, 1, 1]
        order = ["ape/10.png", "ape/9.WEBP", "ox/B.PNG", "ox/a.WebP", "ox/b.png", "ox/c.webp"]
        assert_images(content[f"{split}_images"], [images[f"{split}/{name}"] for name in order])


def test_the_order_in_which_files_were_made_does_not_matter(prepared, tmp_path):
    images = {f"{split}/{n % 3}/{n}.png": noise(8, 8, 3, seed=n) for split in SPLITS for n in range(30)}
    first = prepared(dataset("folder"), write(tmp_path / "one", images))
    again = prepared(dataset("folder"), write(tmp_path / "two", dict(reversed(images.items()))))
    assert_same(first, again)


@pytest.mark.parametrize("name", ["1.jpg", "1.JPG", "1.jpeg", "1.JpEg"])
def test_jpeg_is_read_as_it_decodes(prepared, tmp_path, name):
    file = small_tree(tmp_path / "data") / "train/cat" / name
    Image.fromarray(noise(8, 8, 3)).save(file, quality=90)
    assert_images(prepared(dataset("folder"), tmp_path / "data")["train_images"][1:2], [np.asarray(Image.open(file))])


GREY, COLOUR = noise(8, 8), noise(8, 8, 3)
PALETTE = Image.fromarray(COLOUR).quantize(16)
TURN = 0x0112  # EXIF's orientation; 6: its top lies on the right, 8: on the left
KINDS = {  # file -> what is saved, the turn, what is to be seen
    "grey.png": (GREY, 1, np.dstack([GREY] * 3)),
    "one_bit.png": (GREY > 127, 1, np.dstack([(GREY > 127) * 255] * 3)),
    "palette.png": (PALETTE, 1, np.reshape(PALETTE.getpalette(), (-1, 3))[np.asarray(PALETTE)]),
    "rgba.png": (np.dstack([COLOUR, GREY]), 1, COLOUR),
    "rgba.webp": (np.dstack([COLOUR, GREY]), 1, COLOUR),
    "sixteen_bit.png": (GREY.astype(np.uint16) * 257, 1, np.dstack([GREY] * 3)),
    "turned_right.png": (COLOUR, 6, np.rot90(COLOUR, -1)),
    "turned_left.webp": (COLOUR, 8, np.rot90(COLOUR)),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_image_becomes_upright_rgb(prepared, tmp_path, name):
    saved, turn, seen = KINDS[name]
    image, exif = saved if isinstance(saved, Image.Image) else Image.fromarray(saved), Image.Exif()
    exif[TURN] = turn
    image.save(small_tree(tmp_path / "data") / "train/cat" / name, lossless=True, exact=True, exif=exif)
    assert_images(prepared(dataset("folder"), tmp_path / "data")["train_images"][1:2], [seen])


def cut_and_resized(image, size):
    """Around its centre, bilinear, antialiased when shrinking: each value a sum over all pixels."""
    side = min(image.shape[:2])

    def weights(length):
        centres = (length - side) / 2 + (np.arange(size) + 0.5) * side / size
        distance = abs(np.arange(length) + 0.5 - centres[:, None])
        raw = np.maximum(0, 1 - distance / max(1, side / size))
        return raw / raw.sum(1, keepdims=True)

    return np.einsum("yh,hwc,xw->yxc", weights(image.shape[0]), image, weights(image.shape[1]))


@pytest.mark.parametrize("shape", [(24, 40), (41, 17), (5, 5), (8, 9), (3, 50)], ids=str)
def test_images_of_another_size_are_cut_to_a_square_and_interpolated(prepared, tmp_path, shape):
    image = noise(*shape, 3)
    write(small_tree(tmp_path / "data"), {"train/cat/1.png": image})
    images = prepared(dataset("folder"), tmp_path / "data")["train_images"]
    assert images.shape == (3, 3, 8, 8)
    np.testing.assert_allclose(images[1].numpy().transpose(1, 2, 0), cut_and_resized(image, 8), rtol=0, atol=1)


def test_hidden_files_and_other_endings_are_ignored(prepared, tmp_path):
    expected = prepared(dataset("folder"), small_tree(tmp_path / "data"))
    for name in (".DS_Store", "._0.png", "notes.txt", "0.png.bak", "0.gif", "png"):
        (tmp_path / "data/train/cat" / name).write_bytes(b"no image")
        (tmp_path / "data/train" / name).write_bytes(b"no image")
    (tmp_path / "data/test/.cache").mkdir()
    assert_same(prepared(dataset("folder"), tmp_path / "data"), expected)


def test_any_name_may_name_a_class(prepared, tmp_path):
    names = sorted(["a b", "it's", 'say "x"', "Äpfel", "日本", "x;y", "$(x)", "`y`", "-r", "%s{0}", "*", "a\\b"])
    images = {f"{split}/{name}/0.png": noise(8, 8, 3, seed=n) for split in SPLITS for n, name in enumerate(names)}
    content = prepared(dataset("folder"), write(tmp_path / "my $(data)", images))
    assert content["classes"] == names
    assert_images(content["test_images"], [images[f"test/{name}/0.png"] for name in names])
    part = prepared(dataset("folder", classes=("日本", "$(x)")), tmp_path / "my $(data)")
    assert part["classes"] == ["$(x)", "日本"]


def shortened(file):
    file.write_bytes(file.read_bytes()[:-40])


def only_class(root):
    for split in SPLITS:
        shutil.rmtree(root / split / "cat")


FAULTS = {  # what is done to the tree, and the path that the message names
    "no test": (lambda root: shutil.rmtree(root / "test"), ""),
    "no train": (lambda root: shutil.rmtree(root / "train"), ""),
    "no folder": (lambda root: shutil.rmtree(root), ""),
    "no class": (lambda root: [shutil.rmtree(root / split / name) for split in SPLITS for name in ("cat", "dog")], ""),
    "one class": (only_class, ""),
    "class not in test": (lambda root: shutil.rmtree(root / "test/dog"), "test"),
    "class not in train": (lambda root: shutil.rmtree(root / "train/dog"), "train"),
    "empty class": (lambda root: (root / "test/dog/0.png").unlink(), "test/dog"),
    "empty file": (lambda root: (root / "train/dog/0.png").write_bytes(b""), "train/dog/0.png"),
    "no image": (lambda root: (root / "train/dog/1.jpg").write_bytes(b"no image\n" * 50), "train/dog/1.jpg"),
    "truncated": (lambda root: shortened(root / "train/dog/0.png"), "train/dog/0.png"),
    "truncated WebP": (
        lambda root: shortened(write(root, {"test/cat/1.webp": COLOUR}) / "test/cat/1.webp"),
        "test/cat/1.webp",
    ),
    "folder named as image": (lambda root: (root / "train/dog/1.png").mkdir(), "train/dog/1.png"),
    "link to nowhere": (lambda root: (root / "train/dog/1.png").symlink_to("gone"), "train/dog/1.png"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_tree_is_refused_in_a_line_that_names_the_path(refusal, tmp_path, fault):
    damage, named = FAULTS[fault]
    damage(small_tree(tmp_path / "it's data"))
    message = refusal(dataset("folder"), tmp_path / "it's data")
    assert message.startswith("dataset.root: ")
    assert str(tmp_path / "it's data" / named) in message
    if fault.startswith("class"):
        assert "'dog'" in message


# --- classes ---


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (3, "got 3; allowed: at most 2"),
        (("kat", "dog"), "got 'kat'; did you mean 'cat'?"),
        (("cat", "zebra"), "got 'zebra'; allowed: cat, dog"),
    ],
)
def test_classes_that_are_not_there_are_refused(refusal, tmp_path, classes, said):
    message = refusal(dataset("folder", classes), small_tree(tmp_path / "data"))
    assert message.startswith("dataset.classes: ")
    assert said in message
    assert refusal(dataset("digits", 11)).startswith("dataset.classes: got 11; allowed: at most 10")


def random_data(class_names, train, test, *shape):
    """So many images of every class in each split, in a random order."""
    rng, arrays = np.random.default_rng(len(class_names)), []
    for each in (train, test):
        labels = rng.permutation(np.repeat(np.arange(len(class_names)), each))
        arrays += [rng.integers(0, 256, (len(labels), *shape), dtype=np.uint8), labels]
    return RawData(*arrays, class_names)


def splits_of(raw):
    return (("train", raw.train_images, raw.train_labels), ("test", raw.test_images, raw.test_labels))


def write_tree(root, raw, ending=".png"):
    for split, images, labels in splits_of(raw):
        write(root, {f"{split}/{raw.classes[labels[n]]}/{n}{ending}": image for n, image in enumerate(images)})
    return root


def small_cifar(name, monkeypatch):
    count = cifar.CLASS_COUNT[name]
    monkeypatch.setattr(cifar, "SIZES", (count * 2, count))
    return random_data([f"class {n:02}" for n in range(count)], 2, 1, 32, 32, 3)


def write_idx(folder, ending=".gz"):
    """The four files of a small Fashion-MNIST; gives what is in them."""
    raw = random_data(fashion_mnist.CLASSES, 4, 2, 28, 28)
    folder.mkdir(parents=True)
    arrays = (raw.train_images, raw.train_labels.astype(np.uint8), raw.test_images, raw.test_labels.astype(np.uint8))
    for name, array in zip(fashion_mnist.FILES, arrays, strict=True):
        content = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()
        name, content = (name, gzip.compress(content)) if ending == ".gz" else (name.removesuffix(".gz"), content)
        (folder / name).write_bytes(content)
    return raw


@pytest.mark.parametrize("name", DATASETS)
def test_a_subset_is_what_taking_its_labels_by_hand_gives(prepared, monkeypatch, tmp_path, name):
    root = tmp_path / "data"
    if name == "fashion_mnist":
        write_idx(root)
    elif name == "folder":
        write_tree(root, random_data(list("dabce"), 4, 2, 8, 8, 3))
    elif name != "digits":
        write_tree(root, small_cifar(name, monkeypatch))
    whole = prepared(dataset(name), root)
    last, first, third = (whole["classes"][place] for place in (-1, 0, 2))
    for classes, names in ((3, whole["classes"][:3]), ((last, first, third), [first, third, last])):
        part = prepared(dataset(name, classes), root)
        assert part["classes"] == names
        for split in SPLITS:
            kept = [n for n, label in enumerate(whole[f"{split}_labels"]) if whole["classes"][label] in names]
            labels = [names.index(whole["classes"][whole[f"{split}_labels"][n]]) for n in kept]
            assert part[f"{split}_labels"].tolist() == labels
            assert torch.equal(part[f"{split}_images"], whole[f"{split}_images"][kept])
        values = part["train_images"].double().numpy() / 255
        np.testing.assert_allclose(part["mean"], values.mean((0, 2, 3)), rtol=1e-6)
        np.testing.assert_allclose(part["std"], values.std((0, 2, 3)), rtol=1e-6)


@pytest.mark.parametrize("chunk", [1, 7, 20, 4096])
def test_mean_and_std_per_channel_are_those_of_all_images_at_once(chunk):
    images = noise(20, 3, 5, 5) // np.array([1, 2, 50], dtype=np.uint8)[:, None, None]
    mean, std = _mean_std(torch.from_numpy(images), chunk)
    values = images.astype(np.float64) / 255
    np.testing.assert_allclose(mean, values.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, values.std((0, 2, 3)), rtol=1e-12)


# --- CIFAR ---


@pytest.fixture(params=["cifar10", "cifar100"])
def small(request, monkeypatch):
    """Name, torchvision's class and a small data set; torchvision takes the files that `write_archive` makes of it."""
    raw = small_cifar(request.param, monkeypatch)
    kind = getattr(import_torchvision().datasets, request.param.upper())
    files = {kind.meta["filename"]: {kind.meta["key"]: raw.classes}}
    for entry, (_, images, labels) in zip(("train_list", "test_list"), splits_of(raw), strict=True):
        names = [name for name, _ in getattr(kind, entry)]
        for name, part in zip(names, np.array_split(np.arange(len(labels)), len(names)), strict=True):
            key = "labels" if request.param == "cifar10" else "fine_labels"
            files[name] = {"data": images[part].transpose(0, 3, 1, 2).reshape(-1, 3072), key: labels[part].tolist()}
    files = {name: pickle.dumps(content) for name, content in files.items()}
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    for entry in ("train_list", "test_list"):
        monkeypatch.setattr(kind, entry, [[name, md5[name]] for name, _ in getattr(kind, entry)])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5[kind.meta["filename"]]})

    def write_archive(folder):
        (folder / kind.base_folder).mkdir(parents=True)
        for name, content in files.items():
            (folder / kind.base_folder / name).write_bytes(content)
        return folder

    return request.param, kind, raw, write_archive


def test_torchvisions_files_and_trees_of_lossless_images_give_the_same_tensors(prepared, small, tmp_path):
    name, _, raw, write_archive = small
    content = prepared(dataset(name, size=32), write_archive(tmp_path / "archive"))
    assert content["classes"] == raw.classes
    for split, images, labels in splits_of(raw):
        stored = zip(content[f"{split}_labels"].tolist(), content[f"{split}_images"], strict=True)
        expected = zip(labels.tolist(), images.transpose(0, 3, 1, 2), strict=True)
        assert sorted((label, image.numpy().tobytes()) for label, image in stored) == sorted(
            (label, image.tobytes()) for label, image in expected
        )
    for ending in (".png", ".webp"):
        assert_same(prepared(dataset(name, size=32), write_tree(tmp_path / ending[1:], raw, ending)), content)
    write_archive(tmp_path / "downloads")
    assert_same(prepared(dataset(name, size=32)), content)


def test_an_incomplete_tree_is_no_cifar(refusal, small, tmp_path):
    name, _, raw, _ = small
    root = write_tree(tmp_path / "data", raw)
    next((root / "train" / raw.classes[3]).iterdir()).unlink()
    message, count = refusal(dataset(name), root), len(raw.classes)
    assert message.startswith(f"dataset.root: {root} holds {2 * count - 1:,} + {count:,} images of {count} classes")
    assert "`folder`" in message
    for split in SPLITS:
        shutil.rmtree(root / split / raw.classes[0])
    assert f"{count - 1} classes" in refusal(dataset(name), root)


def test_data_that_is_not_there_is_asked_for(refusal, small, tmp_path):
    name, kind, _, write_archive = small
    for root, folder in ((None, tmp_path / "downloads"), (tmp_path / "my data", tmp_path / "my data")):
        message = refusal(dataset(name), root)
        assert message.startswith("dataset.root: ")
        assert "compute.download is false" in message
        assert kind.filename in message
        assert str(folder / kind.base_folder) in message
    damaged = write_archive(tmp_path / "damaged")
    shortened(damaged / kind.base_folder / kind.test_list[0][0])
    assert str(damaged) in refusal(dataset(name), damaged)


@pytest.mark.parametrize(
    "error", [urllib.error.URLError("no\nroute"), TimeoutError("timed out"), http.client.BadStatusLine("<html>")]
)
@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion_mnist"])
def test_a_failed_download_is_reported_in_a_line(refusal, monkeypatch, tmp_path, name, error):
    asked = []

    def no_network(request, *args, **kwargs):
        asked.append(request)
        raise error

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "nowhere")
    message = refusal(dataset(name), download=True)
    assert asked
    assert message.startswith("dataset.root: ")
    assert "the download failed" in message
    assert "set dataset.root to a folder with" in message


def test_a_download_is_kept(prepared, small, monkeypatch, tmp_path, capsys):
    name, kind, raw, write_archive = small
    monkeypatch.setattr(kind, "download", lambda self: write_archive(Path(self.root)))
    first = prepared(dataset(name), download=True)
    assert (tmp_path / "downloads" / kind.base_folder).is_dir()
    assert_same(prepared(dataset(name)), first)
    assert len(first["train_labels"]) == len(raw.train_labels)


# --- Fashion-MNIST ---


@pytest.mark.parametrize("place", ["root", "Debian", "torchvision"])
def test_fashion_mnist_is_read_where_it_lies(prepared, monkeypatch, tmp_path, place):
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "Debian")
    below = "downloads/FashionMNIST/raw" if place == "torchvision" else place
    raw = write_idx(tmp_path / below, "" if place == "torchvision" else ".gz")
    content = prepared(dataset("fashion_mnist", size=28), tmp_path / "root" if place == "root" else None)
    assert content["classes"] == raw.classes
    for split, images, labels in splits_of(raw):
        assert_images(content[f"{split}_images"], images[..., None])
        assert content[f"{split}_labels"].tolist() == labels.tolist()


def test_fashion_mnist_gives_torch_arrays_that_it_may_write_to(tmp_path):
    write_idx(tmp_path / "data")
    raw = fashion_mnist.load(dataset("fashion_mnist"), Source(tmp_path / "data", tmp_path, download=False))
    assert all(array.flags.writeable for array in raw[:4])  # torch warns of others


def shuffled(content):
    return b"no gzip" + content


DAMAGES = {"truncated": lambda content: content[:100], "no gzip": shuffled, "no IDX": lambda _: gzip.compress(b"ab")}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_of_fashion_mnist_is_named(refusal, tmp_path, damage):
    write_idx(tmp_path / "data")
    file = tmp_path / "data" / fashion_mnist.FILES[2]
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    message = refusal(dataset("fashion_mnist"), tmp_path / "data")
    assert message.startswith("dataset.root: ")
    assert str(file) in message


def test_fashion_mnist_that_is_not_there_is_asked_for(refusal, monkeypatch, tmp_path):
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "nowhere")
    write_idx(tmp_path / "data")
    (tmp_path / "data" / fashion_mnist.FILES[3]).unlink()
    message = refusal(dataset("fashion_mnist"), tmp_path / "data")
    assert message.startswith(f"dataset.root: FashionMNIST was not found in {tmp_path / 'data'} and compute.download")
    assert "dataset-fashion-mnist" in message


# --- the real ones ---


@pytest.mark.skipif(not fashion_mnist.DEBIAN.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_debians_fashion_mnist_has_its_published_mean_and_std(prepared):
    content = prepared(dataset("fashion_mnist", size=28))
    assert [tuple(content[f"{split}_images"].shape) for split in SPLITS] == [(60000, 1, 28, 28), (10000, 1, 28, 28)]
    assert [content[f"{split}_labels"].bincount().tolist() for split in SPLITS] == [[6000] * 10, [1000] * 10]
    assert content["mean"].tolist() == pytest.approx([0.2860], abs=5e-5)
    assert content["std"].tolist() == pytest.approx([0.3530], abs=5e-5)


@pytest.mark.skipif(not all(file.is_file() for file in ARCHIVES), reason="the CIFAR-100 archives are not here")
def test_cifar100_is_prepared_in_a_minute_and_loaded_in_a_second():
    settings = dataset("cifar100", size=32)
    with tempfile.TemporaryDirectory() as folder:  # not tmp_path, which is kept
        folder = Path(folder)
        for file in ARCHIVES:
            with tarfile.open(file) as archive:
                archive.extractall(folder, filter="data")
        start = time.perf_counter()
        prepare(settings, folder / "data.pt", Source(folder / "cifar100", folder, download=False))
        done = time.perf_counter()
        data = load(folder / "data.pt", settings, torch.device("cpu"))
        assert data.train.images.sum() > 0  # read, not only mapped
        assert time.perf_counter() - done < 1
        assert done - start < 60
        assert [len(data.train), len(data.score), len(data.classes)] == [50_000, 10_000, 100]
        assert [split.labels.bincount().tolist() for split in (data.train, data.score)] == [[500] * 100, [100] * 100]
        assert data.augment.mean.tolist() == pytest.approx([0.5071, 0.4865, 0.4409], abs=5e-5)
        assert data.augment.std.tolist() == pytest.approx([0.2673, 0.2564, 0.2762], abs=5e-5)


# --- identity ---


def run_with(**settings):
    return tiny_run("kd", **{f"dataset__{key}": value for key, value in settings.items()})


@pytest.mark.parametrize("name", DATASETS)
def test_root_is_part_of_the_identity_of_a_folder_alone(name):
    here, there = (run_with(name=name, root=root) for root in ("/data/flowers", "/mnt/flowers"))
    for part in ("digest", "path", "data_path"):
        assert (getattr(here, part) == getattr(there, part)) == (name != "folder")
    assert (here.teacher.digest == there.teacher.digest) == (name != "folder")


@pytest.mark.parametrize("name", DATASETS)
def test_classes_are_part_of_every_identity(name):
    runs = [run_with(name=name, root="x", classes=classes) for classes in (None, 2, 3, ["a", "b"], ["a", "c"])]
    for part in ("digest", "path", "data_path"):
        assert len({getattr(run, part) for run in runs}) == len(runs)
    assert all(Run.from_dict(json.loads(json.dumps(run.as_dict()))) == run for run in runs)


@pytest.mark.parametrize(
    ("settings", "label"),
    [
        (dataset("cifar100"), "cifar100"),
        (dataset("cifar100", 20), "cifar100-20"),
        (dataset("cifar10", ("cat", "dog")), "cifar10-2"),
        (dataset("folder", root="/data/flowers/"), "folder-flowers"),
        (dataset("folder", 5, root="flowers"), "folder-flowers-5"),
        (dataset("folder", root="/"), "folder"),
    ],
)
def test_label_says_which_data_and_how_many_classes(settings, label):
    assert settings.label == label


@pytest.mark.parametrize(
    "root", ["../../etc", "/", "..", ".", "~", "a b;$(rm)", "a\nb", "x/..", "ö" * 300, "C:\\data", "*", "-r", "--"]
)
def test_paths_of_a_run_stay_in_their_folders_whatever_root_is_called(root):
    run = run_with(name="folder", root=root)
    for path, folder in ((run.path, "runs"), (run.data_path, "data")):
        assert re.fullmatch(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)+", path)
        assert (Path("/results") / path).resolve().is_relative_to(f"/results/{folder}")
        assert all(len(part) < 150 and part.strip(".") for part in path.split("/"))


@pytest.mark.parametrize("classes", [None, 7, ("b", "a")])
def test_a_prepared_file_is_described_by_what_it_depends_on(classes):
    settings = replace(dataset("folder", classes, root="a b"), validation=0.3, pad=4, flip=True)
    again = Dataset.from_prepared(json.loads(json.dumps(settings.prepared)))
    assert again == replace(settings, validation=0.0, pad=0, flip=False)
    assert again.prepared == settings.prepared
    with pytest.raises(ConfigError, match=r"^dataset: .*colour"):
        Dataset.from_prepared({**settings.prepared, "colour": "grey"})
