"""Where data sets are read from: image folders, torchvision's files, IDX files; and what that means for identities."""

import gzip
import http.client
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
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import ROOT, tiny_run
from image_files import (
    SPLITS,
    assert_same,
    dataset,
    noise,
    prepared,
    random_data,
    refusal,
    small_tree,
    write_tree,
)

from kd.data import cifar, fashion_mnist
from kd.data.dataset import load
from kd.data.prepare import _mean_std, prepare
from kd.data.raw import Source
from kd.registry.datasets import DATASETS, OWN_FOLDER, SEGMENTATION
from kd.runtime.torchvision_compat import import_torchvision
from kd.settings.run import Run
from kd.settings.shapes import Dataset

ARCHIVES = [ROOT.parent / f"shared/data/cifar100-webp.part{part}.tar.gz" for part in (1, 2)]


def small_cifar(name, monkeypatch):
    count = cifar.CLASS_COUNT[name]
    monkeypatch.setattr(cifar, "SIZES", (count * 2, count))
    return random_data(count, 2, 1, 32, 32, 3)


def write_idx(folder, packed=True):
    """Write the four files of a small Fashion-MNIST; return what is in them."""
    data = random_data(10, 4, 2, 28, 28)
    folder.mkdir(parents=True)
    for name, array in zip(fashion_mnist.FILES, (*data["train"], *data["test"]), strict=True):
        content = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()
        (folder / (name if packed else name[:-3])).write_bytes(gzip.compress(content) if packed else content)
    return data


@pytest.mark.parametrize("name", [name for name in DATASETS if name not in ("none", *SEGMENTATION)])
def test_a_subset_is_what_taking_its_labels_by_hand_gives(monkeypatch, tmp_path, name):
    root = tmp_path / "data"
    if name == "fashion_mnist":
        write_idx(root)
    elif name != "digits":
        write_tree(root, random_data(5, 4, 2, 8, 8, 3) if name == "folder" else small_cifar(name, monkeypatch))
    whole = prepared(tmp_path, dataset(name), root)
    known = whole["classes"]
    for classes, names in ((3, known[:3]), ((known[-1], known[0], known[2]), [known[0], known[2], known[-1]])):
        part = prepared(tmp_path, dataset(name, classes), root)
        assert part["classes"] == names
        for split in SPLITS:
            kept = [n for n, label in enumerate(whole[f"{split}_labels"]) if known[label] in names]
            labels = [names.index(known[whole[f"{split}_labels"][n]]) for n in kept]
            assert part[f"{split}_labels"].tolist() == labels
            assert torch.equal(part[f"{split}_images"], whole[f"{split}_images"][kept])
        values = part["train_images"].double().numpy() / 255
        expected = values.mean((0, 2, 3)), values.std((0, 2, 3))
        np.testing.assert_allclose(torch.stack([part["mean"], part["std"]]), expected, rtol=1e-6)


def test_mean_and_std_per_channel_are_those_of_all_images_at_once():
    images = noise(20, 3, 5, 5) // np.array([1, 2, 50], dtype=np.uint8)[:, None, None]
    values = images.astype(np.float64) / 255
    expected = values.mean((0, 2, 3)), values.std((0, 2, 3))
    np.testing.assert_allclose(torch.stack(_mean_std(torch.from_numpy(images), chunk=7)), expected, rtol=1e-12)


@pytest.fixture(params=["cifar10", "cifar100"])
def small(request, monkeypatch):
    """Return a name, torchvision's class, which then accepts any content of its files, and a small data set."""
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
    content = prepared(tmp_path, dataset(name, size=32), write_archive(tmp_path / "archive", kind, data))
    assert content["classes"] == [f"{label:02}" for label in range(cifar.CLASS_COUNT[name])]
    for split, (images, labels) in data.items():
        stored = [image.numpy().transpose(1, 2, 0).tobytes() for image in content[f"{split}_images"]]
        expected = zip(labels.tolist(), [image.tobytes() for image in images], strict=True)
        assert sorted(zip(content[f"{split}_labels"].tolist(), stored, strict=True)) == sorted(expected)
    for size, ending in ((32, ".png"), (32, ".webp"), (16, ".webp")):
        settings = dataset(name, size=size)
        tree = write_tree(tmp_path / f"{size}{ending}", data, ending)
        assert_same(prepared(tmp_path, settings, tree), prepared(tmp_path, settings, tmp_path / "archive"))


def test_an_incomplete_tree_is_no_cifar(small, tmp_path):
    name, _, data = small
    root, count = write_tree(tmp_path / "data", data), cifar.CLASS_COUNT[name]
    next((root / "train/03").iterdir()).unlink()
    message = refusal(tmp_path, dataset(name), root)
    assert f"{root} holds {2 * count - 1:,} + {count:,} images of {count} classes" in message
    assert "`folder`" in message


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
    monkeypatch.setattr("urllib.request.urlopen", Mock(side_effect=error))
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "nowhere")
    message = refusal(tmp_path, dataset(name), download=True)
    assert "the download failed" in message
    assert "set dataset.root to a folder with" in message


@pytest.mark.parametrize("place", ["root", "Debian", "downloads/FashionMNIST/raw"])  # the last is torchvision's
def test_fashion_mnist_is_read_where_it_lies(monkeypatch, tmp_path, place):
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "Debian")
    data = write_idx(tmp_path / place, packed="raw" not in place)
    root = tmp_path / place if place == "root" else None
    raw = fashion_mnist.load(dataset("fashion_mnist"), Source(root, tmp_path / "downloads", download=False))
    assert raw.classes == fashion_mnist.CLASSES
    for array, expected in zip(raw[:4], (*data["train"], *data["test"]), strict=True):
        np.testing.assert_array_equal(array, expected[..., None] if expected.ndim == 3 else expected)
        assert array.flags.writeable  # torch warns of others


def test_fashion_mnist_that_is_damaged_or_not_there_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "nowhere")
    write_idx(tmp_path / "data")
    file = tmp_path / "data" / fashion_mnist.FILES[2]
    packed = file.read_bytes()
    file.unlink()
    message = refusal(tmp_path, dataset("fashion_mnist"), tmp_path / "data")
    assert f"FashionMNIST was not found in {tmp_path / 'data'} and compute.download is false" in message
    assert "dataset-fashion-mnist" in message
    for damaged in (b"", b"no gzip", packed[:-9], gzip.compress(b"ab"), gzip.compress(gzip.decompress(packed)[:-9])):
        file.write_bytes(damaged)
        assert str(file) in refusal(tmp_path, dataset("fashion_mnist"), tmp_path / "data")


@pytest.mark.skipif(not fashion_mnist.DEBIAN.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_debians_fashion_mnist_has_its_published_mean_and_std(tmp_path):
    content = prepared(tmp_path, dataset("fashion_mnist", size=28))
    assert [content[f"{split}_labels"].bincount().tolist() for split in SPLITS] == [[6000] * 10, [1000] * 10]
    assert [*content["mean"], *content["std"]] == pytest.approx([0.2860, 0.3530], abs=5e-5)


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
        published = [0.5071, 0.4865, 0.4409, 0.2673, 0.2564, 0.2762]
        assert [*data.augment.mean, *data.augment.std] == pytest.approx(published, abs=5e-5)


def identities(**changes):
    run = tiny_run("kd", **{f"dataset__{key}": value for key, value in changes.items()})
    assert Run.from_dict(json.loads(json.dumps(run.as_dict()))) == run
    return run.digest, run.path, run.data_path, run.teacher.digest


@pytest.mark.parametrize("name", DATASETS)
def test_classes_belong_to_every_identity_and_root_to_that_of_a_folder(name):
    runs = [identities(name=name, root="/a/x", classes=classes) for classes in (None, 2, 3, ["a", "b"], ["a", "c"])]
    assert [len(set(values)) for values in zip(*runs, strict=True)] == [5] * 4
    same = [a == b for a, b in zip(runs[0], identities(name=name, root="/b/x"), strict=True)]
    assert same == [name not in OWN_FOLDER] * 4


@pytest.mark.parametrize("other", ["imgs/", "./imgs", ".//imgs/.", "imgs//"])
def test_one_folder_is_one_data_set_however_its_path_is_typed(other):
    assert identities(name="folder", root=other) == identities(name="folder", root="imgs")
    by_hand = tiny_run("kd", dataset__name="folder", dataset__root="imgs").as_dict()
    by_hand["dataset"]["root"] = by_hand["teachers"][0]["dataset"]["root"] = other
    assert Run.from_dict(by_hand).path == identities(name="folder", root="imgs")[1]
    assert dataset("folder", root=other).label == "folder-imgs"
    assert Dataset.from_prepared({**dataset("folder", root="imgs").prepared, "root": other}).prepared["root"] == "imgs"


@pytest.mark.parametrize(
    "root", ["imgs", "/a/b", "../x", "~/imgs", "~", "a b", ".", "/", "link/../imgs", "C:\\d", None]
)
def test_a_plain_path_stays_as_typed(root):
    assert dataset("folder", root=root).prepared["root"] == root


def test_a_home_folder_is_found_and_one_of_nobody_is_missing(tmp_path, monkeypatch):
    small_tree(tmp_path / "imgs")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(prepared(tmp_path, dataset("folder", root="~/imgs"))["train_labels"]) == 2
    assert "~nobody-here/imgs" in refusal(tmp_path, dataset("folder", root="~nobody-here/imgs"))


def test_label_says_which_data_and_how_many_classes():
    assert dataset("cifar100", 20).label == "cifar100-20"
    assert dataset("folder", ("cat", "dog"), root="/data/flowers/").label == "folder-flowers-2"
    assert dataset("folder", root="/").label == "folder"


@pytest.mark.parametrize("root", ["../../etc", "/", "..", "~", "a b;$(rm)", "a\nb", "x/..", "ö" * 300, "C:\\d", "--"])
def test_paths_of_a_run_stay_in_their_folders_whatever_root_is_called(root):
    _, path, data_path, _ = identities(name="folder", root=root)
    assert re.fullmatch(r"runs(/\w[\w.-]{0,120}){4}", path, re.ASCII)
    assert re.fullmatch(r"data/\w[\w.-]{0,120}\.pt", data_path, re.ASCII)


def test_a_prepared_file_is_described_by_what_it_depends_on():
    settings = replace(dataset("folder", ("b", "a"), root="a b"), validation=0.3, pad=4, flip=True)
    again = Dataset.from_prepared(json.loads(json.dumps(settings.prepared)))
    assert again == replace(settings, validation=0.0, pad=0, flip=False)
    assert again.prepared == settings.prepared
