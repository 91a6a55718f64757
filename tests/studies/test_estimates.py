"""Time left and disk, estimated from finished runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from conftest import PAIR
from fake_results import (
    fake_end,
    fake_finished,
    fake_lock,
    find,
    left,
    loaded,
    rows_of,
)

from kd.studies import status as state
from kd.studies.study import Study


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return loaded(tmp_path)


def test_without_a_finished_run_the_time_is_unknown(study: Study) -> None:
    assert {path: left(study, study.runs[path]) for path in study.runs} == dict.fromkeys(study.runs)
    for text in (state.status(study), state.plan(study)):
        assert rows_of(text)["together"][-3:] == ["6", "runs", "unknown"]
    assert re.search(r"^hours     6 runs unknown, estimated from 0 finished runs$", state.plan(study), re.MULTILINE)


def test_a_finished_run_leaves_nothing(study: Study) -> None:
    for run in study.runs.values():
        fake_finished(study, run)
    assert {left(study, run) for run in study.runs.values()} == {0.0}
    plan = state.plan(study)
    assert rows_of(plan)["together"] == ["6", "0", "0:00:00"]
    assert re.search(r"^runs +6, 6 of them done", plan, re.MULTILINE)


def test_time_comes_from_other_seeds_of_the_same_settings(study: Study) -> None:
    phases = {"inversion": 60.0, "distillation": 30.0, "evaluation": 10.0}
    fake_finished(study, find(study, "teacher"))
    fake_finished(study, find(study, "ssdkd", 0), phases)
    assert left(study, find(study, "ssdkd", 1)) == pytest.approx(100.0)
    assert rows_of(state.status(study))["free"][-1] == "0:01:40"


def test_the_latest_five_of_the_same_settings_count(tmp_path: Path) -> None:
    study = loaded(tmp_path, experiments={"free": {"seeds": list(range(8))}})
    for seed, seconds in enumerate([900.0, 10.0, 20.0, 30.0, 40.0, 50.0]):
        fake_finished(
            study,
            find(study, "ssdkd", seed),
            {"inversion": seconds, "distillation": 0.0},
            finished=f"2026-01-0{seed + 1}T00:00:00Z",
        )
    assert left(study, find(study, "ssdkd", 7)) == pytest.approx(30.0)


def test_time_of_alike_networks_is_scaled_by_the_images(tmp_path: Path) -> None:
    """Half the epochs and half the data: a quarter of the training, all of the evaluation."""
    before = loaded(tmp_path, settings={"training": {"epochs": 4}})
    fake_finished(before, find(before, "kd"), {"training": 80.0, "evaluation": 6.0})
    study = loaded(tmp_path, experiments={"data": {"scales": [0.5]}})
    assert find(study, "kd").training.epochs == 2
    assert left(study, find(study, "kd")) == pytest.approx(80.0 / 4 + 6.0)
    assert left(study, find(study, "scratch")) is None  # another kind
    assert left(study, find(study, "ssdkd")) is None


def test_time_of_data_free_runs_is_scaled_by_phase(tmp_path: Path) -> None:
    before = loaded(tmp_path)
    fake_finished(before, find(before, "ssdkd"), {"inversion": 80.0, "distillation": 70.0, "evaluation": 6.0})
    double = {"inversion": {"generator": {"steps": 4}}, "distillation": {"passes": 2.0}, "replay": {"full_size": 128}}
    study = loaded(tmp_path, settings=double, experiments={"free": {"scales": [1.0]}})
    # 4 epochs of twice the steps; 3 epochs of 16 steps of 16 images instead of 4 (of 50 images)
    assert left(study, find(study, "ssdkd")) == pytest.approx(80.0 * 2 + 70.0 * 16 / 4 + 6.0)
    study = loaded(tmp_path, settings={"distillation": {"rounds": 3}})
    # three times the inversions; 6 steps an epoch instead of 4
    assert left(study, find(study, "ssdkd")) == pytest.approx(80.0 * 3 + 70.0 * 6 / 4 + 6.0)


def test_time_of_the_same_kind_on_the_same_data_is_the_last_resort(tmp_path: Path) -> None:
    before = loaded(tmp_path)
    fake_finished(before, find(before, "kd"))
    study = loaded(tmp_path, experiments={"data": {"pairs": [["vgg8", "resnet14"]]}})
    assert left(study, find(study, "kd")) == pytest.approx(100.0)
    other = loaded(tmp_path, settings={"dataset": {"image_size": 16}})
    assert left(other, find(other, "kd")) is None


def test_alike_networks_go_before_the_same_kind(tmp_path: Path) -> None:
    before = loaded(tmp_path, experiments={"data": {"pairs": [PAIR, ["vgg8", "resnet14"]]}})
    near, far = (run for run in before.runs.values() if run.kind == "distill")
    fake_finished(before, near, {"training": 5.0, "evaluation": 0.0})
    fake_finished(before, far, {"training": 500.0, "evaluation": 0.0})
    study = loaded(tmp_path, settings={"training": {"epochs": 4}})
    assert left(study, find(study, "kd")) == pytest.approx(10.0)


def test_a_running_run_goes_by_its_own_pace(study: Study) -> None:
    fake_finished(study, find(study, "ssdkd", 0))
    fake_lock(study, find(study, "ssdkd", 1), done=3, total=12, seconds=30.0)
    assert left(study, find(study, "ssdkd", 1)) == pytest.approx(90.0)
    fake_lock(study, find(study, "ssdkd", 1), done=0, total=12, seconds=0.0)
    assert left(study, find(study, "ssdkd", 1)) == pytest.approx(100.0)


def test_a_stopped_run_goes_on_at_its_own_pace(study: Study) -> None:
    fake_end(study, find(study, "scratch"), None, done=9, total=12, seconds=90.0)
    assert left(study, find(study, "scratch")) == pytest.approx(30.0)


def test_known_and_unknown_times_are_told_apart(study: Study) -> None:
    fake_finished(study, find(study, "teacher"), code="0123456789")  # will be made again, and its student with it
    fake_finished(study, find(study, "ssdkd", 0))
    plan = state.plan(study)
    assert rows_of(plan)["teachers"] == ["1", "1", "0:01:40"]
    assert rows_of(plan)["free"] == ["2", "2", "0:03:20"]
    # `scratch` is a run of the teacher's kind and `fast` one of ssdkd's; kd is of another
    assert rows_of(plan)["data"] == ["2", "2", "0:01:40", "+", "1", "runs", "unknown"]
    assert rows_of(plan)["together"] == ["6", "6", "0:08:20", "+", "1", "runs", "unknown"]
    assert "\nhours     0.14 + 1 runs unknown, estimated from 2 finished runs\n" in plan


def test_runs_of_other_studies_and_versions_help_or_are_left_out(study: Study) -> None:
    fake_finished(study, find(study, "ssdkd", 0))
    odd = study.root / "runs/digits/a--b/datafree-0123456789"
    for number, text in enumerate(["", "[]", "{}", '{"settings": {"kind": "train"}}', '{"settings": 5}', "5"]):
        folder = odd / f"seed{number}"
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(text)
        (folder / "metrics.json").write_text("{}")
    whole = json.loads((study.root / find(study, "ssdkd", 0).path / "run.json").read_text())
    for number, change in enumerate(
        [{"seconds": {}}, {"seconds": None}, {"finished": 5}, {"finished": None}, {"train_images": "x"}]
    ):
        folder = odd / f"seed{10 + number}"
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps(whole | change))
        (folder / "metrics.json").write_text("{}")
    assert left(study, find(study, "ssdkd", 1)) == pytest.approx(100.0)
    assert state.plan(study)
    assert state.status(study)


def test_disk_is_estimated_from_runs_alike(study: Study) -> None:
    fake_finished(study, find(study, "teacher"), size=1_000_000)
    fake_finished(study, find(study, "ssdkd", 0), size=3_000_000)
    # two data-free runs with the same networks; scratch and kd have none that is alike
    assert re.search(r"^disk +6\.0 MB \+ 2 runs unknown$", state.plan(study), re.MULTILINE)
    for method in ("scratch", "kd"):
        fake_finished(study, find(study, method), size=2_000_000)
    assert re.search(r"^disk +6\.0 MB$", state.plan(study), re.MULTILINE)


def test_jobs_of_a_plan(study: Study) -> None:
    def jobs() -> str:
        return re.search(r"^jobs +(.*)$", state.plan(study), re.MULTILINE)[1]

    assert set(jobs().split(", ")) == {"2 train", "1 distill", "3 datafree", "1 prepare_data"}
    for path in study.datasets:
        (study.root / path).parent.mkdir(parents=True, exist_ok=True)
        (study.root / path).touch()
    fake_finished(study, find(study, "teacher"))
    assert set(jobs().split(", ")) == {"1 train", "1 distill", "3 datafree"}
    for run in study.runs.values():
        fake_finished(study, run)
    assert jobs() == "none"
