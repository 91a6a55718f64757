"""Claims: which runs a test compares, the interval, the verdicts, and what is refused."""

import math
import re

import pandas as pd
import pytest

from kd.runtime.messages import ConfigError
from kd.studies.claims import claims_markdown, expanded, interval, judge, paired_p, pairs, require_runs

FULL, NONE = {"method": "ssdkd", "scale": 0.1}, {"method": "ssdkd", "ablation": "none", "scale": 0.1}


def results(values, seconds=None, teacher="wrn_16_1", experiment="e"):
    """{(method, ablation, scale): accuracy of seeds 0, 1, ...} as a frame of results."""
    rows = [
        {
            "experiment": experiment,
            "teacher": teacher,
            "student": "wrn_10_1",
            "method": method,
            "ablation": ablation,
            "scale": scale,
            "seed": seed,
            "accuracy": accuracy,
            "seconds_total": (seconds or {}).get((method, ablation, scale), 1.0),
            "path": f"{teacher}/{method}/{ablation}/{scale}/{seed}",
        }
        for (method, ablation, scale), accuracies in values.items()
        for seed, accuracy in enumerate(accuracies)
    ]
    return pd.DataFrame(rows)


def claim(*tests):
    return {"c": {"says": "Something.", "tests": list(tests)}}


def verdict_of(differences, **test):
    frame = results(
        {("ssdkd", "full", 0.1): [50 + d for d in differences], ("ssdkd", "none", 0.1): [50] * len(differences)}
    )
    return judge(claim({"of": FULL, "to": NONE, **test}), frame).iloc[0]


def test_the_interval_is_students():
    """For n = 3 the 97.5 % quantile of t with two degrees of freedom is 4.302653 (any table of t)."""
    found = interval(pd.Series([1.0, 2.0, 6.0]))
    deviation = math.sqrt((2**2 + 1**2 + 3**2) / 2)
    assert found.n == 3
    assert found.mean == 3.0
    assert found.high - 3.0 == pytest.approx(4.302653 * deviation / math.sqrt(3), rel=1e-6)
    assert 3.0 - found.low == pytest.approx(found.high - 3.0)


def test_p_of_the_paired_t_test():
    """With one degree of freedom t is Cauchy's distribution: p = 1 - 2 atan(t) / pi."""
    t = 2.0 / (math.sqrt(2) / math.sqrt(2))  # mean 2, standard deviation sqrt(2), n = 2
    assert paired_p(pd.Series([1.0, 3.0])) == pytest.approx(1 - 2 * math.atan(t) / math.pi)
    assert math.isnan(paired_p(pd.Series([1.0])))
    assert math.isnan(paired_p(pd.Series([1.0, 1.0])))


@pytest.mark.parametrize(
    ("differences", "test", "expected"),
    [
        ([5, 6, 7], {"above": 0}, "holds"),
        ([-5, -6, -7], {"above": 0}, "does not hold"),
        ([-5, 6, 7], {"above": 0}, "not decided"),
        ([5, 6, 7], {"above": 6}, "not decided"),
        ([-5, -6, -7], {"above": -10}, "holds"),
        ([5, 6, 7], {"below": 0}, "does not hold"),
        ([-5, -6, -7], {"below": 0}, "holds"),
        ([100], {"above": 0}, "not decided"),  # one seed decides nothing
    ],
)
def test_a_test_is_judged_by_the_whole_interval(differences, test, expected):
    row = verdict_of(differences, **test)
    assert row["verdict"] == expected
    assert row["n"] == len(differences)
    assert row["mean"] == pytest.approx(sum(differences) / len(differences))


def test_ratios_are_averaged_geometrically():
    values = {("ssdkd", "full", 0.1): [2.0, 8.0], ("ssdkd", "none", 0.1): [1.0, 1.0]}
    row = judge(claim({"of": FULL, "to": NONE, "as": "ratio", "above": 1}), results(values)).iloc[0]
    assert row["mean"] == pytest.approx(4.0)
    assert row["low"] * row["high"] == pytest.approx(16.0)


def test_seconds_are_compared_too():
    values = {("ssdkd", "full", 0.1): [50, 60], ("ssdkd", "none", 0.1): [50, 60]}
    frame = results(values, {("ssdkd", "full", 0.1): 1.0, ("ssdkd", "none", 0.1): 8.0})
    frame.loc[0, "seconds_total"] = 1.1
    row = judge(claim({"of": FULL, "to": NONE, "measure": "seconds", "as": "ratio", "below": 0.5}), frame).iloc[0]
    assert row["verdict"] == "holds"
    assert row["mean"] == pytest.approx(math.sqrt(1.1) / 8)


def test_seconds_of_runs_that_were_computed_differently_are_not_compared():
    values = {("ssdkd", "full", 0.1): [50, 60, 70], ("ssdkd", "none", 0.1): [50, 60, 70]}
    frame = results(values, {("ssdkd", "none", 0.1): 8.0}).assign(computed="H200, captured")
    test = {"of": FULL, "to": NONE, "measure": "seconds", "as": "ratio", "below": 0.5}
    assert judge(claim(test), frame).iloc[0]["n"] == 3
    frame.loc[0, "computed"] = "H200"
    assert judge(claim(test), frame).iloc[0]["n"] == 2
    frame.loc[frame["ablation"] == "full", "computed"] = "cpu"
    row = judge(claim(test), frame).iloc[0]
    assert (row["n"], row["verdict"]) == (0, "not decided")
    assert judge(claim({**test, "measure": "accuracy"}), frame).iloc[0]["n"] == 3


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [((0, 1), "holds"), ((0, 6), "not decided"), ((6, 20), "does not hold"), ((20, 0), "does not hold")],
)
def test_a_claim_needs_all_its_tests(bounds, expected):
    frame = results({("ssdkd", "full", 0.1): [55, 56, 57], ("ssdkd", "none", 0.1): [50] * 3})
    judged = judge(claim(*({"of": FULL, "to": NONE, "above": bound} for bound in bounds)), frame)
    assert set(judged["claim_verdict"]) == {expected}


def test_runs_are_paired_by_networks_and_seed_and_shared_ones_count_once():
    values = {("ssdkd", "full", 0.1): [51, 62, 73], ("ssdkd", "none", 0.1): [50, 60, 70]}
    frame = pd.concat([results(values), results(values, experiment="f"), results(values, teacher="wrn_16_2")])
    frame = frame.sample(frac=1.0, random_state=0)
    compared = pairs(frame, {"of": FULL, "to": NONE})
    assert len(compared) == 6
    assert (compared["accuracy_of"] - compared["accuracy_to"] == compared["seed"] + 1).all()
    assert len(pairs(frame, {"of": {**FULL, "teacher": "wrn_16_2"}, "to": {**FULL, "teacher": "wrn_16_1"}})) == 3
    assert pairs(frame[frame["seed"] == 0], {"of": FULL, "to": {**NONE, "scale": 0.2}}).empty


def test_equal_names_with_other_settings_are_runs_of_their_own():
    """crd-transfer: a pair at the same scale and seeds in two experiments, one with other views."""
    values = {("ssdkd", "full", 0.1): [50, 50], ("ssdkd", "none", 0.1): [40, 40]}
    other = {key: [accuracy + 30 for accuracy in accuracies] for key, accuracies in values.items()}
    moved = results(other, experiment="f")
    frame = pd.concat([results(values), moved.assign(path="f/" + moved["path"])])
    within = {"of": {**FULL, "experiment": "f"}, "to": {**NONE, "experiment": "f"}}
    assert list(pairs(frame, within)["accuracy_of"]) == [80, 80]
    across = {"of": {**FULL, "experiment": "f"}, "to": {**FULL, "experiment": "e"}, "above": 0}
    assert judge(claim(across), frame)["mean"].item() == 30
    require_runs(claim(within, across), frame, "s.yaml")
    with pytest.raises(
        ConfigError, match=r"^s\.yaml: claims\.c\.tests\.0\.of: got .*, 2 runs for one .*name the exp"
    ) as e:
        require_runs(claim({"of": FULL, "to": {**NONE, "experiment": "e"}, "above": 0}), frame, "s.yaml")
    assert "\n" not in str(e.value)
    with pytest.raises(ConfigError, match=r"tests\.0\.to: got "):
        require_runs(claim({"of": {**FULL, "experiment": "e"}, "to": NONE, "above": 0}), frame, "s.yaml")


def test_a_side_that_leaves_the_scale_open_is_refused():
    frame = results({("ssdkd", "full", 0.1): [50], ("ssdkd", "none", 0.1): [40], ("ssdkd", "none", 0.2): [60]})
    test = {"of": FULL, "to": {"method": "ssdkd", "ablation": "none"}, "above": 0}
    with pytest.raises(ConfigError, match=r"tests\.0\.to: .*2 runs for one"):
        require_runs(claim(test), frame, "s.yaml")


def test_a_student_without_a_teacher_stands_beside_every_teachers_students():
    """Its run is the same whoever the teacher of the pair is."""
    values = {("ssdkd", "full", 0.1): [50, 60], ("ssdkd", "none", 0.1): [40, 50]}
    frame = pd.concat([results(values), results(values, teacher="wrn_16_2")])
    alone = frame["ablation"] == "none"
    frame.loc[alone, "path"] = "alone/" + frame.loc[alone, "seed"].astype(str)
    test = {"of": FULL, "to": NONE, "above": 0}
    assert len(pairs(frame, test)) == 4
    require_runs(claim(test), frame, "s.yaml")


def test_each_pair_of_networks_is_judged_by_itself():
    values = {("ssdkd", "full", 0.1): [55, 56, 57], ("ssdkd", "none", 0.1): [50] * 3}
    worse = {("ssdkd", "full", 0.1): [45, 44, 43], ("ssdkd", "none", 0.1): [50] * 3}
    frame = pd.concat([results(values), results(worse, teacher="wrn_16_2")])
    written = expanded(claim({"of": FULL, "to": NONE, "above": 0, "each": "pair"}), frame)
    judged = judge(written, frame)
    assert list(judged["of"]) == [f"ssdkd, 10 %, {teacher}, wrn_10_1" for teacher in ("wrn_16_1", "wrn_16_2")]
    assert list(judged["verdict"]) == ["holds", "does not hold"]
    assert list(judged["n"]) == [3, 3]
    so_far = judge(written, frame[frame["teacher"] == "wrn_16_1"])
    assert set(so_far["claim_verdict"]) == {"not decided"}, "a pair that is not run yet decides nothing"
    plain = claim({"of": FULL, "to": NONE, "above": 0})
    assert expanded(plain, frame) == plain


def test_gaps_of_correlations_are_compared_where_they_are_known():
    test = {"of": FULL, "to": NONE, "measure": "correlation_gap", "below": 0}
    frame = results({("ssdkd", "full", 0.1): [50] * 3, ("ssdkd", "none", 0.1): [50] * 3})
    assert judge(claim(test), frame)["n"].item() == 0, "results of students without a teacher alone"
    frame["correlation_gap"] = [0.011, 0.013, 0.012, 0.021, 0.022, float("nan")]
    judged = judge(claim(test), frame)
    assert (judged["n"].item(), judged["mean"].item()) == (2, pytest.approx(-0.0095))
    assert "| correlation_gap, difference | below 0 | -0.0095 (" in claims_markdown(judged)


@pytest.mark.parametrize(("accuracies", "verdict"), [([89, 90, 91], "holds"), ([86, 86.1, 86.2], "does not hold")])
def test_runs_are_compared_with_the_number_that_is_quoted_for_them(accuracies, verdict):
    test = {"of": FULL, "to": "quoted", "above": -1}
    frame = results({("ssdkd", "full", 0.1): accuracies, ("ssdkd", "none", 0.1): [50]}).assign(quoted=88.36)
    require_runs(claim(test), frame, "s.yaml")
    judged = judge(claim(test), frame)
    assert judged["verdict"].item() == verdict
    assert (judged["n"].item(), judged["mean"].item()) == (3, pytest.approx(sum(accuracies) / 3 - 88.36))
    assert "| ssdkd, 10 % against quoted 88.36 |" in claims_markdown(judged)
    each = expanded(claim({**test, "each": "pair"}), frame)["c"]["tests"]
    assert each == [{**test, "of": {**FULL, "teacher": "wrn_16_1", "student": "wrn_10_1"}}]


def test_each_pair_is_compared_with_its_own_number():
    """Of the pairs that have one: the third has none."""
    frames = [
        results({("ssdkd", "full", 0.1): [50, 51, 52]}, teacher=teacher).assign(quoted=quoted)
        for teacher, quoted in (("wrn_16_1", 40.0), ("wrn_16_2", 60.0), ("wrn_40_2", math.nan))
    ]
    each = expanded(claim({"of": FULL, "to": "quoted", "each": "pair", "above": 0}), pd.concat(frames))
    judged = judge(each, pd.concat(frames))
    assert list(judged["mean"]) == [11.0, -9.0]
    assert list(judged["verdict"]) == ["holds", "does not hold"]
    assert list(judged["to"]) == ["quoted 40.00", "quoted 60.00"]


def test_a_quoted_number_has_to_be_there():
    test = {"of": {"method": "ssdkd"}, "to": "quoted", "above": -1}
    frame = results({("ssdkd", "full", 0.1): [50]}).assign(quoted=math.nan)
    message = "s.yaml: claims.c.tests.0: no run of {'method': 'ssdkd'} has a number in its experiment's `quoted`"
    with pytest.raises(ConfigError, match=re.escape(message)):
        require_runs(claim(test), frame, "s.yaml")


def test_scales_are_found_though_a_file_changed_their_last_bit():
    frame = results({("ssdkd", "full", 0.1 + 2e-17 + 1e-16): [50], ("ssdkd", "none", 0.1): [50]})
    assert len(pairs(frame, {"of": FULL, "to": NONE})) == 1


def test_a_test_that_compares_nothing_is_refused_in_one_line():
    frame = results({("ssdkd", "full", 0.1): [50]})
    message = f"s.yaml: claims.c.tests.0: no run of {FULL} has a partner among {NONE} with the same teacher"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        require_runs(claim({"of": FULL, "to": NONE, "above": 0}), frame, "s.yaml")


def test_the_verdicts_are_written_down():
    frame = results({("ssdkd", "full", 0.1): [55, 56, 57], ("ssdkd", "none", 0.1): [50] * 3})
    tests = [
        {"of": FULL, "to": NONE, "above": 0},
        {"of": FULL, "to": NONE, "measure": "seconds", "as": "ratio", "below": 2},
    ]
    text = claims_markdown(judge(claim(*tests), frame))
    assert "**c: holds.** Something." in text
    assert "| ssdkd, 10 % against ssdkd, none, 10 % | accuracy, difference | above 0 | +6.00 (+3.52 to +8.48) |" in text
    assert "| seconds, ratio | below 2 | 1.000 (1.000 to 1.000) | 3 | holds |" in text
