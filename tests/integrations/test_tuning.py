"""Searches: suggestions that outlive a crash, budgets, pruning, the best one's file, workers that share a search."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import optuna
import pandas as pd
import pytest
from tiny_search import TinySearch

from kd.integrations.tuning import ATTEMPTS, begin, best
from kd.reports.figures.search import draw
from kd.runtime.files import read_json, write_json
from kd.runtime.messages import ConfigError
from kd.runtime.yaml_files import read_yaml
from kd.studies.search import Tuning, figures_of, grid

SPACE = {
    "inversion.generator.bn": {"low": 0.001, "high": 1000.0, "log": True, "integer": False},
    "inversion.generator.steps": {"low": 1, "high": 4, "integer": True},
    "inversion.generator.width": {"low": 1, "high": 1024, "log": True, "integer": True},
    "inversion.generator.noise_dim": {"low": 16, "high": 64, "step": 16, "integer": True},
    "replay.alpha": {"low": 0.25, "high": 0.75, "integer": False},
    "replay.beta": {"low": 0.0, "high": 1.0, "step": 0.1, "integer": False},
    "replay.refresh": {"choices": ["drawn", "all"]},
    "replay.priority_feedback": {"choices": [True, False]},
    "inversion.generator.reset_epoch": {"choices": [None, 5]},
}


@pytest.fixture
def search(tmp_path: Path) -> TinySearch:
    return TinySearch(tmp_path / "s", SPACE)


def test_values_are_of_their_kind_and_in_their_range(search: TinySearch) -> None:
    found = [search.trial(number, lambda params: 1.0)["params"] for number in range(12)]
    assert all(list(params) == list(SPACE) for params in found)
    for params in found:
        assert 0.001 <= params["inversion.generator.bn"] <= 1000.0
        assert 0.25 <= params["replay.alpha"] <= 0.75
        assert params["inversion.generator.steps"] in (1, 2, 3, 4)
        assert 1 <= params["inversion.generator.width"] <= 1024
        assert params["inversion.generator.noise_dim"] in (16, 32, 48, 64)
        assert any(params["replay.beta"] == pytest.approx(number / 10) for number in range(11))
        kinds = [type(value) for value in list(params.values())[:-1]]
        assert kinds == [float, int, int, int, float, float, str, bool]
    for key in list(SPACE)[5:]:
        assert len({params[key] for params in found}) > 1
    assert len({params["inversion.generator.bn"] for params in found}) == 12
    # log ranges: about half of the draws lie below the geometric mean, nearly none of a linear range would
    assert sum(params["inversion.generator.bn"] < 1.0 for params in found) >= 2
    assert sum(params["inversion.generator.width"] < 32 for params in found) >= 2


def test_a_trial_writes_what_it_tried(search: TinySearch) -> None:
    result = search.trial(0, lambda params: params["replay.alpha"])
    assert read_json(search.folder / "trial0/trial.json") == result
    assert (result["number"], result["optuna_trial"], result["state"]) == (0, 0, "COMPLETE")
    assert result["value"] == result["params"]["replay.alpha"]
    [noted] = search.trials
    assert (noted.value, noted.params) == (result["value"], result["params"])


def test_a_trials_draw_depends_on_its_number_alone(search: TinySearch, tmp_path: Path) -> None:
    first = search.trial(3, lambda params: 1.0)["params"]
    assert TinySearch(tmp_path / "other", SPACE).trial(3, lambda params: 1.0)["params"] == first
    assert search.trial(4, lambda params: 1.0)["params"] != first


def test_a_stopped_trial_goes_on_with_its_own_values(search: TinySearch) -> None:
    seen = []

    def stopped(params):
        seen.append(params)
        raise KeyboardInterrupt

    for _ in range(ATTEMPTS + 1):
        with pytest.raises(KeyboardInterrupt):
            search.trial(0, stopped)
    result = search.trial(0, lambda params: (seen.append(params), 5.0)[1])
    assert seen == [result["params"]] * (ATTEMPTS + 2), "a wish to stop is no fault of the trial"
    assert [(one.value, one.params) for one in search.trials] == [(5.0, result["params"])]


def test_a_trial_that_dies_again_and_again_has_failed(search: TinySearch) -> None:
    def dies(params):
        raise RuntimeError("as a killed process, it writes nothing")

    for _ in range(ATTEMPTS):
        with pytest.raises(RuntimeError):
            search.trial(0, dies)
    result = search.trial(0, dies)
    assert (result["state"], result["value"], result["note"]) == ("FAIL", None, f"its worker died {ATTEMPTS} times")
    assert [one.state.name for one in search.trials] == ["FAIL"]


def test_a_trial_that_needs_too_much_memory_has_failed(search: TinySearch) -> None:
    torch = pytest.importorskip("torch")

    def large(params):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")

    result = search.trial(0, large)
    assert (result["state"], result["note"]) == ("FAIL", "out of memory: CUDA out of memory. Tried to allocate 2 GiB")


def test_a_trial_run_again_after_its_end_keeps_its_place(search: TinySearch) -> None:
    first, again = (search.trial(0, lambda params: 5.0) | {"seconds": 0} for _ in range(2))
    assert again == first
    assert len(search.trials) == 1


def test_equal_values_are_tried_once(tmp_path: Path) -> None:
    search, calls = TinySearch(tmp_path, {"x": {"choices": [1.0, 2.0]}}, trials=6, sampler="random"), []
    search.work(lambda params, run, report: (calls.append(params["x"]), params["x"])[1])
    assert sorted(calls) == [1.0, 2.0]
    notes = [result["note"] for result in search.results().values()]
    assert sum(note.startswith("same values as trial ") for note in notes) == 4
    assert [one.state.name for one in search.trials] == ["COMPLETE"] * 6


def test_later_trials_learn_from_earlier_ones(tmp_path: Path) -> None:
    search = TinySearch(tmp_path, startup=4)
    values = [search.trial(number, lambda params: -((params["x"] - 0.8) ** 2))["params"]["x"] for number in range(25)]
    assert sum(abs(value - 0.8) for value in values[15:]) / 10 < 0.2


def test_a_grid_is_walked_once(tmp_path: Path) -> None:
    space = {"x": {"low": 0.0, "high": 0.3, "step": 0.1, "integer": False}, "n": {"low": 1, "high": 2, "integer": True}}
    space["word"] = {"choices": ["a", True]}
    assert len(grid(space, 0)) == 16
    search = TinySearch(tmp_path, space, trials=16, sampler="grid")
    assert search.work() == list(range(16))
    tried = [tuple(result["params"].values()) for result in search.results().values()]
    assert len(set(tried)) == 16
    assert {result["params"]["x"] for result in search.results().values()} == {0.0, 0.1, 0.2, 0.3}


def test_a_larger_budget_continues(tmp_path: Path) -> None:
    small = TinySearch(tmp_path, trials=3)
    assert small.work() == [0, 1, 2]
    assert small.work() == []
    before = [path.read_bytes() for path in sorted(tmp_path.glob("trial*/trial.json"))]
    large = TinySearch(tmp_path, trials=5, sampler="random", pruner={"name": "none"}, workers=3)
    assert large.tuning.digest == small.tuning.digest
    assert large.work() == [3, 4]
    assert [path.read_bytes() for path in sorted(tmp_path.glob("trial*/trial.json"))][:3] == before
    assert len(large.trials) == 5


def test_a_budget_in_seconds_is_one_of_computing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10**6, 20))  # each look at it is 20 s later; a trial looks at its begin and its end
    monkeypatch.setattr(
        "kd.integrations.tuning.time", SimpleNamespace(monotonic=lambda: next(clock), time_ns=time.time_ns)
    )
    assert TinySearch(tmp_path, seconds=50.0).work() == [0, 1, 2]
    assert TinySearch(tmp_path, seconds=50.0).work() == []
    assert TinySearch(tmp_path, seconds=90.0).work() == [3, 4]
    assert TinySearch(tmp_path, seconds=900.0, trials=6).work() == [5], "whichever is used first"


def pruning(tmp_path: Path, name: str, **options) -> TinySearch:
    """Six trials that get worse and worse, each of eight epochs; a search of real settings, for their epochs."""
    from conftest import tiny_settings

    settings = tiny_settings("scratch", training__epochs=8, dataset__validation=0.2)
    search = TinySearch(tmp_path, settings=settings, trials=6, startup=2, every=1, pruner={"name": name, **options})
    begun = []

    def objective(params, run, report):
        begun.append(params)
        for epoch in range(1, 9):
            report(epoch, value := 10.0 * epoch - len(begun))
        return value

    search.work(objective)
    return search


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("median", {"warmup": 3}),
        ("percentile", {"percentile": 50.0, "warmup": 3}),
        ("halving", {"reduction": 2}),
        ("hyperband", {"reduction": 2}),
    ],
)
def test_a_pruned_trial_is_a_result_with_its_last_value(name: str, options: dict, tmp_path: Path) -> None:
    search = pruning(tmp_path, name, **options)
    results = search.results()
    pruned = [result for result in results.values() if result["state"] == "PRUNED"]
    assert len(results) == 6
    assert pruned
    for result in pruned:
        assert result["epoch"] < 8
        assert result["value"] == 10.0 * result["epoch"] - (result["number"] + 1)
        assert search.trials[result["number"]].state == optuna.trial.TrialState.PRUNED
        assert search.trials[result["number"]].value == result["value"]
    if "warmup" in options:
        assert [result["epoch"] for result in pruned] == [3] * 4, "not before its warm-up, nor the first two trials"


def test_without_a_pruner_all_trials_end(tmp_path: Path) -> None:
    assert {result["state"] for result in pruning(tmp_path, "none").results().values()} == {"COMPLETE"}


def write_results(search: TinySearch, values: list[tuple[float | None, dict]]) -> None:
    for number, (value, params) in enumerate(values):
        state = "FAIL" if value is None else "COMPLETE"
        fields = {"epoch": None, "seconds": 1.0, "note": "" if value else "loss is nan", "search": search.tuning.digest}
        path = search.folder / f"trial{number}/trial.json"
        path.parent.mkdir(parents=True)
        write_json(path, {"number": number, "state": state, "value": value, "params": params, **fields})


def test_the_best_is_written_as_overrides_and_all_as_a_table_and_figures(tmp_path: Path) -> None:
    search = TinySearch(tmp_path, SPACE | {"inversion.generator.bn": {"low": 1e-8, "high": 1e3, "integer": False}})
    first = {key: values.get("low", values.get("choices", [0])[0]) for key, values in SPACE.items()}
    params = first | {"inversion.generator.bn": 1e-07, "replay.beta": 0.1 + 0.2, "replay.refresh": "all"}
    write_results(search, [(1.0, first), (3.0, params), (2.0, first | {"replay.alpha": 0.5}), (None, first)])
    winner, trials, importances = best(search.folder, search.tuning)
    draw(search.folder / "figures", trials, search.tuning, importances)
    assert (winner["number"], winner["params"]) == (1, params)
    written = read_yaml(search.folder / "best.yaml")
    assert written["inversion"]["generator"]["bn"] == 1e-07
    assert written["replay"] == {"alpha": 0.25, "beta": 0.3, "priority_feedback": True, "refresh": "all"}
    text = (search.folder / "best.yaml").read_text("utf-8")
    assert text.startswith("# trial 1 of 4: validation accuracy 3.00 %\n")
    table = pd.read_csv(search.folder / "trials.csv")
    assert list(table["trial"]) == [0, 1, 2, 3]
    assert list(table["state"]) == ["COMPLETE"] * 3 + ["FAIL"]
    assert list(table["accuracy"][:3]) == [1.0, 3.0, 2.0]
    assert table["note"][3] == "loss is nan"
    drawn = sorted(path.name for path in (search.folder / "figures").iterdir())
    assert drawn == sorted(f"{name}.{end}" for name in ("history", "importances", "plane") for end in ("png", "svg"))


def test_ties_go_to_the_first_trial(tmp_path: Path) -> None:
    search = TinySearch(tmp_path)
    write_results(search, [(1.0, {"x": 0.1}), (2.0, {"x": 0.2}), (2.0, {"x": 0.3}), (2.0, {"x": 0.4})])
    assert best(tmp_path, search.tuning).winner["number"] == 1
    assert figures_of(search.tuning.space) == ["history"], "one setting has nothing to be compared with"


def test_a_search_in_which_every_trial_failed_has_no_best(tmp_path: Path) -> None:
    search = TinySearch(tmp_path)

    def diverges(params):
        raise FloatingPointError("epoch 1: loss is nan")

    assert search.trial(0, diverges)["value"] is None
    with pytest.raises(ConfigError, match="1 failed of 1 trials; the first: epoch 1: loss is nan; narrow the space"):
        best(search.folder, search.tuning)
    search.trial(1, lambda params: 50.0)
    assert best(search.folder, search.tuning).winner["number"] == 1


def test_another_search_of_the_same_name_is_put_aside_and_found_again(tmp_path: Path) -> None:
    one = Tuning("s", {}, {"x": {"low": 0.0, "high": 1.0, "integer": False}}, seed=0, trials=2)
    two = Tuning("s", {}, {"x": {"low": 0.0, "high": 9.0, "integer": False}}, seed=0, trials=1)
    said: list[str] = []
    for tuning, runs in ((one, [0, 1]), (two, [0]), (one, []), (two, [])):
        begin(tmp_path / "s", tuning, said.append)
        assert TinySearch(tmp_path / "s", tuning.space, trials=tuning.trials).work() == runs
        assert read_json(tmp_path / "s/search.json")["digest"] == tuning.digest
    assert "the trials so far are put aside in" in said[0]
    assert "the search is as it was before; its trials are back" in said[2]


WORKER = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tiny_search import TinySearch
search, left = TinySearch(Path(sys.argv[1]), trials=12), int(sys.argv[3])
def objective(params, run, report):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return params["x"]
print(search.work(objective))
"""


def test_a_killed_worker_loses_no_trial_and_none_is_run_twice(tmp_path: Path) -> None:
    """A worker is killed in its second trial; another one does that and the rest. Then a larger budget."""
    command = [sys.executable, "-c", WORKER, str(tmp_path), str(Path(__file__).parent)]
    killed = subprocess.run([*command, "2"], timeout=120)
    assert killed.returncode == -signal.SIGKILL
    search = TinySearch(tmp_path, trials=12)
    assert sorted(search.results()) == [0]
    params = read_json(tmp_path / "trial1/suggestion.json")["params"]
    other = subprocess.run([*command, "0"], stdout=subprocess.PIPE, text=True, timeout=120)
    assert json.loads(other.stdout) == list(range(1, 12)), "the dead one's trial first"
    assert search.results()[1]["params"] == params
    assert sorted(search.results()) == list(range(12))
    assert [one.state.name for one in search.trials] == ["COMPLETE"] * 12
    assert TinySearch(tmp_path, trials=14).work() == [12, 13]


def test_a_changed_value_of_a_trial_is_seen(tmp_path: Path) -> None:
    search = TinySearch(tmp_path / "s", trials=2)
    search.work()
    file = search.folder / "trial0/trial.json"
    assert 0 in search.results()
    write_json(file, read_json(file) | {"value": 99.0})
    assert 0 not in search.results()


@pytest.mark.parametrize("text", ["", '{"digest": "0123456789"}', None])
def test_a_search_whose_description_is_damaged_keeps_its_trials(tmp_path: Path, text: str | None) -> None:
    search = TinySearch(tmp_path / "s", trials=2)
    begin(search.folder, search.tuning, search.said.append)
    search.work()
    before = search.results()
    file = search.folder / "search.json"
    file.unlink() if text is None else file.write_text(text)
    begin(search.folder, search.tuning, search.said.append)
    assert search.results() == before
