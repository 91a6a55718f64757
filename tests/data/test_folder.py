"""Trees of image files: what is decoded, what is refused."""

import builtins
import errno
import os
import shutil
import struct
from unittest.mock import Mock

import numpy as np
import pytest
from image_files import SPLITS, assert_images, assert_same, dataset, noise, prepared, refusal, small_tree, write
from PIL import Image


def test_images_of_the_wanted_size_are_kept_byte_for_byte_in_the_order_of_their_names(tmp_path):
    first, second = classes = ['$(x) -r "`a`"', "日本; it's *.\\ %s"]  # any name may name a class
    names = [f"{first}/{name}" for name in ("10.png", "9.WEBP")]
    names += [f"{second}/{name}" for name in ("B.PNG", "a.WebP", "b.png", "c.webp")]
    images = {
        f"{split}/{name}": noise(8, 8, 3, seed=[n, len(split)]) for n, name in enumerate(names) for split in SPLITS
    }
    content = prepared(tmp_path, dataset("folder"), write(tmp_path / "my $(data)", images))
    assert content["classes"] == classes
    for split in SPLITS:
        assert content[f"{split}_labels"].tolist() == [0, 0, 1, 1, 1, 1]
        assert_images(content[f"{split}_images"], [images[f"{split}/{name}"] for name in names])
    again = write(tmp_path / "again", dict(reversed(images.items())))  # files made in another order
    (again / "test/.cache").mkdir()
    for name in (".DS_Store", "._0.png", "notes.txt", "0.png.bak", "0.heic", "png"):  # neither image nor class
        (again / "train" / first / name).write_bytes(b"no image")
        (again / "train" / name).write_bytes(b"no image")
    assert_same(prepared(tmp_path, dataset("folder"), again), content)


GREY, COLOUR = noise(8, 8), noise(8, 8, 3)
PALETTE = Image.fromarray(COLOUR).quantize(16)
KINDS = {  # file -> what is saved, its orientation in EXIF (6: top is right, 8: top is left), what is to be seen
    "grey.png": (GREY, 1, np.dstack([GREY] * 3)),
    "one_bit.png": (GREY > 127, 1, np.dstack([(GREY > 127) * 255] * 3)),
    "sixteen_bit.png": (GREY.astype(np.uint16) * 257, 1, np.dstack([GREY] * 3)),
    "palette.png": (PALETTE, 1, np.reshape(PALETTE.getpalette(), (-1, 3))[np.asarray(PALETTE)]),
    "rgba.png": (np.dstack([COLOUR, GREY]), 1, COLOUR),
    "rgba.webp": (np.dstack([COLOUR, GREY]), 1, COLOUR),
    "grey_alpha.png": (np.dstack([GREY, GREY]), 1, np.dstack([GREY] * 3)),
    "colours.bmp": (COLOUR, 1, COLOUR),
    "colours.ppm": (COLOUR, 1, COLOUR),
    "colours.tif": (COLOUR, 1, COLOUR),
    "palette.gif": (PALETTE, 1, np.reshape(PALETTE.getpalette(), (-1, 3))[np.asarray(PALETTE)]),
    "sixteen_bit.tiff": (GREY.astype(np.uint16) * 257, 1, np.dstack([GREY] * 3)),
    "sixteen_bit.pgm": (GREY.astype(np.uint16) * 257, 1, np.dstack([GREY] * 3)),
    "print.tif": (Image.fromarray(np.dstack([COLOUR, 0 * GREY]), "CMYK"), 1, 255 - COLOUR),
    "turned.tif": (COLOUR, 6, np.rot90(COLOUR, -1)),
    "turned_right.png": (COLOUR, 6, np.rot90(COLOUR, -1)),
    "turned_left.webp": (COLOUR, 8, np.rot90(COLOUR)),
    "photo.JPG": (COLOUR, 1, None),  # as it decodes
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_image_becomes_upright_rgb(tmp_path, name):
    saved, orientation, seen = KINDS[name]
    image, exif = saved if isinstance(saved, Image.Image) else Image.fromarray(saved), Image.Exif()
    exif[0x0112] = orientation
    file = small_tree(tmp_path / "data") / "train/00" / name
    image.save(file, lossless=True, exact=True, exif=exif)
    images = prepared(tmp_path, dataset("folder"), tmp_path / "data")["train_images"]
    assert_images(images[1:2], [np.asarray(Image.open(file)) if seen is None else seen])


@pytest.mark.filterwarnings("error")
def test_a_palette_with_transparent_colours_gives_its_colours_without_a_warning(tmp_path):
    root = small_tree(tmp_path / "data")
    PALETTE.save(root / "train/00/x.png", transparency=bytes([0, 128] + 14 * [255]))
    assert_images(prepared(tmp_path, dataset("folder"), root)["train_images"][1:2], [KINDS["palette.png"][2]])


@pytest.mark.parametrize("ending", ["gif", "tif", "webp", "png", "jpg"])
def test_the_first_of_many_frames_is_read(tmp_path, ending):
    frames = [Image.fromarray(np.full((8, 8, 3), level, np.uint8)) for level in (255, 0)]
    kind = {"jpg": "MPO"}.get(ending)
    root = small_tree(tmp_path / "data")
    frames[0].save(root / f"train/00/x.{ending}", kind, save_all=True, append_images=frames[1:])
    assert prepared(tmp_path, dataset("folder"), root)["train_images"][1].min() == 255


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
    write(small_tree(tmp_path / "data"), {"train/00/x.png": image})
    images = prepared(tmp_path, dataset("folder"), tmp_path / "data")["train_images"]
    np.testing.assert_allclose(images[1].numpy().transpose(1, 2, 0), cut_and_resized(image, 8), rtol=0, atol=1)


@pytest.mark.parametrize(
    ("place", "content", "named"),  # what is removed or written, and what the message says
    [
        ("train", None, "{root}"),
        ("test", None, "{root}"),
        ("*/*", None, "{root}"),  # no class is left
        ("*/00", None, "{root}"),  # one class is left
        ("test/01", None, "class '01' has no folder in {root}/test"),
        ("train/01", None, "class '01' has no folder in {root}/train"),
        ("test/01/*", None, "{root}/test/01"),
        ("train/01/x.jpg", b"no image", "{root}/train/01/x.jpg"),
        ("test/00/x.png", "cut", "{root}/test/00/x.png"),
        ("test/00/x.webp", "cut", "{root}/test/00/x.webp"),
        *((f"test/00/x.{ending}", "cut", f"{{root}}/test/00/x.{ending}") for ending in ("bmp", "gif", "tif", "ppm")),
        ("train/00/x.png", b"\0", "{root}/train/00/x.png is no PNG, JPEG,"),
    ],
)
def test_a_faulty_tree_is_refused_in_a_line_that_names_the_path(tmp_path, place, content, named):
    root = small_tree(tmp_path / "it's data")
    if content == "cut":
        content = (write(root, {place: COLOUR}) / place).read_bytes()[:-40]
    for path in [] if content else list(root.glob(place)):
        path.unlink() if path.is_file() else shutil.rmtree(path)
    if content:
        (root / place).write_bytes(content)
    assert named.format(root=root) in refusal(tmp_path, dataset("folder"), root)


def test_only_pictures_are_opened_as_pictures(tmp_path, monkeypatch):
    """Whatever the ending: Pillow opens EPS with another program, which the folder may hold."""
    root = small_tree(tmp_path / "data")
    for kind in ("EPS", "PDF", "ICO"):
        Image.fromarray(noise(16, 16, 3)).save(root / "train/00/x.png", kind)
        monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("a program was started"))
        assert f"{root}/train/00/x.png is no PNG, JPEG," in refusal(tmp_path, dataset("folder"), root)


@pytest.mark.parametrize("pixels", [np.int32, np.float32])
def test_pixels_without_a_known_range_are_refused(tmp_path, pixels):
    root = write(small_tree(tmp_path / "data"), {"train/00/x.tif": noise(8, 8).astype(pixels)})
    message = refusal(tmp_path, dataset("folder"), root)
    assert f"{root}/train/00/x.tif cannot be decoded (its pixels are of 32 bits" in message


def test_what_cannot_be_read_is_named_with_a_remedy(tmp_path, monkeypatch):
    root = small_tree(tmp_path / "data")
    link = root / "train/00/x.png"
    for target in ("nowhere", "x.png"):  # nothing, and itself
        link.symlink_to(target)
        message = refusal(tmp_path, dataset("folder"), root)
        assert f"{link} cannot be read (" in message
        assert "; mend, remove or make it readable" in message
        link.unlink()
    scandir, opened = os.scandir, builtins.open

    def denied(act, name):
        def acting(path, *given, **named):
            if os.fspath(path) == str(root / name):
                raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
            return act(path, *given, **named)

        return acting

    for module, function, act, name in (
        (os, "scandir", scandir, "train"),
        (os, "scandir", scandir, "test/01"),
        (builtins, "open", opened, "test/01/1.png"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, function, denied(act, name))
            assert f"{root / name} cannot be read (Permission denied)" in refusal(tmp_path, dataset("folder"), root)


def test_whatever_pillow_raises_for_a_broken_file_is_one_line(tmp_path, monkeypatch):
    root = small_tree(tmp_path / "data")
    for error in (IndexError("out\nof range"), EOFError(), struct.error("x"), Image.DecompressionBombError("large")):
        monkeypatch.setattr(Image, "open", Mock(side_effect=error))
        assert f"{root}/train/00/" in refusal(tmp_path, dataset("folder"), root)


def test_classes_that_are_not_there_are_refused(tmp_path):
    root = small_tree(tmp_path / "data")
    for name, classes, said in (
        ("digits", 11, "got 11; allowed: at most 10"),
        ("folder", 3, "got 3; allowed: at most 2"),
        ("folder", ("000", "01"), "got '000'; did you mean '00'?"),
        ("folder", ("00", "zebra"), "got 'zebra'; allowed: 00, 01"),
    ):
        assert said in refusal(tmp_path, dataset(name, classes), root, key="classes")


def test_two_class_folders_that_look_alike_are_refused(tmp_path):
    """They would be one class in every table."""
    root = small_tree(tmp_path / "tree")
    for split in SPLITS:
        for name in (b"a\xff", rb"a\xff"):
            shutil.copytree(root / split / "00", root / split / os.fsdecode(name))
    line = refusal(tmp_path, dataset("folder"), root)
    assert "train has two class folders that are shown as 'a\\\\xff'; rename one" in line
