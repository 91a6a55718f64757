"""From frames and the arrays of runs to figures. Imports no torch, and matplotlib only to draw."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kd.reports.tables import GROUP, plus_minus

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999"]  # Okabe and Ito


def figure(view: str, summary: pd.DataFrame, results: pd.DataFrame, title: str) -> Any:
    """The figure of an experiment, by its view: scale, modules, methods or pairs."""
    draw = {"scale": _scale_figure, "modules": _bars_figure, "methods": _bars_figure, "pairs": _pairs_figure}[view]
    return draw(summary, results, title)


def _scale_figure(summary: pd.DataFrame, results: pd.DataFrame, title: str) -> Any:
    """Accuracy and seconds against the data scale, a line per pair, method and ablation."""
    figure, (left, right) = _pyplot().subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    curves = summary.assign(label=_labels(summary)).groupby("label", sort=False)
    for colour, (label, curve) in zip(_colours(len(curves)), curves, strict=True):
        curve = curve.sort_values("scale")
        percent = 100 * curve["scale"]
        left.errorbar(
            percent, curve["accuracy"], curve["accuracy_std"], marker="o", capsize=3, color=colour, label=label
        )
        right.plot(percent, curve["seconds"], marker="o", color=colour, label=label)
        for phase, style in (("inversion", ":"), ("distillation", "--")):
            if curve.get(f"seconds_{phase}", pd.Series(dtype=float)).notna().any():
                right.plot(percent, curve[f"seconds_{phase}"], marker=".", linestyle=style, color=colour)
    if results.get("teacher_accuracy", pd.Series(dtype=float)).notna().any():
        left.axhline(results["teacher_accuracy"].max(), color="0.5", linestyle="--", linewidth=1, label="teacher")
    ticks = sorted({100 * scale for scale in summary["scale"]})
    for axis in (left, right):
        axis.set_xscale("log")
        axis.set_xticks(ticks, [f"{tick:.4g}" for tick in ticks])
        axis.minorticks_off()
        axis.set_xlabel("data scale, % of the training set")
        axis.grid(alpha=0.3)
    left.set_ylabel("accuracy, %")
    left.legend(fontsize=8)
    phases = " (dotted: inversion, dashed: distillation)" if "seconds_inversion" in summary else ""
    right.set_ylabel(f"seconds{phases}")
    right.set_ylim(bottom=0)
    figure.suptitle(title)
    return figure


def _bars_figure(summary: pd.DataFrame, results: pd.DataFrame, title: str) -> Any:
    """Accuracy of every seed with its mean, and seconds, a line per method and ablation."""
    labels = _labels(summary, scale=summary["scale"].nunique() > 1)
    height = 1.6 + 0.42 * len(summary)
    figure, (left, right) = _pyplot().subplots(
        1, 2, figsize=(10, height), layout="constrained", sharey=True, width_ratios=[2, 1]
    )
    places = np.arange(len(summary))[::-1]
    for colour, place, (_, row) in zip(_colours(len(summary)), places, summary.iterrows(), strict=True):
        seeds = results[np.logical_and.reduce([results[name] == row[name] for name in GROUP])]
        left.plot(seeds["accuracy"], [place] * len(seeds), "o", color=colour, alpha=0.45, markersize=6)
        left.plot(row["accuracy"], place, "|", color=colour, markersize=18, markeredgewidth=3)
        left.annotate(
            plus_minus(row["accuracy"], row["accuracy_std"]),
            (row["accuracy"], place),
            textcoords="offset points",
            xytext=(0, 10),
            ha="center",
            fontsize=8,
        )
        right.barh(place, row["seconds"], color=colour, height=0.55)
        right.annotate(f" {row['seconds']:.0f}", (row["seconds"], place), va="center", fontsize=8)
    left.set_yticks(places, labels)
    left.set_ylim(-0.6, len(summary) - 0.2)
    left.margins(x=0.12)
    left.set_xlabel("accuracy, % (points: seeds, bar: mean)")
    right.set_xlabel("seconds")
    right.margins(x=0.15)
    left.grid(axis="x", alpha=0.3)
    figure.suptitle(title)
    return figure


def _pairs_figure(summary: pd.DataFrame, results: pd.DataFrame, title: str) -> Any:
    """Paired difference of each method to the first one: a point per pair of networks, a bar for their mean."""
    first = summary.iloc[0]
    rest = summary[summary["difference"].notna()] if "difference" in summary else summary.iloc[:0]
    methods = list(dict.fromkeys(_labels(rest.assign(teacher="", student=""))))
    rest = rest.assign(label=_labels(rest.assign(teacher="", student="")))
    pairs = list(dict.fromkeys(zip(rest["teacher"], rest["student"], strict=True)))
    figure, axis = _pyplot().subplots(figsize=(9, 1.8 + 0.36 * len(methods)), layout="constrained")
    apart = [0.0] if len(pairs) == 1 else np.linspace(0.25, -0.25, len(pairs))  # pairs of a method beside each other
    for colour, pair, shift in zip(_colours(len(pairs)), pairs, apart, strict=True):
        rows = rest[(rest["teacher"] == pair[0]) & (rest["student"] == pair[1])]
        places = [len(methods) - 1 - methods.index(label) + shift for label in rows["label"]]
        axis.errorbar(
            rows["difference"], places, xerr=rows["difference_se"], fmt="o", color=colour, label=" → ".join(pair)
        )
    for place, method in enumerate(reversed(methods)):
        mean = rest.loc[rest["label"] == method, "difference"].mean()
        axis.plot(mean, place, "|", color="black", markersize=18, markeredgewidth=2)
    axis.axvline(0, color="0.5", linestyle="--", linewidth=1)
    axis.set_yticks(range(len(methods)), methods[::-1])
    axis.set_ylim(-0.6, max(len(methods), 1) - 0.4)
    axis.set_xlabel(
        f"paired difference in accuracy to {first['method']}, points (± standard error; bar: mean over pairs)"
    )
    axis.grid(axis="x", alpha=0.3)
    if pairs:
        axis.legend(fontsize=8, loc="best")
    figure.suptitle(title)
    return figure


def image_grid(sets: dict[str, dict[str, np.ndarray]]) -> Any:
    """Stored synthetic images, a panel per run; sorted by the teacher's class."""
    columns = math.ceil(math.sqrt(len(sets)))
    rows = -(-len(sets) // columns)
    figure, axes = _pyplot().subplots(
        rows, columns, figsize=(3.6 * columns, 3.9 * rows), layout="constrained", squeeze=False
    )
    for axis in axes.flat:
        axis.axis("off")
    for axis, (label, arrays) in zip(axes.flat, sets.items(), strict=False):
        axis.imshow(_tiles(arrays["images"]), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axis.set_title(label, fontsize=9)
    return figure


def _tiles(images: np.ndarray) -> np.ndarray:
    """[n, C, S, S] uint8 -> one picture [H, W] or [H, W, 3] of 8 columns with a white line between."""
    count, channels, size, _ = images.shape
    across = min(8, count)
    down = -(-count // across)
    picture = np.full((down * (size + 1) - 1, across * (size + 1) - 1, channels), 255, dtype=np.uint8)
    for number, image in enumerate(images):
        top, left = number // across * (size + 1), number % across * (size + 1)
        picture[top : top + size, left : left + size] = image.transpose(1, 2, 0)
    return picture[..., 0] if channels == 1 else picture


def correlations(matrices: dict[str, np.ndarray]) -> Any:
    """Differences of logit correlations [K, K], a panel per method, all on one scale (CRD's figure)."""
    columns = min(6, math.ceil(math.sqrt(len(matrices))))
    rows = -(-len(matrices) // columns)
    figure, axes = _pyplot().subplots(
        rows, columns, figsize=(2.6 * columns + 0.8, 2.8 * rows), layout="constrained", squeeze=False
    )
    limit = max(1e-6, *(np.quantile(np.abs(matrix), 0.99) for matrix in matrices.values()))
    for axis in axes.flat:
        axis.axis("off")
    for axis, (label, matrix) in zip(axes.flat, matrices.items(), strict=False):
        shown = axis.imshow(matrix, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
        axis.set_title(f"{label}\nmean |difference| {np.abs(matrix).mean():.3f}", fontsize=8)
    figure.colorbar(shown, ax=axes, shrink=0.8, label="student - teacher")
    return figure


def histograms(sets: dict[str, dict[str, np.ndarray]], classes: list[str]) -> Any:
    """Class and confidence histograms of the synthetic set, a line per run; the teacher's view of stored images."""
    figure, (left, right) = _pyplot().subplots(1, 2, figsize=(10, 4), layout="constrained")
    for colour, (label, arrays) in zip(_colours(len(sets)), sets.items(), strict=True):
        share = 100 * arrays["class_counts"] / arrays["class_counts"].sum()
        left.plot(np.arange(len(share)), share, marker="o", markersize=4, linewidth=1, color=colour, label=label)
        counts = arrays["confidence_counts"]
        right.stairs(100 * counts / counts.sum(), np.linspace(0, 1, len(counts) + 1), color=colour, linewidth=1.6)
    left.axhline(100 / len(classes), color="0.5", linestyle="--", linewidth=1, label="balanced")
    left.set_xlabel("class")
    if len(classes) <= 20:
        left.set_xticks(range(len(classes)), classes)
    left.set_ylabel("share of the synthetic set, %")
    left.set_ylim(bottom=0)
    left.legend(fontsize=8)
    right.set_xlabel("teacher's confidence")
    right.set_ylabel("share of the synthetic set, %")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    return figure


def course(sets: dict[str, dict[str, np.ndarray]], histories: dict[str, pd.DataFrame], most: int = 6) -> Any:
    """How the synthetic set changes over the epochs, a column per run (the first `most` that synthesised anything).

    From above: share of each class in the buffer; the teacher's confidence in the images just made; priorities in the
    buffer (median, quartiles, extremes); the student's divergence from the teacher on samples as stored and as drawn.
    """
    shown = [label for label, arrays in sets.items() if "class_counts_by_epoch" in arrays][:most]
    if not shown:
        return _pyplot().figure(figsize=(4, 1))
    figure, axes = _pyplot().subplots(
        4,
        len(shown),
        figsize=(1.5 + 3.1 * len(shown), 10),
        layout="constrained",
        squeeze=False,
        sharex="col",
        sharey="row",
    )
    for column, label in zip(axes.T, shown, strict=True):
        classes, confidence, priorities, gap = column
        arrays, history = sets[label], histories[label]
        epochs = np.arange(1, len(arrays["priorities_by_epoch"]) + 1)
        _heat(classes, arrays["class_counts_by_epoch"], (0, arrays["class_counts_by_epoch"].shape[1]))
        _heat(confidence, arrays["confidence_counts_by_epoch"], (0, 1))
        low, first, median, third, high = arrays["priorities_by_epoch"].T
        priorities.fill_between(epochs, low, high, color=COLOURS[0], alpha=0.15, linewidth=0)
        priorities.fill_between(epochs, first, third, color=COLOURS[0], alpha=0.35, linewidth=0)
        priorities.plot(epochs, median, color=COLOURS[0])
        priorities.set_yscale("symlog", linthresh=1e-3)
        if "gap_stored" in history:
            for name, colour in (("stored", COLOURS[2]), ("drawn", COLOURS[1])):
                values = history[["epoch", f"gap_{name}"]].dropna()
                gap.plot(values["epoch"], values[f"gap_{name}"], marker=".", color=colour, label=f"as {name}")
            gap.set_yscale("log")
            gap.legend(fontsize=8)
        classes.set_title(label, fontsize=9)
        gap.set_xlabel("epoch")
    for axis, name in zip(
        axes[:, 0],
        ("class, share in the buffer", "teacher's confidence", "priority", "KL(teacher || student)"),
        strict=True,
    ):
        axis.set_ylabel(name)
    return figure


def _heat(axis: Any, counts: np.ndarray, extent: tuple[float, float]) -> None:
    """[epochs, bins] as shares of each epoch, darker for more."""
    share = (counts / counts.sum(1, keepdims=True)).T
    axis.imshow(share, origin="lower", aspect="auto", cmap="Blues", vmin=0, extent=(0.5, share.shape[1] + 0.5, *extent))


def save(figure: Any, path: Path) -> None:
    """PNG and SVG beside each other; the same figure gives the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _pyplot().rc_context({"svg.hashsalt": "kd"}):
        figure.savefig(path.with_suffix(".png"), dpi=130, metadata={"Software": None})
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    _pyplot().close(figure)


def _labels(summary: pd.DataFrame, scale: bool = False) -> list[str]:
    """What tells the rows apart: the method, the ablation unless full, the pair and scale where they differ."""
    pairs = summary[["teacher", "student"]].drop_duplicates()
    labels = []
    for row in summary.itertuples():
        parts = [row.method if row.ablation == "full" else f"{row.method}, {row.ablation}"]
        parts += [f"{row.teacher} → {row.student}"] if len(pairs) > 1 else []
        parts += [f"{100 * row.scale:.4g} %"] if scale else []
        labels.append(", ".join(parts))
    return labels


def _colours(count: int) -> list[str]:
    return [COLOURS[number % len(COLOURS)] for number in range(count)]


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
