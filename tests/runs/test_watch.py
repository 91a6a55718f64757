"""A student that is watched while it trains: scored every few epochs, with the numbers of one that is not."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import COMPUTE, execute, tiny_run

from kd.runs.watch import HeldOut, Scores
from kd.settings.run import Run
from kd.studies.search import Pruned


def history(folder: Path) -> list[dict[str, str]]:
    with (folder / "history.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def watched(run: Run, store: Path, folder: Path, objective: str = "accuracy", held_out: Path = Path()) -> list:
    """Make a run that is scored every second epoch; return what was reported."""
    reported: list[tuple[int, float]] = []
    scores = Scores(run, objective, 2, lambda epoch, value: reported.append((epoch, value)), held_out)
    execute(run, store, folder, watch=scores)
    return reported


@pytest.mark.parametrize("method", ["scratch", "ssdkd"])
def test_watching_changes_no_number(method: str, store: Path, tmp_path: Path) -> None:
    run = tiny_run(method, dataset__validation=0.2, training__epochs=3)
    execute(run.teacher, store, store / run.teacher.path) if run.teacher else None
    metrics = execute(run, store, tmp_path / "alone")
    reported = watched(run, store, tmp_path / "watched")
    for name in ("metrics.json", "synthetic.npz") if method == "ssdkd" else ("metrics.json",):
        assert (tmp_path / "watched" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    rows = history(tmp_path / "watched")
    scored = [
        (int(float(row["epoch"])), float(row["validation_accuracy"])) for row in rows if row["validation_accuracy"]
    ]
    assert scored == reported
    # every second epoch and the last; of data-free runs not the first, in which only the generator learns
    assert [epoch for epoch, _ in reported] == ([2, 3] if method == "scratch" else [2, 4])
    assert reported[-1][1] == metrics["accuracy"]


def test_a_search_reads_no_test_image(store: Path, tmp_path: Path) -> None:
    """The prepared file without them gives the same numbers."""
    run = tiny_run("scratch", dataset__validation=0.2)
    content = torch.load(store / run.data_path, weights_only=True)
    without = {name: value for name, value in content.items() if not name.startswith("test_")}
    assert len(without) == len(content) - 2
    (tmp_path / run.data_path).parent.mkdir()
    torch.save(without, tmp_path / run.data_path)
    assert watched(run, tmp_path, tmp_path / "without") == watched(run, store, tmp_path / "with")
    with pytest.raises(KeyError, match="test_"):
        execute(tiny_run("scratch"), tmp_path, tmp_path / "final")


def test_agreement_is_measured_on_images_of_another_run(store: Path, tmp_path: Path) -> None:
    run = tiny_run("ssdkd", inversion__generator__lr_generator=0.02)
    other = run.with_seed(7)
    file = tmp_path / "held-out/images.npz"
    teachers = [store / run.teacher.path / "weights.pt"]
    execute(other, store, tmp_path / "other", watch=HeldOut(other, teachers, file))
    with np.load(file) as content, np.load(tmp_path / "other/synthetic.npz") as made:
        assert content["images"].dtype == np.uint8
        assert (np.bincount(content["classes"], minlength=10) == made["class_counts"]).all(), "the whole buffer"
    reported = watched(run, store, tmp_path / "run", "agreement", file)
    assert [epoch for epoch, _ in reported] == [2, 4]
    assert float(history(tmp_path / "run")[-1]["held_out_agreement"]) == reported[-1][1]
    with np.load(file) as content:
        flipped = {"images": content["images"], "classes": (content["classes"] + 1) % 10}
    np.savez_compressed(file, **flipped)
    wrong = watched(run, store, tmp_path / "again", "agreement", file)
    assert wrong[-1][1] <= 100 - reported[-1][1]


def test_a_run_that_is_ended_by_its_watch_is_unfinished(store: Path, tmp_path: Path) -> None:
    run = tiny_run("scratch", dataset__validation=0.2)

    def stop(epoch: int, value: float) -> None:
        raise Pruned(f"epoch {epoch}")

    with pytest.raises(Pruned, match="epoch 1"):
        execute(run, store, tmp_path, COMPUTE, watch=Scores(run, "accuracy", 1, stop, Path()))
    assert not (tmp_path / "run.json").exists()


def test_a_student_that_becomes_another_network_is_not_scored_before(store: Path, tmp_path: Path) -> None:
    assert watched(tiny_run("simkd", dataset__validation=0.2), store, tmp_path) == []
