"""What benchmarks/data_free_work.py makes of a finished study, against sums by hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import yaml
from conftest import ROOT

from kd.runtime.files import write_json
from kd.studies.study import load_study

SECONDS = {  # of inversion and distillation, in the quick study's 40 epochs
    "fast": (45 * 0.5, 40 * 1.0),
    "deepinversion": (40 * 3.0, 40 * 1.0),
    "original": (0.0, 40 * 1.0),
}


def test_epochs_fill_the_time_and_published_steps_are_extrapolated(tmp_path: Path) -> None:
    name = "dfkd-baselines-cifar100"
    given = {"study": name, "quick": True, "results": str(tmp_path)}
    study = load_study(ROOT / "config/config.yaml", ROOT / "workflow/schemas", given)
    rows = []
    for row in study.table.query("experiment == 'equal-steps'").itertuples():
        if row.method in SECONDS:
            (tmp_path / row.path).mkdir(parents=True)
            write_json(tmp_path / row.path / "run.json", {"settings": study.runs[row.path].as_dict()})
            inversion, distillation = SECONDS[row.method]
            made = study.runs[row.path].inversion.settings
            rows.append(
                {
                    **{key: getattr(row, key) for key in ("experiment", "method", "path")},
                    "seconds_inversion": inversion or None,
                    "seconds_distillation": distillation,
                    "generator_steps": inversion and (made["warmup"] + 40) * made["steps"],
                    "student_steps": 1280,
                    "computed": "cpu, 1 thread",
                    "commit": "12345e678",
                }
            )
    folder = tmp_path / "studies" / f"{name}-quick"
    folder.mkdir(parents=True)
    pd.DataFrame(rows).to_csv(folder / "results.csv", index=False)
    command = [sys.executable, ROOT / "benchmarks/data_free_work.py", folder]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    cells = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in done.stdout.splitlines() if "->" in line}
    # fast: 45 x 5 steps in 22.5 s, 1,280 steps in 40 s; the time is its own
    assert cells["fast"][1:] == ["3", "100.0", "31.2", "62.5", "5", "5", "", "40 -> 40 |"]
    # deepinversion: 2,000 steps instead of 100 for each of 40 batches: 20 x 120 + 40; 62.5 s are 15.6 epochs of 4 s
    assert cells["deepinversion"][1:] == ["3", "30.0", "31.2", "160.0", "100", "2000", "2,440", "40 -> 16 |"]
    assert cells["original"][1:] == ["3", "", "31.2", "40.0", "", "", "", "40 -> 62 |"]
    settings = yaml.safe_load(done.stdout.partition("settings:")[2])["methods"]
    assert settings["deepinversion"] == {"distillation": {"training": {"epochs": 16}}}
    other = subprocess.run([*command, "--like", "ssdkd"], cwd=tmp_path, capture_output=True, text=True)
    assert other.returncode == 1
    assert "has no finished data-free run of ssdkd" in other.stderr
