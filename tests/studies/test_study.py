"""Studies: what a file expands to, which runs are shared, and what is refused."""

import copy
import functools
import shutil
import time
from pathlib import Path

import pytest
import yaml

from kd.runtime.messages import ConfigError
from kd.runtime.yaml_files import read_yaml
from kd.settings.run import merge
from kd.studies.expansion import COLUMNS, FULL
from kd.studies.study import load_study

ROOT = Path(__file__).resolve().parents[2]
SCHEMAS = ROOT / "workflow/schemas"
TRAINING = {"epochs": 10, "lr": 0.1, "schedule": "steps", "milestones": [4], "momentum": 0.9, "nesterov": False}
SETTINGS = {
    "dataset": {"name": "digits", "image_size": 16, "validation": 0.0},
    "teacher": {"seed": 0, "training": TRAINING},
    "training": TRAINING,
    "distillation": {"training": TRAINING},
    "scale": 0.5,
    "kind": "train",
}
METHODS = {
    "plain": {"kind": "train"},
    "soft": {"kind": "distill", "objective": {"ce": {"weight": 0.5}, "kd": {"weight": 0.5, "temperature": 4.0}}},
    "free": {
        "kind": "datafree",
        "modulation": {"diversity": 1.0, "gamma": 1.0},
        "replay": {"alpha": 0.5, "beta": 0.5},
    },
    "bare": {
        "kind": "datafree",
        "modulation": {"diversity": 0.0, "gamma": 0.0},
        "replay": {"alpha": 0.0, "beta": 0.0},
    },
}
ABLATIONS = {
    "no-priority": {"replay": {"alpha": 0.0, "beta": 0.0}},
    "no-modulation": {"modulation": {"diversity": 0.0, "gamma": 0.0}},
    "neither": {"modulation": {"diversity": 0, "gamma": 0}, "replay": {"alpha": 0, "beta": 0}},
}
PAIR = ["wrn_16_2", "wrn_16_1"]


@functools.cache
def read_once(path):
    return read_yaml(path)


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Load a study of our own beside a copy of config/config.yaml; the files that no test changes are parsed once."""
    shared = {tmp_path / "config/config.yaml": ROOT / "config/config.yaml"}
    shared |= {path: path for path in SCHEMAS.iterdir()}
    monkeypatch.setattr(
        "kd.studies.study.read_yaml",
        lambda path: copy.deepcopy(read_once(shared[path])) if path in shared else read_yaml(path),
    )
    (tmp_path / "config/studies").mkdir(parents=True)
    shutil.copy(ROOT / "config/config.yaml", tmp_path / "config/config.yaml")
    (tmp_path / "config/studies/demo.yaml").write_text("title: another\nexperiments: {}\n")

    def load(given=None, name="mine", **content):
        study = {"title": "Mine", "settings": SETTINGS, "methods": METHODS, "ablations": ABLATIONS, **content}
        study = {key: value for key, value in study.items() if value is not ...}
        file = tmp_path / f"config/studies/{name}.yaml"
        file.write_text(yaml.safe_dump(study, sort_keys=False))
        return load_study(tmp_path / "config/config.yaml", SCHEMAS, {"study": name, **(given or {})})

    return load


def experiment(**values):
    return {"pairs": [PAIR], "methods": ["free"], "seeds": [0], **values}


def paths(study, **where):
    table = study.table
    for column, value in where.items():
        table = table[table[column] == value]
    return set(table["path"])


def fault(load, **content):
    """The one readable line, or lines, that a study is refused with."""
    with pytest.raises(ConfigError) as caught:
        load(**content)
    text = str(caught.value)
    for line in text.splitlines():
        assert line.isprintable()
        assert "Traceback" not in line
    return text


# --------------------------------------------------------------------------------------------------------- expansion


def test_axes_multiply_to_a_table_in_the_order_of_the_study(load):
    pairs = [PAIR, ["resnet8", "wrn_10_1"]]
    study = load(
        experiments={
            "all": experiment(
                pairs=pairs,
                methods=["bare", "free"],
                ablations=["no-priority", FULL],
                scales=[0.9, 0.1],
                seeds=[3, 1],
            ),
            "short": experiment(methods=["plain"]),
        }
    )
    table = study.table
    assert list(table.columns) == COLUMNS
    expected = [
        ("all", "digits", teacher, student, method, ablation, scale, seed, "datafree")
        for teacher, student in pairs
        for method in ("bare", "free")
        for ablation in ("no-priority", FULL)
        for scale in (0.9, 0.1)
        for seed in (3, 1)
    ]
    expected.append(("short", "digits", *PAIR, "plain", FULL, 0.5, 0, "train"))
    assert [tuple(row) for row in table.drop(columns="path").itertuples(index=False)] == expected
    for row in table.itertuples():
        run = study.runs[row.path]
        assert run.path == row.path
        assert (run.kind, run.model, run.scale, run.seed) == (row.kind, row.student, row.scale, row.seed)
        if run.teacher is not None:
            assert run.teacher.model == row.teacher
            assert study.runs[run.teacher.path] == run.teacher
    assert study.students == list(dict.fromkeys(table["path"]))
    teachers = {run.teacher.path for run in study.runs.values() if run.teacher}
    assert set(study.runs) == set(table["path"]) | teachers


def test_titles_views_and_folders(load):
    study = load(experiments={"a": experiment(), "b": experiment(title="B", view="scale")})
    assert study.experiments == {"a": {"title": "a", "view": "methods"}, "b": {"title": "B", "view": "scale"}}
    assert (study.name, study.title) == ("mine", "Mine")
    assert study.root == Path(study.settings["results"])
    assert load({"results": "there"}, experiments={"a": experiment()}).root == Path("there")
    assert (
        load(experiments={"a": experiment()}, settings=merge(SETTINGS, {"compute": {"threads": 3}})).compute.threads
        == 3
    )


def test_settings_come_from_defaults_study_method_ablation_experiment(load):
    def beta(study):
        [path] = set(study.table["path"])
        return study.runs[path].replay.beta

    plain = {"settings": merge(SETTINGS, {"replay": {"beta": 0.11}}), "methods": {"free": {"kind": "datafree"}}}
    assert beta(load(**plain, experiments={"a": experiment()})) == 0.11
    with_method = {**plain, "methods": {"free": {"kind": "datafree", "replay": {"beta": 0.22}}}}
    assert beta(load(**with_method, experiments={"a": experiment()})) == 0.22
    with_ablation = {**with_method, "ablations": {"x": {"replay": {"beta": 0.33}}}}
    assert beta(load(**with_ablation, experiments={"a": experiment(ablations=["x"])})) == 0.33
    own = {"replay": {"beta": 0.44}}
    assert beta(load(**with_ablation, experiments={"a": experiment(ablations=["x"], settings=own)})) == 0.44


def test_methods_of_config_yaml_are_there_and_a_study_changes_them(load):
    known = read_yaml(ROOT / "config/config.yaml")["methods"]
    same_widths = [["wrn_16_1", "wrn_16_1"]]  # some distillers need them
    study = load(experiments={"a": experiment(pairs=same_widths, methods=list(known))}, methods=...)
    assert list(study.table["method"]) == list(known)
    study = load(experiments={"a": experiment(methods=["ssdkd"])}, methods={"ssdkd": {"replay": {"beta": 0.77}}})
    [run] = [study.runs[path] for path in study.students]
    assert (run.kind, run.replay.beta) == ("datafree", 0.77)


# ----------------------------------------------------------------------------------------------------------- sharing


def test_experiments_and_methods_that_ask_for_the_same_share_a_run(load):
    study = load(
        experiments={
            "a": experiment(methods=["free", "bare"], ablations=[FULL, "neither"], seeds=[0, 1]),
            "b": experiment(methods=["bare"], seeds=[1, 2]),
        }
    )
    neither = paths(study, method="free", ablation="neither")
    assert neither == paths(study, experiment="a", method="bare", ablation=FULL)
    assert neither == paths(study, method="bare", ablation="neither")
    assert neither != paths(study, method="free", ablation=FULL)
    assert len(paths(study, experiment="a") & paths(study, experiment="b")) == 1
    assert len(study.table) == 10
    assert len(study.students) == 5


def test_published_methods_with_both_modules_off_are_the_generator_alone(load):
    study = load(
        methods=...,
        experiments={"a": experiment(methods=["ssdkd"], ablations=["neither"]), "b": experiment(methods=["fast"])},
    )
    assert paths(study, experiment="a") == paths(study, experiment="b")


def test_teachers_are_shared_and_no_students(load):
    study = load(
        experiments={
            "a": experiment(methods=["soft", "free"], scales=[0.2, 0.4], seeds=[0, 1, 2]),
            "b": experiment(pairs=[["wrn_16_2", "vgg8"]]),
        }
    )
    [teacher] = {run.teacher.path for run in study.runs.values() if run.teacher}
    assert study.runs[teacher].scale == 1.0
    assert teacher not in study.students
    assert len(study.runs) == len(study.students) + 1 == 14


def test_students_without_a_teacher_do_not_depend_on_one(load):
    study = load(experiments={"a": experiment(pairs=[PAIR, ["vgg8", "wrn_16_1"]], methods=["plain"])})
    assert len(study.table) == 2
    assert len(study.runs) == 1


def test_a_teacher_trained_at_full_scale_is_the_run_that_learns_from_labels(load):
    study = load(experiments={"a": experiment(pairs=[["vgg8", "vgg8"]], methods=["plain", "soft"], scales=[1.0])})
    [teacher] = {run.teacher.path for run in study.runs.values() if run.teacher}
    assert paths(study, method="plain") == {teacher}


def test_one_teacher_per_seed_on_request(load):
    def teachers(seed):
        settings = merge(SETTINGS, {"teacher": {"seed": seed}})
        study = load(experiments={"a": experiment(seeds=[4, 5])}, settings=settings)
        return [study.runs[path].teacher.seed for path in study.students], study

    assert teachers(7)[0] == [7, 7]
    seeds, study = teachers(None)
    assert seeds == [4, 5]
    assert len(study.runs) == 4


# ------------------------------------------------------------------------------------------- what a change touches


FULL_STUDY = {"a": experiment(methods=["plain", "soft", "free", "bare"], scales=[0.2, 0.4], seeds=[0, 1])}


def test_adding_seeds_and_variants_adds_runs_and_touches_none(load):
    before = set(load(experiments=FULL_STUDY).runs)
    wider = {
        "a": {**FULL_STUDY["a"], "seeds": [0, 1, 2], "ablations": [FULL, "no-priority"], "scales": [0.2, 0.4, 0.6]}
    }
    after = set(load(experiments=wider).runs)
    assert before < after
    more = {**METHODS, "new": {"kind": "datafree", "inversion": {"bn": 0.123}}}
    wider = {"a": {**FULL_STUDY["a"], "methods": [*METHODS, "new"]}}
    after = set(load(experiments=wider, methods=more).runs)
    assert before < after
    assert len(after - before) == 4
    reordered = {"a": {**FULL_STUDY["a"], "methods": list(METHODS)[::-1], "seeds": [1, 0]}}
    assert set(load(experiments=reordered).runs) == before


@pytest.mark.parametrize(
    ("override", "touched"),
    [
        ({"inversion": {"bn": 0.123}}, {"free", "bare"}),
        ({"distillation": {"training": {"lr": 0.123}}}, {"free", "bare"}),
        ({"training": {"lr": 0.123}}, {"plain", "soft"}),
        ({"teacher": {"training": {"lr": 0.123}}}, {"soft", "free", "bare"}),
        ({"teacher": {"seed": 9}}, {"soft", "free", "bare"}),
        ({"dataset": {"pad": 7}}, {"plain", "soft", "free", "bare"}),
        ({"compute": {"threads": 3}, "tracking": {"enabled": False}, "results": "there"}, set()),
    ],
)
def test_a_setting_touches_exactly_the_runs_that_use_it(load, override, touched):
    before = load(experiments=FULL_STUDY)
    after = load(experiments=FULL_STUDY, settings=merge(SETTINGS, override))
    for method in METHODS:
        same = paths(before, method=method) & paths(after, method=method)
        assert same == (set() if method in touched else paths(before, method=method)), method


def test_a_methods_setting_touches_that_method_alone(load):
    before = load(experiments=FULL_STUDY)
    changed = merge(METHODS, {"soft": {"objective": {"kd": {"temperature": 2.0}}}})
    after = load(experiments=FULL_STUDY, methods=changed)
    assert not paths(before, method="soft") & paths(after, method="soft")
    for method in ("plain", "free", "bare"):
        assert paths(before, method=method) == paths(after, method=method)


def test_studies_find_each_others_runs(load):
    first = load(experiments=FULL_STUDY)
    renamed = {f"{name}-2": value for name, value in METHODS.items()}
    second = load(
        name="another",
        title="Another",
        methods=renamed,
        experiments={"x": {**FULL_STUDY["a"], "methods": list(renamed)}},
    )
    assert set(first.runs) == set(second.runs)


# --------------------------------------------------------------------------------------------- files, command line


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
    asked = {"a": experiment(ablations=["no-priority"], settings={"replay": {"alpha": 0.1}, "inversion": {"bn": 2.0}})}
    study = load({"replay": {"alpha": 0.9}}, experiments=asked)
    [run] = [study.runs[path] for path in study.students]
    assert (run.replay.alpha, run.replay.beta, run.inversion.bn) == (0.9, 0.0, 2.0)
    study = load({"methods": {"free": {"inversion": {"bn": 3.0}}}}, experiments={"a": experiment()})
    assert study.runs[study.students[0]].inversion.bn == 3.0


def test_a_mistake_on_the_command_line_is_named(load):
    with pytest.raises(ConfigError, match=r"--config stduy: unknown key; did you mean 'study'\?"):
        load({"stduy": "x"}, experiments={"a": experiment()})
    with pytest.raises(ConfigError, match=r"replay: unknown key 'alhpa'"):
        load({"replay": {"alhpa": 1.0}}, experiments={"a": experiment()})
    with pytest.raises(ConfigError, match=r"scale: got 'half' \(text\)"):
        load({"scale": "half"}, experiments={"a": experiment()})


# ---------------------------------------------------------------------------------------------------------- refusals


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


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"title": ...}, "top level: key 'title' is missing"),
        ({"title": ""}, "title: got ''"),
        ({"title": 5}, "title: got 5 (integer)"),
        ({"expriments": {}}, "unknown key 'expriments'; did you mean 'experiments'?"),
        ({"settings": None}, "settings: got null"),
        ({"settings": {"traning": {}}}, "unknown key 'traning'; did you mean 'training'?"),
        ({"settings": {"training": {"lr": "1e-3"}}}, "training.lr: got '1e-3' (text)"),
        ({"methods": ["free"]}, "methods: got a list"),
        ({"methods": {"free": None}}, "methods.free: got null"),
        ({"methods": {"free": {"kind": "datafre"}}}, "kind: got 'datafre'; did you mean 'datafree'?"),
        ({"ablations": {"a b": {}}}, "ablations: got 'a b'"),
        ({"experiments": {}}, "experiments: got {}"),
        ({"experiments": {"a/b": experiment()}}, "experiments: got 'a/b'"),
        ({"experiments": {"a": experiment(seed=[1])}}, "experiments.a: unknown key 'seed'; did you mean 'seeds'?"),
        ({"experiments": {"a": {"pairs": [PAIR], "methods": ["free"]}}}, "experiments.a: key 'seeds' is missing"),
        ({"experiments": {"a": experiment(seeds=[])}}, "experiments.a.seeds: got []"),
        ({"experiments": {"a": experiment(seeds=3)}}, "experiments.a.seeds: got 3 (integer)"),
        ({"experiments": {"a": experiment(seeds=[0, 0])}}, "experiments.a.seeds: got [0, 0]"),
        ({"experiments": {"a": experiment(seeds=[-1])}}, "experiments.a.seeds.0: got -1"),
        ({"experiments": {"a": experiment(seeds=[True])}}, "experiments.a.seeds.0: got True (boolean)"),
        ({"experiments": {"a": experiment(scales=[0])}}, "experiments.a.scales.0: got 0"),
        ({"experiments": {"a": experiment(scales=["10%"])}}, "experiments.a.scales.0: got '10%' (text)"),
        ({"experiments": {"a": experiment(scales=[float("nan")])}}, "experiments.a.scales.0: got nan"),
        ({"experiments": {"a": experiment(pairs=[["vgg8"]])}}, "experiments.a.pairs.0: got ['vgg8']"),
        ({"experiments": {"a": experiment(pairs=["vgg8"])}}, "experiments.a.pairs.0: got 'vgg8' (text)"),
        ({"experiments": {"a": experiment(pairs=[["vgg8", "vgg9"]])}}, "student.model: unknown model 'vgg9'"),
        ({"experiments": {"a": experiment(view="scales")}}, "view: got 'scales'; did you mean 'scale'?"),
        ({"experiments": {"a": experiment(settings={"scale": 2})}}, "scale: got 2"),
    ],
)
def test_a_mistake_in_a_study_is_named(load, content, words):
    assert words in fault(load, **{"experiments": {"a": experiment()}, **content})


def test_seeds_are_written_without_a_point(load):
    """1.0 would give another folder than 1."""
    assert "experiments.a.seeds.0" in fault(load, experiments={"a": experiment(seeds=[1.0])})


# ------------------------------------------------------------------------------------------------------------ tuning


def search(**values):
    entry = {"pair": PAIR, "method": "free", "scale": 0.3, "seed": 5, "trials": 3, "validation": 0.2}
    return {"t": {**entry, "space": {"inversion.bn": {"low": 0.1, "high": 10.0, "log": True}}, **values}}


def test_a_search_is_a_run_with_some_settings_left_open(load):
    space = {
        "inversion.bn": {"low": 0.1, "high": 10.0, "log": True},
        "inversion.steps": {"low": 1, "high": 5},
        "replay.refresh": {"choices": ["drawn", "all"]},
        "distillation.training.lr": {"low": 0.01, "high": 0.1},
    }
    study = load(experiments={"a": experiment()}, tune=search(space=space, settings={"inversion": {"oh": 0.25}}))
    tuning = study.tunings["t"]
    assert (tuning.name, tuning.seed, tuning.trials, list(tuning.space)) == ("t", 5, 3, list(space))
    assert [values.get("integer") for values in tuning.space.values()] == [False, True, None, False]
    run = tuning.run(
        {"inversion.bn": 0.5, "inversion.steps": 4, "replay.refresh": "all", "distillation.training.lr": 0.02}
    )
    assert (run.kind, run.seed, run.scale, run.model, run.teacher.model) == ("datafree", 5, 0.3, *PAIR[::-1])
    assert (run.inversion.bn, run.inversion.steps, run.replay.refresh) == (0.5, 4, "all")
    assert (run.distillation.training.lr, run.inversion.oh) == (0.02, 0.25)
    assert run.dataset.validation == 0.2
    assert run.path not in study.runs
    assert study.runs[run.teacher.path] == run.teacher


def test_a_search_needs_its_teacher_although_no_experiment_does(load):
    study = load(experiments={"a": experiment(methods=["plain"])}, tune=search())
    [teacher] = [run for run in study.runs.values() if run.model == PAIR[0]]
    assert teacher.path not in study.students
    study = load(
        experiments={"a": experiment(methods=["plain"])},
        tune=search(method="plain", space={"training.lr": {"low": 0.1, "high": 1.0}}),
    )
    assert len(study.runs) == 1


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ({"inversion.lr_noize": {"low": 1.0, "high": 2.0}}, "unknown key 'lr_noize'; did you mean 'lr_noise'?"),
        ({"inversion": {"low": 1.0, "high": 2.0}}, "got 'inversion'"),
        ({"compute.threads": {"low": 1, "high": 2}}, "got 'compute.threads'"),
        ({"teacher.training.lr": {"low": 0.1, "high": 0.2}}, "got 'teacher.training.lr'"),
        ({"inversion.bn.x": {"low": 1.0, "high": 2.0}}, "inversion.bn: got a mapping"),
        ({"inversion.bn": {"low": 2.0, "high": 1.0}}, "low must be below high"),
        ({"inversion.bn": {"low": 2.0, "high": 2.0}}, "low must be below high"),
        ({"inversion.bn": {"low": 0.0, "high": 2.0, "log": True}}, "a log range needs low above 0"),
        ({"inversion.bn": {"low": -1.0, "high": 2.0}}, "inversion.bn: got -1.0; allowed: >= 0"),
        ({"modulation.diversity": {"low": 0.5, "high": 1.5}}, "modulation.diversity: got 1.5; allowed: <= 1"),
        ({"inversion.bn": {"low": 1.0, "high": float("inf")}}, "inf"),
        ({"inversion.bn": {"low": float("nan"), "high": 1.0}}, "nan"),
        ({"inversion.steps": {"low": 1, "high": 2.5}}, "inversion.steps: got 2.5 (number); allowed: integer"),
        ({"inversion.bn": {"low": 1.0}}, "tune.t.space.inversion.bn: got {'low': 1.0}; allowed: {low, high}"),
        ({"inversion.bn": {"low": 1.0, "high": 2.0, "choices": [1.0, 2.0]}}, "tune.t.space.inversion.bn: got {"),
        ({"inversion.meta": {"choices": ["maml", "sgd"]}}, "inversion.meta: got 'sgd'; allowed: maml, reptile"),
        ({"inversion.meta": {"choices": ["maml"]}}, "tune.t.space.inversion.meta: got {"),
        ({"replay.priority_feedback": {"low": 0, "high": 1}}, "replay.priority_feedback: got 0 (integer)"),
        ({"distillation.training.epochs": {"low": 2, "high": 9}}, "milestones: got 4; allowed: below epochs (2)"),
        ({"objective.kd.temprature": {"low": 1.0, "high": 2.0}}, "objective.kd"),
        ({}, "tune.t.space: got {}"),
    ],
)
def test_a_mistake_in_a_search_is_named(load, space, words):
    text = fault(load, experiments={"a": experiment()}, tune=search(space=space))
    assert words in text
    assert "tune.t" in text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"method": "fre"}, "did you mean 'free'?"),
        ({"trials": 0}, "tune.t.trials: got 0"),
        ({"validation": 0}, "tune.t.validation: got 0"),
        ({"validation": 1}, "tune.t.validation: got 1"),
        ({"pair": ["vgg8"]}, "tune.t.pair: got ['vgg8']"),
        ({"pair": ["vgg8", "vgg9"]}, "unknown model 'vgg9'"),
        ({"trial": 5}, "unknown key 'trial'; did you mean 'trials'?"),
        ({"settings": {"replay": {"alhpa": 1}}}, "did you mean 'alpha'?"),
    ],
)
def test_a_mistake_around_a_space_is_named(load, change, words):
    assert words in fault(load, experiments={"a": experiment()}, tune=search(**change))


def test_a_range_of_a_number_written_as_an_integer_stays_continuous(load):
    """`passes: 2` in a study is the number 2.0; the schema knows, the value does not."""
    study = load(
        experiments={"a": experiment()},
        settings=merge(SETTINGS, {"distillation": {"passes": 2}}),
        tune=search(space={"distillation.passes": {"low": 0.5, "high": 3.5}}),
    )
    assert study.tunings["t"].space["distillation.passes"]["integer"] is False


def test_a_range_of_an_integer_that_is_null_gives_integers(load):
    study = load(
        experiments={"a": experiment()},
        settings=merge(SETTINGS, {"inversion": {"reset_epoch": None}}),
        tune=search(space={"inversion.reset_epoch": {"low": 1, "high": 9}}),
    )
    assert study.tunings["t"].space["inversion.reset_epoch"]["integer"] is True


# ------------------------------------------------------------------------------------------------------------- speed


def test_a_thousand_runs_expand_in_seconds(load):
    pairs = [[teacher, student] for teacher in ("wrn_16_2", "vgg8") for student in ("resnet8", "wrn_10_1", "vgg11")]
    asked = experiment(
        pairs=pairs[:5],
        methods=list(METHODS),
        ablations=[FULL, "no-priority"],
        scales=[0.1, 0.2, 0.3, 0.4, 0.5],
        seeds=list(range(5)),
    )
    start = time.process_time()
    study = load(experiments={"a": asked})
    assert time.process_time() - start < 5
    assert len(study.table) == 1000


def test_nested_settings_of_the_command_line_are_numbers_again(load):
    """Snakemake passes `--config 'training={epochs: 3}'` on with the number as text."""
    given = {"training": {"epochs": "3", "lr": "0.25", "milestones": ["1", "2"], "nesterov": "true"}}
    study = load(given=given, experiments={"a": experiment(methods=["scratch"])})
    training = study.runs[study.students[0]].training
    assert (training.epochs, training.lr, training.milestones, training.nesterov) == (3, 0.25, (1, 2), True)


@pytest.mark.parametrize("place", ["methods", "ablations", "experiment"])
def test_what_holds_for_a_whole_study_is_refused_elsewhere(load, place):
    override = {"compute": {"threads": 2}}
    content = {"experiments": {"a": experiment(**({"settings": override} if place == "experiment" else {}))}}
    if place == "methods":
        content["methods"] = {**METHODS, "free": {**METHODS["free"], **override}}
    if place == "ablations":
        content |= {"ablations": {"x": override}, "experiments": {"a": experiment(ablations=["x"])}}
    assert "compute: holds for a whole study" in fault(load, **content)


def test_how_trials_are_computed_is_no_part_of_a_search(load):
    search = {"pair": PAIR, "method": "free", "scale": 0.5, "seed": 0, "trials": 2, "validation": 0.2}
    tune = {"x": {**search, "space": {"replay.alpha": {"low": 0.0, "high": 1.0}}}}
    studies = [
        load(settings={**SETTINGS, "compute": {"threads": threads}}, tune=tune, experiments={"a": experiment()})
        for threads in (1, 2)
    ]
    assert studies[0].tunings == studies[1].tunings
    assert "compute" not in studies[0].tunings["x"].settings


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
    assert list(grandchild.experiments) == ["a", "b", "c"], "mine was written anew since, with both"


def test_in_settings_null_is_a_value(load):
    load(name="base", experiments={"a": experiment()})
    kept = {"methods": ..., "ablations": ..., "settings": {"inversion": {"reset_epoch": None}}}
    child = load(extends="base", **kept)
    assert [run.inversion.reset_epoch for run in child.runs.values() if run.inversion] == [None]


def test_what_cannot_be_extended_is_named(load):
    a = {"a": experiment()}
    assert "extends: got 'bse'; did you mean 'base'" in (
        load(name="base", experiments=a) and fault(load, extends="bse")
    )
    assert "these studies extend each other, mine -> mine" in fault(load, extends="mine")
    assert "experiments.b: got null" in fault(load, experiments=a | {"b": None}), "it extends nothing"
    assert "experiments: got {}" in fault(load, extends="base", experiments={"a": None})


def claims(**test):
    return {"x": {"says": "So.", "tests": [{"of": {"method": "free"}, "to": {"method": "free"}, "above": 0, **test}]}}


def test_claims_are_checked_before_anything_runs(load):
    assert load(experiments={"a": experiment()}, claims=claims()).claims == claims()
    a = {"a": experiment()}
    assert "claims.x.tests.0: no run of {'method': 'plain'}" in fault(
        load, experiments=a, claims=claims(of={"method": "plain"})
    )
    assert "claims.x.tests.0" in fault(load, experiments=a, claims=claims(below=1)), "above or below, not both"
    assert "got 'acuracy'" in fault(load, experiments=a, claims=claims(measure="acuracy"))
    assert "each: got 'seed'" in fault(load, experiments=a, claims=claims(each="seed"))


def test_a_claim_names_the_experiment_where_two_have_equal_names(load):
    two = {"a": experiment(), "b": experiment(settings={"inversion": {"adv": 0.7}})}
    assert "claims.x.tests.0.of: got {'method': 'free'}, 2 runs for one" in fault(
        load, experiments=two, claims=claims()
    )
    sides = {side: {"method": "free", "experiment": name} for side, name in (("of", "a"), ("to", "b"))}
    assert load(experiments=two, claims=claims(**sides)).claims == claims(**sides)
    shared = {"a": experiment(), "b": experiment()}
    assert load(experiments=shared, claims=claims()).claims == claims(), "one run, whatever the experiment"


def test_a_claim_about_each_pair_is_a_test_for_every_one(load):
    pairs = [PAIR, ["resnet8", "wrn_16_1"]]
    tests = load(experiments={"a": experiment(pairs=pairs)}, claims=claims(each="pair")).claims["x"]["tests"]
    networks = [{"method": "free", "teacher": teacher, "student": student} for teacher, student in pairs]
    assert tests == [{"of": side, "to": side, "above": 0} for side in networks]


def test_overrides_for_a_teacher_hold_for_its_students(load):
    pairs = [PAIR, ["resnet8", "wrn_16_1"]]
    teachers = {"resnet8": {"inversion": {"adv": 1.33}, "modulation": {"gamma": 3.0}}}
    study = load(experiments={"a": experiment(pairs=pairs, methods=["free", "soft"])}, teachers=teachers)
    runs = {run.teacher.model: run for run in study.runs.values() if run.kind == "datafree"}
    assert (runs["resnet8"].inversion.adv, runs["wrn_16_2"].inversion.adv) == (1.33, 1.1)
    assert runs["resnet8"].modulation.gamma == 1.0, "the method has the last word"
    with pytest.raises(ConfigError, match=r"inversion: unknown key 'avd'; did you mean 'adv'"):
        load(experiments={"a": experiment(pairs=pairs)}, teachers={"resnet8": {"inversion": {"avd": 1.0}}})


def test_a_network_may_change_one_method_alone(load):
    """As with DKD, whose authors give a weight per teacher."""
    pairs = [PAIR, ["resnet8", "wrn_16_1"]]
    warm = {"objective": {"kd": {"temperature": 7.0}}}
    ablations = {"cool": {"objective": {"kd": {"temperature": 2.0}}}}
    both = {"pairs": pairs, "methods": ["soft"], "ablations": ["full", "cool"]}

    def temperatures(**networks):
        study = load(experiments={"a": experiment(**both)}, ablations=ablations, **networks)
        runs = [study.runs[path] for path in study.table["path"]]
        return {(run.teacher.model, run.model, run.objective["kd"]["temperature"]) for run in runs}

    plain = temperatures()
    assert {row[2] for row in plain} == {4.0, 2.0}
    changed = temperatures(teachers={"resnet8": {"methods": {"soft": warm}}})
    assert changed - plain == {("resnet8", "wrn_16_1", 7.0)}, "the ablation has the last word"
    changed = temperatures(students={PAIR[1]: {"methods": {"soft": warm}, "training": {"lr": 0.01}}})
    assert changed - plain == {(*PAIR, 7.0), ("resnet8", "wrn_16_1", 7.0)}, "both have that student"
    assert temperatures(teachers={"resnet8": {"methods": {"free": {"inversion": {"adv": 2.0}}}}}) == plain
    text = fault(load, experiments={"a": experiment(**both)}, ablations=ablations, teachers={"x": {"methods": []}})
    assert "teachers.x.methods" in text
    text = fault(
        load,
        experiments={"a": experiment(**both)},
        ablations=ablations,
        teachers={"resnet8": {"methods": {"sotf": warm}}},
    )
    assert "teachers.resnet8.methods: got 'sotf'; did you mean 'soft'" in text


def test_an_ensemble_of_unlike_teachers_may_have_methods_that_they_do_not_share(load):
    """Teachers of one ensemble must agree on the methods it is distilled with, not on others."""
    pairs = [[["resnet8", "wrn_16_2"], "resnet14"]]
    own = {"methods": {"free": {"inversion": {"adv": 2.0}}}}
    load(experiments={"a": experiment(pairs=pairs, methods=["soft"], scales=[1.0])}, teachers={"resnet8": own})
    own = {"methods": {"soft": {"objective": {"kd": {"temperature": 7.0}}}}}
    assert "are one ensemble" in fault(
        load, experiments={"a": experiment(pairs=pairs, methods=["soft"], scales=[1.0])}, teachers={"resnet8": own}
    )


def test_an_ensemble_is_made_of_the_teachers_that_stand_alone(load):
    alone, both = [["resnet8", "resnet14"], ["wrn_16_2", "resnet14"]], [[["resnet8", "wrn_16_2"], "resnet14"]]
    experiments = {"a": experiment(pairs=alone + both, methods=["soft"], scales=[1.0])}
    study = load(experiments=experiments)
    assert len({teacher.path for run in study.runs.values() for teacher in run.teachers or ()}) == 2
    short = {"teacher": {"training": {"lr": 0.013}}}
    assert "teachers: resnet8 and wrn_16_2 are one ensemble in experiments.a but have unlike settings" in fault(
        load, experiments=experiments, teachers={"resnet8": short}
    )
    study = load(experiments=experiments, teachers={"resnet8": short, "wrn_16_2": short})
    assert {run.training.lr for run in study.runs.values() if run.kind == "train"} == {0.013}


def test_with_a_teacher_per_seed_no_two_ensembles_share_a_member(load):
    twins = {"a": experiment(pairs=[[["resnet8", "resnet8"], "resnet14"]], methods=["soft"], seeds=[0, 1, 2])}
    study = load(experiments=twins, settings=merge(SETTINGS, {"teacher": {"seed": None}}))
    seeds = [[teacher.seed for teacher in study.runs[path].teachers] for path in study.students]
    assert seeds == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize("name", ["ssdkd-cifar10", "ssdkd-cifar100"])
def test_the_published_studies_hold_what_they_promise(name):
    study, small = (
        load_study(ROOT / "config/config.yaml", SCHEMAS, {"study": name, "quick": quick}) for quick in (False, True)
    )
    assert len(study.table[["teacher", "student"]].drop_duplicates()) == 5
    assert set(study.table["seed"]) == {0, 1, 2}
    scale = study.table[study.table["experiment"] == "scale"]
    assert sorted(set(scale["scale"])) == [0.01, 0.05, 0.1, 0.2, 1.0]
    assert len(scale[["teacher", "student"]].drop_duplicates()) == 3
    modules = study.table[study.table["experiment"] == "modules"].drop_duplicates("ablation")
    switched = set()
    for path in modules["path"]:
        run = study.runs[path]
        switched.add((run.modulation.diversity > 0, run.modulation.gamma > 0, run.replay.alpha > 0))
        assert (run.replay.alpha > 0) == (run.replay.beta > 0)
    assert len(switched) == len(modules) == 8, "the full 2x2x2 table"
    originals = study.table[study.table["method"] == "original"]
    assert set(originals["scale"]) == {0.1}
    assert {study.runs[path].inversion.images for path in originals["path"]} == {"original"}
    resnet = next(
        run for run in study.runs.values() if run.teacher and run.teacher.model == "resnet34" and run.inversion
    )
    assert (resnet.inversion.adv, resnet.inversion.bn, resnet.inversion.oh) == (1.33, 10.0, 0.5)
    assert {claim[0] for claim in study.claims} == {claim[0] for claim in small.claims} == set("abcd")
    assert set(small.table["experiment"]) == set(study.table["experiment"])
    assert set(small.table["teacher"]) == {"wrn_16_1"}


@pytest.mark.parametrize("name", sorted(file.stem for file in (ROOT / "config/studies").glob("*.yaml")))
def test_every_study_of_the_project_has_runs(name):
    study = load_study(ROOT / "config/config.yaml", SCHEMAS, {"study": name})
    assert study.students
    assert set(study.table["experiment"]) == set(study.experiments)


@pytest.mark.parametrize("name", ["crd-cifar100", "crd-scale", "crd-modules", "crd-transfer"])
def test_crds_studies_hold_what_they_promise(name):
    study, small = (
        load_study(ROOT / "config/config.yaml", SCHEMAS, {"study": name, "quick": quick}) for quick in (False, True)
    )
    assert set(small.table["experiment"]) <= set(study.table["experiment"])
    assert set(small.table["student"]) == {"resnet8"}
    assert set(study.claims) == set(small.claims) != set(), "rules for either version"
    if name == "crd-cifar100":
        judged = [len(version.claims["crd-above-kd-on-every-pair"]["tests"]) for version in (study, small)]
        assert judged == [13, 1]
        assert len(study.table[["teacher", "student"]].drop_duplicates()) == 13
        assert len(set(study.table["method"])) == 20
        slow = {run.model for run in study.runs.values() if run.teacher and run.training.lr == 0.01}
        assert slow == {"mobilenetv2_half", "shufflenetv1", "shufflenetv2"}
        for method, setting, usual, others in (
            ("dkd", "beta", 8.0, {("resnet56", "resnet20"): 2.0, ("resnet110", "resnet32"): 2.0}),
            ("reviewkd", "weight", 5.0, {("resnet56", "resnet20"): 0.6, ("resnet110", "resnet32"): 1.0}),
        ):
            others |= {("resnet110", "resnet20"): others["resnet110", "resnet32"]}
            if method == "dkd":
                others |= {("vgg13", "vgg8"): 6.0, ("vgg13", "mobilenetv2_half"): 6.0}
                others |= {("wrn_40_2", student): 6.0 for student in ("wrn_16_2", "wrn_40_1")}
            else:
                others |= {("resnet32x4", "shufflenetv2"): 8.0}
            rows = study.table[study.table["method"] == method]
            found = {
                (row.teacher, row.student): study.runs[row.path].objective[method].get(setting, usual)
                for row in rows.itertuples()
            }
            assert found == {pair: others.get(pair, usual) for pair in found}
            assert len(found) == 13
    if name == "crd-scale":
        assert set(study.table["scale"]) == {1.0, 0.5, 0.2, 0.1, 0.05, 0.01}
        assert all(run.teacher.scale == 1.0 for run in study.runs.values() if run.teacher)
    if name == "crd-transfer":
        assert {len(run.teachers) for run in study.runs.values() if run.teachers} == {1, 2, 4}
        assert {(run.teacher.view, run.view) for run in study.runs.values() if run.teacher} == {
            *(("rgb", "rgb"), ("luminance", "chrominance"))
        }
