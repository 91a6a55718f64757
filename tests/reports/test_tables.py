"""The frame of a study's results, and tables made of it."""

import math
import re
import statistics

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student_t

from kd.reports.tables import collect, computed_note, markdown, read_results, scored_note, study_markdown, summarise
from kd.runtime.files import write_json
from kd.studies.expansion import COLUMNS

# (method, ablation, scale) -> accuracy of seeds 0, 1, 2
ACCURACY = {
    ("kd", "full", 0.1): [70.0, 71.0, 75.0],
    ("kd", "full", 1.0): [80.0, 82.0, 81.0],
    ("crd", "full", 0.1): [72.0, 74.0, 74.5],
    ("crd", "full", 1.0): [79.0, 82.5, 83.0],
    ("crd", "no-bank", 0.1): [60.0, 61.0, 62.0],
    ("crd", "no-bank", 1.0): [65.0, 64.0, 66.0],
}


def frame(accuracy=ACCURACY, pairs=(("wrn_16_2", "wrn_16_1"),)):
    """Return what `collect` returns, made by hand; each group has its seeds in another order."""
    rows = []
    for teacher, student in pairs:
        for number, ((method, ablation, scale), values) in enumerate(accuracy.items()):
            seeds = list(enumerate(values))
            for seed, value in seeds[number % len(seeds) :] + seeds[: number % len(seeds)]:
                rows.append(
                    {
                        **dict(
                            zip(
                                COLUMNS,
                                ["e", "digits", teacher, student, method, ablation, scale, seed, "distill"],
                                strict=False,
                            )
                        ),
                        "path": f"runs/{teacher}/{method}-{ablation}-{scale}/seed{seed}",
                        "accuracy": value,
                        "teacher_accuracy": 90.0,
                        "scored": "test",
                        "seconds_total": 10.0 * scale + seed,
                        "seconds_training": 9.0 * scale,
                        "student_steps": 100,
                        "peak_memory_mb": 1.0,
                        "device": "cpu",
                        "commit": "abc",
                    }
                )
    return pd.DataFrame(rows)


# -------------------------------------------------------------------------------------------------------------- frames


def test_each_row_gets_what_its_runs_files_say(tmp_path):
    values = {"runs/a/seed0": 50.0, "runs/b/seed0": 60.0}
    for path, accuracy in values.items():
        folder = tmp_path / path
        folder.mkdir(parents=True)
        write_json(folder / "metrics.json", {"accuracy": accuracy, "scored": "test"})
        record = {"seconds": {"training": 1.5, "total": 2.5}, "counts": {"student_steps": 7}, "peak_memory_mb": 64.0}
        diff = "+x" if path.startswith("runs/b") else ""
        write_json(
            folder / "run.json", {**record, "device": "cpu", "git": {"commit": "0123456789abcdef", "diff": diff}}
        )
    order = ["runs/b/seed0", "runs/a/seed0", "runs/b/seed0"]  # two experiments share a run
    table = pd.DataFrame({"experiment": ["x", "x", "y"], "path": order}, index=[5, 2, 9])
    results = collect(table, tmp_path)
    assert list(results["accuracy"]) == [60.0, 50.0, 60.0]
    assert list(results["path"]) == order
    assert list(results["experiment"]) == ["x", "x", "y"]
    assert list(results["seconds_training"]) == [1.5] * 3
    assert list(results["seconds_total"]) == [2.5] * 3
    assert list(results["student_steps"]) == [7] * 3
    assert list(results["commit"]) == ["0123456789+changes", "0123456789", "0123456789+changes"]
    assert list(results.index) == [5, 2, 9]


@pytest.mark.parametrize(
    ("device", "computed", "words"),
    [
        ("NVIDIA H200", {"captured": ["step"], "not_captured": {}, "together": 4}, "NVIDIA H200, captured, 4 together"),
        ("NVIDIA H200", {"captured": ["step"], "not_captured": {"first": "it waits"}}, "NVIDIA H200, partly captured"),
        ("NVIDIA H200", {"captured": [], "not_captured": {"step": "it waits"}, "together": 1}, "NVIDIA H200"),
        ("NVIDIA H200", {"captured": ["step"], "compiled": True}, "NVIDIA H200, captured, compiled"),
        ("cpu, 1 thread", {"captured": [], "not_captured": {}, "together": 2}, "cpu, 1 thread, 2 together"),
        ("cpu, 1 thread", None, "cpu, 1 thread"),  # as older records
    ],
)
def test_how_a_run_was_computed_stands_in_its_row(device, computed, words, tmp_path):
    record = {"seconds": {}, "counts": {}, "peak_memory_mb": 1.0, "git": {"commit": "a", "diff": ""}}
    write_json(tmp_path / "metrics.json", {"accuracy": 50.0})
    write_json(tmp_path / "run.json", {**record, "device": device, **({"computed": computed} if computed else {})})
    assert list(collect(pd.DataFrame({"path": ["."]}), tmp_path)["computed"]) == [words]


def test_a_summary_is_what_one_computes_by_hand():
    summary = summarise(frame())
    assert [tuple(row) for row in summary[["method", "ablation", "scale"]].itertuples(index=False)] == list(ACCURACY)
    for row in summary.itertuples():
        values = ACCURACY[row.method, row.ablation, row.scale]
        assert row.n == 3
        assert row.accuracy == pytest.approx(sum(values) / 3, abs=1e-12)
        assert row.accuracy_std == pytest.approx(statistics.stdev(values), abs=1e-12)
        assert row.seconds == pytest.approx(10.0 * row.scale + 1.0)
        assert row.seconds_std == pytest.approx(1.0)
        assert row.seconds_training == pytest.approx(9.0 * row.scale)
        assert (row.student_steps, row.teacher_accuracy) == (100, 90.0)
        if (row.method, row.ablation) == ("kd", "full"):
            assert math.isnan(row.difference)
            assert math.isnan(row.difference_se)
        else:
            gaps = np.subtract(values, ACCURACY["kd", "full", row.scale])
            assert row.difference == pytest.approx(gaps.mean(), abs=1e-12)
            assert row.difference_se == pytest.approx(gaps.std(ddof=1) / np.sqrt(3), abs=1e-12)
            low, high = student_t.interval(0.95, 2, gaps.mean(), gaps.std(ddof=1) / np.sqrt(3))
            assert (row.difference_n, row.difference_low, row.difference_high) == pytest.approx((3, low, high))


def test_numbers_written_down():
    summary = summarise(frame()).set_index(["method", "ablation", "scale"])
    row = summary.loc["crd", "full", 0.1]  # gaps 2, 3, -0.5
    assert row["difference"] == pytest.approx(1.5)
    assert row["difference_se"] == pytest.approx(math.sqrt(3.25 / 3))
    assert summary.loc["kd", "full", 1.0]["accuracy_std"] == pytest.approx(1.0)


def test_pairs_of_networks_are_compared_within_themselves():
    results = frame(pairs=(("a", "b"), ("a", "c")))
    results.loc[results["student"] == "c", "accuracy"] += 5.0
    summary = summarise(results)
    assert len(summary) == 2 * len(ACCURACY)
    once = summarise(frame())
    for _, group in summary.groupby("student"):
        np.testing.assert_allclose(group["difference"], once["difference"])
        np.testing.assert_allclose(group["difference_se"], once["difference_se"])


def test_seeds_that_the_reference_lacks_are_no_pairs():
    results = frame()
    results = results[~((results["method"] == "kd") & (results["seed"] == 2))]
    row = summarise(results).set_index(["method", "ablation", "scale"]).loc["crd", "full", 0.1]
    assert row["n"] == 3
    assert row["difference"] == pytest.approx(2.5)
    assert row["difference_se"] == pytest.approx(np.std([2.0, 3.0], ddof=1) / np.sqrt(2))


def test_a_reference_at_one_scale_serves_every_scale():
    """A student trained on the whole data set, next to data-free ones of several buffer sizes."""
    some = {key: values for key, values in ACCURACY.items() if key[0] == "crd" or key[2] == 1.0}
    row = summarise(frame(some)).set_index(["method", "ablation", "scale"]).loc["crd", "full", 0.1]
    assert row["difference"] == pytest.approx(np.mean([72.0 - 80.0, 74.0 - 82.0, 74.5 - 81.0]))


def test_one_seed_has_no_spread():
    summary = summarise(frame({key: values[:1] for key, values in ACCURACY.items()}))
    assert summary["accuracy_std"].isna().all()
    assert summary["difference_se"].isna().all()
    assert list(summary["difference"].dropna()) == [2.0, -1.0, -10.0, -15.0]
    assert "nan" not in markdown(summary, "t")
    alone = summarise(frame({("kd", "full", 0.1): [70.0, 71.0]}))
    assert "difference" not in alone


# -------------------------------------------------------------------------------------------------------------- tables


def cells(text):
    """Header and rows of a Markdown table, every line checked for its form."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len({len(row) for row in table}) == 1
    assert all(line.startswith("| ") and line.endswith(" |") for line in lines)
    assert all(re.fullmatch(":?-{3,}:?", cell) for cell in table[1])
    return table[0], table[2:]


def test_a_table_shows_the_summary():
    text = markdown(summarise(frame()), "With data")
    assert text.startswith("### With data\n\n| ")
    assert text.endswith("|\n")
    header, rows = cells(text)
    assert len(rows) == len(ACCURACY)
    row = dict(zip(header, rows[2], strict=True))
    assert row["pair"] == "wrn_16_2 → wrn_16_1"
    assert (row["method"], row["ablation"], row["scale"], row["n"]) == ("crd", "full", "0.1", "3")
    assert row["accuracy %"] == "73.50 ± 1.32"
    assert row["paired difference to kd"] == "+1.50 ± 1.04"
    assert row["seconds"] == "2.0"
    assert row["student steps"] == "100"
    assert dict(zip(header, rows[0], strict=True))["paired difference to kd"] == ""
    assert dict(zip(header, rows[4], strict=True))["paired difference to kd"].startswith("-11.00 ± ")
    assert "nan" not in text


def test_a_table_of_data_free_runs_next_to_others():
    results = frame()
    free = results["method"] == "crd"
    results.loc[free, "seconds_inversion"] = 3.0
    results.loc[free, "images"] = 640.0
    header, rows = cells(markdown(summarise(results), "t"))
    assert [dict(zip(header, row, strict=True))["images made"] for row in rows] == ["", "", "640", "640", "640", "640"]
    assert [dict(zip(header, row, strict=True))["of them inversion"] for row in rows] == ["", "", *["3.0"] * 4]


def test_an_ablated_reference_is_named_with_its_ablation():
    reference_last = {key: ACCURACY[key] for key in reversed(ACCURACY)}
    header, _ = cells(markdown(summarise(frame(reference_last)), "t"))
    assert "paired difference to crd (no-bank)" in header


def test_a_studys_text_says_what_was_measured():
    results = frame()
    part = markdown(summarise(results), "One")
    text = study_markdown("My study", [part, part], results)
    assert text.startswith("## My study\n")
    assert "Teacher wrn_16_2 on digits: 90.00 %." in text
    assert "Device: cpu. Code: abc." in text
    assert text.count("### One") == 2
    results.loc[0, "teacher_accuracy"] = 88.0
    assert "88.00 to 90.00 %" in study_markdown("My study", [], results)


def test_where_runs_are_scored_on_different_images_each_table_says_on_which():
    results = frame()
    assert scored_note(results, results) == ""
    assert "Accuracy in % of the test images after" in study_markdown("T", [], results)
    results.loc[results["scale"] == 0.1, "scored"] = "validation"
    assert "Accuracy in % of the images named below after" in study_markdown("T", [], results)
    assert scored_note(results[results["scale"] == 0.1], results) == "\nScored on the validation images.\n"
    assert scored_note(results, results) == "\nScored on the test and validation images.\n"


def test_rows_that_were_computed_differently_are_named_under_their_table():
    results = frame().assign(computed="H200, captured")
    assert computed_note(frame()) == computed_note(results) == ""
    results.loc[(results["method"] == "crd") & (results["ablation"] == "no-bank"), "computed"] = "cpu, 1 thread"
    assert computed_note(results) == (
        "\nComputed in different ways, so that seconds do not compare. "
        "crd/no-bank/10 %, crd/no-bank/100 %: cpu, 1 thread; the others: H200, captured.\n"
    )
    results["computed"] = "H200, captured"
    results.loc[(results["method"] == "kd") & (results["seed"] == 2), "computed"] = "H200"
    assert "kd/full/10 %/seed 2, kd/full/100 %/seed 2: H200; the others" in computed_note(results)
    seeds = frame({("kd", "full", 1.0): [70.0, 71.0, 72.0]}).assign(computed=["H200", "H100", "H200"])
    assert "seed 1: H100; the others: H200." in computed_note(seeds)
    assert "Device: H100; H200. Code: abc." in study_markdown("My study", [], seeds)


def test_teachers_that_see_something_else_are_named_with_it(tmp_path):
    record = {"seconds": {}, "counts": {}, "peak_memory_mb": 1.0, "device": "cpu", "git": {"commit": "a", "diff": ""}}
    sees = {"runs/0": [{"view": "rgb"}] * 2, "runs/1": [{"view": "luminance"}], "runs/2": [{}], "runs/3": None}
    for number, (path, teachers) in enumerate(sees.items()):
        (tmp_path / path).mkdir(parents=True)
        write_json(tmp_path / path / "run.json", {**record, "settings": {"teachers": teachers}})
        taught = {"teacher_accuracy": 80.0 + number} if teachers else {}
        write_json(tmp_path / path / "metrics.json", {"accuracy": 50.0, "scored": "test", **taught})
    results = collect(pd.DataFrame({"dataset": "digits", "teacher": "resnet20", "path": list(sees)}), tmp_path)
    text = study_markdown("My study", [], results)
    assert "Teacher resnet20 on digits: 80.00 to 82.00 %." in text
    assert "Teacher resnet20 (luminance) on digits: 81.00 %." in text


@pytest.mark.parametrize("commit", ["4000638780", "0123456789", "12345e6789"])
def test_a_commit_that_looks_like_a_number_is_read_as_it_is(commit, tmp_path):
    frame().assign(commit=commit).to_csv(tmp_path / "results.csv", index=False)
    assert f"Code: {commit}." in study_markdown("My study", [], read_results(tmp_path / "results.csv"))


def test_a_study_without_any_teacher_has_its_text():
    results = frame().drop(columns="teacher_accuracy")
    text = study_markdown("My study", [markdown(summarise(results), "One")], results)
    assert "Teacher" not in text
    assert "### One" in text


def test_a_table_shows_what_is_quoted_and_the_steps_of_the_inversion():
    results = frame().assign(images=128.0, generator_steps=640.0)
    results["quoted"] = [91.25 if method == "kd" else None for method in results["method"]]
    text = re.sub(" +", " ", markdown(summarise(results), "T"))
    head = [cell.strip() for cell in text.splitlines()[2].split("|")]
    rows = [dict(zip(head, map(str.strip, line.split("|")), strict=True)) for line in text.splitlines()[4:]]
    assert {row["quoted %"] for row in rows if row["method"] == "kd"} == {"91.25"}
    assert {row["quoted %"] for row in rows if row["method"] != "kd"} == {""}
    assert {(row["images made"], row["inversion steps"], row["student steps"]) for row in rows} == {
        ("128", "640", "100")
    }
