"""Claims of papers, tested by rules that a study states before it runs, and their verdicts. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from kd.registry.datasets import SYNTHETIC
from kd.runtime.messages import ConfigError, shown

CONFIDENCE = 0.95
RULE = (
    f"A test holds if the {100 * CONFIDENCE:.0f} % interval of the mean over pairs and seeds lies wholly on the "
    "claimed side, does not\nif it lies wholly on the other, and is not decided otherwise. A claim needs all its tests."
)
HOLDS, FAILS, OPEN = "holds", "does not hold", "not decided"
MEASURES = {  # name -> column of results
    "accuracy": "accuracy",
    "seconds": "seconds_total",
    "correlation_gap": "correlation_gap",
    "agreement_drawn": "agreement_drawn",  # data-free: see kd.training.synthetic_set.followed
    "agreement_fall": "agreement_fall",
    "tv_distance": "tv_distance",  # of synthetic images from real ones: see kd.training.texture
    "spectrum_distance": "spectrum_distance",
}
QUOTED = "quoted"  # instead of a side: the numbers of others that stand next to the runs
KEYS = ("teacher", "student", "scale", "seed")  # compared runs have these in common, unless a side names one


def score_of(results: pd.DataFrame) -> str:
    """Return what the column `accuracy` means for these runs.

    Of synthetic images it is agreement with the teacher, of segmentation the mean IoU.
    """
    if set(results.get("scored", [])) == {SYNTHETIC}:
        return "agreement"
    return "mean IoU" if results.get("pixel_accuracy", pd.Series(dtype=float)).notna().any() else "accuracy"


class Interval(NamedTuple):
    """Mean of n paired values with its two-sided confidence interval by Student's t; infinite for one value."""

    n: int
    mean: float
    low: float
    high: float


def interval(values: pd.Series) -> Interval:
    """Return the mean of independent values and its 95 % confidence interval."""
    from scipy.stats import t  # takes half a second, which plans do not need

    n, mean = len(values), float(values.mean())
    if n < 2:
        return Interval(n, mean, -np.inf, np.inf)
    reach = float(t.ppf((1 + CONFIDENCE) / 2, n - 1) * values.std() / np.sqrt(n))
    return Interval(n, mean, mean - reach, mean + reach)


def paired_p(differences: pd.Series) -> float:
    """Return the two-sided p of the paired t-test; NaN for fewer than two differences, or if all are equal."""
    from scipy.stats import t

    spread = differences.std()
    if not spread > 0:
        return float("nan")
    return float(2 * t.sf(abs(differences.mean()) * np.sqrt(len(differences)) / spread, len(differences) - 1))


def pairs(table: pd.DataFrame, test: dict[str, Any]) -> pd.DataFrame:
    """Return the runs that a test compares: a row per teacher, student, scale and seed, with suffixes _of and _to.

    Keys named on a side are not paired on: runs at two scales are compared by naming the scales. A run that several
    experiments share counts once. Next to quoted numbers stand only the runs that they are compared with.
    """
    keys, sides = _keys(test), []
    for side in _sides(test):
        wanted = {"ablation": "full", **test[side]}
        rows = table[np.logical_and.reduce([_equal(table[key], value) for key, value in wanted.items()])]
        # by the keys as well: one student trained without a teacher is compared with the students of several
        rows = rows.dropna(subset="quoted") if test["to"] == QUOTED else rows
        sides.append(rows.drop_duplicates([*keys, "path"]))
    if len(sides) == 1:
        return sides[0].rename(columns={name: f"{name}_of" for name in table if name not in keys})
    return sides[0].merge(sides[1], on=keys, suffixes=("_of", "_to"))


def _sides(test: dict[str, Any]) -> tuple[str, ...]:
    """Return the sides of a test that are runs."""
    return ("of",) if test["to"] == QUOTED else ("of", "to")


def _keys(test: dict[str, Any]) -> list[str]:
    return [key for key in KEYS if not any(key in test[side] for side in _sides(test))]


def _equal(column: pd.Series, value: str | float) -> pd.Series:
    return column == value if isinstance(value, str) else np.isclose(column, value)  # scales come from a CSV file


def require_runs(claims: dict[str, Any], table: pd.DataFrame, source: str) -> None:
    """Raise ConfigError for a test that compares nothing, or a side of which fits several runs."""
    for name, claim in claims.items():
        for number, test in enumerate(claim["tests"]):
            compared, where = pairs(table, test), f"{source}: claims.{name}.tests.{number}"
            if compared.empty:
                partner = (
                    "a number in its experiment's `quoted`; give one"
                    if test["to"] == QUOTED
                    else f"a partner among {shown(test['to'])} with the same teacher, student, scale and seed; "
                    "name what is run"
                )
                raise ConfigError(f"{where}: no run of {shown(test['of'])} has {partner}")
            for side in _sides(test):
                several = compared.groupby(_keys(test))[f"path_{side}"].nunique().max()
                if several > 1:
                    raise ConfigError(
                        f"{where}.{side}: got {shown(test[side])}, {several} runs for one on the other side; "
                        "name the experiment, teacher, student or scale that is meant"
                    )


def expanded(claims: dict[str, Any], table: pd.DataFrame) -> dict[str, Any]:
    """Replace each test with `each: pair` by one test for every pair of networks that it compares."""
    return {
        name: {**claim, "tests": [single for test in claim["tests"] for single in _each(test, table)]}
        for name, claim in claims.items()
    }


def _each(test: dict[str, Any], table: pd.DataFrame) -> list[dict[str, Any]]:
    if "each" not in test:
        return [test]
    rest = {key: value for key, value in test.items() if key != "each"}
    names = [key for key in ("teacher", "student") if key in _keys(test)]
    found = pairs(table, test)[names].drop_duplicates().to_dict("records")
    return [{**rest, **{side: {**test[side], **networks} for side in _sides(test)}} for networks in found]


def judge(claims: dict[str, Any], results: pd.DataFrame) -> pd.DataFrame:
    """Return a row per test of every claim: what was measured and wanted, the verdict on the test and on its claim.

    A test holds if the whole confidence interval of the mean paired difference (with `as: ratio`, of the geometric
    mean of the paired ratios) lies on the claimed side of its bound, does not if it lies on the other, and is not
    decided if the bound is inside. A claim holds if all its tests do, and does not if one of them does not.
    """
    rows = []
    for name, claim in claims.items():
        tests = [_judge_test(test, results) for test in claim["tests"]]
        verdicts = {row["verdict"] for row in tests}
        verdict = FAILS if FAILS in verdicts else OPEN if OPEN in verdicts else HOLDS
        rows += [{"claim": name, "says": claim["says"], "claim_verdict": verdict, **row} for row in tests]
    return pd.DataFrame(rows)


def _judge_test(test: dict[str, Any], results: pd.DataFrame) -> dict[str, Any]:
    measure, ratio = test.get("measure", "accuracy"), test.get("as") == "ratio"
    column = MEASURES[measure]
    compared = pairs(results.assign(**{column: results.get(column, np.nan)}), test)  # absent: no run that has it yet
    if measure == "seconds" and "computed_to" in compared:  # on another card, or not captured: seconds do not compare
        compared = compared[compared["computed_of"] == compared["computed_to"]]
    of = compared[f"{column}_of"]
    to = compared["quoted_of" if test["to"] == QUOTED else f"{column}_to"]
    found = Interval(*map(float, interval((np.log(of / to) if ratio else of - to).dropna())))
    if ratio:
        found = Interval(found.n, *np.exp(found[1:]))
    above = "above" in test
    bound = test["above" if above else "below"]
    return {
        "of": _side(test["of"]),
        "to": f"quoted {to.mean():.2f}" if test["to"] == QUOTED else _side(test["to"]),
        "measure": f"{score_of(results) if measure == 'accuracy' else measure}, {'ratio' if ratio else 'difference'}",
        "wanted": f"{'above' if above else 'below'} {bound:g}",
        "n": int(found.n),
        "mean": found.mean,
        "low": found.low,
        "high": found.high,
        "verdict": _verdict(found, bound, above),
    }


def _verdict(found: Interval, bound: float, above: bool) -> str:
    if found.low > bound:
        return HOLDS if above else FAILS
    if found.high < bound:
        return FAILS if above else HOLDS
    return OPEN


def _side(chosen: dict[str, Any]) -> str:
    """Write {"method": "ssdkd", "ablation": "none", "scale": 0.1} as `ssdkd, none, 10 %`."""
    named = {key: value for key, value in chosen.items() if (key, value) != ("ablation", "full")}
    return ", ".join(f"{100 * value:.4g} %" if key == "scale" else str(value) for key, value in named.items())


def claims_markdown(judged: pd.DataFrame) -> str:
    """Return the verdicts as markdown: a paragraph and a table per claim."""
    parts = ["### Claims\n", f"{RULE}\n"]
    for name, tests in judged.groupby("claim", sort=False):
        first = tests.iloc[0]
        parts.append(f"**{name}: {first.claim_verdict}.** {first.says}\n")
        head, *rows = map(markdown_row, tests_grid(tests))
        parts.append("\n".join([head, "|---|---|---|---|---|---|", *rows]) + "\n")
    return "\n".join(parts)


def tests_grid(tests: pd.DataFrame) -> list[list[str]]:
    """Return the rows of cells of tests that were judged, the first of them the head."""
    grid = [["compared", "measure", "wanted", "measured (95 % interval)", "n", "test"]]
    for row in tests.itertuples():
        form = ".3f" if row.measure.endswith("ratio") else "+.4f" if row.measure.startswith("corr") else "+.2f"
        measured = format(row.mean, form) if row.n else ""
        if row.n > 1:
            measured += f" ({row.low:{form}} to {row.high:{form}})"
        grid.append([f"{row.of} against {row.to}", row.measure, row.wanted, measured, str(row.n), row.verdict])
    return grid


def markdown_row(cells: Iterable[str]) -> str:
    """Return a row of a Markdown table."""
    return "| " + " | ".join(in_markdown(cell).replace("|", "\\|") for cell in cells) + " |"


def in_markdown(text: str) -> str:
    """Return a text without elements of HTML, links or pictures, whatever it says."""
    return text.replace("<", "\\<").replace("[", "\\[")
