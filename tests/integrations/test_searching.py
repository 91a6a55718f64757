"""A worker of a search whose trials are runs: agreement on images that none has seen, values that do not fit."""

from __future__ import annotations

import csv
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
from conftest import COMPUTE, tiny_settings

from kd.integrations.searching import search
from kd.runtime.files import read_json
from kd.studies.search import Tuning
from kd.studies.trials import is_complete, read_results


def test_agreement_without_an_image_and_values_that_do_not_fit(store: Path, tmp_path: Path) -> None:
    shutil.copytree(store, tmp_path / "results")
    settings = tiny_settings("ssdkd", scale=0.3, distillation__steps=3, inversion__generator__lr_generator=0.02)
    space = {"distillation.rounds": {"choices": [1, 2]}}
    tuning = Tuning("t", settings, space, 0, "agreement", trials=2, sampler="grid", every=1)
    said: list[str] = []

    def work() -> list[int]:
        given = (tmp_path / "results", COMPUTE, lambda run, folder: nullcontext(), None)
        return search(tuning, "mine", *given, said.append)

    assert work() == [0, 1]
    folder = tmp_path / "results/studies/mine/tune/t"
    by_rounds = {result["params"]["distillation.rounds"]: result for result in read_results(folder, tuning).values()}
    assert (by_rounds[1]["state"], by_rounds[2]["state"]) == ("COMPLETE", "FAIL")
    assert "distillation.rounds: got 2; allowed: a divisor of distillation.steps (3)" in by_rounds[2]["note"]
    run = folder / f"trial{by_rounds[1]['number']}/run"
    with (run / "history.csv").open(encoding="utf-8") as file:
        last = list(csv.DictReader(file))[-1]
    assert by_rounds[1]["value"] == float(last["held_out_agreement"])
    assert by_rounds[1]["epoch"] == 4
    assert read_json(folder / "held-out/run/run.json")["settings"]["seed"] != 0
    assert is_complete(folder, tuning, read_results(folder, tuning))
    images = (folder / "held-out/images.npz").stat().st_mtime_ns
    number = by_rounds[1]["number"]
    (folder / f"trial{number}/trial.json").unlink()  # killed after its run was complete
    (folder / "held-out/run/lock.1.json").unlink(missing_ok=True)
    assert work() == [number]
    again = {result["params"]["distillation.rounds"]: result for result in read_results(folder, tuning).values()}
    for result in (again[1], by_rounds[1]):
        for key in ("seconds", "checksum"):
            del result[key]
    assert again[1] == by_rounds[1]
    assert (folder / "held-out/images.npz").stat().st_mtime_ns == images, "made once"


@pytest.mark.parametrize("objective", ["accuracy", "agreement"])
def test_the_run_that_judges_has_the_trials_teacher(objective: str) -> None:
    settings = tiny_settings("ssdkd", scale=0.3, teacher__seed=None, dataset__validation=0.2)
    tuning = Tuning("t", settings, {"replay.alpha": {"low": 0.0, "high": 1.0}}, 3, objective, trials=1)
    trial, judge = tuning.run({"replay.alpha": 0.5}), tuning.held_out_run
    assert trial.teachers == judge.teachers
    assert (judge.seed, trial.seed) == (1_000_006, 3)
    assert judge.digest != trial.digest
