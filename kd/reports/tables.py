"""Collect the files of finished runs in one tidy frame, and make tables of it. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kd.registry.datasets import SYNTHETIC
from kd.reports.networks_table import costs
from kd.runs.folder import RECORD, metrics
from kd.runtime.files import read_json
from kd.runtime.messages import escaped
from kd.studies.claims import in_markdown, interval, markdown_row, paired_p, score_of

GROUP = ["teacher", "student", "method", "ablation", "scale"]
RGB = "rgb"  # the view of a network that sees all of an image


def collect(table: pd.DataFrame, root: Path) -> pd.DataFrame:
    """Return the study's table with columns from each run's files; a row per run and experiment.

    Numbers are those of the last epoch. The columns of metrics.json keep their names; run.json adds seconds_<phase>,
    counts, memory, commit, device, how it was computed there, in words, and what the teacher sees of an image; next to
    them stands what the networks cost.
    """
    records = {path: _sound(_record(root / path, root), table) for path in dict.fromkeys(table["path"])}
    return pd.concat([table, pd.DataFrame([records[path] for path in table["path"]], index=table.index)], axis=1)


def read_results(file: Path | str) -> pd.DataFrame:
    """Return the frame of a results.csv. A commit is text, even if it looks like a number: 4000638780, 12345e6789."""
    return pd.read_csv(file, dtype={"commit": str})


def _record(folder: Path, root: Path) -> dict[str, Any]:
    run = read_json(folder / RECORD)
    teachers = run.get("settings", {}).get("teachers")
    return {
        **({"teacher_view": teachers[0].get("view", RGB)} if teachers else {}),
        **metrics(folder),
        **costs(run, folder, root),
        **{f"seconds_{phase}": seconds for phase, seconds in run["seconds"].items()},
        **run["counts"],
        "peak_memory_mb": run["peak_memory_mb"],
        "device": run["device"],
        "computed": _in_words(run["device"], run.get("computed") or {}),
        "commit": run["git"]["commit"][:10] + ("+changes" if run["git"]["diff"] else ""),
    }


def _sound(record: dict[str, Any], table: pd.DataFrame) -> dict[str, Any]:
    """Return what a run's files say as cells that no program obeys, none of them in place of the study's own."""
    named = {key: value for key, value in record.items() if key.isidentifier() and key not in table}
    return {key: _text(value) if isinstance(value, str) else value for key, value in named.items()}


def _text(value: str) -> str:
    """Return a text in one line; one that begins like a formula is set in quotes, or a spreadsheet would compute it."""
    text = escaped(value)
    return f"'{text}'" if text.startswith(("=", "+", "-", "@")) else text


def _in_words(device: str, computed: dict[str, Any]) -> str:
    """Return how a run was computed, such as "NVIDIA H200, captured, 4 together"; {} is of an older kd."""
    captured, not_captured = computed.get("captured"), computed.get("not_captured")
    words = [
        device,
        ("partly captured" if not_captured else "captured") if captured else "",
        "compiled" if computed.get("compiled") else "",
        f"{computed['together']} together" if computed.get("together", 1) > 1 else "",
        f"shared by {computed['processes']} processes" if computed.get("processes", 1) > 1 else "",
    ]
    return ", ".join(filter(None, words))


def computed_note(results: pd.DataFrame) -> str:
    """Return the line under a table that says which rows were computed how; empty where all were computed alike.

    What most runs have in common is said of "the others".
    """
    if "computed" not in results or results["computed"].nunique() < 2:
        return ""
    named = [name for name in GROUP if results[name].nunique() > 1]
    if (results.groupby(GROUP, dropna=False)["computed"].nunique() > 1).any():
        named.append("seed")
    *rare, common = results["computed"].value_counts(ascending=True).index
    parts = []
    for computed in rare:
        rows = results.loc[results["computed"] == computed, named].drop_duplicates()
        labels = ["/".join(_label(name, value) for name, value in zip(named, row, strict=True)) for row in rows.values]
        parts.append(f"{', '.join(labels)}: {computed}")
    ways = "; ".join([*parts, f"the others: {common}"])
    return f"\nComputed in different ways, so that seconds do not compare. {in_markdown(ways)}.\n"


def _label(name: str, value: Any) -> str:
    return f"{100 * value:.4g} %" if name == "scale" else f"seed {value}" if name == "seed" else str(value)


def summarise(results: pd.DataFrame) -> pd.DataFrame:
    """Return mean and standard deviation over seeds for each group of one experiment, in the order of the study.

    `difference` is the mean paired difference in accuracy (same seed, teacher, student and scale) to the first method
    and ablation of the experiment, `difference_se` its standard error, `difference_low` and `difference_high` its 95 %
    interval, `difference_p` the two-sided p of the paired t-test, `difference_n` the number of pairs; empty for that
    first one.
    """
    first = results.iloc[0]
    same = results[(results["method"] == first["method"]) & (results["ablation"] == first["ablation"])]
    rows = []
    for key, group in results.groupby(GROUP, sort=False, dropna=False):
        row = dict(zip(GROUP, key, strict=True)) | {
            "n": len(group),
            "accuracy": group["accuracy"].mean(),
            "accuracy_std": group["accuracy"].std(),
            "seconds": group["seconds_total"].mean(),
            "seconds_std": group["seconds_total"].std(),
        }
        for phase in ("inversion", "distillation", "training"):
            if f"seconds_{phase}" in group:
                row[f"seconds_{phase}"] = group[f"seconds_{phase}"].mean()
        if group.get("quoted", pd.Series(dtype=float)).notna().any():
            row["quoted"] = group["quoted"].iloc[0]
        for name in ("agreement", "teacher_accuracy", "images", "student_steps", "generator_steps"):
            if name in group:
                row[name] = group[name].mean()
        if (row["method"], row["ablation"]) != (first["method"], first["ablation"]):
            difference = differences(group, same)
            row["difference"] = difference.mean()
            row["difference_se"] = difference.std() / np.sqrt(len(difference))
            found = interval(difference)
            row |= {"difference_low": found.low, "difference_high": found.high, "difference_n": found.n}
            row["difference_p"] = paired_p(difference)
        rows.append(row)
    summary = pd.DataFrame(rows)
    summary.attrs["score"] = score_of(results)
    return summary


def differences(runs: pd.DataFrame, others: pd.DataFrame) -> pd.Series:
    """Return by how much runs of an experiment are above others of the same pair, seed and, where the others have it,
    scale; in points of accuracy.
    """
    found = [pd.Series(dtype=float)]
    for scale, rows in runs.groupby("scale"):
        keys = ["teacher", "student", "seed"] + (["scale"] if scale in set(others["scale"]) else [])
        pairs = rows.merge(others, on=keys, suffixes=("", "_others"))
        found.append(pairs["accuracy"] - pairs["accuracy_others"])
    return pd.concat(found, ignore_index=True)


def markdown(summary: pd.DataFrame, title: str) -> str:
    """Return a summary as a Markdown table: mean ± std (n), paired difference ± standard error, seconds."""
    first, score = summary.iloc[0], summary.attrs.get("score", "accuracy")
    name = first["method"] if first["ablation"] == "full" else f"{first['method']} ({first['ablation']})"
    columns = {
        "pair": [f"{row.teacher} → {row.student}" for row in summary.itertuples()],
        "method": summary["method"],
        "ablation": summary["ablation"],
        "scale": [f"{scale:.4g}" for scale in summary["scale"]],
        f"{score} %": [plus_minus(row.accuracy, row.accuracy_std) for row in summary.itertuples()],
        "n": summary["n"],
    }
    if "quoted" in summary:
        columns["quoted %"] = [_number(value, ".2f") for value in summary["quoted"]]
    if "difference" in summary:
        columns[f"paired difference to {name}"] = [
            "" if pd.isna(row.difference) else plus_minus(row.difference, row.difference_se, sign=True)
            for row in summary.itertuples()
        ]
        columns["p"] = [_number(row.difference_p, ".2g") for row in summary.itertuples()]
    columns["seconds"] = [f"{value:.1f}" for value in summary["seconds"]]
    for phase in ("inversion", "distillation"):
        if f"seconds_{phase}" in summary:
            columns[f"of them {phase}"] = [_number(value, ".1f") for value in summary[f"seconds_{phase}"]]
    if "images" in summary:
        columns["images made"] = [_number(value, ".0f") for value in summary["images"]]
    if "generator_steps" in summary:
        columns["inversion steps"] = [_number(value, ".0f") for value in summary["generator_steps"]]
    columns["student steps"] = [f"{value:.0f}" for value in summary["student_steps"]]
    cells = [[name, *map(str, values)] for name, values in columns.items()]
    widths = [max(3, *map(len, column)) for column in cells]
    lines = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in zip(*cells, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return f"### {title}\n\n" + "\n".join(map(markdown_row, lines)) + "\n"


def scored_note(rows: pd.DataFrame, results: pd.DataFrame) -> str:
    """Return the line under a table that names its images, where not all of a study's runs are scored on the same."""
    if results["scored"].nunique() == 1:
        return ""
    return f"\nScored on the {' and '.join(sorted(set(rows['scored'])))} images.\n"


def study_markdown(title: str, parts: list[str], results: pd.DataFrame) -> str:
    """Return the text of table.md: what was measured and on what, then a table per experiment."""
    known = teacher_accuracies(results)
    lines = [f"## {title}", ""]
    scored = results["scored"].iloc[0] if results["scored"].nunique() == 1 else ""
    images = f"the {scored} images" if scored else "the images named below"
    if scored == SYNTHETIC:
        lines += ["Agreement with the teacher, in %, on synthetic images that the student never saw; there are no"]
        lines += ["others to score it on. After the last epoch, mean ± standard deviation over"]
    else:
        score = score_of(results)
        lines += [
            f"{score[0].upper()}{score[1:]} in % of {images} after the last epoch, mean ± standard deviation over"
        ]
    lines += ["n seeds of the student. Seconds are computing time only, without start-up and the teacher's training;"]
    lines += ["runs made together share them. Differences are paired by seed, ± standard error.", ""]
    for row in known.itertuples():
        spread = f"{row.min:.2f}" if row.min == row.max else f"{row.min:.2f} to {row.max:.2f}"
        view = "" if row.teacher_view == RGB else f" ({row.teacher_view})"
        lines += [f"Teacher {row.teacher}{view} on {row.dataset}: {spread} %."]
    devices = "; ".join(sorted(set(results.get("computed", results["device"]))))
    lines += [in_markdown(f"Device: {devices}. Code: {', '.join(sorted(set(results['commit'])))}."), ""]
    return "\n".join(lines) + "\n" + "\n".join(parts)


def teacher_accuracies(results: pd.DataFrame) -> pd.DataFrame:
    """Return `min` and `max` of the teachers' accuracies in %, a row per dataset, teacher and teacher_view."""
    columns = results.columns.union(["teacher_accuracy", "teacher_view"])
    teachers = results.reindex(columns=columns).dropna(subset=["teacher_accuracy"])
    views = teachers["teacher_view"].astype(object).fillna(RGB)
    return teachers.groupby(["dataset", "teacher", views])["teacher_accuracy"].agg(["min", "max"]).reset_index()


def plus_minus(mean: float, spread: float, sign: bool = False) -> str:
    """Return two numbers as tables and figures write them; an unknown spread is left out."""
    shown = f"{mean:+.2f}" if sign else f"{mean:.2f}"
    return shown if pd.isna(spread) else f"{shown} ± {spread:.2f}"


def _number(value: float, form: str) -> str:
    return "" if pd.isna(value) else format(value, form)
