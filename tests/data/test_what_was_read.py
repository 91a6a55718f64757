"""What prepare says of a folder: files used, skipped and repeated; and what its listing sees."""

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from image_files import dataset, noise, random_data, small_tree, write, write_tree
from PIL import Image

from kd.data.augment import Augment
from kd.data.listing import ENDINGS, listing
from kd.data.prepare import prepare
from kd.data.raw import Source
from kd.data.views import weights


def read(folder, root, settings=None):
    """Return the record, the lines that were said, and what was written."""
    said, file = [], folder / "data.pt"
    record = prepare(settings or dataset("folder"), file, Source(root, folder, download=False), said.append)
    assert json.loads(json.dumps(record)) == record
    assert record["lines"] == said
    assert all(line.isprintable() for line in said)
    return record, said, torch.load(file, weights_only=True)


def test_every_file_is_used_or_named_as_skipped(tmp_path):
    root = small_tree(tmp_path / "imgs")
    for number, ending in enumerate(sorted(ENDINGS)):
        file = root / f"train/00/{number}{ending}"
        Image.fromarray(noise(8, 8, 3, seed=number)).convert("1" if ending == ".pbm" else "RGB").save(file)
    (root / "train/01/deep/er").mkdir(parents=True)
    (root / "train/01/empty.png").mkdir()
    for name in ("deep/1.png", "deep/er/2.png", "deep/.3.png", "a.txt", "b.TXT", "c.mp4", "README", ".DS_Store"):
        (root / "train/01" / name).write_bytes(b"no image")
    for place in ("test/loose.png", "val/a/1.png", "notes.md"):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_bytes(b"no image")
    record, [line], _ = read(tmp_path, root)
    assert record["train"]["used"] == 2 + len(ENDINGS)
    assert record["test"] == {"used": 2, "duplicates": 0}
    assert record["skipped"] == {
        "other endings": {".txt": 2, "none": 1, ".mp4": 1},
        "in deeper folders": 3,
        "hidden": 1,
        "outside of class folders": 1,
        "outside of train/ and test/": 2,
    }
    assert f"{root}: {2 + len(ENDINGS)} training and 2 test images of 2 classes used" in line
    assert "4 of other endings (.txt 2, none 1, .mp4 1)" in line
    assert "3 in deeper folders (" in line
    assert f"1 hidden ({root}/train/01/.DS_Store)" in line
    assert f"1 outside of class folders ({root}/test/loose.png)" in line


def test_the_page_names_every_ending():
    page = (ROOT / "docs/add-a-dataset.md").read_text()
    assert [ending for ending in ENDINGS if ending not in page] == []


def test_a_class_of_skipped_files_only_is_refused_with_what_is_there(tmp_path):
    root = small_tree(tmp_path / "imgs")
    for name in ("a.heic", "b.heic"):
        (root / "train/01" / name).write_bytes(b"")
    next((root / "train/01").glob("*.png")).unlink()
    with pytest.raises(ValueError, match=rf"{root}/train/01 holds no image, only 2 of other endings \(.heic 2\); nee"):
        read(tmp_path, root)


def test_repeated_images_are_counted_and_those_of_both_splits_get_a_warning(tmp_path):
    root = write_tree(tmp_path / "imgs", random_data(2, 3, 2, 8, 8, 3))
    first, other = sorted((root / "train/00").iterdir())[:2]
    shutil.copy(first, root / "train/01/again.png")
    Image.open(first).save(root / "test/00/other bytes.webp", lossless=True)
    shutil.copy(other, root / "test/01/x.png")
    shutil.copy(other, root / "test/01/y.png")
    record, lines, _ = read(tmp_path, root)
    assert "skipped: nothing;" in lines[0]
    assert record["train"] == {"used": 7, "duplicates": 1}
    assert record["test"] == {"used": 7, "duplicates": 1}
    assert record["test_in_train"] == 3
    assert "identical to another of their split: 1 training and 1 test" in lines[0]
    assert lines[1].startswith(f"WARNING: {root}: 3 of 7 test images are identical to training images")
    assert f"({root}/test/00/other bytes.webp is {first})" in lines[1]


def test_data_that_lies_in_no_folder_is_counted(tmp_path):
    record, lines, _ = read(tmp_path, None, dataset("digits"))
    assert (record["train"]["used"], record["test"]["used"]) == (1437, 360)
    assert (record["skipped"], record["listing"], lines) == ({}, None, [])


def test_a_name_that_cannot_be_printed_is_said_in_one_line(tmp_path):
    root = small_tree(tmp_path / "imgs")
    (root / os.fsdecode(b"train/00/a\nb\xff.txt")).write_bytes(b"")
    (root / os.fsdecode(b"train/00/pipe\n\xff.png")).mkdir()
    (root / os.fsdecode(b"train/00/pipe\n\xff.png/x")).write_bytes(b"")
    record, _, _ = read(tmp_path, root)
    assert record["skipped"] == {"other endings": {".txt": 1}, "in deeper folders": 1}


def test_what_is_no_regular_file_is_never_opened(tmp_path, monkeypatch):
    root = small_tree(tmp_path / "imgs")
    os.mkfifo(root / "train/00/pipe.png")  # to open it would wait for a writer
    monkeypatch.chdir(root / "test/01")  # the path of a socket is short
    socket.socket(socket.AF_UNIX).bind("socket.jpg")
    (root / "train/01/link.png").symlink_to(next((root / "train/00").glob("[0-9]*.png")))
    record, [line], _ = read(tmp_path, root)
    assert record["train"] == {"used": 3, "duplicates": 1}
    assert record["skipped"] == {"pipe, socket or device": 2}
    assert f"2 pipe, socket or device ({root}/test/01/socket.jpg, ...)" in line


@pytest.mark.parametrize("channel", [(), (1,), (0, 1, 2)])
def test_a_channel_that_never_changes_is_not_scaled(tmp_path, channel):
    root = write_tree(tmp_path / "imgs", random_data(2, 3, 2, 8, 8, 3))
    for number, file in enumerate(root.glob("*/*/*.png")):
        pixels = noise(8, 8, 3, seed=number)
        pixels[..., channel] = 77
        Image.fromarray(pixels).save(file)
    record, lines, content = read(tmp_path, root)
    assert record["constant_channels"] == list(channel)
    named = ", ".join(str(each + 1) for each in channel)
    assert any(f"never change in channel {named} of 3: it is shifted" in line for line in lines) == bool(channel)
    augment = Augment(content["mean"], content["std"], 0, False)
    for images in (content["train_images"], content["test_images"]):
        seen = augment.normalise(images)
        assert seen.isfinite().all()
        assert seen[:, channel].abs().max() < 1e-6 if channel else seen.abs().max() > 1
    assert all(weights(view, content["std"]).isfinite().all() for view in ("luminance", "chrominance"))


# --- what `kd status` compares ---


def changed_by(root, change):
    before = listing(root)
    assert before
    assert before == listing(root)
    change()
    return listing(root) != before


def test_the_listing_sees_images_that_come_go_or_change(tmp_path):
    root = small_tree(tmp_path / "imgs")
    image = next((root / "train/00").iterdir())
    assert changed_by(root, lambda: shutil.copy(image, root / "test/01/new.png"))
    assert changed_by(root, lambda: (root / "test/01/new.png").rename(root / "test/00/new.png"))
    assert changed_by(root, lambda: write(root, {"test/00/new.png": noise(9, 9, 3)}))
    assert changed_by(root, (root / "test/00/new.png").unlink)
    assert changed_by(root, (root / "train/02").mkdir)


def test_the_listing_does_not_see_copies_hidden_files_and_what_is_not_read(tmp_path):
    root = small_tree(tmp_path / "imgs")
    for name in ("train/.DS_Store", "train/00/.DS_Store", "train/00/notes.txt", "README"):
        assert not changed_by(root, lambda name=name: (root / name).write_bytes(b"x"))
    assert listing(shutil.copytree(root, tmp_path / "copy")) == listing(root)


def test_the_record_holds_the_listing_of_what_was_read(tmp_path):
    root = small_tree(tmp_path / "imgs")
    assert read(tmp_path, root)[0]["listing"] == listing(root)


def test_the_listing_of_a_folder_that_cannot_be_read_is_empty(tmp_path, monkeypatch):
    root = small_tree(tmp_path / "imgs")
    assert listing(tmp_path / "nowhere") == listing(Path("\0")) == listing(root / "train") == ""
    (root / "train/00/gone.png").symlink_to("nowhere")
    assert listing(root) == ""


def test_a_listing_needs_neither_torch_nor_pillow():
    code = "import sys, kd.data.listing; sys.exit(bool({'torch', 'PIL', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_grey_values_stay_grey(tmp_path):
    """A grey image saved as RGB has three equal channels, none of them constant."""
    root = tmp_path / "imgs"
    greys = {f"{split}/{name}/{n}.png": np.dstack([noise(8, 8, seed=n)] * 3) for split in ("train", "test")
             for name in "ab" for n in range(2)}  # fmt: skip
    record, _, content = read(tmp_path, write(root, greys))
    assert record["constant_channels"] == []
    assert torch.equal(content["std"], content["std"][:1].expand(3))


def test_folders_next_to_the_splits_never_refuse_the_images(tmp_path, monkeypatch):
    """An empty one holds nothing to name; one that cannot be read, as at the top of a disk, is named itself."""
    root = small_tree(tmp_path / "imgs")
    (root / "empty").mkdir()
    (root / "lost+found").mkdir()
    scandir = os.scandir

    def denied(path, *given):
        if os.fspath(path) == str(root / "lost+found"):
            raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
        return scandir(path, *given)

    monkeypatch.setattr(os, "scandir", denied)
    record, [line], _ = read(tmp_path, root)
    assert record["skipped"] == {"outside of train/ and test/": 1}
    assert f"1 outside of train/ and test/ ({root}/lost+found)" in line
