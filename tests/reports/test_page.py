"""report.html: what it says, that it shows any text as it is, and that equal runs give equal bytes."""

from __future__ import annotations

import base64
import re
import shutil
import time
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
from conftest import PAIR
from fake_results import loaded
from made_up import finish
from PIL import Image

from kd.reports.figures.drawing import pyplot, save
from kd.reports.page import answers
from kd.reports.page.document import command_of, page_of, write_page
from kd.reports.page.experiment import summary
from kd.reports.page.hover import name_points
from kd.reports.page.markup import Cell, Html, table, tag
from kd.reports.page.pictures import inline, picture
from kd.reports.page.settings import differing, shared
from kd.reports.plan import plan_figures
from kd.reports.publish import publish
from kd.reports.results import finished
from kd.studies.study import Study

HOSTILE = "</script><script>window.hacked=1</script> {x} {{y}} \"q\" 'a' &amp; <!-- --> мир $x_1$ *b*"
EXPERIMENTS = {
    "data": {"title": HOSTILE, "view": "pairs", "pairs": [PAIR], "methods": ["kd", "scratch"], "seeds": [0, 1]},
    "free": {
        "title": "Without data",
        "pairs": [PAIR],
        "methods": ["fast", "ssdkd"],
        "scales": [0.5],
        "seeds": [0, 1],
    },
    "modules": {
        "pairs": [PAIR],
        "methods": ["ssdkd"],
        "ablations": ["neither"],
        "scales": [0.5],
        "seeds": [0, 1],
    },
    "answer": {"title": "Named as a section", "pairs": [PAIR], "methods": ["kd"], "seeds": [0, 1]},
    "extra": {
        "title": "Scales",
        "view": "scale",
        "pairs": [PAIR],
        "methods": ["ssdkd"],
        "scales": [0.5, 0.25],
        "seeds": [0, 1],
    },
}
ABLATIONS = {"neither": {"modulation": {"diversity": 0.0, "gamma": 0.0}, "replay": {"alpha": 0.0, "beta": 0.0}}}
CLAIMS = {
    "kd-above-scratch": {
        "says": f"KD is above. {HOSTILE}",
        "tests": [{"of": {"method": "kd"}, "to": {"method": "scratch"}, "above": 0}],
    }
}
ACCURACY = {"kd": [90.0, 90.1], "scratch": [80.0, 80.0], "fast": [90.0, 92.0], "ssdkd": [93.0, 94.0]}


class Reader(HTMLParser):
    """Reads a page: its elements, the text of each, and what it links to."""

    def __init__(self, page: str):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.text: dict[str, list[str]] = {}
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((name, dict(attributes)))
        if name not in ("meta", "link", "img", "input", "br"):
            self.open.append(name)
            self.text.setdefault(name, []).append("")

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name, "elements are closed in their order"

    def handle_data(self, data: str) -> None:
        for name in set(self.open):
            self.text[name][-1] += data


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study whose runs are finished, with report.html next to its tables and figures."""
    study = loaded(
        tmp_path_factory.mktemp("page"), title=HOSTILE, ablations=ABLATIONS, experiments=EXPERIMENTS, claims=CLAIMS
    )
    finish(study, [HOSTILE, *"bcd"], ACCURACY)
    assert publish(study, folder_of(study)) == len(study.students)
    return study


def folder_of(study: Study) -> Path:
    return study.root / "studies" / study.name


@pytest.fixture(scope="module")
def text(study: Study) -> str:
    return (folder_of(study) / "report.html").read_text(encoding="utf-8")


def words(text: str) -> str:
    """The text of the page without markup, in one line."""
    return " ".join("".join(Reader(text).text["main"]).split())


def test_the_answer_has_the_difference_with_its_interval(text: str) -> None:
    said = words(text)
    # gaps of 3 and 2: standard error 0.5, t of one degree of freedom 12.706
    assert (
        "≈ no difference shown ssdkd is 2.50 points above fast in accuracy (93.50 ± 0.71 % against 91.00 ± 1.41 %), "
        "95 % interval -3.85 to +8.85, n = 2, p = 0.13: the interval holds 0."
    ) in said.replace("shownssdkd", "shown ssdkd")
    # gaps of -10 and -10.1
    assert "scratch is 10.05 points below kd" in said
    assert "95 % interval -10.69 to -9.41, n = 2, p = 0.0032." in said
    assert "ssdkd, 25 % is 0.00 points above ssdkd, 50 %" in said
    assert "kd against scratch: accuracy, difference +10.05 (+9.41 to +10.69), n = 2." in said
    assert "Highest: kd with 90.05 ± 0.07 % accuracy, n = 2; the teacher has 95.00 %." in said


def test_comparisons_are_by_scale_over_all_pairs_and_clear_ones_come_first() -> None:
    rows = [
        ("t", student, method, "full", scale, seed, 50 + gain + seed + (student == "b"))
        for student in "ab"
        for method, gain in (("fast", 0), ("cmi", 0.1), ("ssdkd", 5))
        for scale in (0.1, 1.0)
        for seed in (0, 1)
    ]
    frame = pd.DataFrame(rows, columns=["teacher", "student", "method", "ablation", "scale", "seed", "accuracy"])
    frame.loc[frame["method"] == "cmi", "accuracy"] += [0.5, -0.5] * 4
    found = answers.comparisons(frame)
    assert [(each.of, each.to) for each in found] == [
        (f"{method}, {scale} %", f"fast, {scale} %") for method in ("cmi", "ssdkd") for scale in (10, 100)
    ]
    assert [each.found.n for each in found] == [4] * 4
    assert [each.verdict for each in found] == [answers.UNDECIDED] * 2 + [answers.ABOVE] * 2
    lines = re.findall(r"<b>(\w+), \d+ % is", answers.answer(frame.assign(scored="test")))
    assert lines == ["ssdkd", "ssdkd", "cmi", "cmi"]
    assert "51.00 % against" not in answers.answer(frame.assign(scored="test")), (
        "no pair's mean is shown as that of all"
    )
    only = frame[(frame["scale"] == 1.0) & (frame["method"] == "fast")]
    assert answers.comparisons(only) == []
    fixed = frame[(frame["scale"] == 1.0) | (frame["method"] != "fast")]
    to = {each.to for each in answers.comparisons(fixed)}
    assert to == {"fast, 100 %"}, "the reference at one scale serves every scale"


def test_one_pair_of_runs_has_no_interval(study: Study) -> None:
    results = finished(study)
    said = answers.answer(results[(results["experiment"] == "free") & (results["seed"] == 0)])
    assert "ssdkd is 3.00 points above fast" in said
    assert "no interval, n = 1." in said
    assert "inf" not in said
    assert "nan" not in said


def test_text_of_the_users_is_shown_as_it_is(study: Study, text: str) -> None:
    read = Reader(text)
    assert read.open == []
    assert read.text["title"] == [HOSTILE]
    assert read.text["h1"] == [HOSTILE]
    assert HOSTILE in read.text["h2"]
    assert len(read.text["script"]) == 1, "the page's own"
    assert "hacked" not in read.text["script"][0]
    for file in (folder_of(study) / "answers.html", *(folder_of(study) / "tables").glob("*.html")):
        assert len(Reader(file.read_text(encoding="utf-8")).text["script"]) == 1, file
    assert tag("p", "a\x00\ud800\nb", title='"<') == '<p title="&quot;&lt;">a\\x00\\ud800\\nb</p>'
    assert table(["h"], [[Cell("<", order=1.0)]]).count("&lt;") == 1
    assert tag("p", Html("<b>")) == "<p><b></p>"


def test_links_lead_to_files_that_are_there(study: Study, text: str) -> None:
    read = Reader(text)
    links = [attributes["href"] for name, attributes in read.elements if name == "a"]
    ids = [attributes["id"] for _, attributes in read.elements if "id" in attributes]
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)
    assert len(ids) == len(set(ids))
    files = [link for link in links if not link.startswith("#")]
    assert {"table.md", "results.csv", "claims.csv", "tables/data-by-pair.tex", "figures/data.svg"} <= set(files)
    assert [file for file in files if not (folder_of(study) / unquote(file)).exists()] == []
    assert len([file for file in files if file.endswith("/seed0/")]) == 5
    loads = [value for _, attributes in read.elements for key, value in attributes.items() if key in ("src", "srcset")]
    assert all(value.startswith("data:image/png;base64,") for value in loads)
    assert len(loads) == 5, "correlations and what was synthesised"


def test_it_says_what_stands_behind(study: Study, text: str) -> None:
    said = words(text)
    settings = r"replay.alpha\s*0\.0\s*0\.6"
    assert re.search(settings, said), "fast and SSD-KD differ in this"
    for part in (
        "0123456789abcdef",
        "2.13.0",
        "snakemake --cores all --config study=",
        "Teacher resnet8 on digits: 95.00 %",
    ):
        assert part in said
    assert "secret-host" not in text
    assert said.count("fast, 50 % = ssdkd, neither, 50 %") == 1 + 2, "seconds of the runs that both are, and each run"
    assert "So far" not in said


def test_equal_runs_give_equal_bytes_and_what_is_not_finished_is_said(study: Study, text: str, tmp_path: Path) -> None:
    moved = shutil.copytree(study.root, tmp_path / "results")
    folder = moved / "studies" / study.name
    results, figures = finished(study), plan_figures(study)
    page = page_of(study)
    time.sleep(0.01)
    assert write_page(page, results, figures, moved, folder).read_text(encoding="utf-8") == text
    some = results[~results["path"].isin(results.loc[results["method"] == "fast", "path"])]
    said = words(write_page(page, some, figures, moved, folder).read_text(encoding="utf-8"))
    assert "So far: 2 runs are not finished." in said
    assert "against fast" not in said


def test_points_and_bars_of_a_drawing_say_their_values(tmp_path: Path) -> None:
    figure, (left, right) = pyplot().subplots(1, 2)
    left.set_xlabel("accuracy, % (points: seeds)")
    left.plot([90.5, 91.25], [1, 1.1], "o")
    left.plot([90.0, 91.0], [0, 0], "-")
    left.set_yticks([0, 1], ["kd", "<crd>"])
    right.set_xlabel("data scale, % of the training set")
    right.set_xticks([10, 20], ["10", "20"])
    right.set_ylabel("seconds")
    right.errorbar([10, 20], [3.0, 4000.0], [1.0, 1.0], marker="o", capsize=3).set_label("ssdkd")
    right.bar([20], [2.5])
    name_points(figure)
    save(figure, tmp_path / "some.png")
    drawn = inline(tmp_path / "some.svg", "Some")
    scale = "data scale {} % of the training set"
    assert re.findall('data-tip="(.*?)"', drawn) == [
        *("&lt;crd&gt;; accuracy 90.50 %", "&lt;crd&gt;; accuracy 91.25 %"),
        *(f"{scale.format(20)}; seconds 2.50",),
        *(f"ssdkd; {scale.format(10)}; seconds 3.00", f"ssdkd; {scale.format(20)}; seconds 4,000.00"),
    ]
    ids = re.findall(r' id="(.*?)"', drawn)
    assert ids
    assert all(name.startswith("_some-") for name in ids)
    assert set(re.findall(r'href="#(.*?)"', drawn)) | set(re.findall(r"url\(#(.*?)\)", drawn)) == set(ids)


def test_a_large_picture_is_stored_smaller(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (900, 2000, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    Image.fromarray(noise[:90, :200]).save(tmp_path / "small.png")
    large, small = (picture(tmp_path / f"{name}.png", "t") for name in ("large", "small"))
    assert large.startswith('<img src="data:image/jpeg;base64,')
    assert len(large) < (tmp_path / "large.png").stat().st_size / 3
    [encoded] = re.findall(r"data:image/png;base64,([^\"]+)", small)
    assert base64.b64decode(encoded) == (tmp_path / "small.png").read_bytes()


def test_the_command_makes_the_same_study() -> None:
    settings = {"study": "demo", "results": "results", "quick": False}
    assert command_of(settings) == "snakemake --cores all --config study=demo"
    changed = {"study": "my own.yaml", "results": "else where", "quick": True}
    assert command_of(changed) == "snakemake --cores all --config 'study=my own.yaml' quick=true 'results=else where'"


def test_settings_that_only_some_methods_have() -> None:
    """A student without a teacher differs in no setting of the teacher, but in its objective."""
    teacher = {"model": "a", "seed": 0, "training": {"lr": 0.1}}
    objectives = {"scratch": {"ce": 1.0}, "kd": {"ce": 0.1, "kd": 0.9}, "crd": {"ce": 0.1, "crd": 0.8}}
    variants = {
        name: [
            {
                "settings": {
                    "seed": seed,
                    "training": {"lr": lr},
                    "objective": objective,
                    **({"teachers": [teacher]} if lr else {}),
                }
            }
            for seed, lr in enumerate([0.1, 0.2] if name == "crd" else [0.1])
        ]
        for name, objective in objectives.items()
    }
    del variants["scratch"][0]["settings"]["teachers"]
    rows = re.findall(r"<tr>(.*?)</tr>", differing(variants))[1:]
    cells = [re.findall(r"<t[hd][^>]*>([^<]*)<", row) for row in rows]
    assert sorted(cells) == [
        ["objective.ce", "1.0", "0.1", "0.1"],
        ["objective.crd", "–", "–", "0.8"],
        ["objective.kd", "–", "0.9", "–"],
        ["training.lr", "0.1", "0.1", "0.1 / 0.2"],
    ]
    assert shared(variants) == [["teacher.training.lr", "0.1 (of kd, crd)"]]
    assert differing({"kd": variants["kd"]}) is None


def test_three_hundred_runs_take_seconds_and_megabytes(tmp_path: Path) -> None:
    """Pictures do not count here: there are as many for ten runs, and large ones are stored smaller."""
    pairs = [["resnet8", "wrn_10_1"], ["wrn_16_1", "wrn_10_1"], ["wrn_16_1", "resnet8"]]
    methods = ["kd", "scratch", "crd", "at", "sp", "vid", "rkd", "pkt", "dkd", "fitnet"]
    large = {"pairs": pairs, "methods": methods, "seeds": [*range(10)], "view": "pairs"}
    study = loaded(tmp_path, experiments={"data": large})
    finish(study, [*"abcd"])
    results = finished(study)
    assert results["path"].nunique() >= 300 - 10
    (folder := folder_of(study)).mkdir(parents=True)
    start = time.process_time()
    file = write_page(page_of(study), results, (), study.root, folder)
    assert time.process_time() - start < 30
    assert file.stat().st_size < 5e6


def test_of_segmentation_the_score_is_called_mean_iou(study: Study) -> None:
    results = finished(study).assign(pixel_accuracy=80.0)
    shown = str(summary(results[results["experiment"] == "free"]))
    assert "Mean IoU in %: mean ± standard deviation" in shown
    assert "ccuracy" not in shown
