"""`tuned: NAME` in a study: what a search has found, in place of values; without a search, which comes first."""

from __future__ import annotations

import pytest
from own_studies import METHODS, PAIR, experiment, fault, loader, search

from kd.runtime.files import write_json
from kd.runtime.messages import ConfigError
from kd.studies.search import folder_of

BEST = "# trial 3 of 8: validation accuracy 94.77 %\ninversion: {generator: {bn: 0.5}}\n"


@pytest.fixture
def load(tmp_path, monkeypatch):
    load = loader(tmp_path, monkeypatch)

    def loaded(given=None, **content):
        return load({"results": str(tmp_path / "results"), **(given or {})}, **content)

    return loaded


def finish(load, tmp_path, name="t", study="mine", **content):
    """Write the best settings of a search, as `snakemake tune` does."""
    folder = folder_of(tmp_path / "results", study, name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "best.yaml").write_text(BEST, "utf-8")
    if content:
        tuning = load(**content).tunings[name]
        write_json(folder / "search.json", {"digest": tuning.digest, **tuning.identity})


PLACES = {
    "ablation": ({"ablations": {"x": "best"}}, {"ablations": ["full", "x"]}),
    "ablation by name": ({"ablations": {"x": "t"}}, {"ablations": ["full", "x"]}),
    "key of an ablation": ({"ablations": {"x": {"tuned": "best"}}}, {"ablations": ["full", "x"]}),
    "method": (
        {"methods": {**METHODS, "x": {"kind": "datafree", "tuned": "t"}}},
        {"methods": ["free", "x"]},
    ),
}


@pytest.mark.parametrize(("given", "axis"), PLACES.values(), ids=PLACES)
def test_the_winner_of_a_search_takes_the_place_of_values(load, tmp_path, given, axis):
    finish(load, tmp_path, experiments={"a": experiment()}, tune=search())
    study = load(experiments={"a": experiment(**axis)}, tune=search(), **given)
    plain, tuned = (study.runs[path].inversion.settings["bn"] for path in study.table["path"])
    assert (plain, tuned) == (10.0, 0.5)


def test_what_is_said_next_to_it_wins(load, tmp_path):
    finish(load, tmp_path, experiments={"a": experiment()}, tune=search())
    over = {"x": {"tuned": "t", "inversion": {"generator": {"bn": 0.25, "oh": 2.0}}}}
    study = load(experiments={"a": experiment(ablations=["x"])}, tune=search(), ablations=over)
    [run] = [study.runs[path] for path in study.table["path"]]
    assert (run.inversion.settings["bn"], run.inversion.settings["oh"]) == (0.25, 2.0)


def test_a_search_of_another_study(load, tmp_path):
    finish(load, tmp_path, "other", "theirs-quick")
    study = load(experiments={"a": experiment(ablations=["x"])}, ablations={"x": "theirs-quick/other"})
    [run] = [study.runs[path] for path in study.table["path"]]
    assert run.inversion.settings["bn"] == 0.5
    text = fault(load, experiments={"a": experiment(ablations=["x"])}, ablations={"x": {"tuned": "theirs-quick/gone"}})
    assert text.endswith(
        "has no best settings yet; tune first: snakemake --cores all tune --config study=theirs quick=true"
    )


def test_before_the_search_one_line_says_that_it_comes_first(load, tmp_path):
    content = {
        "experiments": {"a": experiment(), "b": experiment(ablations=["x"])},
        "ablations": {"x": "best"},
        "tune": search(),
        "claims": {
            "c": {
                "says": "So.",
                "tests": [{"of": {"method": "free", "ablation": "x"}, "to": {"method": "free"}, "above": 0}],
            }
        },
    }
    line = "ablations.x: search t has no best settings yet; tune first: snakemake --cores all tune --config study=mine"
    assert fault(load, **content).endswith(line)
    content["experiments"]["b"]["methods"] = ["bare"]
    finish(load, tmp_path, experiments={"a": experiment()}, tune=search(seed=6))
    assert "search t has other settings or another space than when it was run; tune first" in fault(load, **content)


def test_the_search_itself_leaves_out_what_needs_it(tmp_path, monkeypatch):
    load = loader(tmp_path, monkeypatch)
    content = {"experiments": {"a": experiment(), "b": experiment(ablations=["x"])}, "ablations": {"x": "best"}}
    with pytest.raises(ConfigError):
        load(tune=search(), **content)
    study = load(tune=search(), for_search=True, **content)
    assert (list(study.experiments), set(study.table["experiment"]), list(study.tunings)) == (["a"], {"a"}, ["t"])


def test_a_winner_that_nobody_uses_is_not_missed(load):
    study = load(experiments={"a": experiment()}, ablations={"x": "best"}, tune=search())
    assert len(study.table) == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            {"ablations": {"x": {"tuned": "nowhere"}}},
            "ablations.x.tuned: got 'nowhere'; allowed: t, best, or STUDY/NAME",
        ),
        ({"ablations": {"x": {"tuned": 3}}}, "ablations.x.tuned: got 3"),
        ({"ablations": {"x": "best"}, "tune": ...}, "got best; the study has no `tune:` section; name one"),
        (
            {"ablations": {"x": "best"}, "tune": search() | {"u": search()["t"]}},
            "the study has 2 searches (t, u); name one",
        ),
        ({"methods": {"free": {"kind": "datafree", "tuned": "t"}}}, "tune.t.method: got 'free', which is tuned itself"),
        ({"tune": {"t": {"pair": PAIR, "method": "free", "tuned": "t"}}}, "tune.t: unknown key 'tuned'"),
    ],
)
def test_a_mistake_is_named(load, content, words):
    given = {"experiments": {"a": experiment(ablations=["x"])}, "ablations": {"x": {}}, "tune": search(), **content}
    assert words in fault(load, **given)
