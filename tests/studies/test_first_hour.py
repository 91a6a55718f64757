"""What goes wrong in a user's first hour is told in one line that says what to write instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from one_run import CONFIG, said_by, written
from own_studies import PAIR as OWN_PAIR
from own_studies import SCHEMAS, experiment, fault, loader

from kd.__main__ import main
from kd.runtime.messages import ConfigError
from kd.runtime.yaml_files import parse_yaml
from kd.studies.command_line import require_one_config
from kd.studies.study import load_study


@pytest.fixture
def load(tmp_path, monkeypatch):
    return loader(tmp_path, monkeypatch)


# ----------------------------------------------------------------------------------------------------------- extends


def test_a_study_anywhere_extends_one_of_the_project_by_name(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("extends: demo\ntitle: Mine\n")
    study, demo = (load_study(CONFIG, SCHEMAS, {"study": chosen}) for chosen in (str(file), "demo"))
    assert (study.name, study.title, set(study.runs)) == ("mine", "Mine", set(demo.runs))


def test_a_study_next_to_the_extending_one_comes_first(tmp_path: Path) -> None:
    (tmp_path / "demo.yaml").write_text("extends: demo\ntitle: My demo\n")  # the project's: it is not itself
    assert load_study(CONFIG, SCHEMAS, {"study": str(tmp_path / "demo.yaml")}).title == "My demo"
    (tmp_path / "child.yaml").write_text("extends: demo\n")
    assert load_study(CONFIG, SCHEMAS, {"study": str(tmp_path / "child.yaml")}).title == "My demo"
    (tmp_path / "child.yaml").write_text("extends: demo.yaml\n")
    assert load_study(CONFIG, SCHEMAS, {"study": str(tmp_path / "child.yaml")}).title == "My demo"


def test_a_study_that_is_neither_here_nor_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: dmeo\n")
    with pytest.raises(ConfigError, match=r"extends: got 'dmeo'; did you mean 'demo'\?"):
        load_study(CONFIG, SCHEMAS, {"study": str(tmp_path / "mine.yaml")})


# ------------------------------------------------------------------------------------------------------ command line


@pytest.mark.parametrize(
    "arguments",
    [
        ["-n", "--config", "study=x", "--config", "quick=true"],
        ["-C", "study=x", "-n", "--config", "quick=true"],
        ["--config=study=x", "-Cquick=true"],
    ],
    ids=" ".join,
)
def test_a_second_config_of_snakemake_is_refused(arguments: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"--config: given 2 times.*write all after one") as caught:
        require_one_config(["snakemake", *arguments])
    if arguments[0] != "--config=study=x":
        assert "'study=x' would be forgotten" in str(caught.value)


def test_one_config_is_enough() -> None:
    require_one_config(["snakemake", "--config", "study=x", "quick=true", "--configfile", "x.yaml", "--cores", "all"])
    require_one_config(["snakemake"])


def test_kd_reads_every_config(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = written(tmp_path, quick={"title": "Small"})
    results = f"results={tmp_path / 'results'}"
    assert main(["plan", str(file), "--config", "quick=true", "--config", results]) == 0
    assert capsys.readouterr().out.startswith("Small (mine-quick)")
    assert "the study is given twice" in said_by(capsys, "plan", file, "--config", "study=demo")
    assert "--config quick: given twice" in said_by(capsys, "plan", file, "--config", "quick=true", "quick=false")


# ------------------------------------------------------------------------------------------------------------ shapes


@pytest.mark.parametrize(
    ("values", "example"),
    [
        ({"seeds": 3}, "seeds: [0, 1, 2]"),
        ({"pairs": OWN_PAIR}, "pairs: [[wrn_16_2, wrn_10_1]]"),
        ({"pairs": OWN_PAIR[0]}, "pairs: [[wrn_16_2, wrn_10_1]]"),
        ({"methods": "free"}, "methods: [kd, ssdkd]"),
        ({"scales": 0.1}, "scales: [0.1, 1.0]"),
        ({"ablations": "full"}, "ablations: [full]"),
    ],
    ids=str,
)
def test_a_list_of_another_shape_gets_an_example(load, values: dict[str, Any], example: str) -> None:
    for line in fault(load, experiments={"a": experiment(**values)}).splitlines():
        assert line.endswith(f"; write {example}")


@pytest.mark.parametrize(
    ("epochs", "fitting"), [(10, [6, 8, 9]), (120, [75, 90, 105]), (2, [1]), (1, []), (200, [125, 150, 175])]
)
def test_epochs_below_the_milestones_say_what_to_write(load, epochs: int, fitting: list[int]) -> None:
    project = {"settings": {}, "methods": ..., "ablations": ..., "experiments": {"a": experiment(methods=["scratch"])}}
    text = fault(load, **project, given={"training": {"epochs": epochs}})
    late = next(milestone for milestone in (150, 180, 210) if milestone >= epochs)
    assert text.endswith(
        f"training.milestones: got {late}; allowed: below epochs ({epochs}); "
        f"write milestones: {fitting} in training, or schedule: cosine"
    )
    load(**project, given={"training": {"epochs": epochs, "milestones": fitting}})
    load(**project, given={"training": {"epochs": epochs, "schedule": "cosine"}})


@pytest.mark.parametrize(
    ("text", "first", "second"),
    [
        ("a: 1\nb: 2\na: 3\n", 1, 3),
        ("x:\n  seeds: [0]\n\n  pairs: []\n  seeds: [1]\n", 2, 5),
        ("x: {a: 1,\n  a: 2}", 1, 2),
    ],
)
def test_a_key_that_is_given_twice_names_both_lines(text: str, first: int, second: int) -> None:
    key = "seeds" if "seeds" in text else "a"
    with pytest.raises(ConfigError, match=f"in line {second} .key '{key}' is given twice, first in line {first};"):
        parse_yaml(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "mine.yaml: is empty; a mapping of settings is needed"),
        (
            "title: x\n\texperiments: {}\n",
            "in line 2 (found a tab character that violates indentation; indent with spaces)",
        ),
        ("title: x: y\n", "in line 1 (mapping values are not allowed in this context; put text with a colon in quotes"),
        ("title: x\nexperiments: []\n", "experiments: got a list; allowed: a mapping"),
        ("title: x\nexperiments: {}\ntraining: {}\n", "training: is a setting of runs; write it below `settings:`"),
    ],
    ids=["empty", "tab", "colon", "list", "setting"],
)
def test_a_study_that_is_no_study_yet_says_what_to_do(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_study(CONFIG, SCHEMAS, {"study": str(tmp_path / "mine.yaml")})
    assert words in str(caught.value)
