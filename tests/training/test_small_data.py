"""Data sets with hardly any images, buffers with none, and colours that never change: trained, or refused in a line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import COMPUTE, execute, tiny_run
from PIL import Image

from kd.data.prepare import prepare
from kd.data.raw import Source
from kd.runs.run import run_step
from kd.runtime.messages import ConfigError


@pytest.mark.parametrize("source", ["generator", "original"])
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"replay__full_size": 1}, "scale: got 1, which leaves 1 of 1 images for the buffer"),
        ({"scale": 0.004}, "scale: got 0.004, which leaves 0 of 100 images for the buffer"),
        ({"scale": 0.0005, "replay__full_size": None}, "scale: got 0.0005, which leaves 1 of 1,437 images"),
    ],
)
def test_a_buffer_of_no_or_one_image_is_refused(store: Path, tmp_path: Path, source, settings, said) -> None:
    with pytest.raises(ConfigError) as caught:
        execute(tiny_run("ssdkd", inversion__source=source, **settings), store, tmp_path)
    assert str(caught.value).startswith(said)
    assert str(caught.value).endswith("raise scale or replay.full_size")


def test_colours_that_never_change_train_with_and_without_data(tmp_path: Path) -> None:
    """Red is always there, green never; the classes differ in blue."""
    for split, count in (("train", 20), ("test", 8)):
        for number, level in enumerate((60, 190)):
            folder = tmp_path / f"images/{split}/class{number}"
            folder.mkdir(parents=True)
            for index in range(count):
                blue = np.random.default_rng([number, index, count]).integers(level - 40, level + 40, (8, 8))
                pixels = np.stack([np.full((8, 8), 255), np.zeros((8, 8)), blue], axis=2).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    where = {"dataset__name": "folder", "dataset__root": str(tmp_path / "images")}
    fast = {"teacher__training__batch_size": 8, "training__batch_size": 8, "teacher__training__epochs": 3}
    for view in ("rgb", "chrominance"):
        views = {"teacher__view": view, "student__view": view}
        runs = [tiny_run(method, **where, **fast, **views) for method in ("kd", "ssdkd")]
        results, teacher = tmp_path / "results", runs[0].teacher
        data, weights = results / teacher.data_path, [results / teacher.path / "weights.pt"]
        prepare(teacher.dataset, data, Source(tmp_path / "images", results, download=False))
        assert run_step(teacher, results / teacher.path, data, [], COMPUTE)["accuracy"] == 100.0
        for run in runs:
            metrics = run_step(run, results / run.path, data, weights, COMPUTE)
            assert np.isfinite([value for value in metrics.values() if isinstance(value, float)]).all()
