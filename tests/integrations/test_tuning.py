"""Searches: suggestions that outlive a crash, the best one's file, and processes that share a journal."""

import subprocess
import sys

import optuna
import pandas as pd
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from kd.integrations.tuning import best, trial
from kd.runtime.files import read_json, write_json
from kd.runtime.messages import ConfigError
from kd.runtime.yaml_files import read_yaml

SPACE = {
    "inversion.generator.bn": {"low": 0.001, "high": 1000.0, "log": True, "integer": False},
    "inversion.generator.steps": {"low": 1, "high": 4, "integer": True},
    "inversion.generator.width": {"low": 1, "high": 1024, "log": True, "integer": True},
    "replay.alpha": {"low": 0.25, "high": 0.75, "integer": False},
    "replay.refresh": {"choices": ["drawn", "all"]},
    "replay.priority_feedback": {"choices": [True, False]},
}


def study(journal):
    return optuna.load_study(study_name="s", storage=JournalStorage(JournalFileBackend(str(journal))))


@pytest.fixture
def search(tmp_path):
    """Run a numbered trial in its folder."""

    def search(number, objective=lambda params: 1.0, space=SPACE, journal=tmp_path / "deep/optuna.log"):
        return trial(journal, "s", space, number, tmp_path / f"trial{number}", objective)

    search.journal = tmp_path / "deep/optuna.log"
    return search


def test_values_are_of_their_kind_and_in_their_range(search):
    found = [search(number)["params"] for number in range(12)]
    assert all(list(params) == list(SPACE) for params in found)
    for params in found:
        assert 0.001 <= params["inversion.generator.bn"] <= 1000.0
        assert 0.25 <= params["replay.alpha"] <= 0.75
        assert params["inversion.generator.steps"] in (1, 2, 3, 4)
        assert 1 <= params["inversion.generator.width"] <= 1024
        assert params["replay.refresh"] in ("drawn", "all")
        assert [type(value) for value in params.values()] == [float, int, int, float, str, bool]
    for key in ("inversion.generator.steps", "replay.refresh", "replay.priority_feedback"):
        assert len({params[key] for params in found}) > 1
    assert len({params["inversion.generator.bn"] for params in found}) == 12
    # log ranges: about half of the draws lie below the geometric mean, nearly none of a linear range would
    assert sum(params["inversion.generator.bn"] < 1.0 for params in found) >= 2
    assert sum(params["inversion.generator.width"] < 32 for params in found) >= 2


def test_a_trial_writes_what_it_tried(search, tmp_path):
    result = search(0, lambda params: params["replay.alpha"])
    assert read_json(tmp_path / "trial0/trial.json") == result
    assert (result["number"], result["optuna_trial"]) == (0, 0)
    assert result["accuracy"] == result["params"]["replay.alpha"]
    [noted] = study(search.journal).trials
    assert (noted.value, noted.params) == (result["accuracy"], result["params"])


def test_a_trials_draw_depends_on_its_number_alone(search, tmp_path):
    first = search(3)["params"]
    other = trial(tmp_path / "other.log", "s", SPACE, 3, tmp_path / "other", lambda params: 1.0)["params"]
    assert first == other
    assert search(4)["params"] != first


def test_a_killed_trial_goes_on_with_its_own_values(search):
    seen = []

    def killed(params):
        seen.append(params)
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            search(0, killed)
    result = search(0, lambda params: (seen.append(params), 5.0)[1])
    assert seen == [result["params"]] * 3
    [only] = study(search.journal).trials
    assert (only.value, only.params) == (5.0, result["params"])


def test_a_trial_run_again_after_its_end_keeps_its_place(search):
    first = search(0, lambda params: 5.0)
    again = search(0, lambda params: 5.0)
    assert again == first
    assert len(study(search.journal).trials) == 1


def test_later_trials_learn_from_earlier_ones(search):
    space = {"x": {"low": 0.0, "high": 1.0, "integer": False}}
    values = [search(number, lambda params: -((params["x"] - 0.8) ** 2), space)["params"]["x"] for number in range(25)]
    assert sum(abs(value - 0.8) for value in values[15:]) / 10 < 0.2


def results(tmp_path, values):
    paths = []
    for number, (value, params) in enumerate(values):
        path = tmp_path / f"trial{number}.json"
        write_json(
            path, {"number": number, "optuna_trial": 9 - number, "accuracy": value, "params": params, "note": ""}
        )
        paths.append(path)
    return paths


def test_the_best_is_written_as_overrides_and_all_as_a_table(tmp_path):
    params = {
        "inversion.generator.bn": 1e-07,
        "inversion.generator.steps": 3,
        "replay.refresh": "all",
        "distillation.training.lr": 1e20,
    }
    params |= {"replay.priority_feedback": False, "inversion.generator.bn_momentum": 0.1}
    paths = results(
        tmp_path, [(1.0, {"inversion.generator.bn": 0.5}), (3.0, params), (2.0, {"inversion.generator.bn": 0.7})]
    )
    winner = best(paths, tmp_path / "best.yaml", tmp_path / "trials.csv")
    assert (winner["number"], winner["params"]) == (1, params)
    assert read_yaml(tmp_path / "best.yaml") == {
        "inversion": {"generator": {"bn": 1e-07, "steps": 3, "bn_momentum": 0.1}},
        "replay": {"refresh": "all", "priority_feedback": False},
        "distillation": {"training": {"lr": 1e20}},
    }
    assert (tmp_path / "best.yaml").read_text().startswith("# trial 1 of 3: validation accuracy 3.00 %\n")
    table = pd.read_csv(tmp_path / "trials.csv")
    assert list(table["trial"]) == [0, 1, 2]
    assert list(table["accuracy"]) == [1.0, 3.0, 2.0]
    assert list(table["inversion.generator.bn"]) == [0.5, 1e-07, 0.7]


def test_ties_go_to_the_first_trial_whatever_the_order_of_files(tmp_path):
    paths = results(tmp_path, [(1.0, {"a": 0}), (2.0, {"a": 1}), (2.0, {"a": 2}), (2.0, {"a": 3})])
    written = set()
    for order in (paths, paths[::-1], [paths[2], paths[0], paths[3], paths[1]]):
        assert best(order, tmp_path / "best.yaml", tmp_path / "trials.csv")["number"] == 1
        written.add((tmp_path / "best.yaml").read_bytes() + (tmp_path / "trials.csv").read_bytes())
    assert len(written) == 1


PROCESS = """
import sys, time
from pathlib import Path
from kd.integrations.tuning import trial
root, worker = Path(sys.argv[1]), int(sys.argv[2])
space = {"x": {"low": 0.0, "high": 1.0, "integer": False}}
for number in range(worker, 12, 4):
    trial(root / "optuna.log", "s", space, number, root / f"trial{number}", lambda params: params["x"])
"""


def test_processes_share_a_journal(tmp_path):
    workers = [
        subprocess.Popen([sys.executable, "-c", PROCESS, str(tmp_path), str(worker)], stderr=subprocess.PIPE, text=True)
        for worker in range(4)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=60)
        assert worker.returncode == 0, errors
    found = [read_json(tmp_path / f"trial{number}/trial.json") for number in range(12)]
    assert [result["number"] for result in found] == list(range(12))
    assert sorted(result["optuna_trial"] for result in found) == list(range(12))
    trials = study(tmp_path / "optuna.log").trials
    assert len(trials) == 12
    assert all(one.state == optuna.trial.TrialState.COMPLETE for one in trials)
    for result in found:
        assert trials[result["optuna_trial"]].params == result["params"]
        assert trials[result["optuna_trial"]].value == result["params"]["x"]


def test_a_trial_that_diverges_is_an_answer(search, tmp_path):
    def diverges(params):
        raise FloatingPointError("epoch 1: loss is nan")

    assert search(0, diverges)["accuracy"] is None
    files = [tmp_path / "trial0/trial.json"]
    with pytest.raises(ConfigError, match="all 1 trials diverged; the first: epoch 1: loss is nan; narrow the space"):
        best(files, tmp_path / "best.yaml", tmp_path / "trials.csv")
    search(1, lambda params: 50.0)
    files.append(tmp_path / "trial1/trial.json")
    assert best(files, tmp_path / "best.yaml", tmp_path / "trials.csv")["number"] == 1
