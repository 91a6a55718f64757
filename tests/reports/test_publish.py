"""Tables and figures of the finished runs of a study, without Snakemake."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from conftest import PAIR
from fake_results import loaded
from test_tables import frame

from kd.__main__ import main
from kd.data.raw import Source
from kd.models.build import build
from kd.reports.publish import publish, write_tables
from kd.runs.worker import work_through
from kd.runtime.messages import ConfigError
from kd.settings.shapes import Compute
from kd.studies.study import Study

EXPERIMENTS = {
    "data": {"view": "pairs", "pairs": [PAIR], "methods": ["kd", "scratch", "sp"], "seeds": [0, 1]},
    "free": {"pairs": [PAIR], "methods": ["ssdkd"], "scales": [0.5], "seeds": [0]},
}
CLAIMS = {
    "sp-above-kd": {"says": "SP is above KD.", "tests": [{"of": {"method": "sp"}, "to": {"method": "kd"}, "above": 0}]},
    "kd-at-all": {
        "says": "KD is not a hundred points below.",
        "tests": [{"of": {"method": "kd"}, "to": {"method": "scratch"}, "above": -100}],
    },
}


def study_of(folder: Path) -> Study:
    """Load a study of these experiments and of `extra` of `loaded`, whose runs no test makes."""
    return loaded(folder, experiments=EXPERIMENTS, claims=CLAIMS)


def finish(study: Study, methods: set[str]) -> None:
    paths = study.table[study.table["method"].isin(methods) & (study.table["experiment"] != "extra")]["path"]
    runs = [study.runs[path] for path in paths]
    assert work_through(runs, study.root, Compute.by_hand(device="cpu"), Source(None, study.root, False)) == {}


def weights_of(model: str) -> int:
    """The number of parameters of a network for the digits."""
    network = build(model, num_classes=10, in_channels=1, image_size=8)
    return sum(parameter.numel() for parameter in network.parameters())


def test_tables_and_figures_of_what_is_finished(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    study, out = study_of(tmp_path), tmp_path / "out"
    command = ["tables", str(tmp_path / "watched.yaml"), "--out", str(out), "--config", f"results={study.root}"]
    assert main(command) == 1
    assert "no run is finished" in capsys.readouterr().err
    assert not out.exists()

    finish(study, {"kd", "scratch"})
    assert main(command) == 0
    assert f"4 of {len(study.students)} runs" in capsys.readouterr().out
    results = pd.read_csv(out / "results.csv")
    assert sorted(zip(results["method"], results["seed"], strict=True)) == [
        (method, seed) for method in ("kd", "scratch") for seed in (0, 1)
    ]
    text = (out / "table.md").read_text()
    assert "sp-above-kd: not decided" in text
    assert "kd-at-all: holds" in text
    assert {file.name for file in out.rglob("*.png")} == {"data.png", "correlations.png"}
    assert f"So far: {len(study.students) - 4} runs are not finished." in (out / "report.html").read_text("utf-8")
    assert "\\begin{tabular}" in (out / "tables/data-by-pair.tex").read_text()

    finish(study, {"sp", "ssdkd"})
    assert publish(study, out) == 7
    assert len(pd.read_csv(out / "results.csv")) == 7
    [row] = pd.read_csv(out / "tables/_networks.csv").to_dict("records")
    assert (row["teacher"], row["student"], row["methods"]) == (*PAIR, "all")
    assert [row["teacher_parameters"], row["parameters"]] == [weights_of(name) for name in PAIR]
    assert f"| {PAIR[0]} → {PAIR[1]} | all | " in (out / "table.md").read_text()
    assert {file.name for file in out.rglob("*.png")} >= {"free.png", "synthetic-images.png", "synthetic-course.png"}

    assert main([*command, "--latency"]) == 0
    said = capsys.readouterr().out
    assert [f"{name}: " in said for name in PAIR] == [True, True], "once for the student and once for the teacher"
    assert said.count(" ms for one image, ") == 2
    assert "| ms for one image | images/s in batches of 64 |" in (out / "table.md").read_text()


def test_pairs_of_several_experiments_have_a_table_together(tmp_path: Path) -> None:
    """CRD's headline is a mean over two experiments, of equal and of other style."""
    results = pd.concat(
        frame({("kd", "full", 1.0): [72.0, 72.0], ("scratch", "full", 1.0): [70.0, 70.0], ("crd", "full", 1.0): crd})
        .assign(experiment=experiment, student=student)
        .assign(path=lambda rows: rows["student"] + rows["path"])
        for experiment, student, crd in (("same", "a", [73.0, 73.0]), ("other", "b", [75.0, 75.0]))
    )
    experiments = {name: {"title": name, "view": "pairs", "note": f" of {name}"} for name in ("same", "other")}
    write_tables(results, "T", experiments, {}, tmp_path)
    text = (tmp_path / "table.md").read_text()
    assert "| crd | 50.0 | 50.0 | 50.0 |" in text, "of one experiment"
    assert "### All experiments, by pairs" in text
    assert [text.count(note) for note in (" of same", " of other")] == [3, 3], "below each table of theirs"
    assert "| crd | 50.0 | 150.0 | 100.0 (-535 to 735) | 100.0 |" in text
    assert len(pd.read_csv(tmp_path / "tables/_all-by-pair.csv")) == 6
    assert (tmp_path / "tables/_all-by-pair.tex").read_text().startswith("\\begin{tabular}{lcc}")
    assert "Computed in different ways" not in text
    write_tables(results.assign(computed=results["experiment"]), "T", experiments, {}, tmp_path)
    assert (tmp_path / "table.md").read_text().count("Computed in different ways") == 1, "both in the last table only"

    write_tables(
        results, "T", {**experiments, "other": {"title": "other", "view": "methods", "note": ""}}, {}, tmp_path / "one"
    )
    assert not list((tmp_path / "one").rglob("_all*"))


def test_by_default_they_lie_next_to_the_workflows_own(tmp_path: Path) -> None:
    study = study_of(tmp_path)
    finish(study, {"scratch"})
    assert main(["tables", str(tmp_path / "watched.yaml"), "--config", f"results={study.root}"]) == 0
    assert (study.root / "studies/watched/so-far/table.md").exists()
    with pytest.raises(ConfigError, match="no run is finished"):
        publish(loaded(tmp_path, given={"results": str(tmp_path / "elsewhere")}), tmp_path / "out")
