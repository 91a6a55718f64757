"""Tables as CRD's paper prints them: methods by pairs of networks, and relative improvement. Imports no torch."""

from __future__ import annotations

import numpy as np
import pandas as pd

from kd.studies.claims import interval

KD, SCRATCH = "kd", "scratch"
PLACE = ["method", "ablation", "scale", "teacher", "student"]


def accuracy_by_pair(results: pd.DataFrame) -> pd.DataFrame:
    """Return the accuracy of each method, ablation, scale and pair of networks, in the study's order.

    Columns: method, ablation, scale, teacher, student; label: the method, with ablation and scale where there are
    several; mean, std, n; against_kd: the mean paired difference to KD (same ablation, scale and seed), or NaN; kd and
    scratch: the mean accuracies of KD and of the student without a teacher with this ablation, scale and pair, NaN
    where they were not run.
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
    lines = [f"### {title}, by pairs", "", *_grid(table, " ± ", "↑", "↓")]
    shares = relative_improvement(table)
    if shares.size:
        known = table.dropna(subset=["kd", "scratch"])
        run = set(zip(known["label"], known["teacher"], known["student"], strict=True))
        lines += [
            "",
            "Relative improvement over KD, % (what a method adds to KD, as a share of what KD adds to the student):",
        ]
        lines += [
            "",
            "| method | " + " | ".join(f"{t} → {s}" for t, s in shares.index) + " | mean (95 % interval) | median |",
        ]
        lines += ["|---" * (len(shares) + 3) + "|"]
        for label, values in shares.items():
            found = interval(values.dropna())
            spread = f" ({found.low:.0f} to {found.high:.0f})" if found.n > 1 else ""
            cells = [
                f"{value:.1f}" if pd.notna(value) else "KD not above scratch" if (label, *pair) in run else "n/a"
                for pair, value in values.items()
            ]
            mean = f"{found.mean:.1f}{spread}" + (
                f", {found.n} of {len(shares)} pairs" if found.n < len(shares) else ""
            )
            lines.append(
                f"| {label} | " + " | ".join(cells) + f" | {mean if found.n else ''} | {_shown(values.median())} |"
            )
    return "\n".join(lines) + "\n"


def latex(table: pd.DataFrame) -> str:
    """Return the same grid as a booktabs tabular."""
    head, _, *rows = _grid(table, " $\\pm$ ", "$\\uparrow$", "$\\downarrow$")
    columns = head.count("|") - 1
    body = [_tex(line) for line in rows]
    lines = [f"\\begin{{tabular}}{{l{'c' * (columns - 1)}}}", "\\toprule", _tex(head), "\\midrule", *body]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


def _grid(table: pd.DataFrame, plus_minus: str, up: str, down: str) -> list[str]:
    pairs = list(dict.fromkeys(zip(table["teacher"], table["student"], strict=True)))
    cells = {(row.label, row.teacher, row.student): row for row in table.itertuples()}
    lines = ["| method | " + " | ".join(f"{teacher} → {student}" for teacher, student in pairs) + " |"]
    lines.append("|---" * (len(pairs) + 1) + "|")
    for label in dict.fromkeys(table["label"]):
        shown = []
        for pair in pairs:
            row = cells.get((label, *pair))
            if row is None:
                shown.append("n/a")
                continue
            spread = "" if pd.isna(row.std) else f"{plus_minus}{row.std:.2f}"
            arrow = "" if pd.isna(row.against_kd) or row.against_kd == 0 else f" {up if row.against_kd > 0 else down}"
            shown.append(f"{row.mean:.2f}{spread}{arrow}")
        lines.append(f"| {label} | " + " | ".join(shown) + " |")
    return lines


def _tex(line: str) -> str:
    cells = [cell.strip().replace("_", "\\_").replace("→", "$\\to$") for cell in line.strip("|").split("|")]
    return " & ".join(cells) + " \\\\"


def _shown(value: float) -> str:
    return "" if pd.isna(value) else f"{value:.1f}"
