"""NYUv2, read from files of its own layout."""

import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest
from scenes import described, source
from scipy.io import savemat

from kd.data import nyuv2
from kd.data.prepare import prepare
from kd.data.raw import IGNORED
from kd.registry.datasets import NYU_13
from kd.runtime.messages import ConfigError


def write_nyuv2(root: Path, scenes=6, height=48, width=64) -> dict[str, np.ndarray]:
    """Write the three files in their own layout, columns first, with few small scenes."""
    rng = np.random.default_rng(0)
    root.mkdir(parents=True, exist_ok=True)
    images = rng.integers(0, 256, (scenes, 3, width, height), dtype=np.uint8)
    labels = rng.integers(0, 895, (scenes, width, height)).astype(np.uint16)
    depths = rng.uniform(0.5, 9.9, (scenes, width, height)).astype(np.float32)
    with h5py.File(root / nyuv2.LABELLED, "w") as file:
        for name, content in (("images", images), ("labels", labels), ("depths", depths)):
            file.create_dataset(name, data=content, chunks=(1, *content.shape[1:]))
    of_raw = rng.integers(1, 41, (1, 894)).astype(np.uint8)
    savemat(root / nyuv2.CLASSES_40, {"mapClass": of_raw})
    train = np.arange(1, scenes, 2)
    savemat(root / nyuv2.SPLIT, {"trainNdxs": train[:, None], "testNdxs": np.arange(2, scenes + 1, 2)[:, None]})
    return {"images": images, "labels": labels, "depths": depths, "of_raw": of_raw[0], "train": train}


def test_nyuv2_scenes_have_their_13_classes_and_depth(tmp_path):
    world = write_nyuv2(tmp_path)
    raw = nyuv2.load(described("nyuv2", image_size=48, channels=4), source(tmp_path))
    assert raw.classes == list(NYU_13)
    assert raw.train_images.shape == (3, 48, 48, 4)
    for place, number in enumerate(world["train"]):
        cut = slice(8, 56)  # the square in the middle
        assert (raw.train_images[place, ..., :3] == world["images"][number - 1].transpose(2, 1, 0)[:, cut]).all()
        metres = world["depths"][number - 1].T[:, cut]
        assert np.abs(raw.train_images[place, ..., 3] - 25.5 * metres).max() <= 0.51
        labels = world["labels"][number - 1].T[:, cut]
        for y, x in np.random.default_rng(place).integers(0, 48, (50, 2)):
            raw_class = labels[y, x]
            expected = IGNORED if raw_class == 0 else nyuv2.OF_40[world["of_raw"][raw_class - 1] - 1] - 1
            assert raw.train_labels[place, y, x] == expected


def test_nyuv2_is_read_without_a_second_copy_of_its_images(tmp_path):
    write_nyuv2(tmp_path, scenes=200)
    dataset = described("nyuv2", image_size=48, channels=4)
    tracemalloc.start()
    prepare(dataset, tmp_path / "prepared.pt", source(tmp_path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.25 * 200 * 48 * 48 * 5  # bytes of all images with depth and of all maps


def test_the_13_classes_of_the_40_are_those_of_the_published_table():
    of_40 = {"wall": 1, "floor": 2, "cabinet": 3, "bed": 4, "chair": 5, "sofa": 6, "table": 7, "door": 8, "window": 9}
    of_13 = {name: NYU_13[nyuv2.OF_40[number - 1] - 1] for name, number in of_40.items()}
    assert of_13 == {name: {"cabinet": "furniture", "door": "wall"}.get(name, name) for name in of_40}
    assert len(nyuv2.OF_40) == 40
    assert set(nyuv2.OF_40) == set(range(1, 14))


@pytest.mark.parametrize("name", list(nyuv2.WHERE))
def test_a_missing_file_of_nyuv2_is_named_with_its_place(tmp_path, name):
    write_nyuv2(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ConfigError, match=rf"{name} is missing; it is .*https.*: put it there|{name} is missing"):
        nyuv2.load(described("nyuv2"), source(tmp_path))


@pytest.mark.parametrize("name", list(nyuv2.WHERE))
def test_a_damaged_file_of_nyuv2_is_named(tmp_path, name):
    write_nyuv2(tmp_path)
    file = tmp_path / name
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(ConfigError, match=name):
        nyuv2.load(described("nyuv2"), source(tmp_path))
