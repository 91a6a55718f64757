"""What a study found, in words with numbers: the verdicts on its claims, and each experiment's paired differences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pandas as pd

from kd.reports.page.markup import Html, anchor, folded, table, tag
from kd.reports.tables import differences, plus_minus
from kd.studies.claims import FAILS, HOLDS, OPEN, RULE, Interval, interval, judge, paired_p, score_of, tests_grid
from kd.studies.labels import in_percent, variant

MOST = 6  # comparisons of an experiment that are spelled out; the others are folded
ABOVE, BELOW, UNDECIDED = "above", "below", "no difference shown"
MARKS = {HOLDS: "✓", FAILS: "✗", OPEN: "?", ABOVE: "▲", BELOW: "▼", UNDECIDED: "≈"}


class Comparison(NamedTuple):
    """Some runs of an experiment against its first ones, paired."""

    of: str
    to: str
    of_score: str  # mean ± std of all its runs
    to_score: str
    over: str  # several pairs of networks
    found: Interval
    p: float

    @property
    def verdict(self) -> str:
        """ABOVE or BELOW where the whole interval is, else UNDECIDED."""
        return ABOVE if self.found.low > 0 else BELOW if self.found.high < 0 else UNDECIDED


def comparisons(rows: pd.DataFrame) -> list[Comparison]:
    """Return each method and ablation of an experiment, by scale, against the first ones, over all pairs of networks.

    Where there is one method with one ablation, its scales are compared with the first.
    """
    names = ["method", "ablation"]
    first, single = rows.iloc[0], len(rows[names].drop_duplicates()) == 1
    same = rows[(rows[names] == first[names]).all(axis=1)]
    same = same[same["scale"] == first["scale"]] if single else same
    several = rows["scale"].nunique() > 1
    found = []
    for (method, ablation, scale), group in rows.groupby([*names, "scale"], sort=False):
        if (method, ablation) == tuple(first[names]) and not (single and scale != first["scale"]):
            continue
        at = same[same["scale"] == scale]
        others = same if at.empty else at
        gaps = differences(group, others).dropna()
        if len(gaps):
            labels = [label(part.iloc[0], several) for part in (group, others)]
            scores = [_score(part) for part in (group, others)]
            found.append(Comparison(*labels, *scores, _over(group), interval(gaps), paired_p(gaps)))
    return found


def label(row: Any, with_scale: bool) -> str:
    """Return what a method with its ablation, and its scale if wanted, is called."""
    return f"{variant(row)}, {in_percent(row.scale)}" if with_scale else variant(row)


def statistics(found: Interval, p: float) -> str:
    """Return the interval, n and p of a difference in words."""
    spread = f"95 % interval {found.low:+.2f} to {found.high:+.2f}, " if found.n > 1 else "no interval, "
    return f"{spread}n = {found.n}" + ("" if pd.isna(p) else f", p = {p:.2g}")


def summary(
    experiments: dict[str, dict[str, Any]], claims: dict[str, Any], results: pd.DataFrame, links: bool = True
) -> Html:
    """Return the first section of the page: verdicts on the claims, then what each experiment shows.

    links: titles lead to the experiments' sections.
    """
    parts: list[Any] = []
    if claims:
        judged = judge(claims, results)
        parts += [tag("h3", "Claims, written down before the runs")]
        parts += [tag("ul", [_claim(tests) for _, tests in judged.groupby("claim", sort=False)], class_="answers")]
        parts += [tag("p", " ".join(RULE.split()), class_="note"), tag("h3", "Experiments")]
    for name, experiment in experiments.items():
        rows = results[results["experiment"] == name]
        if len(rows):
            title = experiment["title"]
            head = tag("h4", tag("a", title, href=f"#{anchor(name)}") if links else title)
            parts.append(tag("div", head, answer(rows), class_="answer"))
    return tag("section", tag("h2", "The answer"), parts, id="_answer")


def answer(rows: pd.DataFrame) -> Html:
    """Return what an experiment shows: its highest score, then its comparisons, first those with a clear difference."""
    found = sorted(comparisons(rows), key=lambda each: each.verdict == UNDECIDED)
    said = [_sentence(each, score_of(rows)) for each in found]
    parts = [tag("p", *_highest(rows)), tag("ul", said[:MOST], class_="answers") if said else None]
    if rest := said[MOST:]:
        verdicts = [each.verdict for each in found]
        counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in (ABOVE, BELOW, UNDECIDED))
        parts.append(folded(f"{len(rest)} more; of all {len(found)}: {counts}", tag("ul", rest, class_="answers")))
    return tag("div", parts)


def _highest(rows: pd.DataFrame) -> Iterator[Any]:
    several = rows["scale"].nunique() > 1
    grouped = rows.groupby(["method", "ablation", "scale"], sort=False)
    groups = {label(group.iloc[0], several): group for _, group in grouped}
    best = max(groups, key=lambda name: groups[name]["accuracy"].mean())
    teachers = rows["teacher_accuracy"].dropna() if "teacher_accuracy" in rows else []
    yield "Highest: " if len(groups) > 1 else ""
    yield from (
        tag("b", best),
        f" with {_score(groups[best])} {score_of(rows)}{_over(groups[best])}, n = {len(groups[best])}",
    )
    yield f"; the teacher has {teachers.mean():.2f} %." if len(teachers) else "."


def _sentence(each: Comparison, score: str) -> Html:
    side = "above" if each.found.mean >= 0 else "below"
    open_ = each.verdict == UNDECIDED and each.found.n > 1
    return tag(
        "li",
        badge(each.verdict, "one pair only" if each.found.n == 1 else ""),
        tag("b", f"{each.of} is {abs(each.found.mean):.2f} points {side} {each.to}"),
        f" in {score} ({each.of_score} against {each.to_score}{each.over}), ",
        f"{statistics(each.found, each.p)}{': the interval holds 0' if open_ else ''}.",
    )


def badge(verdict: str, words: str = "") -> Html:
    """Return a verdict as a mark and words, which do not need their colour."""
    kind = {HOLDS: "good", ABOVE: "good", FAILS: "bad", BELOW: "bad"}.get(verdict, "open")
    return tag("span", f"{MARKS[verdict]} {words or verdict}", class_=f"badge {kind}")


def _claim(tests: pd.DataFrame) -> Html:
    first = tests.iloc[0]
    grid = tests_grid(tests)
    compared, measure, _, measured, n, _ = grid[1]
    said = f"{compared}: {measure} {measured or 'not measured'}, n = {n}."
    if len(tests) > 1:
        counts = [f"{sum(tests['verdict'] == verdict)} {verdict}" for verdict in (HOLDS, FAILS, OPEN)]
        said = f"Of {len(tests)} tests: {', '.join(counts)}."
    return tag(
        "li",
        badge(first["claim_verdict"]),
        tag("b", first["claim"]),
        f": {first['says']}",
        tag("div", said),
        folded("the tests" if len(tests) > 1 else "the test", table(grid[0], grid[1:], sortable=False)),
    )


def _over(rows: pd.DataFrame) -> str:
    pairs = len(rows[["teacher", "student"]].drop_duplicates())
    return f", over {pairs} pairs of networks" if pairs > 1 else ""


def _score(rows: pd.DataFrame) -> str:
    """Return mean ± std; over several pairs of networks the mean only, whose spread would be that of the pairs."""
    spread = float("nan") if _over(rows) else rows["accuracy"].std()
    return f"{plus_minus(rows['accuracy'].mean(), spread)} %"
