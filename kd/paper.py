"""Tables as CRD's paper prints them: methods by pairs of networks, and relative improvement. Imports no torch."""

from __future__ import annotations

import pandas as pd

from kd.claims import interval

KD, SCRATCH = "kd", "scratch"


def by_pair(results: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of each method and pair of one experiment, in the study's order.

    Columns: method, teacher, student, mean, std, n, against_kd: the mean paired difference to KD (same seed), or NaN.
    """
    rows = []
    for (method, teacher, student), group in results.groupby(["method", "teacher", "student"], sort=False):
        same = results[(results["teacher"] == teacher) & (results["student"] == student) & (results["method"] == KD)]
        paired = group.merge(same, on=["seed", "scale"], suffixes=("", "_kd"))
        rows.append(
            {
                "method": method,
                "teacher": teacher,
                "student": student,
                "mean": group["accuracy"].mean(),
                "std": group["accuracy"].std(),
                "n": len(group),
                "against_kd": (paired["accuracy"] - paired["accuracy_kd"]).mean() if method != KD else float("nan"),
            }
        )
    return pd.DataFrame(rows)


def relative_improvement(table: pd.DataFrame) -> pd.DataFrame:
    """What a method adds to KD as a share of what KD adds to the student alone (Tian et al., CRD, ICLR 2020, sec. 4.1):

        (accuracy - accuracy_KD) / (accuracy_KD - accuracy_scratch), in %, per pair of `by_pair`'s table

    NaN for pairs where KD is not above the student alone: there the share means nothing.
    """
    known = table.pivot_table(index=["teacher", "student"], columns="method", values="mean", sort=False)
    if not {KD, SCRATCH} <= set(known):
        return pd.DataFrame()
    gain = known[KD] - known[SCRATCH]
    shares = known.drop(columns=[KD, SCRATCH]).sub(known[KD], axis=0).div(gain.where(gain > 0), axis=0)
    return 100 * shares


def markdown(table: pd.DataFrame, title: str) -> str:
    """Methods by pairs: mean ± std, with an arrow where KD is better (↓) or worse (↑), and relative improvements."""
    lines = [f"### {title}, by pairs", "", *_grid(table, " ± ", "↑", "↓")]
    shares = relative_improvement(table)
    if shares.size:
        lines += [
            "",
            "Relative improvement over KD, % (what a method adds to KD, as a share of what KD adds to the student):",
        ]
        lines += [
            "",
            "| method | " + " | ".join(f"{t} → {s}" for t, s in shares.index) + " | mean (95 % interval) | median |",
        ]
        lines += ["|---" * (len(shares) + 3) + "|"]
        for method, values in shares.items():
            found = interval(values.dropna())
            spread = f" ({found.low:.0f} to {found.high:.0f})" if found.n > 1 else ""
            cells = ["KD below scratch" if pd.isna(value) else f"{value:.1f}" for value in values]
            mean = f"{found.mean:.1f}{spread}" if found.n else ""
            lines.append(f"| {method} | " + " | ".join(cells) + f" | {mean} | {_shown(values.median())} |")
    return "\n".join(lines) + "\n"


def latex(table: pd.DataFrame) -> str:
    """The same grid as a booktabs tabular."""
    head, _, *rows = _grid(table, " $\\pm$ ", "$\\uparrow$", "$\\downarrow$")
    columns = head.count("|") - 1
    body = [_tex(line) for line in rows]
    lines = [f"\\begin{{tabular}}{{l{'c' * (columns - 1)}}}", "\\toprule", _tex(head), "\\midrule", *body]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


def _grid(table: pd.DataFrame, plus_minus: str, up: str, down: str) -> list[str]:
    pairs = list(dict.fromkeys(zip(table["teacher"], table["student"], strict=True)))
    cells = {(row.method, row.teacher, row.student): row for row in table.itertuples()}
    lines = ["| method | " + " | ".join(f"{teacher} → {student}" for teacher, student in pairs) + " |"]
    lines.append("|---" * (len(pairs) + 1) + "|")
    for method in dict.fromkeys(table["method"]):
        shown = []
        for pair in pairs:
            row = cells.get((method, *pair))
            if row is None:
                shown.append("n/a")
                continue
            spread = "" if pd.isna(row.std) else f"{plus_minus}{row.std:.2f}"
            arrow = "" if pd.isna(row.against_kd) or row.against_kd == 0 else f" {up if row.against_kd > 0 else down}"
            shown.append(f"{row.mean:.2f}{spread}{arrow}")
        lines.append(f"| {method} | " + " | ".join(shown) + " |")
    return lines


def _tex(line: str) -> str:
    cells = [cell.strip().replace("_", "\\_").replace("→", "$\\to$") for cell in line.strip("|").split("|")]
    return " & ".join(cells) + " \\\\"


def _shown(value: float) -> str:
    return "" if pd.isna(value) else f"{value:.1f}"
