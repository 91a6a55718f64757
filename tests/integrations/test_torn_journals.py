"""State of a search that cannot be read: journals torn by a kill or a full disk, suggestions, trials."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from optuna.trial import TrialState
from tiny_search import TinySearch, in_journal

from kd.runtime.files import read_json

TORN = b'{"op_code":5,"worker_id":"d2f1b9","trial_id":2,"param_na'


@pytest.fixture
def search(tmp_path: Path):
    """Run a numbered trial whose accuracy is x; return its result and what was said."""

    def search(number: int, objective=lambda params: params["x"]):
        tiny = TinySearch(tmp_path)
        return tiny.trial(number, objective), tiny.said

    return search


def glued(journal: bytes) -> bytes:
    """Tear a line, to which the next record was then appended."""
    lines = journal.splitlines(keepends=True)
    return b"".join([*lines[:-1], TORN, lines[-1]])


SPOILT = {
    "torn last line": lambda journal: journal + TORN,
    "empty line": lambda journal: journal + b"\n",
    "empty line in the middle": lambda journal: journal.replace(b"\n", b"\n\n", 3),
    "glued": glued,
    "lost newline": lambda journal: b"".join(journal.rsplit(b"\n", 2)),
    "zeros": lambda journal: journal + bytes(700),
    "zeros and a record": lambda journal: journal + bytes(9) + journal.splitlines(keepends=True)[-1],
    "garbage": lambda journal: journal + b"\xff\xfe\x00 no JSON\n[1, 2]\n3\n{}\nnull\n",
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_a_search_goes_on_and_loses_nothing_that_was_written(spoil, search, tmp_path: Path) -> None:
    journal = tmp_path / "optuna.log"
    before = [search(number)[0] for number in range(3)]
    whole = journal.read_bytes()
    journal.write_bytes(spoil(whole))
    spoilt = journal.read_bytes()
    result, [said] = search(3)
    assert result["value"] == result["params"]["x"]
    [aside] = tmp_path.glob("optuna.log.damaged-*")
    assert aside.read_bytes() == spoilt
    assert said.startswith(f"{journal}: ")
    assert said.endswith(f" records kept; as it was: {aside.name}")
    assert journal.read_bytes().startswith(whole)
    trials = in_journal(journal)
    assert [one.value for one in trials] == [one["value"] for one in [*before, result]]
    assert [one.params for one in trials] == [one["params"] for one in [*before, result]]
    assert search(4)[1] == [], "said once"


def test_a_journal_that_optuna_cannot_read_is_put_aside(search, tmp_path: Path) -> None:
    journal = tmp_path / "optuna.log"
    search(0)
    spoilt = journal.read_bytes().replace(b'"param_name"', b'"pasam_name"', 1)
    journal.write_bytes(spoilt)
    result, [said] = search(1)
    assert result["value"] == result["params"]["x"]
    assert said.startswith(f"{journal}: Optuna cannot read it; a new one is begun")
    [aside] = tmp_path.glob("optuna.log.damaged-*")
    assert aside.read_bytes() == spoilt


def test_a_journal_torn_while_a_trial_is_at_work_takes_its_result(search, tmp_path: Path) -> None:
    journal = tmp_path / "optuna.log"

    def meanwhile(params):
        with journal.open("ab") as file:
            file.write(TORN)
        return params["x"]

    result, [said] = search(0, meanwhile)
    assert "1 torn lines left out" in said
    [told] = in_journal(journal)
    assert (told.value, told.params) == (result["value"], result["params"])


def test_a_trial_that_the_journal_has_lost_is_told_as_a_new_one(search, tmp_path: Path) -> None:
    journal = tmp_path / "optuna.log"
    search(0)
    before = journal.read_bytes()

    def lose(params):
        journal.write_bytes(before)
        return params["x"]

    for _ in range(2):
        result, _ = search(1, lose)
        assert read_json(tmp_path / "trial1/trial.json") == result
        trials = in_journal(journal)
        assert [one.state for one in trials] == [TrialState.COMPLETE] * 2
        assert (trials[1].params, trials[1].value) == (result["params"], result["value"])
    search(1)
    assert len(in_journal(journal)) == 2, "told once"


def test_another_trial_in_its_place_is_not_told(search, tmp_path: Path) -> None:
    """The journal was lost, and another trial has got the number since."""
    journal = tmp_path / "optuna.log"

    def overtaken(params):
        journal.unlink()
        search(7)
        return params["x"]

    result, _ = search(0, overtaken)
    other, mine = in_journal(journal)
    assert other.params == read_json(tmp_path / "trial7/trial.json")["params"]
    assert other.value == other.params["x"]
    assert (mine.params, mine.value) == (result["params"], result["value"])


@pytest.mark.parametrize("content", [b"", b'{"optuna_trial": 0, "par', b"[]", b"3", b"{}", b'{"params": {}}', b"\xff"])
def test_a_suggestion_that_cannot_be_read_is_put_aside(content: bytes, search, tmp_path: Path) -> None:
    (tmp_path / "trial0").mkdir()
    file = tmp_path / "trial0/suggestion.json"
    file.write_bytes(content)
    result, said = search(0)
    assert said == [
        f"{file} cannot be read; put aside as suggestion.unusable.json; the trial begins again with new values"
    ]
    assert (tmp_path / "trial0/suggestion.unusable.json").read_bytes() == content
    assert read_json(file)["params"] == result["params"]


@pytest.mark.parametrize("content", [b"", b'{"number": 0, "val', b"[]", b"3", b"{}"])
def test_a_trial_that_cannot_be_read_is_run_again(content: bytes, tmp_path: Path) -> None:
    search = TinySearch(tmp_path, trials=2)
    assert search.work() == [0, 1]
    file = tmp_path / "trial1/trial.json"
    before = read_json(file)
    file.write_bytes(content)
    assert search.work() == [1]
    assert read_json(file) | {"seconds": 0} == before | {"seconds": 0}
    assert len(search.trials) == 2


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_accuracy_that_is_not_finite_counts_as_diverged(value: float, search, tmp_path: Path) -> None:
    for _ in range(2):
        result, _ = search(0, lambda params: value)
        assert (result["value"], result["note"]) == (None, f"accuracy is {value}")
    assert [one.state for one in in_journal(tmp_path / "optuna.log")] == [TrialState.FAIL]


PROCESS = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tiny_search import TinySearch
search = TinySearch(Path(sys.argv[1]), trials=13)
search.work()
print("\\n".join(search.said))
"""


def test_processes_that_start_together_mend_a_journal_and_lose_no_record(search, tmp_path: Path) -> None:
    first = search(12)[0]
    with (tmp_path / "optuna.log").open("ab") as file:
        file.write(TORN)
    command = [sys.executable, "-c", PROCESS, str(tmp_path), str(Path(__file__).parent)]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    said, errors = zip(*(worker.communicate(timeout=60) for worker in workers), strict=True)
    assert [worker.returncode for worker in workers] == [0, 0, 0], errors
    assert sum("torn lines left out" in text for text in said) == 1
    results = [first, *(read_json(tmp_path / f"trial{number}/trial.json") for number in range(12))]
    trials = in_journal(tmp_path / "optuna.log")
    assert sorted(one.value for one in trials) == sorted(result["value"] for result in results)


def test_a_lock_that_a_killed_trial_left_is_taken_over(tmp_path: Path, search) -> None:
    """Optuna's own lock is a link to the journal; where that path leads nowhere it is waited for without end."""
    search(0)
    (tmp_path / "optuna.log.lock").symlink_to("nowhere/optuna.log")
    assert search(1)[0]["value"] is not None
    assert not (tmp_path / "optuna.log.lock").is_symlink()


@pytest.mark.parametrize("record", [b'{"op_code":99,"worker_id":"x"}', b'{"op_code":5}', b'{"op_code":"5"}'])
def test_whole_records_that_no_reader_takes_are_left_out(tmp_path: Path, search, record: bytes) -> None:
    search(0)
    with (tmp_path / "optuna.log").open("ab") as journal:
        journal.write(record + b"\n")
    result, said = search(1)
    assert result["value"] is not None
    assert "1 torn lines left out" in said[0]


@pytest.mark.parametrize("value", [7.0, None, "0.5"])
def test_a_suggestion_outside_of_the_space_is_put_aside(tmp_path: Path, search, value) -> None:
    (tmp_path / "trial0").mkdir()
    (tmp_path / "trial0/suggestion.json").write_text(
        json.dumps({"optuna_trial": 0, "attempts": 1, "params": {"x": value}}), "utf-8"
    )
    result, said = search(0)
    assert 0 <= result["params"]["x"] <= 1
    assert "put aside as suggestion.unusable.json" in said[0]
