"""Figures of single runs: heat maps and histograms that can be compared and agree with each other."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from conftest import tiny_run
from matplotlib import pyplot
from matplotlib.text import Text

from kd.reports.figures.correlations import common_limit, heat_maps
from kd.reports.figures.course import course
from kd.reports.figures.drawing import save
from kd.reports.figures.segmentation import COLOUR, colours, draw_iou, overlaid
from kd.reports.figures.synthetic import histograms, image_grid, images_and_maps
from kd.runtime.files import write_json

CLASSES = ["aeroplane", "bird", "cat"]
NOTE = "digits, a → b, seed 0."


@pytest.fixture(autouse=True)
def _closed():
    yield
    pyplot.close("all")


def run(number: int, epochs: int = 8) -> dict[str, np.ndarray]:
    """Return the arrays of a data-free run, other ones for each number."""
    draw = np.random.default_rng(number)
    return {
        "images": draw.integers(0, 256, (10, 1, 4, 4), dtype=np.uint8),
        "image_classes": np.array([0] * 9 + [2]),
        "class_counts": draw.integers(1, 20, 3),
        "confidence_counts": draw.integers(1, 20, 20),
        "class_counts_by_epoch": draw.integers(1, 20, (epochs, 3)),
        "confidence_counts_by_epoch": draw.integers(0, 20, (epochs, 20)),
        "priorities_by_epoch": np.sort(draw.uniform(1e-3, 10, (epochs, 5))),
    }


def history(epochs: int = 8) -> pd.DataFrame:
    numbers = np.arange(1, epochs + 1)
    return pd.DataFrame({"epoch": numbers, "gap_stored": 10.0**-numbers, "gap_drawn": 0.1 ** (numbers - 1)})


def texts(figure) -> str:
    return " ".join(text.get_text().replace("\n", " ") for text in figure.findobj(Text) if text.get_visible())


def shares(counts: np.ndarray) -> np.ndarray:
    return 100 * counts / counts.sum()


def test_fourteen_runs_have_panels_of_their_own_with_both_counts_of_classes():
    sets = {f"run {number}": run(number) for number in range(14)}
    figure = histograms(sets, CLASSES, "Title", NOTE)
    shown = [axis for axis in figure.axes if axis.get_visible()]
    assert len(shown) == 28
    assert len({axis.get_ylim() for axis in shown[::2]}) == 1, "they compare"
    for left, right, (label, arrays) in zip(shown[::2], shown[1::2], sets.items(), strict=True):
        assert left.get_title(loc="left") == f"{label}: {arrays['class_counts'].sum()} images"
        np.testing.assert_allclose([bar.get_height() for bar in left.patches], shares(arrays["class_counts"]))
        np.testing.assert_allclose(left.lines[0].get_ydata(), shares(arrays["class_counts_by_epoch"][-1]))
        assert list(left.lines[1].get_ydata()) == pytest.approx([100 / 3, 100 / 3])
        np.testing.assert_allclose([bar.get_height() for bar in right.patches], shares(arrays["confidence_counts"]))
    for said in ("class of images as stored", "class of images when made", "aeroplane", NOTE):
        assert said in texts(figure)


def test_the_course_shows_the_same_count_as_the_dashes_of_the_histograms():
    sets = {f"run {number}": run(number) for number in range(3)}
    figure = course(sets, dict.fromkeys(sets, history()), CLASSES, "Title", NOTE, most=2)
    assert "The first 2 of 3 runs." in texts(figure)
    assert "class of images when made" in texts(figure)
    heat, other = figure.axes[:2]
    for axis, arrays in zip((heat, other), sets.values(), strict=False):
        [image] = axis.images
        np.testing.assert_allclose(np.asarray(image.get_array())[:, -1], shares(arrays["class_counts_by_epoch"][-1]))
        low, high = image.get_extent()[2:]
        cells = (np.asarray(axis.get_yticks()) - low) / (high - low) * 3
        np.testing.assert_allclose(cells, [0.5, 1.5, 2.5])
    assert heat.images[0].get_clim() == other.images[0].get_clim(), "one scale, one colour bar"
    assert {"% of the buffer", "% of the new images"} <= {axis.get_ylabel() for axis in figure.axes}


def test_a_course_of_nothing_says_so(tmp_path):
    figure = course({"original": {}}, {"original": history()}, CLASSES, "Title", NOTE)
    assert "synthesised nothing" in texts(figure)
    save(figure, tmp_path / "figure.png")


def test_rows_of_images_are_named_by_their_first_and_last_class():
    [axis] = image_grid({"run": run(0)}, CLASSES, "Title", NOTE).axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["aero…ne", "aero…ne–cat"]
    np.testing.assert_allclose(axis.get_yticks(), [1.5, 6.5])
    assert axis.get_title() == f"run\n10 of {run(0)['class_counts'].sum()} images"
    many = [f"class{number}" for number in range(21)]
    [axis] = image_grid({"run": run(0)}, many, "Title", NOTE).axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["0", "0–2"]


def test_panels_of_correlations_share_a_scale_that_no_odd_run_decides():
    draw = np.random.default_rng(0)
    alike = [0.1 * draw.uniform(-1, 1, (3, 3)) for _ in range(4)]
    usual = common_limit(alike)
    assert 0.05 < usual <= 0.1
    assert common_limit([*alike, np.ones((3, 3))]) <= 2 * 0.1
    assert common_limit([np.zeros((3, 3))]) > 0
    big = 0.1 * draw.uniform(-1, 1, (100, 100))
    big[0, 1] = big[1, 0] = 1.5
    assert common_limit([big]) < 0.1, "one cell"

    figure = heat_maps({"a": alike[0], "odd": np.ones((3, 3))}, CLASSES, "Title", NOTE)
    first, odd, bar = figure.axes
    assert first.images[0].get_clim() == odd.images[0].get_clim()
    assert [label.get_text() for label in first.get_yticklabels()] == CLASSES
    assert list(first.get_xticks()) == [0, 1, 2]
    assert bar.get_ylabel() == "correlation, student minus teacher"
    for said in ("One scale of colours for all panels", NOTE, "mean |difference| 1.000"):
        assert said in texts(figure)
    far = heat_maps({"a": alike[0], "b": alike[1], "odd": np.ones((3, 3))}, CLASSES, "Title", NOTE)
    assert "Beyond its ends are at most 1e+02 % of a panel's cells." in texts(far)


def mapped(number: int) -> dict[str, np.ndarray]:
    """Return the arrays of a data-free run of segmentation, with depth as a fourth channel and a palette."""
    draw = np.random.default_rng(number)
    images, maps = draw.integers(0, 256, (10, 4, 4, 4), dtype=np.uint8), draw.integers(0, 3, (10, 4, 4))
    palette = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
    return run(number) | {"images": images, "image_classes": maps, "palette": palette}


def test_of_segmentation_classes_are_counted_in_pixels():
    sets = {"run 0": mapped(0)}
    figure = histograms(sets, CLASSES, "Title", NOTE)
    assert figure.axes[0].get_title(loc="left") == f"run 0: {sets['run 0']['class_counts'].sum()} pixels"
    for said in ("% of pixels", "class of pixels as stored", "class of pixels when made", "counted per pixel"):
        assert said in texts(figure)
    assert "class of pixels when made" in texts(course(sets, {"run 0": history()}, CLASSES, "Title", NOTE))


def test_synthetic_images_stand_above_the_teachers_maps_in_the_colours_of_the_data_set():
    sets = {f"run {number}": mapped(number) for number in range(2)}
    figure = images_and_maps(sets, CLASSES, "Title", NOTE)
    assert [axis.get_ylabel() for axis in figure.axes] == ["run 0", "teacher's map", "run 1", "teacher's map"]
    image, shown = (np.asarray(axis.images[0].get_array()) for axis in figure.axes[:2])
    first = sets["run 0"]
    assert (image[:, :4] == first["images"][0, :3].transpose(1, 2, 0)).all()
    expected = COLOUR * first["palette"][first["image_classes"][0]] + (1 - COLOUR) * image[:, :4].mean(2, keepdims=True)
    assert np.abs(shown[:, :4] - expected).max() <= 0.5


def test_pixels_without_a_class_are_black_over_the_image():
    table = colours(2)
    assert len({tuple(colour) for colour in table}) == 3
    white, maps = np.full((1, 1, 1, 2), 255, np.uint8), np.array([[[1, 255]]])
    seen = overlaid(white, maps, table)[0, 0]
    assert (seen[1] == round(255 * (1 - COLOUR))).all()
    assert (np.abs(seen[0] - (COLOUR * table[1] + (1 - COLOUR) * 255)) <= 0.5).all()


def test_the_iou_of_each_class_is_shown_of_the_teacher_and_of_runs(tmp_path):
    folders = {}
    for method, scores in (("scratch", [10.0, 20.0, None]), ("kd", [30.0, None, 50.0])):
        made = tiny_run(method)
        folders[method] = tmp_path / made.path
        folders[method].mkdir(parents=True)
        write_json(folders[method] / "run.json", {"classes": CLASSES, "settings": made.as_dict()})
        found = {f"iou_{label}": score for label, score in enumerate(scores) if score is not None}
        write_json(folders[method] / "metrics.json", found | {"accuracy": 33.0})
    assert rows_of(draw_iou(folders, "Title", NOTE)) == {"scratch": "10 20 33", "kd": "30 50 33"}
    teacher = tmp_path / made.teacher.path
    teacher.mkdir(parents=True)
    write_json(teacher / "metrics.json", {"iou_0": 61.0, "iou_1": 62.0, "iou_2": 63.0, "accuracy": 62.0})
    assert rows_of(draw_iou(folders, "Title", NOTE))["teacher"] == "61 62 63 62"


def rows_of(figure) -> dict[str, str]:
    [axes] = figure.axes
    cells = sorted((text.get_position()[1], text.get_position()[0], text.get_text()) for text in axes.texts)
    names = [label.get_text() for label in axes.get_yticklabels()]
    return {name: " ".join(said for row, _, said in cells if row == number) for number, name in enumerate(names)}
