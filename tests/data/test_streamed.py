"""Images that stay in their files: which pixels they are, batches, what is refused."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from photos import NORMALISED, SIZES, of_photos, photo, photo_tree
from PIL import Image

from kd.data import streamed
from kd.data.crops import middle, pixels, random_box
from kd.data.dataset import Data
from kd.data.raw import Source
from kd.runs.prepared_data import changed_folder, prepare_step, reading
from kd.runtime.files import file_digest
from kd.runtime.messages import ConfigError
from kd.runtime.torchvision_compat import import_torchvision

CPU = torch.device("cpu")
BATCH, PER_EPOCH = 5, 4  # of 21 images


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photo_tree(tmp_path_factory.mktemp("photos") / "tree")


def prepared(root: Path, folder: Path, **changes) -> Path:
    prepare_step(
        of_photos(root, **changes), folder / "list.pt", Source(None, folder, download=False), lambda line: None
    )
    return folder / "list.pt"


@pytest.fixture(scope="module")
def listed(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(root, tmp_path_factory.mktemp("prepared"))


def loader_of(data: Data, seed: int = 3, split=None):
    return (split or data.train).loader(data.augment, BATCH, torch.Generator().manual_seed(seed))


def following(loader, count: int):
    batches = []
    for _ in range(count):
        loader.advance()
        batches.append(loader.batch())
    return batches


def assert_alike(one, other) -> None:
    assert len(one) == len(other) > 0
    for first, second in zip(one, other, strict=True):
        assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


# --- pixels ---


@pytest.mark.parametrize("shape", [*SIZES, (500, 375), (300, 801)], ids=str)
def test_crops_and_middles_are_those_of_torchvision(shape: tuple[int, int], tmp_path: Path) -> None:
    transforms = import_torchvision().transforms.functional
    photo(5, *shape).save(tmp_path / "x.png")
    image, size = Image.open(tmp_path / "x.png"), 28
    theirs = transforms.center_crop(transforms.resize(image, 32), [size, size])
    np.testing.assert_array_equal(np.asarray(middle(image, size)), np.asarray(theirs))
    for key in ((0, 0, 1), (1, 2, 3), (9, 9, 9)):
        ours = pixels((os.fsencode(tmp_path / "x.png"), key), size, flip=False)
        left, top, right, bottom = random_box(*shape, random.Random("{} {} {}".format(*key)))
        theirs = transforms.resized_crop(image, top, left, bottom - top, right - left, [size, size])
        np.testing.assert_array_equal(ours, np.asarray(theirs))


@pytest.mark.parametrize("shape", [(500, 375), (375, 500), (64, 20), (20, 90)], ids=str)
def test_random_parts_are_distributed_as_torchvisions(shape: tuple[int, int]) -> None:
    theirs_of = import_torchvision().transforms.RandomResizedCrop.get_params
    draws, (width, height), count = random.Random(1), shape, 4000
    torch.manual_seed(1)
    image = Image.new("L", shape)
    ours = np.array([random_box(*shape, draws) for _ in range(count)], float)
    theirs = np.array([theirs_of(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(count)], float)
    theirs = np.stack([theirs[:, 1], theirs[:, 0], theirs[:, 1] + theirs[:, 3], theirs[:, 0] + theirs[:, 2]], 1)
    assert ours.min() >= 0
    assert (ours[:, 2:] <= [width, height]).all()
    for quantile in (0.1, 0.25, 0.5, 0.75, 0.9):  # of each side, and of the area
        near = 0.03 * max(shape)
        np.testing.assert_allclose(np.quantile(ours, quantile, 0), np.quantile(theirs, quantile, 0), atol=near)
    areas = [np.sort((b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])) / (width * height) for b in (ours, theirs)]
    assert np.abs(areas[0] - areas[1]).max() < 0.08


def test_half_of_the_images_are_mirrored(root: Path) -> None:
    file = os.fsencode(root / "train/n00001/1_4.JPEG")
    for key in range(40):
        plain, perhaps = (pixels((file, (0, 0, key)), 16, flip) for flip in (False, True))
        assert np.array_equal(perhaps, plain) or np.array_equal(perhaps, plain[:, ::-1])
    mirrored = [
        not np.array_equal(*(pixels((file, (0, 0, key)), 16, flip) for flip in (False, True))) for key in range(99)
    ]
    assert 30 < sum(mirrored) < 70


def test_grey_cmyk_and_misnamed_files_are_rgb(root: Path) -> None:
    for place, mode in enumerate(("L", "CMYK", "RGB")):
        file = root / f"train/n00000/0_{place}.JPEG"
        image = Image.open(file)
        assert (image.mode, image.format) == (mode, "PNG" if place == 2 else "JPEG")
        expected = np.asarray(middle(image.convert("RGB"), 16))
        np.testing.assert_array_equal(pixels((os.fsencode(file), None), 16, False), expected)


# --- batches ---


def test_batches_do_not_depend_on_the_number_of_processes(listed: Path, root: Path) -> None:
    found = []
    for workers in (0, 1, 3):
        with reading(of_photos(root), listed, CPU, workers) as data:
            batches = following(loader_of(data), 2 * PER_EPOCH + 1)
            found.append((batches, [*data.score.images.split(5)]))
            assert len(psutil.Process().children()) == min(workers, BATCH)
        assert not psutil.Process().children()
    for batches, scored in found[1:]:
        assert_alike(batches, found[0][0])
        assert all(torch.equal(*pair) for pair in zip(scored, found[0][1], strict=True))


def test_a_batch_holds_the_images_of_its_index_each_epoch_in_another_order_and_cut(listed: Path, root: Path) -> None:
    with reading(of_photos(root), listed, CPU) as data:
        assert (data.channels, data.image_size, len(data.train), len(data.score), data.full_size) == (3, 16, 21, 12, 21)
        assert data.classes == ["n00000", "n00001", "n00002"]
        loader = loader_of(data, seed=7)
        assert loader.steps_per_epoch == PER_EPOCH
        batches = following(loader, 3 * PER_EPOCH)
        files = sorted(root.glob("train/*/*"))
        mean, std = (torch.tensor(NORMALISED[name])[:, None, None] for name in ("mean", "std"))
        for step, batch in enumerate(batches):
            for image, label, index in zip(batch.images, batch.labels.tolist(), batch.index.tolist(), strict=True):
                wanted = os.fsencode(files[index]), (7, step // PER_EPOCH, index)
                expected = (torch.tensor(pixels(wanted, 16, True)).permute(2, 0, 1) / 255 - mean) / std
                torch.testing.assert_close(image, expected, rtol=1e-5, atol=1e-5)
                assert label == index // 7
        orders = [torch.cat([batch.index for batch in batches[epoch * 4 : epoch * 4 + 4]]) for epoch in range(3)]
        assert all(len(order.unique()) == 20 for order in orders)
        assert not torch.equal(orders[0], orders[1])
        other = following(loader_of(data, seed=8), 1)
        assert not torch.equal(other[0].index, batches[0].index)


@pytest.mark.parametrize(("workers", "done"), [(0, 0), (0, 3), (0, 4), (0, 6), (2, 6)])
def test_a_loader_goes_on_from_its_state(listed: Path, root: Path, workers: int, done: int) -> None:
    with reading(of_photos(root), listed, CPU, workers) as data:
        undisturbed = loader_of(data)
        following(undisturbed, done)
        state = undisturbed.state_dict()
        resumed = loader_of(data)
        following(resumed, 1)
        resumed.load_state_dict(state)
        assert resumed.place == undisturbed.place
        resumed.generator.manual_seed(99)  # nothing is drawn from it, whatever a loss has
        assert_alike(following(resumed, 6), following(undisturbed, 6))


def test_a_fraction_and_a_validation_split_are_of_files(listed: Path, root: Path) -> None:
    with reading(of_photos(root, validation=0.3), listed, CPU) as data:
        assert (len(data.train), len(data.score), data.scored, data.full_size) == (15, 6, "validation", 21)
        assert not set(data.train.images.places) & set(data.score.images.places)
        subset = data.train.subset(torch.tensor([14, 2, 5, 0, 9, 1]))
        [batch] = following(loader_of(data, split=subset), 1)
        assert torch.equal(batch.labels, subset.labels[batch.index])
        names = sorted(root.glob("train/*/*"))
        assert [int(names[place].parent.name[-1]) for place in subset.images.places] == subset.labels.tolist()


def test_a_kd_that_is_replaced_meanwhile_changes_no_batch(
    listed: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes that begin later would import other code."""
    with reading(of_photos(root), listed, CPU, 1) as data:
        before = following(loader_of(data), 2)
        monkeypatch.setattr(streamed, "CODE", "another")
        made = []
        monkeypatch.setattr(streamed, "pixels", lambda *given: made.append(given) or pixels(*given))
        assert_alike(following(loader_of(data), 2), before)
        assert len(made) == 2 * BATCH


@pytest.mark.parametrize("size", [2, 3])
def test_processes_that_share_a_run_decode_a_part_each(
    listed: Path, root: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[bytes] = []
    monkeypatch.setattr(streamed, "pixels", lambda wanted, *given: decoded.append(wanted) or pixels(wanted, *given))
    with reading(of_photos(root), listed, CPU) as data:
        whole = following(loader_of(data), 3)
    decoded.clear()
    for number in range(size):
        start, end = number * BATCH // size, (number + 1) * BATCH // size
        with reading(of_photos(root), listed, CPU, 0, lambda count, found=(start, end): found) as data:
            for batch, expected in zip(following(loader_of(data), 3), whole, strict=True):
                assert torch.equal(batch.images[start:end], expected.images[start:end])
                assert torch.equal(batch.labels, expected.labels)
    assert len(decoded) == len(set(decoded)) == 3 * BATCH


def test_no_more_than_a_few_batches_are_in_memory(listed: Path, root: Path) -> None:
    asked = []
    with ExitStack() as stack, reading(of_photos(root), listed, CPU, 1) as data:
        files = replace(data.train.images.files, stack=stack)
        plans = (asked.append(number) or [files.wanted(0, None)] for number in range(1000))
        for number, _ in enumerate(islice(files.batches(plans, 1), 10)):
            assert len(asked) == number + streamed.AHEAD


# --- what is prepared, and refused ---


def test_the_prepared_file_is_a_list_of_names(root: Path, listed: Path, tmp_path: Path) -> None:
    content = torch.load(listed, weights_only=True)
    names = content["train_files"].numpy().tobytes().split(b"\0")
    assert names[0] == b"train/n00000/0_0.JPEG"
    assert len(names) == len(content["train_labels"]) == 21
    again = photo_tree(tmp_path / "again")
    assert file_digest(prepared(again, tmp_path)) == file_digest(listed), "it may lie elsewhere"
    file = again / "train/n00001/1_4.JPEG"
    content = file.read_bytes()
    file.write_bytes(content[::-1])
    assert file_digest(prepared(again, tmp_path)) == file_digest(listed), "contents are not read"
    file.write_bytes(content + b"\0")
    assert file_digest(prepared(again, tmp_path)) != file_digest(listed), "sizes are"
    file.write_bytes(content)
    file.rename(file.with_name("other.JPEG"))
    assert file_digest(prepared(again, tmp_path)) != file_digest(listed), "and names"
    assert not changed_folder(tmp_path / "list.pt", again), "nobody looks through a million files at every start"


def test_a_tree_is_found_where_it_was_listed_or_where_the_settings_say(root: Path, tmp_path: Path) -> None:
    elsewhere = of_photos(Path("nowhere/photos"))
    source = Source(root, tmp_path, download=False)
    prepare_step(elsewhere, tmp_path / "list.pt", source, lambda line: None)
    with reading(elsewhere, tmp_path / "list.pt", CPU) as data:
        assert len(following(loader_of(data), 1)) == 1
    (tmp_path / "list.json").unlink()
    with (
        pytest.raises(ConfigError, match=r"^dataset.root: nowhere/photos is not there; [^\n]+\Z"),
        reading(elsewhere, tmp_path / "list.pt", CPU),
    ):
        pass


@pytest.mark.parametrize(
    ("content", "says", "workers"), [(b"no image", "is no PNG, JPEG", 0), (None, "cannot be read", 2)]
)
def test_a_broken_file_is_named_when_it_is_met(tmp_path: Path, content: bytes | None, says: str, workers: int) -> None:
    root = photo_tree(tmp_path / "tree")
    listed, file = prepared(root, tmp_path), root / "train/n00001/1_4.JPEG"
    file.write_bytes(content or file.read_bytes()[:-200])
    with (
        reading(of_photos(root), listed, CPU, workers) as data,
        pytest.raises(ConfigError, match=r"\A[^\n]+\Z") as error,
    ):
        following(loader_of(data), 2 * PER_EPOCH)
    assert str(error.value).startswith(f"dataset.root: {file} {says}")
    assert not psutil.Process().children()


def test_an_empty_file_is_named_before_anything_is_decoded(tmp_path: Path) -> None:
    root = photo_tree(tmp_path / "tree")
    (root / "test/n00001/1_2.JPEG").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"^dataset\.root: .*/test/n00001/1_2\.JPEG is empty; mend or remove it\Z"):
        prepared(root, tmp_path)


def test_a_killed_process_is_told_in_a_line(listed: Path, root: Path) -> None:
    with reading(of_photos(root), listed, CPU, 2) as data:
        loader = loader_of(data)
        following(loader, 1)
        psutil.Process().children()[0].kill()
        with pytest.raises(ConfigError, match=r"^compute\.workers: a process that decodes .* \(SIGKILL\)\Z"):
            following(loader, 9)
    assert not psutil.Process().children()


def test_the_processes_import_no_torch() -> None:
    """They are as many as a machine has cores."""
    subprocess.run([sys.executable, "-c", "import kd.data.crops, sys; assert 'torch' not in sys.modules"], check=True)
