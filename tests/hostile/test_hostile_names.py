"""Hostile names and words, in studies and on the command line, are made safe or refused readably."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hostile import (
    CONFIG,
    PLACES,
    SCHEMAS,
    Dumper,
    assert_readable,
    assert_safe,
    dry_runs,
    listing,
    load,
    own_study,
    told,
)

from kd.__main__ import main
from kd.runtime.messages import ConfigError
from kd.settings.merging import merge
from kd.studies.study import load_study


def test_a_study_cannot_call_itself_by_another_name(project: Path) -> None:
    """The jobs find the study's folder by the setting `study`."""
    (project / "config/studies/demo.yaml").write_text(yaml.safe_dump(own_study(settings={"study": "another"})))
    try:
        study = load_study(project / "config/config.yaml", SCHEMAS, {})
    except ConfigError as error:
        assert_readable(str(error), "demo.yaml")
    else:
        assert Path(study.settings["study"]).stem == study.name == "demo"


WORDS = [
    "a b",
    "'",
    '"',
    "a;touch PWNED",
    "$(touch PWNED)",
    "`touch PWNED`",
    "|touch PWNED",
    "..",
    "../../a",
    "/a",
    "a\nb",
    "a\x00b",
    "\x1b[31ma",
    "x" * 300,
    "x" * 5000,
    "naïve мир 日本",
    "-rf",
    "--config",
    "{}",
    "{",
    "{wildcards.x}",
    "{x!r:>99999999}",
    "%s%n%(x)s",
    "~nobody-here",
    "*",
    "",
]

NEVER = {"key", "key of a section", "value", "view", "device", "kind", "loss", "setting of a loss", "data set"}
NEVER |= {"unknown method", "unknown ablation", "file of an ablation", "teacher", "student", "module of a model"}
NEVER |= {"torchvision's model", "function of a model", "setting of a search", "choice of a search"}


@pytest.mark.usefixtures("parsed_once")
@pytest.mark.parametrize("place", PLACES)
def test_a_hostile_name_is_made_safe_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine.yaml"
    wrong, accepted = [], []
    for word in WORDS:
        file.write_text(yaml.dump(PLACES[place](word), Dumper=Dumper, sort_keys=False))
        try:
            if load(file) is not None:
                accepted.append(word)
        except Exception as error:
            wrong.append(told(ascii(word), error))
    assert not wrong, "\n".join(wrong)
    assert listing(tmp_path) == {"mine.yaml"}
    if place in NEVER:
        assert accepted == []


@pytest.mark.usefixtures("parsed_once")
@pytest.mark.parametrize(
    "given",
    [
        lambda word: {"study": word},
        lambda word: {"study": f"{word}.yaml"},
        lambda word: {word: 1},
        lambda word: {"training": {word: 1}},
        lambda word: {"training": {"lr": word}},
        lambda word: {"training": word},
        lambda word: {"methods": {word: {}}},
        lambda word: {"results": word},
        lambda word: {"dataset": {"name": "folder", "root": word}},
    ],
    ids=["study", "file", "key", "inner key", "value", "section", "method", "results", "root"],
)
def test_a_hostile_word_on_the_command_line_is_made_safe_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: Callable[[str], dict[str, Any]]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(own_study()))
    wrong = []
    for word in WORDS:
        try:
            try:
                assert_safe(load_study(CONFIG, SCHEMAS, {"study": "mine.yaml", **given(word)}))
            except ConfigError as error:
                assert_readable(str(error))
        except Exception as error:
            wrong.append(told(ascii(word), error))
    assert not wrong, "\n".join(wrong)
    assert listing(tmp_path) == {"mine.yaml"}


@pytest.mark.usefixtures("parsed_once")
def test_a_study_file_with_a_hostile_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = 0
    for word in WORDS:
        name = f"{word}.yaml"
        if "\0" in name or len(name.encode()) > 255 or "/" in name:
            continue
        Path(name).write_text(yaml.safe_dump(own_study()))
        made += 1
        with pytest.raises(ConfigError) as caught:
            load_study(CONFIG, SCHEMAS, {"study": name})
        assert_readable(str(caught.value))
    assert made > 15
    assert "PWNED" not in listing(tmp_path)


def test_hostile_names_dry_run(project: Path) -> None:
    """What Snakemake formats, splits and calls: braces, quotes, spaces, newlines, long names."""
    words = {"braces": "50 % {x} {wildcards.run} {", "shell": "a b;$(touch PWNED)`touch PWNED`'\""}
    cases = {}

    def case(name: str, content: dict[str, Any], *config: str, file: str | None = None) -> None:
        path = project / (file or f"case{len(cases)}.yaml")
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.dump(content, Dumper=Dumper, sort_keys=False))
        cases[name] = [f"study={path.relative_to(project)}", *config]

    for name, word in words.items():
        dataset = {"name": "folder", "root": f"images/{word}", "classes": [word, "b"]}
        for split in ("train", "test"):  # or it would be refused before the DAG is built
            (project / dataset["root"] / split).mkdir(parents=True)
        settings = {"dataset": dataset, "tracking": {"uri": word}}
        unused = {"odd": {word: [word, {1: word}], 2: None}}
        texts = own_study(title=word, settings=settings, methods=unused)
        experiment = {"title": word, "methods": ["scratch", "ssdkd"]}
        case(f"texts, {name}", merge(texts, {"experiments": {"a": experiment}}), file=f"{word}/mine.yaml")
        case(f"results, {name}", own_study(settings={"results": word}))
    case("results with a newline", own_study(settings={"results": "a\nb"}))
    case("results of 300 characters", own_study(settings={"results": "x" * 300}))
    case("results with a null", own_study(settings={"results": "a\0b"}))
    case("results of the command line", own_study(), "results='a{b}c'")
    case("a study of the command line", own_study(), "study=$(touch PWNED).yaml")
    case("a value of the command line", own_study(), "training={lr: $(touch PWNED), epochs: {x}}")
    dry_runs(project, cases)
    assert not list(project.rglob("PWNED*"))


@pytest.mark.parametrize(
    "item",
    [
        "a={",
        "scale=[",
        "scale=2020-99-99",
        "scale=!!timestamp x",
        "scale=!!int ''",
        "scale=*a",
        "=1",
        "scale",
        "scale=\0",
    ],
)
def test_odd_yaml_on_the_command_line_of_kd_is_refused(capsys: pytest.CaptureFixture, item: str) -> None:
    assert main(["status", "demo", "--config", item]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert_readable(said.strip())
