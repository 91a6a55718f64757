"""Broken and odd files of single runs are accepted safely or refused readably."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import tiny_run
from hostile import Dumper, assert_readable, assert_round_trip, listing
from mutations import mutations, outcomes

from kd.__main__ import main
from kd.settings.merging import merge
from kd.settings.run import Run

RUN_MUTATIONS = 150


@pytest.fixture
def by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, parsed_once: None
) -> Callable[[bytes], list[Run] | None]:
    """`python -m kd run --settings FILE` in which no run is made: those that would be, or None after error lines."""
    asked: list[Run] = []
    monkeypatch.setattr("kd.runs.worker.work_through", lambda runs, *_, **__: asked.extend(runs) or {})
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "run.yaml"

    def run(content: bytes) -> list[Run] | None:
        file.write_bytes(content)
        asked.clear()
        code = main(["run", "--settings", str(file), "--results", str(tmp_path / "results")])
        said = capsys.readouterr().err
        if code == 0:
            for one in asked:
                assert_round_trip(one)
                assert_whole(one)
            return list(asked)
        assert code == 1
        lines = said.splitlines()
        assert lines
        assert all(line.startswith("error: ") for line in lines), said[:300]
        assert_readable(said.rstrip("\n"), file)
        return None

    return run


def assert_whole(run: Run) -> None:
    """A run that is accepted has what its kind needs, or it would fail only when it is its turn."""
    needed = {"train": ("training", "objective"), "distill": ("training", "objective", "teachers")}
    needed["datafree"] = ("teachers", "inversion", "modulation", "replay", "distillation")
    assert all(getattr(run, name) is not None for name in needed[run.kind]), f"{run.kind} without what it needs"
    if run.teacher is not None:
        assert run.teacher.kind == "train"
        assert_whole(run.teacher)


def run_files() -> list[dict[str, Any]]:
    runs = [tiny_run(method).as_dict() for method in ("scratch", "kd", "ssdkd")]
    return [*runs, {"settings": runs[1], "seconds": {"total": 1.0}}, {"runs": [runs[0], runs[1]]}]


def test_mutated_run_files_are_accepted_safely_or_refused_readably(by_hand: Callable) -> None:
    accepted, refused, wrong = outcomes(mutations(RUN_MUTATIONS, run_files()), by_hand)
    assert not wrong, f"{len(wrong)} of {RUN_MUTATIONS}:\n" + "\n".join(wrong)
    assert accepted >= 5
    assert refused >= 90
    assert listing(Path.cwd()) == {"run.yaml"}


WITHOUT = [(method, key) for method in ("scratch", "kd", "ssdkd") for key in tiny_run(method).as_dict()]


@pytest.mark.parametrize(("method", "key"), WITHOUT, ids=["-".join(pair) for pair in WITHOUT])
def test_a_run_that_lacks_what_its_kind_needs_is_refused(by_hand: Callable, method: str, key: str) -> None:
    settings = tiny_run(method).as_dict()
    assert by_hand(yaml.safe_dump(settings).encode()) == [tiny_run(method)]
    del settings[key]
    assert by_hand(yaml.safe_dump(settings).encode()) is None


@pytest.mark.parametrize(
    "change",
    [
        {"seed": -1},
        {"seed": 2**70},
        {"seed": None},
        {"seed": True},
        {"kind": "distil"},
        {"kind": "train"},
        {"teacher": {"seed": -1}},
        {"teacher": {"training": None}},
        {"teacher": {"kind": "datafree"}},
        {"teacher": {"objective": None}},
        {"teachers": None},
        {"teachers": []},
        {"teachers": 5},
        {"objective": ["ce"]},
        {"objective": {"ce": 5}},
        {"objective": {"ce": {"weight": 0}, "kd": {"weight": 0}}},
        {"objective": None},
        {"training": {"milestones": 5}},
        {"training": {"milestones": None}},
        {"training": {"milestones": "abc"}},
        {"training": {"lr": 10**400}},
        {"training": {1: 2, "a": 3}},
        {"dataset": {"classes": 1}},
        {"dataset": {"name": "nowhere"}},
        {"model": "resnet9"},
        {"model": ["resnet8"]},
        {"scale": float("nan")},
        {1: 2},
        {None: None, "x": 1},
        {"colour\n": 1},
    ],
    ids=str,
)
def test_a_mistake_in_a_run_file_is_refused(by_hand: Callable, change: dict) -> None:
    settings = merge(tiny_run("kd").as_dict(), change)
    if isinstance(settings.get("teacher"), dict):  # changes of its teacher
        settings["teachers"] = [merge(settings["teachers"][0], settings.pop("teacher"))]
    assert by_hand(yaml.dump(settings, Dumper=Dumper, sort_keys=False).encode()) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"runs: 5",
        b"runs: {}",
        b"runs: [1]",
        b"runs: null",
        b"settings: null",
        b"settings: [1]",
        b"{}",
        b"runs: [{}]",
    ],
    ids=str,
)
def test_a_run_file_of_another_shape_is_refused(by_hand: Callable, content: bytes) -> None:
    assert by_hand(content) is None
