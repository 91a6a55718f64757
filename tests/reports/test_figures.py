"""Figures from frames and arrays: equal bytes, the right numbers."""

import numpy as np
import pandas as pd
import pytest
from test_tables import ACCURACY, frame

from kd.reports.figures import VIEWS, correlations
from kd.reports.figures import agreement as agreement_figure
from kd.reports.figures.drawing import save
from kd.reports.figures.synthetic import _tiles as tiles
from kd.reports.figures.synthetic import histograms, image_grid
from kd.reports.tables import GROUP, summarise
from kd.runtime.files import write_json


def bytes_of(make, folder):
    """Save a figure and return its PNG and SVG, each checked for its format."""
    save(make(), folder / "a.b/figure.png")
    assert sorted(path.name for path in (folder / "a.b").iterdir()) == ["figure.png", "figure.svg"]
    png, svg = ((folder / f"a.b/figure.{ending}").read_bytes() for ending in ("png", "svg"))
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(png) > 3000
    assert b"<svg" in svg[:1000]
    assert svg.rstrip().endswith(b"</svg>")
    return png, svg


def synthetic():
    draw = np.random.default_rng(0)
    return {
        name: {
            "images": draw.integers(0, 256, (10, channels, 8, 8), dtype=np.uint8),
            "image_classes": np.array([0, 0, 0, 0, 0, 1, 1, 1, 3, 3]),
            "class_counts": np.array([5, 3, 0, 2]),
            "confidence_counts": np.array([1, 2, 3, 4, 0]),
        }
        for name, channels in (("grey", 1), ("colour", 3))
    }


def views():
    results = frame()
    summary = summarise(results)
    part = summary[summary["scale"] == 0.1]
    return {
        "scale": lambda: VIEWS["scale"](summary, results, "Title"),
        "modules": lambda: VIEWS["modules"](part, results.drop(columns="teacher_accuracy"), "Title"),
        "images": lambda: image_grid(synthetic(), list("abcd"), "Title", "note"),
        "histograms": lambda: histograms(synthetic(), list("abcd"), "Title", "note"),
    }


@pytest.mark.parametrize("name", views())
def test_the_same_figure_has_the_same_bytes(tmp_path, name):
    first = bytes_of(views()[name], tmp_path / "1")
    assert bytes_of(views()[name], tmp_path / "2") == first
    from matplotlib import pyplot

    assert pyplot.get_fignums() == []


def test_another_number_gives_another_figure(tmp_path):
    results = frame()
    first = bytes_of(lambda: VIEWS["scale"](summarise(results), results, "T"), tmp_path / "1")
    results.loc[0, "accuracy"] += 10
    second = bytes_of(lambda: VIEWS["scale"](summarise(results), results, "T"), tmp_path / "2")
    assert first[0] != second[0]
    assert first[1] != second[1]


def test_a_figure_holds_the_numbers():
    from matplotlib import pyplot

    results = frame()
    summary = summarise(results)
    drawn = VIEWS["scale"](summary, results, "Title")
    lines = {line.get_label(): line for line in drawn.axes[0].containers}
    assert set(lines) == {"kd", "crd", "crd, no-bank"}
    x, y = lines["crd"].lines[0].get_data()
    np.testing.assert_allclose(np.array(x, float), [10.0, 100.0])
    np.testing.assert_allclose(np.array(y, float), [np.mean([72.0, 74.0, 74.5]), np.mean([79.0, 82.5, 83.0])])
    part = summary[summary["scale"] == 0.1]
    bars = VIEWS["modules"](part, results, "Title")
    assert [label.get_text() for label in bars.axes[0].get_yticklabels()] == ["kd", "crd", "crd, no-bank"]
    assert [text.get_text() for text in bars.axes[0].texts] == ["72.00 ± 2.65", "73.50 ± 1.32", "61.00 ± 1.00"]
    points = [line.get_xdata() for line in bars.axes[0].lines if line.get_marker() == "o"]
    assert [sorted(values) for values in points] == [
        sorted(ACCURACY[row[:3]]) for row in part[GROUP[2:]].itertuples(index=False)
    ]
    assert [bar.get_width() for bar in bars.axes[1].patches] == list(part["seconds"])
    pyplot.close("all")


@pytest.mark.parametrize(
    ("methods", "labels", "pairs"),
    [
        (["scratch"], [], []),  # nothing to compare with: an empty figure, no error
        (["kd", "crd"], ["crd"], [("a", "b")]),
        (["kd", "crd"], ["crd"], [("a", "b"), ("a", "c")]),
    ],
)
def test_pairs_of_a_method_lie_next_to_each_other(methods, labels, pairs):
    from matplotlib import pyplot

    accuracy = {(method, "full", 1.0): [70.0 + place, 72.0, 71.0] for place, method in enumerate(methods)}
    results = frame(accuracy, pairs=pairs or [("a", "b")])
    drawn = VIEWS["pairs"](summarise(results), results, "Title").axes[0]
    assert [label.get_text() for label in drawn.get_yticklabels()] == labels
    named = [bars.get_label() for bars in drawn.containers if len(pairs) > 1]  # a single pair stands in the note
    assert named == [" → ".join(pair) for pair in pairs if len(pairs) > 1]
    places = [place for bars in drawn.containers for place in bars.lines[0].get_ydata()]
    assert len(set(places)) == len(places)
    assert all(abs(place) < 0.5 for place in places)
    pyplot.close("all")


@pytest.mark.parametrize(("count", "shape"), [(1, (3, 3)), (8, (3, 31)), (9, (7, 31)), (20, (11, 31))])
@pytest.mark.parametrize("channels", [1, 3])
def test_tiles_lie_in_rows_of_eight_with_a_white_line_between(count, shape, channels):
    images = np.stack([np.full((channels, 3, 3), number, dtype=np.uint8) for number in range(count)])
    picture = tiles(images)
    assert picture.shape == (shape if channels == 1 else (*shape, 3))
    assert picture.dtype == np.uint8
    seen = np.full(shape, 255)
    for number in range(count):
        top, left = 4 * (number // 8), 4 * (number % 8)
        seen[top : top + 3, left : left + 3] = number
    np.testing.assert_array_equal(picture if channels == 1 else picture[..., 0], seen)


def test_tiles_keep_rows_columns_and_channels():
    image = np.arange(3 * 4 * 4, dtype=np.uint8).reshape(1, 3, 4, 4)
    np.testing.assert_array_equal(tiles(image), image[0].transpose(1, 2, 0))
    np.testing.assert_array_equal(tiles(image[:, :1]), image[0, 0])


def test_the_student_without_a_teacher_is_compared_with_the_teacher_of_the_others(tmp_path, monkeypatch):
    """CRD's figure 3 begins with it. Runs from before files held what it needs are drawn without it."""
    own, student, teacher = np.random.default_rng(0).normal(size=(3, 10, 10)).astype(np.float16)
    drawn, folders = {}, {"scratch": tmp_path / "scratch", "kd": tmp_path / "kd"}
    for folder in folders.values():
        folder.mkdir()
        write_json(folder / "run.json", {"classes": list("0123456789")})
        write_json(folder / "metrics.json", {"scored": "test"})
    said = []
    monkeypatch.setattr(correlations, "heat_maps", lambda *given: (drawn.update(given[0]), said.append(given[1:])))
    np.savez(tmp_path / "scratch/correlations.npz", student=own)
    np.savez(tmp_path / "kd/correlations.npz", student=student, teacher=teacher, difference=student - teacher)
    correlations.draw(folders, "Title", "digits, a → b, seed 0.")
    assert list(drawn) == ["scratch", "kd"]
    np.testing.assert_allclose(drawn["scratch"], own.astype(float) - teacher.astype(float))
    np.testing.assert_allclose(drawn["kd"], (student - teacher).astype(float))
    assert said == [(list("0123456789"), "Title", "digits, a → b, seed 0. 10 classes, test images.")]

    drawn.clear()
    correlations.draw({"scratch": tmp_path / "none", "kd": tmp_path / "kd"}, "Title", "note")
    assert list(drawn) == ["kd"], "its run was taken from those kept"
    drawn.clear()
    np.savez(tmp_path / "kd/correlations.npz", difference=student - teacher)
    correlations.draw(folders, "Title", "digits, a → b, seed 0.")
    assert list(drawn) == ["kd"], "made before"


ODD = ["$\\frac$", "$a$", "_b", "c^2_{d}", "e\nf", "\udcff", "|", "50 %", "x" * 200, "→"]


def odd_figures():
    """Return figures whose titles, classes and networks have odd names, with a few texts that must be seen."""
    results = frame(pairs=[(name, f"_net:{name}") for name in ("$\\frac$", "_b", "x" * 200)])
    summary, sets = summarise(results), synthetic()
    for arrays in sets.values():
        arrays["class_counts"] = np.arange(1, 1 + len(ODD))
    shown = {"$\\frac$", "$a$", "_b", "c^2_{d}", "e\\nf", "\\udcff"}
    pairs = {"_b → _net:_b", "$\\frac$ → _net:$\\frac$"}
    title = "Costs $\\frac$ → a_1^{2}"
    for view in ("scale", "modules", "pairs"):
        yield VIEWS[view](summary, results, title), {title, *(pairs if view == "pairs" else ())}
    methods = results.assign(method="_b")
    yield VIEWS["scale"](summarise(methods), methods, title), {"_b, _b → _net:_b, n = 6"}
    yield VIEWS["pairs"](summary, results, "long " * 200), {" ".join(["long"] * 18)}
    yield histograms(sets, ODD, title, "_note $x$"), shown
    yield image_grid({name: next(iter(sets.values())) for name in ODD}, ODD, title, "_note $x$"), shown
    matrices = {name: np.eye(len(ODD)) for name in ODD}
    yield correlations.heat_maps(matrices, ODD, title, "_note $x$"), shown


@pytest.mark.filterwarnings("error")
def test_names_are_drawn_as_they_are():
    """Neither a formula nor left out of a legend, and on the page."""
    from matplotlib import pyplot
    from matplotlib.text import Text

    for figure, expected in odd_figures():
        figure.draw_without_rendering()  # a broken formula would raise
        texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
        lines = {line for text in texts for line in (text.get_text(), text.get_text().split("\n")[0])}
        assert expected <= lines
        assert not [text.get_text() for text in texts if text.get_parse_math()]
        assert max(max(map(len, text.get_text().split("\n"))) for text in texts) <= 160
        pyplot.close(figure)


def test_agreement_is_drawn_by_epoch_with_the_first_run_of_a_method_behind_its_others(tmp_path):
    values = {
        "a (full)": np.linspace(0.1, 0.5, 40),
        "a (x)": np.linspace(0.9, 0.3, 40),
        "b (full)": np.array([0.25, 0.75]),
    }
    folders = {}
    for label, agreement in values.items():
        folders[label] = tmp_path / label
        folders[label].mkdir()
        history = pd.DataFrame({"epoch": np.arange(1.0, len(agreement) + 3), "agreement": [np.nan] * 2 + [*agreement]})
        history.to_csv(folders[label] / "history.csv", index=False)
    figure = agreement_figure.draw(folders, "Title", "digits, a → b, seed 0.")
    shown = [axis for axis in figure.axes if axis.get_visible()]
    assert [axis.get_title().split("\n") for axis in shown] == [
        ["a (full)", "at the end 49.5 %"],
        ["a (x)", "at the end 30.8 %"],
        ["b (full)", "at the end 75.0 %"],
    ]
    grey, own = shown[1].get_lines()
    assert (own.get_xdata()[0], own.get_xdata()[-1]) == (3, 42), "from the first epoch of the student"
    assert own.get_ydata()[-1] == pytest.approx(50 * (values["a (x)"][-1] + values["a (x)"][-2]))
    assert grey.get_ydata()[-1] == pytest.approx(50 * (values["a (full)"][-1] + values["a (full)"][-2]))
    for line in shown[2].get_lines():
        assert line.get_ydata() == pytest.approx([25, 75])
    bytes_of(lambda: figure, tmp_path)
