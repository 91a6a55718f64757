"""Tables as CRD's paper prints them, against its own published numbers."""

import math

import pandas as pd
import pytest

from kd.reports.pairs_table import accuracy_by_pair, latex, markdown, merge_experiments, relative_improvement

# Tian et al., CRD, ICLR 2020, table 1: student without a teacher, KD, CRD
SAME_STYLE = {
    ("wrn_40_2", "wrn_16_2"): (73.26, 74.92, 75.48),
    ("wrn_40_2", "wrn_40_1"): (71.98, 73.54, 74.14),
    ("resnet56", "resnet20"): (69.06, 70.66, 71.16),
    ("resnet110", "resnet20"): (69.06, 70.67, 71.46),
    ("resnet110", "resnet32"): (71.14, 73.08, 73.48),
    ("resnet32x4", "resnet8x4"): (72.50, 73.33, 75.51),
    ("vgg13", "vgg8"): (70.36, 72.98, 73.94),
}
OTHER_STYLE = {
    ("vgg13", "mobilenetv2_half"): (64.60, 67.37, 69.73),
    ("resnet50", "mobilenetv2_half"): (64.60, 67.35, 69.11),
    ("resnet50", "vgg8"): (70.36, 73.81, 74.30),
    ("resnet32x4", "shufflenetv1"): (70.50, 74.07, 75.11),
    ("resnet32x4", "shufflenetv2"): (71.82, 74.45, 75.65),
    ("wrn_40_2", "shufflenetv1"): (70.50, 74.83, 76.05),
}


def results(pairs, spread=(-1.0, 1.0)):
    rows = [
        {
            "teacher": t,
            "student": s,
            "method": method,
            "ablation": "full",
            "scale": 1.0,
            "seed": seed,
            "accuracy": accuracy + offset,
            "experiment": "e",
            "path": f"{t}/{s}/{method}/{seed}",
        }
        for (t, s), values in pairs.items()
        for method, accuracy in zip(("scratch", "kd", "crd"), values, strict=True)
        for seed, offset in enumerate(spread)
    ]
    return pd.DataFrame(rows)


def test_the_papers_headline_comes_out_of_the_papers_numbers():
    """57 % on average; one pair contributes 263 %, so that the median is 37 %."""
    shares = relative_improvement(accuracy_by_pair(results(SAME_STYLE | OTHER_STYLE)))["crd"]
    assert len(shares) == 13
    assert shares.mean() == pytest.approx(56.8, abs=0.1)
    assert shares.median() == pytest.approx(37, abs=0.5)
    assert shares.max() == pytest.approx(263, abs=0.5)


def test_a_pair_whose_kd_is_below_scratch_has_no_share():
    pairs = {("a", "b"): (70.0, 69.0, 72.0), ("c", "d"): (70.0, 72.0, 73.0)}
    shares = relative_improvement(accuracy_by_pair(results(pairs)))["crd"]
    assert math.isnan(shares.iloc[0])
    assert shares.iloc[1] == pytest.approx(50.0)
    assert "KD not above scratch | 50.0 | 50.0, 1 of 2 pairs | 50.0 |" in markdown(
        accuracy_by_pair(results(pairs)), "T"
    )
    equal = results(pairs | {("a", "b"): (70.0, 70.0, 72.0)})
    assert "KD not above scratch | 50.0 | 50.0, 1 of 2 pairs | 50.0 |" in markdown(accuracy_by_pair(equal), "T")


def test_a_method_that_was_not_run_on_a_pair_has_no_share_there():
    frame = results({("a", "b"): (70.0, 71.0, 72.0), ("c", "d"): (70.0, 72.0, 73.0)})
    frame = frame[~((frame["method"] == "crd") & (frame["teacher"] == "a"))]
    other = frame[frame["method"] == "kd"].assign(method="sp")
    text = markdown(accuracy_by_pair(pd.concat([frame, other])), "T")
    assert "| crd | n/a | 50.0 | 50.0, 1 of 2 pairs | 50.0 |" in text
    assert "| sp | 0.0 | 0.0 | 0.0 (" in text


def test_differences_to_kd_are_paired_by_seed():
    frame = results({("a", "b"): (70.0, 71.0, 72.0)})
    frame = frame[~((frame["method"] == "crd") & (frame["seed"] == 0))]  # crd has only the better seed
    table = accuracy_by_pair(frame).set_index("method")
    assert table.loc["crd", "mean"] == 73.0
    assert table.loc["crd", "against_kd"] == pytest.approx(1.0)
    assert table.loc["crd", "n"] == 1
    assert math.isnan(table.loc["kd", "against_kd"])


def test_the_grid_is_methods_by_pairs_with_arrows_and_gaps():
    frame = results({("wrn_40_2", "wrn_16_2"): (73.0, 75.0, 74.0), ("vgg13", "vgg8"): (70.0, 72.0, 74.0)})
    frame = frame[~((frame["method"] == "scratch") & (frame["teacher"] == "vgg13"))]
    text = markdown(accuracy_by_pair(frame), "T")
    assert "| method | wrn_40_2 → wrn_16_2 | vgg13 → vgg8 |" in text
    assert "| scratch | 73.00 ± 1.41 ↓ | n/a |" in text
    assert "| kd | 75.00 ± 1.41 | 72.00 ± 1.41 |" in text
    assert "| crd | 74.00 ± 1.41 ↓ | 74.00 ± 1.41 ↑ |" in text


def test_latex_holds_the_same_grid():
    text = latex(accuracy_by_pair(results({("wrn_40_2", "wrn_16_2"): (73.0, 75.0, 76.0)})))
    assert text.splitlines() == [
        "\\begin{tabular}{lc}",
        "\\toprule",
        "method & wrn\\_40\\_2 $\\to$ wrn\\_16\\_2 \\\\",
        "\\midrule",
        "scratch & 73.00 $\\pm$ 1.41 $\\downarrow$ \\\\",
        "kd & 75.00 $\\pm$ 1.41 \\\\",
        "crd & 76.00 $\\pm$ 1.41 $\\uparrow$ \\\\",
        "\\bottomrule",
        "\\end{tabular}",
    ]


def test_no_character_of_a_name_breaks_a_table():
    odd = results({("a|b", "c_{d}^e"): (70.0, 71.0, 72.0)})
    odd = pd.concat([odd, odd.assign(scale=0.3)])  # labels name the scale: 30 %
    table = accuracy_by_pair(odd)
    head, _, first, *_ = markdown(table, "T").splitlines()[2:]
    assert head == "| method | a\\|b → c_{d}^e |"
    assert first == "| scratch, 100 % | 70.00 ± 1.41 ↓ |"
    lines = latex(table).splitlines()
    assert lines[2] == "method & a|b $\\to$ c\\_\\{d\\}\\textasciicircum{}e \\\\"
    assert lines[4] == "scratch, 100 \\% & 70.00 $\\pm$ 1.41 $\\downarrow$ \\\\", "% would begin a comment"


def test_without_kd_or_scratch_there_are_no_shares():
    frame = results({("a", "b"): (70.0, 71.0, 72.0)})
    assert relative_improvement(accuracy_by_pair(frame[frame["method"] != "scratch"])).empty
    assert "Relative" not in markdown(accuracy_by_pair(frame[frame["method"] != "kd"]), "T")


def test_ablations_and_scales_have_their_own_rows():
    whole = results({("a", "b"): (70.0, 72.0, 73.0)})
    tenth = results({("a", "b"): (40.0, 50.0, 48.0)}).assign(scale=0.1)
    low = results({("a", "b"): (70.0, 72.0, 53.0)}).assign(ablation="low")
    scales = accuracy_by_pair(pd.concat([whole, tenth]))
    assert list(scales["label"]) == [f"{m}, {s} %" for s in (100, 10) for m in ("scratch", "kd", "crd")]
    assert list(scales["against_kd"].dropna()) == pytest.approx([-2.0, 1.0, -10.0, -2.0])
    shares = relative_improvement(scales)
    assert shares.loc[("a", "b")].to_dict() == pytest.approx({"crd, 100 %": 50.0, "crd, 10 %": -20.0})
    assert "| crd, 10 % | 48.00 ± 1.41 ↓ |" in markdown(scales, "T")
    parts = accuracy_by_pair(pd.concat([whole, low])).set_index("label")
    assert parts.loc["crd, low", ["mean", "std", "n"]].tolist() == pytest.approx([53.0, math.sqrt(2), 2])
    assert parts.loc["crd, full", "against_kd"] == pytest.approx(1.0)


def test_experiments_are_merged_with_shared_runs_once_and_others_apart():
    same, other = results(SAME_STYLE), results(OTHER_STYLE).assign(experiment="f")
    again = same[same["method"] != "crd"].assign(experiment="g")
    rows = merge_experiments(pd.concat([same, other, again]))
    shares = relative_improvement(accuracy_by_pair(rows))["crd"]
    assert len(rows) == 13 * 3 * 2
    assert shares.mean() == pytest.approx(56.8, abs=0.1)

    first = results({("a", "b"): (70.0, 72.0, 73.0), ("c", "d"): (70.0, 72.0, 74.0)})
    views = results({("a", "b"): (40.0, 50.0, 48.0)}).assign(experiment="views")
    table = accuracy_by_pair(merge_experiments(pd.concat([first, views.assign(path="v/" + views["path"])])))
    assert list(relative_improvement(table)["crd"].items()) == [
        (("a", "b (e)"), pytest.approx(50.0)),
        (("c", "d"), pytest.approx(100.0)),
        (("a", "b (views)"), pytest.approx(-20.0)),
    ]


def test_quoted_numbers_stand_in_the_cells_of_their_pairs():
    frame = results({("vgg13", "vgg8"): (70.0, 72.0, 73.0)}).assign(quoted=math.nan)
    frame.loc[frame["method"] == "crd", "quoted"] = 73.94
    table = accuracy_by_pair(frame)
    assert "73.00 ± 1.41 ↑ (quoted 73.94)" in markdown(table, "T")
    assert "72.00 ± 1.41 |" in markdown(table, "T")
    assert "(quoted 73.94)" in latex(table)
