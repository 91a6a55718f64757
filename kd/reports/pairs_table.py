"""Tables as CRD's paper prints them: methods by pairs of networks, and relative improvement. Imports no torch."""

from __future__ import annotations

import numpy as np
import pandas as pd

from kd.reports.tables import plus_minus
from kd.studies.claims import interval, markdown_row

KD, SCRATCH = "kd", "scratch"
SHARES = "Relative improvement over KD, % (what a method adds to KD, as a share of what KD adds to the student)"
PLACE = ["method", "ablation", "scale", "teacher", "student"]


def accuracy_by_pair(results: pd.DataFrame) -> pd.DataFrame:
    """Return the accuracy of each method, ablation, scale and pair of networks, in the study's order.

    Columns: method, ablation, scale, teacher, student; label: the method, with ablation and scale where there are
    several; mean, std, n; quoted: what others published, or NaN; against_kd: the mean paired difference to KD (same
    ablation, scale and seed), or NaN; kd and scratch: the mean accuracies of KD and of the student without a teacher
    with this ablation, scale and pair, NaN where they were not run.
    """
    several = [name for name in ("ablation", "scale") if results[name].nunique() > 1]
    rows = []
    for key, group in results.groupby(PLACE, sort=False):
        row = dict(zip(PLACE, key, strict=True))
        here = results[np.logical_and.reduce([results[name] == row[name] for name in PLACE if name != "method"])]
        same = here[here["method"] == KD]
        paired = group.merge(same, on="seed", suffixes=("", "_kd"))
        shown = {"ablation": row["ablation"], "scale": f"{100 * row['scale']:.4g} %"}
        rows.append(
            row
            | {
                "label": ", ".join([row["method"], *(shown[name] for name in several)]),
                "mean": group["accuracy"].mean(),
                "std": group["accuracy"].std(),
                "n": len(group),
                "quoted": group["quoted"].iloc[0] if "quoted" in group else np.nan,
                "against_kd": (paired["accuracy"] - paired["accuracy_kd"]).mean() if row["method"] != KD else np.nan,
                "kd": same["accuracy"].mean(),
                "scratch": here.loc[here["method"] == SCRATCH, "accuracy"].mean(),
            }
        )
    return pd.DataFrame(rows)


def merge_experiments(results: pd.DataFrame) -> pd.DataFrame:
    """Return the runs of several experiments for one table by pairs, each run once.

    Where experiments have different runs under the same names, their students are named with the experiment.
    """
    place = [*PLACE, "seed"]
    rows = results.drop_duplicates([*place, "path"])
    pair = pd.MultiIndex.from_frame(rows[["teacher", "student"]])
    clash = pair.isin(pair[rows.duplicated(place, keep=False)])
    return rows.assign(student=rows["student"].mask(clash, rows["student"] + " (" + rows["experiment"] + ")"))


def relative_improvement(table: pd.DataFrame) -> pd.DataFrame:
    """Return what a method adds to KD as a share of what KD adds to scratch (Tian et al., CRD, ICLR 2020, sec. 4.1):

        (accuracy - accuracy_KD) / (accuracy_KD - accuracy_scratch), in %, labels by pairs of `accuracy_by_pair`'s table

    NaN for pairs where KD is not above scratch (there the share means nothing), and where a method was not run.
    """
    rows = table[~table["method"].isin((KD, SCRATCH)) & table[["kd", "scratch"]].notna().all(axis=1)]
    gain = rows["kd"] - rows["scratch"]
    rows = rows.assign(share=100 * (rows["mean"] - rows["kd"]) / gain.where(gain > 0))
    shares = rows.pivot(index=["teacher", "student"], columns="label", values="share")
    pairs = dict.fromkeys(zip(table["teacher"], table["student"], strict=True))
    return shares.loc[[pair for pair in pairs if pair in shares.index], list(dict.fromkeys(rows["label"]))]


def markdown(table: pd.DataFrame, title: str) -> str:
    """Return a table of methods by pairs: mean ± std, an arrow where KD is better (↓) or worse (↑); then relative
    improvements."""
    lines = [f"### {title}, by pairs", "", *_lines(grid(table))]
    if shares := shares_grid(table):
        lines += ["", f"{SHARES}:", "", *_lines(shares)]
    return "\n".join(lines) + "\n"


def _lines(rows: list[list[str]]) -> list[str]:
    head, *others = map(markdown_row, rows)
    return [head, "|---" * len(rows[0]) + "|", *others]


def shares_grid(table: pd.DataFrame) -> list[list[str]]:
    """Return the rows of cells, the first of them the head, of the relative improvements; none where there are none."""
    shares = relative_improvement(table)
    if not shares.size:
        return []
    known = table.dropna(subset=["kd", "scratch"])
    run = set(zip(known["label"], known["teacher"], known["student"], strict=True))
    pairs = [f"{teacher} → {student}" for teacher, student in shares.index]
    rows = [["method", *pairs, "mean (95 % interval)", "median"]]
    for label, values in shares.items():
        found = interval(values.dropna())
        spread = f" ({found.low:.0f} to {found.high:.0f})" if found.n > 1 else ""
        cells = [
            f"{value:.1f}" if pd.notna(value) else "KD not above scratch" if (label, *pair) in run else "n/a"
            for pair, value in values.items()
        ]
        mean = f"{found.mean:.1f}{spread}" + (f", {found.n} of {len(shares)} pairs" if found.n < len(shares) else "")
        rows.append([label, *cells, mean if found.n else "", _shown(values.median())])
    return rows


def latex(table: pd.DataFrame) -> str:
    """Return the same grid as a booktabs tabular."""
    return booktabs(grid(table))


def booktabs(grid: list[list[str]]) -> str:
    """Return rows of cells, the first of them the head, as a LaTeX tabular with the rules of booktabs."""
    head, *rows = grid
    start = [f"\\begin{{tabular}}{{l{'c' * (len(head) - 1)}}}", "\\toprule", _tex(head), "\\midrule"]
    lines = [*start, *map(_tex, rows)]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


def grid(table: pd.DataFrame) -> list[list[str]]:
    """Return the rows of cells of methods by pairs, the first with the pairs of networks: mean ± std, and the arrow."""
    pairs = list(dict.fromkeys(zip(table["teacher"], table["student"], strict=True)))
    cells = {(row.label, row.teacher, row.student): row for row in table.itertuples()}
    rows = [["method", *(f"{teacher} → {student}" for teacher, student in pairs)]]
    for label in dict.fromkeys(table["label"]):
        shown = []
        for pair in pairs:
            row = cells.get((label, *pair))
            if row is None:
                shown.append("n/a")
                continue
            arrow = "" if pd.isna(row.against_kd) or row.against_kd == 0 else " ↑" if row.against_kd > 0 else " ↓"
            quoted = "" if pd.isna(row.quoted) else f" (quoted {row.quoted:.2f})"
            shown.append(plus_minus(row.mean, row.std) + arrow + quoted)
        rows.append([label, *shown])
    return rows


TEX = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}"}
    | {"→": "$\\to$", "±": "$\\pm$", "↑": "$\\uparrow$", "↓": "$\\downarrow$"}
)


def _tex(cells: list[str]) -> str:
    return " & ".join(cell.translate(TEX) for cell in cells) + " \\\\"


def _shown(value: float) -> str:
    return "" if pd.isna(value) else f"{value:.1f}"
