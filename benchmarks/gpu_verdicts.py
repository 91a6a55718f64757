"""Verdicts of gpu_evidence.py: bars in seconds, published numbers next to ours, bf16 against float32."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

if find_spec("kd") is None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.append(str(Path(__file__).resolve().parent))

import numpy as np
import pandas as pd
from gpu_plan import matches, pair

from kd.reports.tables import read_results
from kd.studies.claims import interval


@dataclass(frozen=True)
class Bar:
    """Bars of a run: seconds (its wall-clock share where several share the GPU), and accuracy by data set."""

    what: str
    rows: dict[str, Any]
    seconds: float
    accuracy: dict[str, float] = field(default_factory=dict)


SSDKD = {"method": ["ssdkd"], "ablation": ["full"], "scale": [0.1]}
BARS = [
    Bar("SSD-KD, WRN-40-2 to WRN-16-1", {**SSDKD, **pair("wrn_40_2", "wrn_16_1")}, 45),
    Bar("SSD-KD, ResNet-34 to ResNet-18", {**SSDKD, **pair("resnet34", "resnet18")}, 85),
    Bar(
        "teacher WRN-40-2", {"method": ["teacher"], "student": ["wrn_40_2"]}, 110, {"cifar10": 94.87, "cifar100": 75.83}
    ),
]
# Fang et al., AAAI 2022, with their own teachers: teacher, student from scratch, Fast10, in %.
PUBLISHED = {
    ("cifar10", "wrn_40_2", "wrn_16_1"): (94.87, 91.12, 89.29),
    ("cifar10", "wrn_40_2", "wrn_40_1"): (94.87, 93.94, 92.51),
    ("cifar10", "wrn_40_2", "wrn_16_2"): (94.87, 93.95, 92.45),
    ("cifar10", "resnet34", "resnet18"): (95.70, 95.20, 94.05),
    ("cifar100", "wrn_40_2", "wrn_16_1"): (75.83, 65.31, 54.02),
    ("cifar100", "wrn_40_2", "wrn_40_1"): (75.83, 72.19, 63.91),
    ("cifar100", "wrn_40_2", "wrn_16_2"): (75.83, 73.56, 65.12),
    ("cifar100", "resnet34", "resnet18"): (78.05, 77.10, 74.34),
}


def bars(results: Path) -> list[str]:
    """Return a table of each bar, a run's time and wall-clock share, and published next to our numbers."""
    if not results.exists():
        return []
    rows = read_results(results).assign(share=np.nan)
    lines = ["| bar | data | allowed | seconds of a run | share per run | accuracy % | runs | |", "|---" * 8 + "|"]
    for _, of_device in rows.groupby("device"):
        rows.loc[of_device.index, "share"] = shares(of_device)
    for bar in BARS:
        chosen = rows[matches(rows, bar.rows, False)]
        for (dataset, device, precision), group in chosen.groupby(["dataset", "device", "precision"]):
            apart, seconds, accuracy = (group[key].mean() for key in ("share", "seconds_total", "accuracy"))
            wanted = bar.accuracy.get(dataset, 0.0)
            met = "met" if min(apart, seconds) < bar.seconds and accuracy >= wanted else "MISSED"
            allowed = f"{bar.seconds:g} s" + (f", {wanted} %" if wanted else "")
            shown = f"{seconds:.1f} | {apart:.1f} | {accuracy:.2f} | {len(group)} | {met}, {device}"
            lines.append(f"| {bar.what}, {precision} | {dataset} | {allowed} | {shown} |")
    lines += ["", "| pair | teacher %, ours (published) | Fast10 % at 10 %, ours | at 100 %, ours (published) |"]
    lines += ["|---" * 4 + "|"]
    fast10 = rows[(rows["method"] == "fast10") & (rows["ablation"] == "full")]
    for key, group in fast10.groupby(["dataset", "teacher", "student", "precision"]):
        if key[:3] in PUBLISHED:
            teacher, _, fast = PUBLISHED[key[:3]]
            found = [group["accuracy"][group["scale"] == scale].mean() for scale in (0.1, 1.0)]
            at_ten, at_all = ("" if np.isnan(value) else f"{value:.2f} " for value in found)
            ours = f"{group['teacher_accuracy'].mean():.2f} ({teacher}) | {at_ten}| {at_all}({fast})"
            lines.append(f"| {', '.join(key)} | {ours} |")
    return [*lines, *precisions(rows)]


def precisions(rows: pd.DataFrame) -> list[str]:
    """Compare bf16 with float32 by seed: equal within noise if the 95 % interval of the mean difference contains 0."""
    keys = ["dataset", "teacher", "student", "method", "ablation", "scale", "seed"]
    both = rows[rows["precision"] == "bf16"].merge(rows[rows["precision"] == "float32"], on=keys)
    lines = ["", "| bf16 minus float32 | accuracy, points (95 % interval) | seeds | |", "|---|---|---|---|"]
    for key, group in both.groupby(keys[:-1], dropna=False):
        found = interval(group["accuracy_x"] - group["accuracy_y"])
        verdict = "not decided" if found.n < 2 else "equal within noise" if found.low <= 0 <= found.high else "DIFFERS"
        shown = f"{found.mean:+.2f} ({found.low:+.2f} to {found.high:+.2f})"
        lines.append(f"| {', '.join(map(str, key))} | {shown} | {found.n} | {verdict} |")
    return lines if len(both) else []


def shares(runs: pd.DataFrame) -> np.ndarray:
    """Return the wall-clock share of each run: while n runs overlap, each is charged 1/n.

    A resumed run is treated as one interval. Kept teachers have no start, which follows from their seconds, and perhaps
    no times at all: then their share is not known (NaN), and they overlap with nothing.
    """
    origin = pd.Timestamp(0, tz="UTC")
    times = (pd.to_datetime(runs[name], utc=True) for name in ("started", "finished"))  # of a column without any, too
    start, end = ((time - origin).dt.total_seconds() for time in times)
    start, end = np.fmin(start, end - runs["seconds_total"]).to_numpy(), end.to_numpy()
    known = ~np.isnan(start + end)
    shares, edges = np.where(known, 0.0, np.nan), np.unique([start[known], end[known]])
    for first, last in pairwise(edges):
        running = (start <= first) & (end >= last)
        shares[running] += (last - first) / max(1, running.sum())
    return shares
