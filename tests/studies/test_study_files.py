"""Study files and the command line: found by name or path, extended, merged, quick."""

from __future__ import annotations

import shutil

import pytest
import yaml
from own_studies import SCHEMAS, SETTINGS, claims, experiment, fault, loader

from kd.__main__ import main
from kd.runtime.messages import ConfigError
from kd.studies.study import load_study


@pytest.fixture
def load(tmp_path, monkeypatch):
    return loader(tmp_path, monkeypatch)


def test_overrides_are_read_from_a_file(load, tmp_path):
    file = tmp_path / "best.yaml"
    override = {"kind": "datafree", "replay": {"alpha": 0.25}}
    file.write_text(yaml.safe_dump(override))
    asked = {"a": experiment(methods=["free"], ablations=["x"])}
    from_file = load(experiments=asked, ablations={"x": str(file)})
    written = load(experiments=asked, ablations={"x": override})
    assert set(from_file.runs) == set(written.runs)
    assert [from_file.runs[path].replay.alpha for path in from_file.students] == [0.25]


@pytest.mark.parametrize("missing", ["nowhere/best.yaml", "x" * 5000, "", "a\nb"])
def test_a_missing_file_of_overrides_is_named(load, missing):
    text = fault(load, ablations={"tuned": missing}, experiments={"a": experiment(ablations=["tuned"])})
    assert "ablations.tuned" in text
    assert "no file" in text


def test_a_broken_file_of_overrides_is_named(load, tmp_path):
    file = tmp_path / "best.yaml"
    file.write_text("replay: {alhpa: 0.1}\n")
    text = fault(load, ablations={"tuned": str(file)}, experiments={"a": experiment(ablations=["tuned"])})
    assert "replay: unknown key 'alhpa'" in text
    assert "did you mean 'alpha'" in text
    file.write_text("- 1\n")
    assert "a list" in fault(load, ablations={"tuned": str(file)}, experiments={"a": experiment(ablations=["tuned"])})


def test_the_command_line_comes_last(load):
    asked = {
        "a": experiment(
            ablations=["no-priority"], settings={"replay": {"alpha": 0.1}, "inversion": {"generator": {"bn": 2.0}}}
        )
    }
    study = load({"replay": {"alpha": 0.9}}, experiments=asked)
    [run] = [study.runs[path] for path in study.students]
    assert (run.replay.alpha, run.replay.beta, run.inversion.settings["bn"]) == (0.9, 0.0, 2.0)
    study = load({"methods": {"free": {"inversion": {"generator": {"bn": 3.0}}}}}, experiments={"a": experiment()})
    assert study.runs[study.students[0]].inversion.settings["bn"] == 3.0


def test_the_home_folder_is_written_as_in_a_shell(load, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    asked = {"a": experiment(ablations=["x"])}
    (tmp_path / "best.yaml").write_text("replay: {alpha: 0.25}")
    study = load(settings={**SETTINGS, "results": "~/kd"}, ablations={"x": "~/best.yaml"}, experiments=asked)
    assert study.root == tmp_path / "kd"
    assert study.settings["results"] == str(tmp_path / "kd"), "where the jobs look"
    assert [study.runs[path].replay.alpha for path in study.students] == [0.25]
    assert load({"results": "~/other"}, experiments={"a": experiment()}).root == tmp_path / "other"
    (tmp_path / "below.yaml").write_text("extends: ~/config/studies/mine.yaml")
    assert load({"study": "~/below.yaml", "results": "."}, experiments={"a": experiment()}).name == "below"


def test_the_home_folder_of_nobody_is_named(load, capsys):
    nobody = "~no-such-user/x.yaml"
    with pytest.raises(ConfigError, match=f"results: got '{nobody}'; no home folder '~no-such-user' here"):
        load({"results": nobody}, experiments={"a": experiment()})
    with pytest.raises(ConfigError, match=f"study: got '{nobody}'; no home folder"):
        load({"study": nobody}, experiments={"a": experiment()})
    assert "ablations.x: got" in fault(load, ablations={"x": nobody}, experiments={"a": experiment(ablations=["x"])})
    with pytest.raises(SystemExit):
        main(["tables", f"--out={nobody}"])
    assert f"argument --out: got '{nobody}'; no home folder" in capsys.readouterr().err


def test_titles_are_one_line(load):
    study = load(title="A  long\n\n$title$ \x07", experiments={"a": {**experiment(), "title": "b\n"}})
    assert (study.title, study.experiments["a"]["title"]) == ("A long $title$ \\x07", "b")


def test_a_mistake_on_the_command_line_is_named(load):
    with pytest.raises(ConfigError, match=r"--config stduy: unknown key; did you mean 'study'\?"):
        load({"stduy": "x"}, experiments={"a": experiment()})
    with pytest.raises(ConfigError, match=r"replay: unknown key 'alhpa'"):
        load({"replay": {"alhpa": 1.0}}, experiments={"a": experiment()})
    with pytest.raises(ConfigError, match=r"scale: got 'half' \(text\)"):
        load({"scale": "half"}, experiments={"a": experiment()})


def test_unknown_names_get_a_suggestion(load):
    text = fault(load, experiments={"a": experiment(methods=["fre"])})
    assert "experiments.a.methods: got 'fre'; did you mean 'free'?" in text
    text = fault(load, experiments={"a": experiment(ablations=["no-priorty"])})
    assert "experiments.a.ablations: got 'no-priorty'; did you mean 'no-priority'?" in text
    assert "full" in text
    text = fault(load, given={"study": "mien"}, experiments={"a": experiment()})
    assert "study: got 'mien'; did you mean 'mine'?" in text
    assert "demo" in text


@pytest.mark.parametrize("name", ["", ".", "..", "../mine", "studies/mine", "/etc/passwd", "mine\n", "None", "x" * 300])
def test_a_study_is_named_by_a_file_of_the_folder(load, name):
    assert fault(load, given={"study": name}, experiments={"a": experiment()}).startswith("study: ")


@pytest.mark.parametrize("given", [None, 5, ["mine"], {"mine": 1}, True])
def test_a_study_that_is_no_name_is_refused(load, given):
    assert fault(load, given={"study": given}, experiments={"a": experiment()}).startswith("study: ")


def test_a_study_by_its_path(load, tmp_path):
    load(experiments={"a": experiment()})
    for ending in (".yaml", ".yml"):
        file = tmp_path / f"elsewhere{ending}"
        shutil.copy(tmp_path / "config/studies/mine.yaml", file)
        study = load_study(tmp_path / "config/config.yaml", SCHEMAS, {"study": str(file)})
        assert study.name == "elsewhere"
        assert set(study.runs) == set(load(experiments={"a": experiment()}).runs)


@pytest.mark.parametrize("name", ["my study", "$(id)", "a;b", "-x", ".hidden", "a.b", "é", "x" * 65, "a'b"])
def test_a_studys_file_name_is_safe_in_paths(load, tmp_path, name):
    load(experiments={"a": experiment()})
    file = tmp_path / f"{name}.yaml"
    shutil.copy(tmp_path / "config/studies/mine.yaml", file)
    text = fault(load, given={"study": str(file)}, experiments={"a": experiment()})
    assert "use letters, digits" in text


def test_a_studys_file_that_is_missing_or_a_folder_is_refused(load, tmp_path):
    assert "no file" in fault(load, given={"study": str(tmp_path / "none.yaml")}, experiments={"a": experiment()})
    (tmp_path / "folder.yaml").mkdir()
    assert "no file" in fault(load, given={"study": str(tmp_path / "folder.yaml")}, experiments={"a": experiment()})
    assert "no file" in fault(load, given={"study": "x" * 5000 + ".yaml"}, experiments={"a": experiment()})


def test_nested_settings_of_the_command_line_are_numbers_again(load):
    """Snakemake passes `--config 'training={epochs: 3}'` on with the number as text."""
    given = {"training": {"epochs": "3", "lr": "0.25", "milestones": ["1", "2"], "nesterov": "true"}}
    study = load(given=given, experiments={"a": experiment(methods=["scratch"])})
    training = study.runs[study.students[0]].training
    assert (training.epochs, training.lr, training.milestones, training.nesterov) == (3, 0.25, (1, 2), True)


def test_a_study_has_a_small_version_of_its_own(load):
    quick = {"settings": {"scale": 0.25}, "experiments": {"a": {"seeds": [5], "pairs": [["resnet8", "wrn_10_1"]]}}}
    whole, small = (
        load(given, experiments={"a": experiment(seeds=[0, 1])}, quick=quick)
        for given in ({}, {"quick": "true"})  # as Snakemake hands it on
    )
    assert (whole.name, small.name) == ("mine", "mine-quick")
    assert [len(whole.table), len(small.table)] == [2, 1]
    row = small.table.iloc[0]
    assert (row["teacher"], row["student"], row["scale"], row["seed"]) == ("resnet8", "wrn_10_1", 0.25, 5)
    with pytest.raises(ConfigError, match="quick: this study has no small version"):
        load({"quick": True}, experiments={"a": experiment()})


def test_a_study_that_extends_another_changes_it(load):
    two = {"a": experiment(seeds=[0, 1]), "b": experiment()}
    base = load(name="base", experiments=two, quick={"experiments": {"a": {"seeds": [7]}}}, claims=claims())
    kept = {"settings": ..., "methods": ..., "ablations": ...}
    child = load(extends="base", title="Child", experiments={"a": {"seeds": [5]}, "b": None}, claims=None, **kept)
    assert (child.name, child.title) == ("mine", "Child")
    assert list(child.experiments) == ["a"]
    assert list(child.table["seed"]) == [5]
    assert child.claims == {}
    ancestors = next(iter(base.runs.values()))
    assert next(iter(child.runs.values())).digest == ancestors.digest, "but for the seed the same run"
    small = load({"quick": True}, extends="base", title="Child", experiments={"b": None}, **kept)
    assert set(small.table["seed"]) == {7}
    with pytest.raises(ConfigError, match="this study has no small version"):
        load({"quick": True}, extends="base", title="Child", quick=None, **kept)
    grandchild = load(name="grandchild", extends="mine", experiments={"c": experiment(seeds=[9])}, title=..., **kept)
    assert grandchild.title == "Child"
    assert list(grandchild.experiments) == ["a", "b", "c"], "mine was written again since then, with both"


def test_in_settings_null_is_a_value(load):
    load(name="base", experiments={"a": experiment()})
    kept = {"methods": ..., "ablations": ..., "settings": {"inversion": {"generator": {"reset_epoch": None}}}}
    child = load(extends="base", **kept)
    assert [run.inversion.settings["reset_epoch"] for run in child.runs.values() if run.inversion] == [None]


def test_what_cannot_be_extended_is_named(load):
    a = {"a": experiment()}
    assert "extends: got 'bse'; did you mean 'base'" in (
        load(name="base", experiments=a) and fault(load, extends="bse")
    )
    assert "these studies extend each other, mine -> mine" in fault(load, extends="mine")
    assert "experiments.b: got null" in fault(load, experiments=a | {"b": None}), "it extends nothing"
    assert "experiments: got {}" in fault(load, extends="base", experiments={"a": None})


@pytest.mark.parametrize(
    ("test", "expected"),
    [
        ({"to": {"metod": "free"}}, "claims.x.tests.0.to: unknown key 'metod'; did you mean 'method'?"),
        ({"to": "quote"}, "claims.x.tests.0.to: got 'quote'; did you mean 'quoted'?"),
        ({"to": {"scale": 0.1}}, "claims.x.tests.0.to: key 'method' is missing; add it"),
        ({"to": 88.0}, "claims.x.tests.0.to: got 88.0 (number); allowed: a mapping or text"),
        ({"below": 1}, "allowed: above or below, one of the two"),
    ],
)
def test_a_claim_that_cannot_be_read_is_refused_with_what_is_allowed(load, test, expected):
    assert expected in fault(load, experiments={"a": experiment()}, claims=claims(**test))


@pytest.mark.parametrize(
    ("quoted", "expected"),
    [
        ({"source": "x", "methods": {"free": [80, 81]}}, "quoted.methods.free: got 2 numbers; needed: 1, one per pair"),
        ({"source": "x", "methods": {}, "teachers": []}, "quoted.teachers: got 0 numbers; needed: 1, one per pair"),
        ({"source": "x", "methods": {"fre": [80]}}, "experiments.a.quoted.methods: got 'fre'; did you mean 'free'?"),
        ({"source": "x", "methods": {"free": [0.8, 880]}}, "quoted.methods.free.1: got 880; allowed: <= 100"),
        ({"methods": {"free": [80]}}, "experiments.a.quoted: key 'source' is missing; add it"),
    ],
)
def test_quoted_numbers_that_do_not_fit_are_refused(load, quoted, expected):
    assert expected in fault(load, experiments={"a": experiment(methods=["free"], quoted=quoted)})


@pytest.mark.parametrize(
    ("methods", "expected"),
    [
        ({"fre": {}}, "experiments.a.settings.methods: got 'fre'; did you mean 'free'?"),
        ({"free": 3}, "experiments.a.settings.methods: got {'free': 3}; allowed: a mapping of methods to overrides"),
        ([], "experiments.a.settings.methods: got []; allowed: a mapping of methods to overrides"),
    ],
)
def test_settings_of_single_methods_that_cannot_be_read_are_refused(load, methods, expected):
    assert expected in fault(load, experiments={"a": experiment(settings={"methods": methods})})
