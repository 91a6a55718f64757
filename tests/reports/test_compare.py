"""`kd compare` and `kd.load_results`: what is paired with what, the numbers, the forms, and what is refused."""

from __future__ import annotations

import io
import re
import statistics
from pathlib import Path

import pandas as pd
import pytest
from conftest import PAIR, ROOT
from fake_results import fake_finished, loaded

import kd
from kd.__main__ import main
from kd.reports.compare import FORMATS, compare, side, verdict
from kd.reports.results import COLUMNS, typed
from kd.runtime.messages import ConfigError

ACCURACY = {  # method, teacher, scale -> seeds 0, 1, ...
    ("ssdkd", "a", 0.1): [50.0, 53.0, 56.0],
    ("fast", "a", 0.1): [48.0, 52.0, 53.0],
    ("ssdkd", "a", 1.0): [70.0, 71.0, 72.0],
    ("fast", "a", 1.0): [72.0, 72.0, 72.0],
}


def results(accuracy=ACCURACY, **columns) -> pd.DataFrame:
    """What `load_results` returns, made by hand, with the seeds of every second group in another order."""
    rows = [
        {
            "experiment": "e",
            "dataset": "digits",
            "teacher": teacher,
            "student": "s",
            "method": method,
            "ablation": "full",
            "scale": scale,
            "seed": seed,
            "path": f"{method}/{teacher}/{scale}/{seed}",
            "accuracy": value,
            "seconds_total": (2.0 if method.startswith("ssdkd") else 1.0) * (1 + seed),
            "computed": "cpu, 1 thread",
        }
        for number, ((method, teacher, scale), values) in enumerate(accuracy.items())
        for seed, value in list(enumerate(values))[:: -1 if number % 2 else 1]
    ]
    return typed(pd.DataFrame(rows).assign(**columns), "made")


def sides(*texts: str) -> list:
    return [side(text) for text in texts]


def test_differences_are_paired_by_seed_in_every_place_and_over_all() -> None:
    found = compare(results(), sides("ssdkd", "fast"))
    assert list(found["scale"]) == [0.1, 1.0, "all"]
    assert list(found["teacher"]) == ["a"] * 3
    apart = [2.0, 1.0, 3.0], [-2.0, -1.0, 0.0]
    for row, differences in zip(found.itertuples(), (*apart, apart[0] + apart[1]), strict=True):
        half = (row.high - row.low) / 2
        error = statistics.stdev(differences) / len(differences) ** 0.5
        assert row.difference == pytest.approx(statistics.mean(differences))
        assert half == pytest.approx({3: 4.302653, 6: 2.570582}[row.n] * error, rel=1e-6), "Student's t, from a table"
    assert found["of_mean"].iloc[2] == pytest.approx(statistics.mean([50, 53, 56, 70, 71, 72]))
    assert found["seconds_ratio"].tolist() == pytest.approx([2.0] * 3)


def test_what_a_group_names_is_not_paired_on() -> None:
    found = compare(results(), sides("ssdkd,scale=0.1", "fast,scale=1"))
    assert (found["n"].item(), found["difference"].item()) == (3, pytest.approx(53.0 - 72.0))
    assert found["scale"].item() == "all"
    ablations = pd.concat([results(), results({("ssdkd", "a", 0.1): [40.0, 41.0]}, ablation="none", experiment="f")])
    found = compare(ablations, sides("ssdkd", "ssdkd,none"))
    assert (found["n"].item(), found["difference"].item()) == (2, pytest.approx(11.0))


def test_a_run_that_experiments_share_counts_once_and_a_student_for_each_of_its_teachers() -> None:
    twice = pd.concat([results(), results().assign(experiment="again")])
    pd.testing.assert_frame_equal(compare(twice, sides("ssdkd", "fast")), compare(results(), sides("ssdkd", "fast")))
    with_data = {("kd", "a", 1.0): [80.0, 81.0], ("kd", "b", 1.0): [82.0, 83.0]}
    alone = results({("scratch", teacher, 1.0): [70.0, 71.0] for teacher in "ab"}).assign(path=["0", "1", "1", "0"])
    found = compare(pd.concat([results(with_data), alone]), sides("kd", "scratch"))
    assert found[["teacher", "n", "difference"]].values.tolist() == [["a", 2, 10.0], ["b", 2, 12.0], ["all", 4, 11.0]]


def test_seconds_of_runs_computed_in_another_way_do_not_compare() -> None:
    frame = results()
    frame.loc[(frame["method"] == "fast") & (frame["seed"] > 0), "computed"] = "NVIDIA H200"
    found = compare(frame, sides("ssdkd", "fast"))
    assert found["seconds_ratio"].tolist() == pytest.approx([2.0] * 3), "of seed 0"
    frame.loc[frame["method"] == "fast", "computed"] = "NVIDIA H200"
    assert compare(frame, sides("ssdkd", "fast"))["seconds_ratio"].isna().all()


@pytest.mark.parametrize(
    ("differences", "above", "expected"),
    [
        ([5, 6, 7], 0, True),
        ([-5, -6, -7], 0, False),
        ([-5, 6, 7], 0, None),
        ([-1, -1.1, -0.9], -2, True),
        ([5], 0, None),
    ],
)
def test_a_bound_is_judged_by_the_whole_interval(differences, above, expected) -> None:
    frame = results({("x", "a", 1.0): [50 + value for value in differences], ("y", "a", 1.0): [50] * len(differences)})
    assert verdict(compare(frame, sides("x", "y")), above) is expected


def test_the_forms_say_the_same(capsys: pytest.CaptureFixture) -> None:
    long = {(f"{method}-{'x' * 60}", "a", scale): values for (method, _, scale), values in ACCURACY.items()}
    frame = results(long).assign(dataset="d" * 60, student="s" * 70)
    found = compare(frame, sides(*dict.fromkeys(name for name, *_ in long)))
    text = FORMATS["text"](found, "accuracy")
    assert max(map(len, text.splitlines())) <= 80
    for form in (text, FORMATS["markdown"](found, "accuracy"), FORMATS["latex"](found, "accuracy")):
        assert "+2.00 (-0.48 to +4.48)" in form
        assert "x 2.00 (2.00 to 2.00)" in form
    again = pd.read_csv(io.StringIO(FORMATS["csv"](found, "accuracy")))
    assert again["difference"].tolist() == pytest.approx(found["difference"].tolist())
    assert again["measure"].tolist() == ["accuracy"] * 3
    lines = FORMATS["markdown"](found, "accuracy").splitlines()
    assert len({line.count("|") for line in lines}) == 1


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["ssdkd", "fst"], "'fst': method: no finished run has 'fst'; did you mean 'fast'?"),
        (["ssdkd", "fast,none"], "'fast,none': ablation: no finished run has 'none'"),
        (["ssdkd", "fast,scale=0.2"], "'fast,scale=0.2': scale: no finished run has 0.2; allowed: "),
        (["ssdkd", "fast,scale=1"], "'ssdkd': several runs for one on the other side; say which: scale=0.1, scale=1"),
        (["ssdkd,scale=0.1", "fast,scale=0.1,seed=7"], "seed: no finished run has 7.0"),
        (["ssdkd,scale=x", "fast"], "'ssdkd,scale=x': scale: got 'x'; allowed: a number"),
        (
            ["ssdkd,sale=1", "fast"],
            "'ssdkd,sale=1': 'sale=1'; allowed: METHOD[,ABLATION][,KEY=VALUE ...], did you mean 'scale'",
        ),
        (["", "fast"], "'': ''; allowed: METHOD[,ABLATION][,KEY=VALUE ...], such as"),
    ],
)
def test_what_cannot_be_compared_is_said_in_a_line(texts, message) -> None:
    with pytest.raises(ConfigError) as caught:
        compare(results(), sides(*texts))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nothing_is_paired_by_chance() -> None:
    frame = results({("x", "a", 1.0): [1.0], ("y", "b", 1.0): [2.0]})
    with pytest.raises(
        ConfigError, match="no two runs have the same dataset, teacher, student, scale, seed and a value"
    ):
        compare(frame, sides("x", "y"))
    with pytest.raises(ConfigError, match=r"--measure: got 'acuracy'; did you mean 'accuracy'\?"):
        compare(frame, sides("x", "y"), "acuracy")


def study_with_results(folder: Path) -> list[str]:
    """A study whose runs have files that were made by hand; return the arguments that ask for it."""
    study = loaded(folder)
    for run in study.runs.values():
        fake_finished(study, run, device="cpu", peak_memory_mb=1.0, git={"commit": "4000638780", "diff": ""})
        if run.teachers:
            (study.root / run.path / "metrics.json").write_text(f'{{"accuracy": {60 + run.seed}, "scored": "test"}}')
    return ["--study", str(folder / "watched.yaml"), "--config", f"results={study.root}"]


def test_the_command_reads_finished_runs(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    asked = study_with_results(tmp_path)
    assert main(["compare", "kd", "scratch", *asked]) == 0
    said = capsys.readouterr().out
    assert f"digits, {PAIR[0]} → {PAIR[1]}" in said
    assert re.search(r"difference +\+10.00  n 1\n", said)
    assert main(["compare", "ssdkd", "fast", *asked, "--above", "-1"]) == 3, "one pair of runs decides nothing"
    assert main(["compare", "kd", *asked]) == 1
    assert "name what it is compared with, too" in capsys.readouterr().err


def test_results_are_a_typed_frame(tmp_path: Path) -> None:
    _, study, _, config = study_with_results(tmp_path)
    root = config.removeprefix("results=")
    frame = kd.load_results(study, results=root)
    assert list(frame)[: len(COLUMNS)] == list(COLUMNS)
    assert {name: str(frame[name].dtype) for name in COLUMNS} == {name: kind for name, (kind, _) in COLUMNS.items()}
    assert set(frame["study"]) == {"watched"}
    assert frame.loc[frame["method"] == "ssdkd", "accuracy"].tolist() == [60.0, 61.0, 61.0], "a row per experiment"
    assert set(frame["commit"]) == {"4000638780"}
    folder = tmp_path / "copied"
    folder.mkdir()
    frame.drop(columns="study").to_csv(folder / "results.csv", index=False)
    pd.testing.assert_frame_equal(kd.load_results(folder).assign(study="watched").astype({"study": "string"}), frame)
    with pytest.raises(ConfigError, match=r"no results in .*nowhere.csv; name a study"):
        kd.load_results(tmp_path / "nowhere.csv")
    with pytest.raises(AttributeError, match="has no attribute 'lod_results'"):
        kd.lod_results  # noqa: B018


def test_every_column_is_on_the_page_and_every_number_that_is_published_is_a_column() -> None:
    page = (ROOT / "docs/results.md").read_text()
    words = {"string": "text", "Int64": "whole number", "float64": "number"}
    for name, (kind, says) in COLUMNS.items():
        assert f"| `{name}` | {words[kind]} | {says} |" in page
    for file in (ROOT / "results/reference").glob("*/results.csv"):
        others = set(pd.read_csv(file, nrows=1)) - set(COLUMNS)
        assert all(re.fullmatch(r"iou_\d+", name) for name in others), file  # one for each class
    assert "`iou_0`, `iou_1`, ... follow" in page
