"""What figures share: colours that survive greyscale, ticks, names and notes that hide nothing."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot
from matplotlib.colors import to_rgb
from test_tables import ACCURACY, frame

from kd.reports.figures import VIEWS
from kd.reports.figures.drawing import COLOURS, class_ticks, counted, over_seeds, plain_numbers, series, side_by_side
from kd.reports.tables import summarise


@pytest.fixture(autouse=True)
def _closed():
    yield
    pyplot.close("all")


def luminance(colour: str) -> float:
    """Return the relative luminance of sRGB, from 0 to 1 (IEC 61966-2-1)."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(colour)]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def lightness(colour: str) -> float:
    """Return L* of CIELAB, from 0 to 100."""
    y = luminance(colour)
    return 116 * y ** (1 / 3) - 16 if y > 216 / 24389 else y * 24389 / 27


def test_eight_colours_differ_in_lightness_alone():
    assert len(COLOURS) == 8
    levels = [lightness(colour) for colour in COLOURS]
    assert min(abs(a - b) for a, b in itertools.combinations(levels, 2)) > 8.5
    assert min(abs(a - b) for a, b in itertools.pairwise([*levels, levels[0]])) > 17
    assert min(1.05 / (luminance(colour) + 0.05) for colour in COLOURS) > 2.2, "contrast with white paper"


def test_series_differ_without_colour_and_from_each_other():
    styles = series(32)
    assert len({tuple(style.values()) for style in styles}) == 32
    for first in (0, 8, 16, 24):
        assert len({style["marker"] for style in styles[first : first + 8]}) == 8
    assert len({(style["marker"], style["linestyle"]) for style in styles}) == 32


@pytest.mark.parametrize(
    ("count", "ticks"),
    [(3, [0, 1, 2]), (12, list(range(12))), (20, [0, 5, 10, 15]), (100, [0, 20, 40, 60, 80])],
)
def test_classes_are_named_at_the_middle_of_their_cells(count, ticks):
    _, axis = pyplot.subplots()
    axis.imshow(np.zeros((count, count)))
    for side in (axis.xaxis, axis.yaxis):
        class_ticks(side, [f"name{number}" for number in range(count)])
        assert list(side.get_ticklocs()) == ticks
        expected = [f"name{tick}" if count <= 12 else str(tick) for tick in ticks]
        assert [label.get_text() for label in side.get_ticklabels()] == expected


def test_long_names_of_classes_are_turned_where_they_would_meet():
    _, axis = pyplot.subplots()
    assert class_ticks(axis.xaxis, list("0123456789")) == pytest.approx(0.1)
    assert {label.get_rotation() for label in axis.get_xticklabels()} == {0}
    assert class_ticks(axis.xaxis, ["aeroplane"] * 10) == pytest.approx(0.63)
    assert {label.get_rotation() for label in axis.get_xticklabels()} == {90}


def test_numbers_of_seeds_are_said_each_where_they_differ():
    assert counted([3, 3]) == "n = 3"
    assert counted([3, 2]) == "n = 3, 2"
    assert counted([3, 2, 5, 4, 3, 3]) == "n = 2 to 5"
    assert over_seeds([3, 3], [0, 1, 2]) == "n = 3 seeds"
    assert over_seeds([1, 1], [7, 7]) == "n = 1 (seed 7)"
    assert over_seeds([1, 1], [7, 8]) == "n = 1"
    assert over_seeds([1, 2], [7, 8]) == "n seeds as given with each name"


def test_points_of_a_scale_do_not_cover_each_other():
    assert list(side_by_side(1, 0.4)) == [0]
    assert list(side_by_side(0, 0.4)) == []
    np.testing.assert_allclose(side_by_side(3, 0.4), [-0.2, 0, 0.2])


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(1e-4, 1e3, {"0.0001", "0.1", "1", "1000"}), (0.2, 4, {"0.2", "0.5", "1", "2", "3"})],
)
def test_a_logarithmic_axis_has_plain_numbers(low, high, expected):
    figure, axis = pyplot.subplots()
    axis.set_yscale("log")
    axis.set_ylim(low, high)
    plain_numbers(axis.yaxis)
    figure.draw_without_rendering()
    texts = {label.get_text() for which in (False, True) for label in axis.get_yticklabels(minor=which)}
    assert expected <= texts
    assert not [text for text in texts if "$" in text]


def notes(figure) -> str:
    """Return what stands below the panels."""
    titles = [legend.get_title().get_text() for legend in figure.legends]
    return " ".join([*titles, figure.get_supxlabel()]).replace("\n", " ")


@pytest.mark.parametrize(
    ("view", "bars"),
    [
        ("scale", "Error bars: ± one standard deviation."),
        ("modules", "Line through it and ±: one standard deviation."),
        ("pairs", "Error bars and ±: standard error."),
    ],
)
def test_a_figure_says_what_its_bars_are_over_how_many_seeds(view, bars):
    results = frame()
    results = results if view == "scale" else results[results["scale"] == 0.1]
    said = notes(VIEWS[view](summarise(results), results, "Title"))
    assert said.startswith("digits, wrn_16_2 → wrn_16_1. ")
    assert "n = 3 seeds" in said
    assert bars in said

    fewer = results[(results["method"] != "crd") | (results["ablation"] != "full") | (results["seed"] != 2)]
    drawn = VIEWS[view](summarise(fewer), fewer, "Title")
    assert "n seeds as given with each name" in notes(drawn)
    texts = [label.get_text() for label in drawn.axes[0].get_yticklabels()]
    texts += [text.get_text() for text in drawn.axes[0].texts]
    texts += [text.get_text() for legend in drawn.legends for text in legend.get_texts()]
    assert any("n = 2" in text for text in texts)

    single = results[results["seed"] == 1]
    said = notes(VIEWS[view](summarise(single), single, "Title"))
    assert "n = 1 (seed 1)" in said
    assert "±" not in said


def test_names_of_curves_lie_outside_of_the_panels():
    accuracy = {(f"method-{number}" * 5, "full", scale): [70.0] for number in range(20) for scale in (0.1, 1.0)}
    results = frame(accuracy | ACCURACY)
    figure = VIEWS["scale"](summarise(results), results, "Title")
    figure.draw_without_rendering()
    [legend] = figure.legends
    box, page = legend.get_window_extent(), figure.bbox
    assert page.x0 <= box.x0 < box.x1 <= page.x1
    assert page.y0 <= box.y0
    for axis in figure.axes:
        assert axis.get_tightbbox().y0 >= box.y1
        assert axis.get_window_extent().height > 0.3 * page.height / len(figure.axes)


def test_seconds_of_the_phases_have_panels_of_their_own():
    results = frame().drop(columns="seconds_training").assign(seconds_inversion=1.0, seconds_distillation=2.0)
    figure = VIEWS["scale"](summarise(results), results, "Title")
    labels = [axis.get_ylabel() for axis in figure.axes]
    assert labels == ["accuracy, %", "seconds, in all", "seconds, of them inversion", "seconds, of them distillation"]
    for axis, value in zip(figure.axes[2:], (1.0, 2.0), strict=True):
        assert {y for line in axis.lines for y in line.get_ydata()} == {value}
        assert axis.get_ylim() == figure.axes[1].get_ylim()
    with_data = frame()
    assert len(VIEWS["scale"](summarise(with_data), with_data, "Title").axes) == 2
    assert pd.isna(summarise(with_data).get("seconds_inversion", pd.Series([np.nan]))).all()
