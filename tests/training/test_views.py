"""What a network sees of an image: luminance, chrominance, and a teacher of one for a student of the other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import COMPUTE, execute, tiny_run
from PIL import Image

from kd.data import views
from kd.data.augment import Augment
from kd.data.prepare import prepare
from kd.data.raw import Source
from kd.models.build import build
from kd.runs.run import run_step
from kd.runtime.messages import ConfigError


def test_views_are_linear_in_the_image_and_leave_out_what_they_say() -> None:
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.25, 0.3])
    augment = Augment(mean, std, 0, False)
    grey = torch.full((1, 3, 2, 2), 0.7)
    colour = torch.rand(1, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    lifted = colour + 0.1
    normal = {name: augment.normalise(image) for name, image in (("c", colour), ("l", lifted))}
    chroma, luma = (
        {key: views.mix(x, views.weights(view, std)) for key, x in normal.items()}
        for view in ("chrominance", "luminance")
    )
    assert chroma["c"].shape == (1, 2, 2, 2)
    assert luma["c"].shape == (1, 1, 2, 2)
    torch.testing.assert_close(chroma["c"], chroma["l"], rtol=0, atol=1e-5)  # more light is no other colour
    torch.testing.assert_close(luma["l"] - luma["c"], torch.full((1, 1, 2, 2), 0.1 / 0.25))
    red, green, blue = colour[0]
    zero = 0.299 * mean[0] + 0.587 * mean[1] + 0.114 * mean[2]
    torch.testing.assert_close(luma["c"][0, 0], (0.299 * red + 0.587 * green + 0.114 * blue - zero) / 0.25)
    weight = views.weights("chrominance", std)
    light, dark = (views.mix(augment.normalise(image), weight) for image in (grey, 0 * grey))
    torch.testing.assert_close(light, dark)  # a grey has no colour, however light


def test_a_network_looks_through_its_view_and_keeps_its_state_dict() -> None:
    augment = Augment(torch.zeros(3), torch.ones(3), 0, False)
    plain = build("resnet8", num_classes=3, in_channels=2, image_size=8).eval()
    names = set(plain.state_dict())
    images = torch.randn(2, 3, 8, 8)
    expected = plain(views.mix(images, views.weights("chrominance", augment.std)), maps=True)
    views.look_through("chrominance", plain, augment)
    actual = plain(images, maps=True, signed=True)
    assert torch.equal(actual.logits, expected.logits)
    assert len(actual.maps) == len(actual.signed) == 4
    assert plain.map_shapes()[0] == (16, 8, 8)
    assert set(plain.state_dict()) == names


def test_of_colours_and_depth_each_view_has_its_own() -> None:
    images = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    std = torch.tensor([0.2, 0.25, 0.3, 0.1])
    assert torch.equal(views.mix(images, views.weights("rgb", std)), images[:, :3])
    assert torch.equal(views.mix(images, views.weights("depth", std)), images[:, 3:])
    for view in ("luminance", "chrominance"):
        of_colours = views.mix(images[:, :3], views.weights(view, std[:3]))
        assert torch.equal(views.mix(images, views.weights(view, std)), of_colours)
    assert [views.channels(view, 4) for view in ("rgb", "depth", "luminance", "chrominance")] == [3, 1, 1, 2]
    assert (views.channels("rgb", 1), views.channels("rgb", 3)) == (1, 3)
    with pytest.raises(ConfigError, match=r"set dataset\.channels: 4"):
        views.channels("depth", 3)


def test_luminance_teaches_chrominance(tmp_path: Path) -> None:
    """On colour images of a folder: classes differ in brightness and in hue."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 8)):
        for number, colour in enumerate(((200, 40, 40), (90, 160, 90))):
            folder = tmp_path / f"images/{split}/class{number}"
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = np.clip(np.array(colour) + rng.normal(0, 20, (8, 8, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    where = {"dataset__name": "folder", "dataset__root": str(tmp_path / "images")}
    fast = {"training__batch_size": 16, "teacher__training__batch_size": 16, "training__epochs": 3}
    changes = {**where, **fast, "teacher__training__epochs": 3}
    run = tiny_run("kd", teacher__view="luminance", student__view="chrominance", **changes)
    assert (run.view, run.teacher.view) == ("chrominance", "luminance")
    results = tmp_path / "results"
    data = results / run.data_path
    data.parent.mkdir(parents=True)
    prepare(run.dataset, data, Source(tmp_path / "images", results, download=False))
    run_step(run.teacher, results / run.teacher.path, data, [], COMPUTE)
    metrics = run_step(run, results / run.path, data, [results / run.teacher.path / "weights.pt"], COMPUTE)
    assert torch.load(results / run.teacher.path / "weights.pt")["stem.0.weight"].shape[1] == 1
    assert torch.load(results / run.path / "weights.pt")["stem.weight"].shape[1] == 2
    assert metrics["teacher_accuracy"] == metrics["accuracy"] == 100.0


def test_grey_images_have_no_colours_to_show(store: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"view: got 'luminance'; images of 1 channel\(s\) have no colours"):
        execute(tiny_run("scratch", student__view="luminance"), store, tmp_path)
