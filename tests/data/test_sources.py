"""Where data sets are read from: image folders, torchvision's files, IDX files; and what that means for identities."""

import gzip
import http.client
import io
import json
import pickle
import re
import shutil
import struct
import subprocess
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
from kd.data.raw import Source
from kd.torchvision_compat import import_torchvision

ARCHIVES = [ROOT.parent / f"shared/data/cifar100-webp.part{part}.tar.gz" for part in (1, 2)]
SPLITS = ("train", "test")


def dataset(name, classes=None, size=8, root=None):
    return Dataset(name, root=root, classes=classes, image_size=size, validation=0.0, pad=0, flip=False)


def prepared(folder, settings, root=None, download=False):
    """What the prepared file of a data set holds; downloads lie in `folder`."""
    prepare(settings, folder / "prepared" / "data.pt", Source(root, folder / "downloads", download))
    return torch.load(folder / "prepared" / "data.pt", weights_only=True)


def refusal(folder, settings, root=None, download=False, key="root"):
    """The one line that a user reads; nothing is prepared and no second exception is shown."""
    with pytest.raises(ConfigError, match=rf"^dataset\.{key}: [^\n]+\Z") as caught:
        prepare(settings, folder / "refused.pt", Source(root, folder / "downloads", download))
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert not (folder / "refused.pt").exists()
    return str(caught.value)


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


def assert_same(first, second):
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert value == second[key] if key == "classes" else torch.equal(value, second[key]), key


def assert_images(images, expected):
    """Tensor [N, C, S, S] against arrays [S, S, C]."""
    np.testing.assert_array_equal(images.numpy().transpose(0, 2, 3, 1), np.stack(expected))


# --- a folder of images ---


def test_images_of_the_wanted_size_are_kept_byte_for_byte_in_the_order_of_class_and_name(tmp_path):
    names = ["ox/b.png", "ox/B.PNG", "ox/c.webp", "ox/a.WebP", "ape/10.png", "ape/9.WEBP"]
    images = {f"{split}/{name}": noise(8, 8, 3, seed=len(split + name)) for split in SPLITS for name in names}
    content = prepared(tmp_path, dataset("folder"), write(tmp_path / "data", images))
    assert content["classes"] == ["ape", "ox"]
    for split in SPLITS:
        assert content[f"{split}_labels"].tolist() == [0, 0, 1, 1, 1, 1]
        order = ["ape/10.png", "ape/9.WEBP", "ox/B.PNG", "ox/a.WebP", "ox/b.png", "ox/c.webp"]
        assert_images(content[f"{split}_images"], [images[f"{split}/{name}"] for name in order])
    made_in_another_order = write(tmp_path / "again", dict(reversed(images.items())))
    assert_same(prepared(tmp_path, dataset("folder"), made_in_another_order), content)


GREY, COLOUR = noise(8, 8), noise(8, 8, 3)
PALETTE = Image.fromarray(COLOUR).quantize(16)
KINDS = {  # file -> what is saved, its orientation in EXIF (6: top is right, 8: top is left), what is to be seen
    "grey.png": (GREY, 1, np.dstack([GREY] * 3)),
    "one_bit.png": (GREY > 127, 1, np.dstack([(GREY > 127) * 255] * 3)),
    "sixteen_bit.png": (GREY.astype(np.uint16) * 257, 1, np.dstack([GREY] * 3)),
    "palette.png": (PALETTE, 1, np.reshape(PALETTE.getpalette(), (-1, 3))[np.asarray(PALETTE)]),
    "rgba.png": (np.dstack([COLOUR, GREY]), 1, COLOUR),
    "rgba.webp": (np.dstack([COLOUR, GREY]), 1, COLOUR),
    "turned_right.png": (COLOUR, 6, np.rot90(COLOUR, -1)),
    "turned_left.webp": (COLOUR, 8, np.rot90(COLOUR)),
    "photo.JPG": (COLOUR, 1, None),  # as it decodes
    "photo.jpeg": (COLOUR, 1, None),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_image_becomes_upright_rgb(tmp_path, name):
    saved, orientation, seen = KINDS[name]
    image, exif = saved if isinstance(saved, Image.Image) else Image.fromarray(saved), Image.Exif()
    exif[0x0112] = orientation
    file = small_tree(tmp_path / "data") / "train/cat" / name
    image.save(file, lossless=True, exact=True, exif=exif)
    images = prepared(tmp_path, dataset("folder"), tmp_path / "data")["train_images"]
    assert_images(images[1:2], [np.asarray(Image.open(file)) if seen is None else seen])


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
def test_images_of_another_size_are_cut_to_a_square_and_interpolated(tmp_path, shape):
    image = noise(*shape, 3)
    write(small_tree(tmp_path / "data"), {"train/cat/1.png": image})
    images = prepared(tmp_path, dataset("folder"), tmp_path / "data")["train_images"]
    np.testing.assert_allclose(images[1].numpy().transpose(1, 2, 0), cut_and_resized(image, 8), rtol=0, atol=1)


def test_hidden_files_and_other_endings_are_ignored(tmp_path):
    expected = prepared(tmp_path, dataset("folder"), small_tree(tmp_path / "data"))
    for name in (".DS_Store", "._0.png", "notes.txt", "0.png.bak", "0.gif", "png"):
        (tmp_path / "data/train/cat" / name).write_bytes(b"no image")
        (tmp_path / "data/train" / name).write_bytes(b"no image")
    (tmp_path / "data/test/.cache").mkdir()
    assert_same(prepared(tmp_path, dataset("folder"), tmp_path / "data"), expected)


def test_any_name_may_name_a_class(tmp_path):
    names = sorted(["a b", "it's", 'say "x"', "Äpfel", "日本", "x;y", "$(x)", "`y`", "-r", "%s{0}", "*", "a\\b"])
    images = {f"{split}/{name}/0.png": noise(8, 8, 3, seed=n) for split in SPLITS for n, name in enumerate(names)}
    content = prepared(tmp_path, dataset("folder"), write(tmp_path / "my $(data)", images))
    assert content["classes"] == names
    assert_images(content["test_images"], [images[f"test/{name}/0.png"] for name in names])


def encoded(kind):
    file = io.BytesIO()
    Image.fromarray(COLOUR).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize(
    ("place", "content", "named"),  # what is removed or written, and what the message says
    [
        (".", None, "{root}"),
        ("train", None, "{root}"),
        ("test", None, "{root}"),
        ("*/*", None, "{root}"),  # no class is left
        ("*/cat", None, "{root}"),  # one class is left
        ("test/dog", None, "class 'dog' has no folder in {root}/test"),
        ("train/dog", None, "class 'dog' has no folder in {root}/train"),
        ("test/dog/0.png", None, "{root}/test/dog"),
        ("train/dog/1.jpg", b"", "{root}/train/dog/1.jpg"),
        ("train/dog/1.jpg", b"no image\n" * 50, "{root}/train/dog/1.jpg"),
        ("test/cat/1.png", encoded("PNG")[:-40], "{root}/test/cat/1.png"),
        ("test/cat/1.webp", encoded("WEBP")[:-40], "{root}/test/cat/1.webp"),
    ],
)
def test_a_faulty_tree_is_refused_in_a_line_that_names_the_path(tmp_path, place, content, named):
    root = small_tree(tmp_path / "it's data")
    if content is not None:
        (root / place).write_bytes(content)
    else:
        for path in list(root.glob(place)) if place != "." else [root]:
            path.unlink() if path.is_file() else shutil.rmtree(path)
    assert named.format(root=root) in refusal(tmp_path, dataset("folder"), root)


# --- classes ---


def test_classes_that_are_not_there_are_refused(tmp_path):
    root = small_tree(tmp_path / "data")
    for classes, said in (
        (3, "got 3; allowed: at most 2"),
        (("kat", "dog"), "got 'kat'; did you mean 'cat'?"),
        (("cat", "zebra"), "got 'zebra'; allowed: cat, dog"),
    ):
        assert said in refusal(tmp_path, dataset("folder", classes), root, key="classes")
    assert "got 11; allowed: at most 10" in refusal(tmp_path, dataset("digits", 11), key="classes")


def random_data(count, train, test, *shape):
    """{split: (images, labels)}, so many images of every class, in a random order."""
    rng, data = np.random.default_rng(count), {}
    for split, each in (("train", train), ("test", test)):
        labels = rng.permutation(np.repeat(np.arange(count), each))
        data[split] = rng.integers(0, 256, (len(labels), *shape), dtype=np.uint8), labels
    return data


def write_tree(root, data, ending=".png"):
    for split, (images, labels) in data.items():
        write(root, {f"{split}/{labels[n]:02}/{n}{ending}": image for n, image in enumerate(images)})
    return root


def small_cifar(name, monkeypatch):
    count = cifar.CLASS_COUNT[name]
    monkeypatch.setattr(cifar, "SIZES", (count * 2, count))
    return random_data(count, 2, 1, 32, 32, 3)


def write_idx(folder, packed=True):
    """The four files of a small Fashion-MNIST; gives what is in them."""
    data = random_data(10, 4, 2, 28, 28)
    folder.mkdir(parents=True)
    for name, array in zip(fashion_mnist.FILES, (*data["train"], *data["test"]), strict=True):
        content = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()
        (folder / (name if packed else name[:-3])).write_bytes(gzip.compress(content) if packed else content)
    return data


@pytest.mark.parametrize("name", DATASETS)
def test_a_subset_is_what_taking_its_labels_by_hand_gives(monkeypatch, tmp_path, name):
    root = tmp_path / "data"
    if name == "fashion_mnist":
        write_idx(root)
    elif name != "digits":
        write_tree(root, random_data(5, 4, 2, 8, 8, 3) if name == "folder" else small_cifar(name, monkeypatch))
    whole = prepared(tmp_path, dataset(name), root)
    last, first, third = (whole["classes"][place] for place in (-1, 0, 2))
    for classes, names in ((3, whole["classes"][:3]), ((last, first, third), [first, third, last])):
        part = prepared(tmp_path, dataset(name, classes), root)
        assert part["classes"] == names
        for split in SPLITS:
            kept = [n for n, label in enumerate(whole[f"{split}_labels"]) if whole["classes"][label] in names]
            labels = [names.index(whole["classes"][whole[f"{split}_labels"][n]]) for n in kept]
            assert part[f"{split}_labels"].tolist() == labels
            assert torch.equal(part[f"{split}_images"], whole[f"{split}_images"][kept])
        values = part["train_images"].double().numpy() / 255
        np.testing.assert_allclose(part["mean"], values.mean((0, 2, 3)), rtol=1e-6)
        np.testing.assert_allclose(part["std"], values.std((0, 2, 3)), rtol=1e-6)


@pytest.mark.parametrize("chunk", [7, 4096])
def test_mean_and_std_per_channel_are_those_of_all_images_at_once(chunk):
    images = noise(20, 3, 5, 5) // np.array([1, 2, 50], dtype=np.uint8)[:, None, None]
    mean, std = _mean_std(torch.from_numpy(images), chunk)
    values = images.astype(np.float64) / 255
    np.testing.assert_allclose(mean, values.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, values.std((0, 2, 3)), rtol=1e-12)


# --- CIFAR ---


@pytest.fixture(params=["cifar10", "cifar100"])
def small(request, monkeypatch):
    """Name, torchvision's class, which takes any content of its files, and a small data set."""
    kind = getattr(import_torchvision().datasets, request.param.upper())
    for entry in ("train_list", "test_list"):
        monkeypatch.setattr(kind, entry, [[file, None] for file, _ in getattr(kind, entry)])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": None})
    return request.param, kind, small_cifar(request.param, monkeypatch)


def write_archive(folder, kind, data):
    """What torchvision unpacks below `folder`."""
    (folder / kind.base_folder).mkdir(parents=True)
    names = [f"{label:02}" for label in range(data["test"][1].max() + 1)]
    files = {kind.meta["filename"]: {kind.meta["key"]: names}}
    for (images, labels), entry in zip(data.values(), (kind.train_list, kind.test_list), strict=True):
        for (file, _), part in zip(entry, np.array_split(np.arange(len(labels)), len(entry)), strict=True):
            files[file] = {"data": images[part].transpose(0, 3, 1, 2).reshape(-1, 3072)}
            files[file]["labels" if len(names) == 10 else "fine_labels"] = labels[part].tolist()
    for file, content in files.items():
        (folder / kind.base_folder / file).write_bytes(pickle.dumps(content))
    return folder


def test_torchvisions_files_and_trees_of_lossless_images_give_the_same_tensors(small, tmp_path):
    name, kind, data = small
    settings = dataset(name, size=32)
    content = prepared(tmp_path, settings, write_archive(tmp_path / "archive", kind, data))
    assert content["classes"] == [f"{label:02}" for label in range(cifar.CLASS_COUNT[name])]
    for split, (images, labels) in data.items():
        stored = [image.numpy().transpose(1, 2, 0).tobytes() for image in content[f"{split}_images"]]
        expected = zip(labels.tolist(), [image.tobytes() for image in images], strict=True)
        assert sorted(zip(content[f"{split}_labels"].tolist(), stored, strict=True)) == sorted(expected)
    for ending in (".png", ".webp"):
        assert_same(prepared(tmp_path, settings, write_tree(tmp_path / ending[1:], data, ending)), content)
    write_archive(tmp_path / "downloads", kind, data)
    assert_same(prepared(tmp_path, settings), content)


def test_an_incomplete_tree_is_no_cifar(small, tmp_path):
    name, _, data = small
    root, count = write_tree(tmp_path / "data", data), cifar.CLASS_COUNT[name]
    next((root / "train/03").iterdir()).unlink()
    message = refusal(tmp_path, dataset(name), root)
    assert f"{root} holds {2 * count - 1:,} + {count:,} images of {count} classes" in message
    assert "`folder`" in message
    for split in SPLITS:
        shutil.rmtree(root / split / "00")
    assert f"{count - 1} classes" in refusal(tmp_path, dataset(name), root)


def test_cifar_that_is_not_there_is_asked_for_or_downloaded_once(small, monkeypatch, tmp_path):
    name, kind, data = small
    for root, folder in ((None, tmp_path / "downloads"), (tmp_path / "my data", tmp_path / "my data")):
        message = refusal(tmp_path, dataset(name), root)
        assert f"not found in {folder} and compute.download is false; unpack {kind.filename} there" in message
        assert f"so that {folder / kind.base_folder} exists" in message
    monkeypatch.setattr(kind, "download", lambda self: write_archive(Path(self.root), kind, data))
    downloaded = prepared(tmp_path, dataset(name), download=True)
    assert_same(prepared(tmp_path, dataset(name), download=True), downloaded)  # a second time, mkdir would fail
    assert_same(prepared(tmp_path, dataset(name)), downloaded)


@pytest.mark.parametrize("error", [urllib.error.URLError("no\nroute"), TimeoutError(), http.client.BadStatusLine("<")])
@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion_mnist"])
def test_a_failed_download_is_reported_in_a_line(monkeypatch, tmp_path, name, error):
    def no_network(*args, **kwargs):
        raise error

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "nowhere")
    message = refusal(tmp_path, dataset(name), download=True)
    assert "the download failed" in message
    assert "set dataset.root to a folder with" in message


# --- Fashion-MNIST ---


@pytest.mark.parametrize("place", ["root", "Debian", "downloads/FashionMNIST/raw"])  # the last is torchvision's
def test_fashion_mnist_is_read_where_it_lies(monkeypatch, tmp_path, place):
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "Debian")
    data = write_idx(tmp_path / place, packed="raw" not in place)
    content = prepared(tmp_path, dataset("fashion_mnist", size=28), tmp_path / place if place == "root" else None)
    assert content["classes"] == fashion_mnist.CLASSES
    for split, (images, labels) in data.items():
        assert_images(content[f"{split}_images"], images[..., None])
        assert content[f"{split}_labels"].tolist() == labels.tolist()


def test_fashion_mnist_gives_torch_arrays_that_it_may_write_to(tmp_path):
    write_idx(tmp_path / "data")
    raw = fashion_mnist.load(dataset("fashion_mnist"), Source(tmp_path / "data", tmp_path, download=False))
    assert all(array.flags.writeable for array in raw[:4])  # torch warns of others


@pytest.mark.parametrize("content", [b"", b"no gzip", gzip.compress(b"ab" * 99)[:-9], gzip.compress(b"ab")])
def test_fashion_mnist_that_is_damaged_or_not_there_is_refused(monkeypatch, tmp_path, content):
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "nowhere")
    write_idx(tmp_path / "data")
    file = tmp_path / "data" / fashion_mnist.FILES[2]
    file.unlink()
    message = refusal(tmp_path, dataset("fashion_mnist"), tmp_path / "data")
    assert f"FashionMNIST was not found in {tmp_path / 'data'} and compute.download is false" in message
    assert "dataset-fashion-mnist" in message
    file.write_bytes(content)
    assert str(file) in refusal(tmp_path, dataset("fashion_mnist"), tmp_path / "data")


# --- the real ones ---


@pytest.mark.skipif(not fashion_mnist.DEBIAN.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_debians_fashion_mnist_has_its_published_mean_and_std(tmp_path):
    content = prepared(tmp_path, dataset("fashion_mnist", size=28))
    assert [content[f"{split}_labels"].bincount().tolist() for split in SPLITS] == [[6000] * 10, [1000] * 10]
    assert content["mean"].tolist() == pytest.approx([0.2860], abs=5e-5)
    assert content["std"].tolist() == pytest.approx([0.3530], abs=5e-5)


@pytest.mark.skipif(not all(file.is_file() for file in ARCHIVES), reason="the CIFAR-100 archives are not here")
def test_cifar100_is_prepared_in_a_minute_and_loaded_in_a_second():
    memory = Path("/dev/shm")  # 60,000 small files take a minute to write elsewhere
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 2**30
    with tempfile.TemporaryDirectory(dir=memory if roomy else None) as name:
        folder, settings = Path(name), dataset("cifar100", size=32)
        for file in ARCHIVES:
            subprocess.run(["tar", "-xzf", file, "-C", folder], check=True)
        start = time.process_time()  # other jobs may slow this machine down
        prepare(settings, folder / "data.pt", Source(folder / "cifar100", folder, download=False))
        assert time.process_time() - start < 60
        start = time.perf_counter()
        data = load(folder / "data.pt", settings, torch.device("cpu"))
        data.train.images.clone()  # reads what may only be mapped
        assert time.perf_counter() - start < 1
        assert [split.labels.bincount().tolist() for split in (data.train, data.score)] == [[500] * 100, [100] * 100]
        assert data.augment.mean.tolist() == pytest.approx([0.5071, 0.4865, 0.4409], abs=5e-5)
        assert data.augment.std.tolist() == pytest.approx([0.2673, 0.2564, 0.2762], abs=5e-5)


# --- identity ---


def identities(**changes):
    run = tiny_run("kd", **{f"dataset__{key}": value for key, value in changes.items()})
    assert Run.from_dict(json.loads(json.dumps(run.as_dict()))) == run
    return run.digest, run.path, run.data_path, run.teacher.digest


@pytest.mark.parametrize("name", DATASETS)
def test_classes_belong_to_every_identity_and_root_to_that_of_a_folder(name):
    runs = [identities(name=name, root="/a/x", classes=classes) for classes in (None, 2, 3, ["a", "b"], ["a", "c"])]
    assert [len(set(values)) for values in zip(*runs, strict=True)] == [5] * 4
    same = [a == b for a, b in zip(runs[0], identities(name=name, root="/b/x"), strict=True)]
    assert same == [name != "folder"] * 4


def test_label_says_which_data_and_how_many_classes():
    assert dataset("cifar100", root=None).label == "cifar100"
    assert dataset("cifar100", 20).label == "cifar100-20"
    assert dataset("folder", ("cat", "dog"), root="/data/flowers/").label == "folder-flowers-2"
    assert dataset("folder", root="/").label == "folder"


@pytest.mark.parametrize("root", ["../../etc", "/", "..", "~", "a b;$(rm)", "a\nb", "x/..", "ö" * 300, "C:\\d", "--"])
def test_paths_of_a_run_stay_in_their_folders_whatever_root_is_called(root):
    _, path, data_path, _ = identities(name="folder", root=root)
    assert re.fullmatch(r"runs(/\w[\w.-]{0,120}){4}", path, re.ASCII)
    assert re.fullmatch(r"data/\w[\w.-]{0,120}\.pt", data_path, re.ASCII)


@pytest.mark.parametrize("classes", [None, 7, ("b", "a")])
def test_a_prepared_file_is_described_by_what_it_depends_on(classes):
    settings = replace(dataset("folder", classes, root="a b"), validation=0.3, pad=4, flip=True)
    again = Dataset.from_prepared(json.loads(json.dumps(settings.prepared)))
    assert again == replace(settings, validation=0.0, pad=0, flip=False)
    assert again.prepared == settings.prepared
