"""Images with a class for every pixel: folders of pairs, NYUv2's files, rooms; what is cut, resized, moved, ignored."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from scenes import described, source

from kd.batch import UNLABELLED
from kd.data import pairs
from kd.data.augment import random_crop_flip
from kd.data.dataset import Loader, load, stratified
from kd.data.listing import listing
from kd.data.prepare import prepare
from kd.data.raw import IGNORED
from kd.runtime.messages import ConfigError

CLASSES = {"names": {0: "sky", 3: "road", 7: "car"}, "ignore": [11], "palette": None}
COLOURS = {"sky": [10, 20, 30], "road": [40, 50, 60], "car": [70, 80, 90]}


PAIRS = described("pairs", root="nowhere", image_size=8)


def write_classes(root: Path, **changes) -> Path:
    content = {key: value for key, value in {**CLASSES, **changes}.items() if value is not None}
    root.mkdir(parents=True, exist_ok=True)
    (root / "classes.yaml").write_text(yaml.safe_dump(content), "utf-8")
    return root


def write_pair(root: Path, split: str, name: str, labels: np.ndarray, mode: str | None = None) -> None:
    """Write an image whose red channel is ten times the label, and its label map."""
    for part in pairs.PARTS:
        (root / split / part).mkdir(parents=True, exist_ok=True)
    image = np.zeros((*labels.shape[:2], 3), np.uint8)
    image[..., 0] = 10 * (labels if labels.ndim == 2 else labels[..., 0])
    Image.fromarray(image).save(root / split / "images" / f"{name}.png")
    Image.fromarray(labels.astype(np.uint8), mode).save(root / split / "labels" / f"{name}.png")


def a_folder(root: Path, labels: np.ndarray, **changes) -> Path:
    write_classes(root, **changes)
    for split in ("train", "test"):
        for name in ("a", "b"):
            write_pair(root, split, name, labels)
    return root


def values(height=8, width=8):
    """A label map with all three classes and the ignored value."""
    found = np.zeros((height, width), np.uint8)
    found[:, width // 4 :], found[height // 2 :, width // 2 :], found[-1, -1] = 3, 7, 11
    return found


def test_values_with_gaps_become_labels_and_the_ignored_value_counts_nowhere(tmp_path):
    raw = pairs.load(PAIRS, source(a_folder(tmp_path, values())))
    assert raw.classes == ["sky", "road", "car"]
    assert raw.train_images.shape == (2, 8, 8, 3)
    expected = np.select([values() == 0, values() == 3, values() == 7], [0, 1, 2], IGNORED)
    assert (raw.train_labels == expected).all()
    assert raw.train_labels.dtype == np.uint8


@pytest.mark.parametrize("shape", [(9, 13), (31, 8), (8, 31)])
def test_images_of_odd_sizes_and_their_maps_are_cut_alike(tmp_path, shape):
    raw = pairs.load(replace(PAIRS, image_size=5), source(a_folder(tmp_path, np.full(shape, 7, np.uint8))))
    assert raw.train_images.shape == (2, 5, 5, 3)
    assert (raw.train_labels == 2).all()
    assert (raw.train_images[..., 0] == 70).all()


def test_maps_are_never_mixed_of_two_classes(tmp_path):
    raw = pairs.load(replace(PAIRS, image_size=5), source(a_folder(tmp_path, values(12, 12))))
    assert set(np.unique(raw.train_labels)) <= {0, 1, 2, IGNORED}


def test_colours_are_classes_by_the_palette(tmp_path):
    table = np.array([*COLOURS.values(), [0, 0, 0]], np.uint8)
    labels = np.array([[0, 1], [2, 3]]).repeat(4, 0).repeat(4, 1)
    root = a_folder(tmp_path, table[labels], palette=COLOURS, ignore=[[0, 0, 0]])
    raw = pairs.load(PAIRS, source(root))
    assert (raw.train_labels[0] == np.where(labels == 3, IGNORED, labels)).all()
    assert raw.palette.tolist() == list(COLOURS.values())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"names": {0: "sky"}}, "names: got 1 of them; needed: 2 to 255 names"),
        ({"names": "sky"}, "names: got 'sky' (text); needed: 2 to 255 names"),
        ({"names": {0: "sky", 300: "road"}}, "names: got the value 300; needed: integers from 0 to 255"),
        ({"names": {0: "sky", "3": "road"}}, "names: got the value '3'; needed: integers"),
        ({"names": {0: "sky", 3: True}}, "names: 3: got True; needed: a name, in quotes"),
        ({"names": {0: "sky", 3: " "}}, "names: 3: got ' '; needed: a name"),
        ({"names": ["sky", "sky"]}, "named twice"),
        ({"ignore": [3]}, "ignore: got 3"),
        ({"ignore": [[0, 0]]}, "ignore: got [0, 0]"),
        ({"palette": {"sky": [1, 2, 3]}}, "palette: got none for 'car'; needed: a colour"),
        ({"palette": {**COLOURS, "cat": [1, 2, 3]}}, "palette: got 'cat', which is no class"),
        ({"palette": {**COLOURS, "car": [40, 50, 60]}}, "palette: two classes have one colour"),
        ({"palette": {**COLOURS, "car": [1, 2, 300]}}, "palette: car: got a list; needed: three integers"),
        ({"classes": 3}, "unknown key 'classes'"),
        ({"names": {0: "sky", 3: "road"}}, "value 7 is neither in `names` nor in `ignore`"),
    ],
)
def test_what_classes_yaml_lacks_is_said(tmp_path, changes, said):
    with pytest.raises(ConfigError) as error:
        pairs.load(PAIRS, source(a_folder(tmp_path, values(), **changes)))
    assert (said in str(error.value) and "classes.yaml" in str(error.value)) or "labels" in str(error.value)
    assert "\n" not in str(error.value)


def test_an_image_without_its_map_is_named(tmp_path):
    root = a_folder(tmp_path, values())
    (root / "test/labels/b.png").unlink()
    with pytest.raises(ConfigError, match=r"b is in .*images and not in .*labels \(1 such in all\)"):
        pairs.load(PAIRS, source(root))


def test_a_map_of_another_size_than_its_image_is_named(tmp_path):
    root = a_folder(tmp_path, values())
    Image.fromarray(values(9, 9)).save(root / "test/labels/b.png")
    with pytest.raises(ConfigError, match=r"b.png is \(9, 9\) pixels large and its image \(8, 8\)"):
        pairs.load(PAIRS, source(root))


def turned(image: Path, orientation: int) -> None:
    """Let EXIF say how the image is turned to be seen."""
    with Image.open(image) as stored:
        exif = stored.getexif()
        exif[pairs.ORIENTATION] = orientation
        stored.save(image, exif=exif)


def test_an_image_that_exif_turns_needs_a_map_that_only_fits_the_turned_one(tmp_path):
    root, labels = a_folder(tmp_path, values()), values(8, 12)
    write_pair(root, "test", "b", labels)
    turned(root / "test/images/b.png", 6)  # a quarter to the right
    with pytest.raises(ConfigError, match=r"b\.png is turned by its EXIF data; save it and .*b\.png upright"):
        pairs.load(PAIRS, source(root))
    upright = np.rot90(labels, 3)
    Image.fromarray(upright).save(root / "test/labels/b.png")
    raw = pairs.load(PAIRS, source(root))
    square = raw.test_labels[1]
    seen = square != IGNORED
    assert (raw.test_images[1, ..., 0][seen] == 10 * np.array([0, 3, 7])[square[seen]]).all()
    for orientation, size in ((3, (8, 12)), (6, (8, 8))):  # the same size either way
        write_pair(root, "test", "b", values(*size))
        turned(root / "test/images/b.png", orientation)
        with pytest.raises(ConfigError, match="is turned by its EXIF data"):
            pairs.load(PAIRS, source(root))


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, bool])
def test_a_value_that_is_named_nowhere_is_an_error_in_maps_of_any_depth(tmp_path, kind):
    root = a_folder(tmp_path, values(), names={0: "sky", 3: "road", 7: "car"})
    wrong = np.zeros((8, 20), kind)
    file = root / "test/labels/b.png"
    write_pair(root, "test", "b", wrong.astype(np.uint8))
    Image.fromarray(wrong).save(file)
    pairs.load(PAIRS, source(root))
    wrong[2, 1] = 1  # outside of the square that is kept
    Image.fromarray(wrong).save(file)
    with pytest.raises(ConfigError, match=r"b\.png: value 1 is neither in `names` nor in `ignore`"):
        pairs.load(PAIRS, source(root))


@pytest.mark.parametrize("mode", ["LA", "CMYK"])
def test_a_map_of_other_pixels_is_refused_in_a_line(tmp_path, mode):
    root = a_folder(tmp_path, values(), palette=COLOURS)
    (root / "test/labels/b.png").unlink()
    Image.fromarray(values()).convert(mode).save(root / "test/labels/b.tif")
    with pytest.raises(ConfigError, match=rf"b\.tif: has pixels of kind {mode}; save them as"):
        pairs.load(PAIRS, source(root))


def test_two_files_of_one_name_are_refused(tmp_path):
    root = a_folder(tmp_path, values())
    for part in pairs.PARTS:
        other = root / "train" / part / "a.bmp"
        Image.fromarray(values()).save(other)
        with pytest.raises(ConfigError, match=rf"{part} has both a\.bmp and a\.png; .*remove or rename one"):
            pairs.load(PAIRS, source(root))
        other.unlink()


def test_the_names_of_the_classes_are_part_of_what_was_read(tmp_path):
    root = a_folder(tmp_path, values())
    raw = pairs.load(PAIRS, source(root))
    assert not raw.tree.skipped.files
    assert listing(root) == raw.tree.listing
    write_classes(root, ignore=[12])
    assert listing(root) != raw.tree.listing


def test_of_fewer_classes_the_others_pixels_are_ignored(tmp_path):
    root, path = a_folder(tmp_path, values(), palette=COLOURS), tmp_path / "prepared.pt"
    prepare(replace(PAIRS, classes=("car", "sky")), path, source(root), lambda line: None)
    content = torch.load(path, weights_only=True)
    assert content["classes"] == ["sky", "car"]
    assert content["palette"].tolist() == [COLOURS["sky"], COLOURS["car"]]
    expected = np.select([values() == 0, values() == 7], [0, 1], IGNORED)
    assert (content["train_labels"].numpy() == expected).all()


def test_maps_without_any_class_are_refused(tmp_path):
    root = a_folder(tmp_path, values())
    write_pair(root, "test", "a", np.full((8, 8), 11, np.uint8))
    write_pair(root, "test", "b", np.full((8, 8), 11, np.uint8))
    with pytest.raises(
        ConfigError, match=r"dataset\.classes: no pixel of the test label maps is of any of sky, road, car"
    ):
        prepare(PAIRS, tmp_path / "prepared.pt", source(root), lambda line: None)
    assert not (tmp_path / "prepared.pt").exists()


def test_a_validation_split_leaves_images_and_holds_out_maps_with_classes(tmp_path):
    root, path = a_folder(tmp_path, values()), tmp_path / "prepared.pt"
    prepare(PAIRS, path, source(root), lambda line: None)
    with pytest.raises(
        ConfigError, match=r"dataset\.validation: got 0\.99; of 2 training images none is left to learn"
    ):
        load(path, replace(PAIRS, validation=0.99), torch.device("cpu"))
    for name in ("a", "b"):
        write_pair(root, "train", name, np.full((8, 8), 11, np.uint8))
    write_pair(root, "train", "c", values())
    prepare(PAIRS, path, source(root), lambda line: None)
    with pytest.raises(ConfigError, match=r"of 3 training images no map with a class among the \d is (held out|left)"):
        load(path, replace(PAIRS, validation=0.34), torch.device("cpu"))


def test_batches_move_images_and_maps_alike_and_padding_is_ignored(tmp_path):
    path = tmp_path / "prepared.pt"
    prepare(PAIRS, path, source(a_folder(tmp_path, values())), lambda line: None)
    data = load(path, replace(PAIRS, mean=(0.0, 0.0, 0.0), std=(1 / 255,) * 3), torch.device("cpu"))
    loader = Loader(data.train, data.augment, 2, torch.Generator().manual_seed(0))
    seen = set()
    for _ in range(20):
        loader.advance()
        batch = loader.batch()
        red = batch.images[:, 0].round().long()
        assert batch.labels.dtype == torch.int64
        assert batch.labels.shape == (2, 8, 8)
        for label, value in enumerate((0, 30, 70)):
            assert (red[batch.labels == label] == value).all()
        assert set(red[batch.labels == UNLABELLED].tolist()) <= {0, 110}  # padding, and the value 11
        seen.add(tuple(batch.labels.flatten().tolist()))
    assert len(seen) > 15


def test_a_map_is_augmented_as_an_image_of_its_values_is():
    labels = torch.randint(0, 5, (6, 9, 9), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    draw = lambda: torch.Generator().manual_seed(3)  # noqa: E731
    moved, maps = random_crop_flip(labels[:, None], 3, True, draw(), labels)
    alone = random_crop_flip(labels[:, None], 3, True, draw())
    assert (moved == alone).all()
    inside = maps != IGNORED
    assert (maps[inside] == moved[:, 0][inside]).all()
    assert (moved[:, 0][~inside] == 0).all()
    assert random_crop_flip(labels[:, None], 0, False, draw(), labels)[1] is labels


def test_a_fraction_of_maps_is_any_fraction_nested():
    labels = torch.zeros(50, 4, 4, dtype=torch.uint8)
    small, large = (stratified(labels, fraction, 0).tolist() for fraction in (0.1, 0.5))
    assert (len(small), len(large)) == (5, 25)
    assert set(small) <= set(large)
