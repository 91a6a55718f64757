"""A mistake in settings or options by hand ends in one line, before anything starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import tiny_run
from made_runs import KD, SCRATCH

from kd import __main__ as command_line
from kd.runs import worker

MISSING = "(missing)"
MISTAKES: list[tuple[str, str, Any, str]] = [
    # method, key, value written there, what the error line says
    ("kd", "training.schedule", "cosin", "training.schedule: got 'cosin'; did you mean 'cosine'?"),
    ("kd", "teachers.0.training.schedule", "cosin", "teachers: training.schedule: got 'cosin'; did you mean 'cosine'?"),
    ("kd", "training.lr", -0.1, "training.lr: got -0.1; allowed: > 0"),
    ("kd", "training.lr", "fast", "training.lr: got 'fast' (text); allowed: number"),
    ("kd", "training.lr", "1e-3", "training.lr: got '1e-3' (text); allowed: number"),
    ("kd", "training.lr", float("nan"), "training.lr: got nan"),
    ("kd", "training.lr", MISSING, "'lr'"),
    ("kd", "training.epochs", "two", "training.epochs: got 'two' (text); allowed: integer"),
    ("kd", "training.epochs", 2.5, "training.epochs: got 2.5 (number); allowed: integer"),
    ("kd", "training.epochs", 0, "training.epochs: got 0"),
    ("kd", "training.epoch", 3, "training: unknown key 'epoch'"),
    ("kd", "training.milestones", 5, "training.milestones: got 5 (integer)"),
    ("kd", "training.milestones", None, "training.milestones: got null"),
    ("kd", "training", MISSING, "training"),
    ("kd", "training", None, "training"),
    ("kd", "training", "long", "training: got 'long' (text)"),
    ("kd", "objective", MISSING, "objective"),
    ("kd", "objective", "ce", "objective: got 'ce' (text)"),
    ("kd", "objective.ce", 1.0, "objective.ce: got 1.0 (number)"),
    ("kd", "objective.ce.weight", -1.0, "objective.ce.weight: got -1.0"),
    ("kd", "objective.kd.temperature", "hot", "objective.kd.temperature: got 'hot' (text); allowed: number"),
    ("kd", "objective.ddk", {"weight": 1.0}, "objective.ddk: unknown loss; did you mean 'dkd'?"),
    ("kd", "teachers", MISSING, "teachers"),
    ("kd", "teachers", "resnet8", "teachers: got 'resnet8' (text)"),
    ("kd", "teachers.0", "resnet8", "teachers: got 'resnet8' (text)"),
    ("kd", "teachers", [], "teachers: got"),
    ("kd", "teachers.0.training", MISSING, "training"),
    ("kd", "teachers.0.kind", "distill", "teacher"),
    ("kd", "teachers.0.objective", "ce", "objective: got 'ce' (text)"),
    ("kd", "kind", "distil", "kind: got 'distil'; did you mean 'distill'?"),
    ("kd", "kind", "train", "kind"),
    ("kd", "kind", "datafree", "kind"),
    ("kd", "model", "resnet9", "student.model"),
    ("kd", "dataset.name", "digit", "dataset.name: got 'digit'; did you mean 'digits'?"),
    ("kd", "dataset", "digits", "dataset: got 'digits' (text)"),
    ("kd", "precision", "half", "precision: got 'half'"),
    ("kd", "scale", 0, "scale: got 0"),
    ("kd", "seed", "one", "seed: got 'one' (text); allowed: integer"),
    ("kd", "seed", -1, "seed: got -1"),
    ("kd", "seed", MISSING, "'seed'"),
    ("kd", "colour", "red", "unknown key 'colour'"),
    ("ssdkd", "inversion", MISSING, "inversion"),
    ("ssdkd", "inversion.generator.meta", "mamel", "inversion.generator.meta: got 'mamel'; did you mean 'maml'?"),
    ("ssdkd", "replay.replacement", "old", "replay.replacement: got 'old'"),
    ("ssdkd", "distillation", None, "distillation"),
    ("ssdkd", "distillation.training.lr", -1, "distillation.training.lr: got -1"),
    ("ssdkd", "teachers", MISSING, "teachers"),
]


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.fixture
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_: Any) -> None:
        raise AssertionError("it starts")

    monkeypatch.setattr(worker, "work_through", started)


@pytest.mark.parametrize(("method", "key", "value", "says"), MISTAKES, ids=lambda item: str(item)[:30])
def test_a_mistake_in_settings_by_hand_ends_in_one_line(
    method: str,
    key: str,
    value: Any,
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    nothing_starts: None,
) -> None:
    settings = json.loads(json.dumps(tiny_run(method).as_dict()))
    *sections, last = key.split(".")
    section = settings
    for name in sections:
        section = section[int(name) if name.isdecimal() else name]
    if value == MISSING:
        del section[last]
    else:
        section[int(last) if last.isdecimal() else last] = value
    file = tmp_path / "wrong.yaml"
    file.write_text(yaml.safe_dump(settings))
    assert command_line.main(["run", "--settings", str(file)]) == 1
    line = one_line(capsys)
    assert line.startswith(f"error: {file}: ")
    assert says in line


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- kind: train\n", "holds a list"),
        ("", "is empty"),
        ("kind: [train\n", "not valid YAML"),
        ("{}\n", "'kind'"),
        ("kind: train\nkind: distill\n", "key 'kind' is given twice"),
        ("runs: all\n", "runs: got 'all' (text)"),
        ("runs: [3]\n", "runs: got a list"),
        ("settings: mine\n", "settings: got 'mine' (text)"),
    ],
)
def test_a_file_that_holds_no_run_ends_in_one_line(
    text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], nothing_starts: None
) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(text)
    assert command_line.main(["run", "--settings", str(file)]) == 1
    line = one_line(capsys)
    assert line.startswith(f"error: {file}: ")
    assert says in line


def test_one_wrong_run_in_a_list_stops_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], nothing_starts: None
) -> None:
    file, wrong = tmp_path / "list.yaml", SCRATCH.as_dict() | {"precision": "half"}
    file.write_text(yaml.safe_dump({"runs": [KD.as_dict(), wrong]}))
    for jobs in ("1", "2"):
        assert command_line.main(["run", "--settings", str(file), "--jobs", jobs]) == 1
        assert "precision: got 'half'" in one_line(capsys)


@pytest.mark.parametrize(
    "options",
    [["--device", "gpu"], ["--device", "cuda:one"], ["--threads", "0"], ["--slots-per-gpu", "0"]],
    ids=" ".join,
)
def test_a_mistake_in_an_option_is_reported_before_anything_starts(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], nothing_starts: None
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(SCRATCH.as_dict()))
    try:
        code = command_line.main(["run", "--settings", str(file), *options])
    except SystemExit as ended:  # raised by argparse
        code = ended.code
    assert code in (1, 2)
    last = capsys.readouterr().err.splitlines()[-1]
    assert "error: " in last
    assert options[1] in last
