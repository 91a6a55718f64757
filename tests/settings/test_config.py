"""Settings: one list of names, the rule of merging, readable faults, and what identifies a run."""

import copy
import json
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from kd.runtime.messages import ConfigError
from kd.runtime.yaml_files import read_yaml
from kd.settings import run as config
from kd.settings.run import Run, digest, merge, run_of, slug
from kd.settings.validation import validate

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = read_yaml(ROOT / "workflow/schemas/config.schema.yaml")
DEFAULTS = read_yaml(ROOT / "config/config.yaml")
DROP = object()  # in an override: take the key away
TRAINING = {
    "epochs": 10,
    "batch_size": 8,
    "lr": 0.1,
    "schedule": "steps",
    "milestones": [4, 8],
    "gamma": 0.5,
    "final_lr": 0.0,
    "momentum": 0.9,
    "nesterov": False,
    "weight_decay": 0.0,
}
# Settings of our own, so that another default breaks no test.
BASE = merge(
    DEFAULTS,
    {
        "dataset": {"name": "digits", "image_size": 16, "validation": 0.0, "pad": 2, "flip": False},
        "teacher": {"model": "wrn_16_2", "seed": 0, "training": TRAINING},
        "student": {"model": "wrn_16_1"},
        "training": TRAINING,
        "distillation": {"training": TRAINING},
        "scale": 0.5,
        "kind": "train",
    },
)
BASE["objective"] = {"ce": {"weight": 1.0}}
OBJECTIVE = {"ce": {"weight": 0.5}, "kd": {"weight": 0.5, "temperature": 4.0}}
KINDS = {
    "train": {"kind": "train"},
    "distill": {"kind": "distill", "objective": OBJECTIVE},
    "datafree": {"kind": "datafree", "inversion": {"reset_epoch": 3}, "replay": {"full_size": 64, "final_beta": 0.5}},
}


def changed(override, base=BASE):
    """`base` with an override in which DROP takes a key away."""
    result = copy.deepcopy(base)
    for key, value in override.items():
        if value is DROP:
            del result[key]
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = changed(value, result[key])
        else:
            result[key] = copy.deepcopy(value)
    return result


def faults_of(override):
    """The lines that an override is refused with; each one readable by itself."""
    with pytest.raises(ConfigError) as caught:
        validate(changed(override), SCHEMA, "my.yaml")
    lines = str(caught.value).splitlines()
    for line in lines:
        assert line.startswith("my.yaml: ")
        assert line.isprintable()
        assert len(line) < 1000
        for word in ("Traceback", "jsonschema", "Error", "On instance", "Failed validating", "<class"):
            assert word not in line
    return lines


def run(kind="train", seed=0, **override):
    settings = merge(BASE, KINDS[kind], override)
    validate(settings, SCHEMA, "test")
    return run_of(settings, seed)


# -------------------------------------------------------------------------------------------------------- one list


def resolved(schema):
    if "$ref" in schema:
        return SCHEMA["$defs"][schema["$ref"].rsplit("/", 1)[1]]
    return schema


def closed_sections(schema, values, path=""):
    """(path, properties, required, keys of config.yaml) of every closed object, from the top down."""
    schema = resolved(schema)
    if schema.get("additionalProperties") is False:
        yield path or "top level", set(schema["properties"]), set(schema["required"]), set(values)
        for key, inner in schema["properties"].items():
            if isinstance(values[key], dict):
                yield from closed_sections(inner, values[key], f"{path}.{key}".strip("."))


def test_schema_and_defaults_name_the_same_settings():
    sections = list(closed_sections(SCHEMA, DEFAULTS))
    assert {path for path, *_ in sections} >= {"top level", "dataset", "teacher.training", "distillation.training"}
    for path, properties, required, keys in sections:
        assert properties == keys, path
        assert properties == required, path


def test_every_object_of_the_schema_is_closed_but_the_named_maps():
    opened = {key for key, value in DEFAULTS.items() if isinstance(value, dict)} - {
        path.split(".")[0] for path, *_ in closed_sections(SCHEMA, DEFAULTS)
    }
    assert opened == {"objective", "methods"}


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("dataset", config.Dataset),
        ("training", config.Training),
        ("teacher.training", config.Training),
        ("distillation.training", config.Training),
        ("inversion", config.Inversion),
        ("modulation", config.Modulation),
        ("replay", config.Replay),
        ("distillation", config.Distillation),
        ("compute", config.Compute),
    ],
)
def test_dataclasses_name_the_same_settings(path, shape):
    keys = {name: keys for name, _, _, keys in closed_sections(SCHEMA, DEFAULTS)}
    assert {field.name for field in fields(shape)} == keys[path]


def test_schema_holds_no_default():
    assert "default" not in {key for key in _keys(SCHEMA) if isinstance(key, str)}


def _keys(value):
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _keys(item)
    elif isinstance(value, list):
        for item in value:
            yield from _keys(item)


def test_defaults_are_valid_with_every_method():
    validate(DEFAULTS, SCHEMA, "config.yaml")
    same_widths = {"student": {"model": DEFAULTS["teacher"]["model"]}}  # some distillers need them
    for override in DEFAULTS["methods"].values():
        validate(merge(DEFAULTS, same_widths, override), SCHEMA, "config.yaml")


def test_a_pair_that_a_loss_cannot_relate_is_refused_by_name():
    fsp = {"kind": "distill", "objective": {"fsp": {"weight": 50.0}}}
    with pytest.raises(ConfigError, match=r"^x: objective\.fsp: maps of .* \(wrn_16_2 -> wrn_16_1\)$"):
        validate(merge(DEFAULTS, fsp), SCHEMA, "x")
    ensemble = {"teacher": {"model": ["wrn_16_1", "wrn_16_2"]}}
    with pytest.raises(ConfigError, match=r"^x: objective\.fsp: maps of .* \(wrn_16_2 -> wrn_16_1\)$"):
        validate(merge(DEFAULTS, fsp, ensemble), SCHEMA, "x")
    off = {"objective": {"fsp": {"weight": 0.0}}}
    validate(merge(DEFAULTS, fsp, off, {"objective": {"ce": {"weight": 1.0}}}), SCHEMA, "x")


def test_data_free_methods_have_one_teacher():
    ensemble = {"kind": "datafree", "teacher": {"model": ["wrn_16_1", "wrn_16_2"]}}
    with pytest.raises(ConfigError, match=r"teacher\.model: got 2 networks; data-free"):
        validate(merge(DEFAULTS, ensemble), SCHEMA, "x")


# ----------------------------------------------------------------------------------------------------------- merging


def test_mappings_merge_and_everything_else_is_replaced():
    base = {"a": {"b": 1, "c": [1, 2], "d": {"e": 1}}, "f": 1, "g": {"h": 1}}
    first = {"a": {"c": [3], "d": {"i": 2}}, "f": {"j": 1}, "g": None}
    last = {"a": {"b": 2}, "k": {"l": []}}
    assert merge(base, first, last) == {
        "a": {"b": 2, "c": [3], "d": {"e": 1, "i": 2}},
        "f": {"j": 1},
        "g": None,
        "k": {"l": []},
    }
    assert merge(base) == base
    assert merge({"a": {"b": 1}}, {"a": {}}) == {"a": {"b": 1}}


def test_merging_changes_nothing_that_is_given():
    given = [{"a": {"b": [1], "c": {"d": 1}}}, {"a": {"e": {"f": [2]}}}, {"a": {"e": {"f": [3]}, "c": {"d": 2}}}]
    before = copy.deepcopy(given)
    merged = merge(*given)
    assert given == before
    merged["a"]["b"].append(9)
    merged["a"]["c"]["d"] = 9
    merged["a"]["e"]["f"].append(9)
    assert given == before


# -------------------------------------------------------------------------------------------------------- validation


def distilled(loss, teacher="wrn_16_2", **values):
    """An override: distillation by one loss with these settings."""
    return {"kind": "distill", "teacher": {"model": teacher}, "objective": {loss: {"weight": 1.0, **values}}}


MISTAKES = [
    # a key that is unknown or missing, at each level
    ({"trainning": {}}, "top level", "'trainning'", "did you mean 'training'?"),
    ({"dataset": {"size": 3}}, "dataset", "'size'", "image_size"),
    ({"teacher": {"models": "vgg8"}}, "teacher", "'models'", "did you mean 'model'?"),
    ({"teacher": {"training": {"lrr": 0.1}}}, "teacher.training", "'lrr'", "did you mean 'lr'?"),
    ({"distillation": {"training": {"epoch": 1}}}, "distillation.training", "'epoch'", "did you mean 'epochs'?"),
    ({"student": {"width": 2}}, "student", "'width'", "allowed: model"),
    ({"replay": {"alhpa": 0.1}}, "replay", "'alhpa'", "did you mean 'alpha'?"),
    ({"compute": {"cpus": 2}}, "compute", "'cpus'", "threads"),
    ({"tracking": {"url": "x"}}, "tracking", "'url'", "did you mean 'uri'?"),
    ({1: 2}, "top level", "1", "allowed: "),
    ({"kind": DROP}, "top level", "'kind'", "missing"),
    ({"inversion": {"bn": DROP}}, "inversion", "'bn'", "missing"),
    ({"distillation": {"training": {"lr": DROP}}}, "distillation.training", "'lr'", "missing"),
    ({"objective": {"ce": {"weight": DROP}}}, "objective.ce", "'weight'", "missing"),
    # a value of another type
    ({"training": {"lr": "1e-3"}}, "training.lr", "'1e-3' (text)", "write 0.001, not 1e-3"),
    ({"replay": {"eps": "1e-6"}}, "replay.eps", "'1e-6' (text)", "write 0.001, not 1e-3"),
    ({"teacher": {"training": {"lr": "1e-3"}}}, "teacher.training.lr", "'1e-3' (text)", "write 0.001"),
    ({"training": {"lr": "fast"}}, "training.lr", "'fast' (text)", "allowed: number"),
    ({"training": {"epochs": "20"}}, "training.epochs", "'20' (text)", "integer"),
    ({"training": {"epochs": 1.5}}, "training.epochs", "1.5 (number)", "integer"),
    ({"training": {"epochs": True}}, "training.epochs", "True (boolean)", "integer"),
    ({"training": {"lr": False}}, "training.lr", "False (boolean)", "number"),
    ({"scale": True}, "scale", "True (boolean)", "number"),
    ({"teacher": {"seed": False}}, "teacher.seed", "False (boolean)", "integer or null"),
    ({"objective": {"ce": {"weight": True}}}, "objective.ce.weight", "True (boolean)", "number"),
    ({"training": {"lr": None}}, "training.lr", "null", "number"),
    ({"training": {"milestones": [1, None]}}, "training.milestones.1", "null", "integer"),
    ({"training": None}, "training", "null", "object"),
    ({"methods": None}, "methods", "null", "object"),
    ({"training": [1, 2]}, "training", "a list", "object"),
    ({"objective": ["ce"]}, "objective", "a list", "object"),
    ({"objective": {"ce": 1.0}}, "objective.ce", "1.0 (number)", "object"),
    ({"training": {"milestones": 5}}, "training.milestones", "5 (integer)", "array"),
    ({"training": {"milestones": {"a": 1}}}, "training.milestones", "a mapping", "array"),
    ({"modulation": {"gradient": "yes"}}, "modulation.gradient", "'yes' (text)", "boolean"),
    ({"modulation": {"gradient": 1}}, "modulation.gradient", "1 (integer)", "boolean"),
    ({"student": {"model": 18}}, "student.model", "18 (integer)", "string"),
    ({"dataset": {"name": None}}, "dataset.name", "null", "string"),
    ({"tracking": {"uri": 5000}}, "tracking.uri", "5000 (integer)", "string or null"),
    # out of range, or not one of a few words
    ({"training": {"epochs": 0}}, "training.epochs", "0", ">= 1"),
    ({"training": {"batch_size": 1}}, "training.batch_size", "1", ">= 2"),
    ({"training": {"lr": 0}}, "training.lr", "0", "> 0"),
    ({"training": {"gamma": 1.5}}, "training.gamma", "1.5", "<= 1"),
    ({"training": {"momentum": 1}}, "training.momentum", "1", "< 1"),
    ({"training": {"milestones": [2, 2]}}, "training.milestones", "[2, 2]", "once"),
    ({"scale": 0}, "scale", "0", "> 0"),
    ({"scale": 1.01}, "scale", "1.01", "<= 1"),
    ({"dataset": {"validation": 1}}, "dataset.validation", "1", "< 1"),
    ({"dataset": {"image_size": 4}}, "dataset.image_size", "4", ">= 8"),
    ({"modulation": {"diversity": -0.5}}, "modulation.diversity", "-0.5", ">= 0"),
    ({"objective": {"ce": {"weight": -1}}}, "objective.ce.weight", "-1", ">= 0"),
    ({"teacher": {"seed": -1}}, "teacher.seed", "-1", ">= 0"),
    ({"compute": {"checkpoint_seconds": 0}}, "compute.checkpoint_seconds", "0", "> 0"),
    ({"kind": "distil"}, "kind", "'distil'", "did you mean 'distill'?"),
    ({"precision": "float16"}, "precision", "'float16'", "float32, bf16"),
    ({"training": {"schedule": "step"}}, "training.schedule", "'step'", "did you mean 'steps'?"),
    ({"replay": {"refresh": None}}, "replay.refresh", "None", "drawn, all"),
    ({"compute": {"device": "gpu"}}, "compute.device", "'gpu'", "cuda"),
    ({"methods": {"a b": {}}}, "methods", "'a b'", "A-Za-z0-9"),
    ({"methods": {"../x": {}}}, "methods", "'../x'", "A-Za-z0-9"),
    ({"results": ""}, "results", "''", "at least 1"),
    # what only models, data sets and losses know
    ({"student": {"model": "resnet35"}}, "student.model", "'resnet35'", "did you mean"),
    ({"teacher": {"model": "wrn_15_2"}}, "teacher.model", "'wrn_15_2'", "depth = 6n + 4"),
    ({"student": {"model": ""}}, "student.model", "''", "allowed are"),
    ({"student": {"model": "no_such_module:build"}}, "student.model", "'no_such_module'", "install it"),
    ({"dataset": {"name": "digit"}}, "dataset.name", "'digit'", "did you mean 'digits'?"),
    ({"objective": {"cee": {"weight": 1}}}, "objective.cee", "unknown loss", "did you mean 'ce'?"),
    (
        {"kind": "distill", "objective": {"kd": {"weight": 1, "temprature": 2.0}}},
        "objective.kd.temprature",
        "unknown key",
        "did you mean 'temperature'?",
    ),
    ({"objective": {"ce": {"weight": 1, "smoothing": 0.1}}}, "objective.ce.smoothing", "unknown key", "weight"),
    ({"training": {"milestones": [5, 10]}}, "training.milestones", "10", "below epochs (10)"),
    ({"teacher": {"training": {"epochs": 4}}}, "teacher.training.milestones", "4", "below epochs (4)"),
    ({"distillation": {"training": {"epochs": 4}}}, "distillation.training.milestones", "4", "below epochs (4)"),
    ({"training": {"nesterov": True, "momentum": 0.0}}, "training.nesterov", "momentum 0", "raise the momentum"),
    ({"objective": {"ce": {"weight": 0}}}, "objective", "every weight is 0", "above 0"),
    ({"objective": {"ce": DROP}}, "objective", "{}", "at least 1"),
    ({"objective": {"kd": {"weight": 1}}}, "objective.kd", "kind is train", "set kind: distill"),
    (merge(KINDS["datafree"], {"dataset": {"image_size": 18}}), "dataset.image_size", "18", "multiple of 4"),
    (
        distilled("simkd", teacher=["wrn_16_2", "wrn_16_1"]),
        "teacher.model",
        "got 2 networks",
        "objective.simkd takes over",
    ),
    ({"student": {"view": "luminance"}}, "student.view", "'luminance'", "take view: rgb"),
    (merge(KINDS["distill"], {"teacher": {"view": "luminance"}}), "teacher.view", "'luminance'", "take view: rgb"),
    (
        {"student": {"view": "chrominance"}, "dataset": {"name": "fashion_mnist"}},
        *("student.view", "'chrominance'", "take view: rgb"),
    ),
    # settings of losses out of range, by themselves, together, or for these networks
    *(
        (distilled(loss, **{key: value}), f"objective.{loss}.{key}", str(value), allowed)
        for loss, key, value, allowed in [
            ("kd", "temperature", 0, "above 0"),
            ("dkd", "temperature", -1.0, "above 0"),
            ("dkd", "beta", -1.0, "at least 0"),
            ("dist", "temperature", 0.0, "above 0"),
            ("dist", "gamma", -0.5, "at least 0"),
            ("crd", "negatives", 0, "at least 1"),
            ("crd", "feat_dim", -1, "at least 1"),
            ("crd", "tau", 0, "above 0"),
            ("crd", "momentum", 1, "at least 0 and below 1"),
            ("rkd", "angle_weight", -1, "at least 0"),
            ("cc", "feat_dim", 0, "at least 1"),
            ("fitnet", "layer", -1, "at least 0"),
            ("at", "p", 0, "at least 1"),
            ("vid", "eps", -1, "above 0"),
            ("vid", "init_pred_var", 0.000001, "above eps"),
            ("kdsvd", "k", 0, "at least 1"),
            ("reviewkd", "max_mid_width", 0, "at least 1"),
            ("simkd", "factor", 0, "at least 1"),
            ("ab", "first_epochs", -1, "at least 0"),
            ("ab", "margin", 0.0, "above 0"),
            ("ft", "first_epochs", -1, "at least 0"),
            ("ft", "first_lr", 0, "above 0"),
            ("ft", "factor_rate", 0, "above 0"),
            ("fsp", "first_epochs", -1, "at least 0"),
        ]
    ),
    *(
        (distilled("crd", positive="relax", **{key: value}), "objective.crd.positive", "'relax'", f"exact when {key}")
        for key, value in [("memory", "queue"), ("negatives_from", "other_indices")]
    ),
    (distilled("vid", eps=6.0), "objective.vid.init_pred_var", "5.0", "above eps"),
    (distilled("kdsvd", teacher="wrn_16_1", k=99), "objective.kdsvd", "no 99 singular vectors", "choose a smaller k"),
    (distilled("simkd", factor=129), "objective.simkd", "129", "from 1 to 128"),
    (distilled("ft", factor_rate=0.001), "objective.ft", "0.001", "at least 1 of 128 channels"),
    (distilled("fitnet", layer=4), "objective.fitnet", "no layer 4", "choose a layer from 0 to 3"),
    # the type of a setting before what it does to the networks
    (distilled("fitnet", layer="2"), "objective.fitnet.layer", "'2' (text)", "allowed: integer"),
    (distilled("fitnet", layer=None), "objective.fitnet.layer", "null", "allowed: integer"),
    (distilled("fitnet", layer=1.5), "objective.fitnet.layer", "1.5 (number)", "allowed: integer"),
    (distilled("crd", negatives="many"), "objective.crd.negatives", "'many' (text)", "allowed: integer"),
]


@pytest.mark.parametrize(
    ("override", "key", "came", "allowed"), MISTAKES, ids=[f"{row[1]}-{row[2]}" for row in MISTAKES]
)
def test_a_mistake_is_named_with_what_came_and_what_is_allowed(override, key, came, allowed):
    lines = faults_of(override)
    own = [line for line in lines if line.startswith(f"my.yaml: {key}: ")]
    assert own, lines
    assert any(came in line and allowed in line for line in own), lines


def test_our_settings_have_no_fault():
    for override in KINDS.values():
        validate(merge(BASE, override), SCHEMA, "test")
    validate(merge(BASE, {"training": {"schedule": "cosine", "epochs": 2}}), SCHEMA, "no milestones with cosine")
    validate(merge(BASE, {"objective": {"kd": {"weight": 0}}}), SCHEMA, "a term that is switched off")
    validate(merge(BASE, {"dataset": {"image_size": 18}}), SCHEMA, "18 pixels without a generator")


def test_every_fault_has_its_line():
    lines = faults_of({"training": {"lr": -1, "epochs": 0}, "scale": 2, "kind": "x"})
    assert len(lines) == 4
    lines = faults_of({"student": {"model": "x"}, "teacher": {"model": "y"}, "dataset": {"name": "z"}})
    assert len(lines) == 3


@pytest.mark.parametrize("text", [".nan", ".inf", "-.inf", ".NaN"])
@pytest.mark.parametrize("key", ["training.lr", "inversion.bn", "replay.eps", "scale", "objective.ce.weight"])
def test_numbers_are_finite(text, key):
    override = yaml.safe_load(text)
    for part in reversed(key.split(".")):
        override = {part: override}
    assert any(key in line for line in faults_of(override))


def test_a_loss_gets_finite_numbers_too():
    terms = {"kd": {"weight": 1.0, "temperature": float("inf")}}
    assert any("objective.kd.temperature" in line for line in faults_of({"kind": "distill", "objective": terms}))


def test_a_fault_is_told_once():
    """What a value out of range or of another type would do to the networks is not asked."""
    assert len(faults_of(distilled("fitnet", layer="2"))) == 1
    assert len(faults_of(distilled("simkd", factor=0))) == 1
    assert len(faults_of(distilled("vid", eps=-1))) == 1


def test_views_are_for_colours_and_a_teacher_that_is_not_used_has_any():
    views = {"student": {"view": "chrominance"}, "teacher": {"view": "luminance"}}
    validate(merge(BASE, KINDS["distill"], views, {"dataset": {"name": "cifar10"}}), SCHEMA, "x")
    validate(merge(BASE, {"teacher": {"view": "luminance"}}), SCHEMA, "x")


PUBLISHED = {  # CRD's study: r x cross entropy + a x KD at T 4 + b x the distiller
    "kd": {"ce": 0.1, "kd": 0.9},
    "fitnet": {"ce": 1.0, "fitnet": 100.0},
    "at": {"ce": 1.0, "at": 1000.0},
    "sp": {"ce": 1.0, "sp": 3000.0},
    "cc": {"ce": 1.0, "cc": 0.02},
    "vid": {"ce": 1.0, "vid": 1.0},
    "rkd": {"ce": 1.0, "rkd": 1.0},
    "pkt": {"ce": 1.0, "pkt": 30000.0},
    "ab": {"ce": 1.0, "ab": 1.0},
    "ft": {"ce": 1.0, "ft": 200.0},
    "fsp": {"ce": 1.0, "fsp": 50.0},
    "nst": {"ce": 1.0, "nst": 50.0},
    "crd": {"ce": 1.0, "crd": 0.8},
    "crd-kd": {"ce": 1.0, "kd": 1.0, "crd": 0.8},
}


@pytest.mark.parametrize("method", PUBLISHED)
def test_methods_have_their_published_weights(method):
    terms = merge(DEFAULTS, DEFAULTS["methods"][method])["objective"]
    assert {name: term["weight"] for name, term in terms.items()} == PUBLISHED[method]
    assert terms.get("kd", {"temperature": 4.0})["temperature"] == 4.0


@pytest.mark.parametrize("value", ["1e1", "hot", True, None])
def test_a_loss_gets_values_of_the_type_it_takes(value):
    terms = {"kd": {"weight": 1.0, "temperature": value}}
    assert any("objective.kd.temperature" in line for line in faults_of({"kind": "distill", "objective": terms}))


@pytest.mark.parametrize("key", ["training.epochs", "training.batch_size", "dataset.pad", "teacher.seed"])
def test_integers_are_written_without_a_point(key):
    """20.0 has the identity of 20, but range(20.0) fails in the middle of a run."""
    override = 20.0
    for part in reversed(key.split(".")):
        override = {part: override}
    assert any(line.startswith(f"my.yaml: {key}: ") for line in faults_of(override))


@pytest.mark.parametrize(
    "terms",
    [
        {1: {"weight": 1.0}},
        {None: {"weight": 1.0}},
        {"c\ne": {"weight": 1.0}},
        {"ce": {"weight": 1.0, 3: 4}},
        {"ce": {"weight": 1.0, "a\nb": 4}},
    ],
    ids=["integer", "null", "newline", "integer setting", "newline in setting"],
)
def test_odd_keys_of_losses_are_refused_readably(terms):
    assert all("objective" in line for line in faults_of({"objective": terms}))


def test_names_end_where_they_seem_to_end():
    """`$` of a pattern also matches before a final newline."""
    faults_of({"compute": {"device": "cpu\n"}})


# ---------------------------------------------------------------------------------------------------------- identity


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_survives_the_way_through_its_file(kind):
    original = run(kind, seed=3)
    described = original.as_dict()
    again = Run.from_dict(json.loads(json.dumps(described)))
    assert again == original
    assert again.as_dict() == described
    assert (again.digest, again.path) == (original.digest, original.path)
    assert Run.from_dict(yaml.safe_load(yaml.safe_dump(described))).digest == original.digest
    hash(again.training)  # lists became tuples


def test_a_run_holds_only_what_its_kind_uses():
    assert set(run("train").as_dict()) == {
        *("kind", "dataset", "model", "view", "scale", "precision", "seed", "training", "objective"),
    }
    datafree = run("datafree", replay={"full_size": None}).as_dict()
    assert not {"training", "objective"} & set(datafree)
    assert datafree["replay"]["full_size"] is None  # null inside a section is a value
    [teacher] = run("distill").as_dict()["teachers"]
    assert (teacher["kind"], teacher["scale"], teacher["objective"]) == ("train", 1.0, {"ce": {"weight": 1.0}})
    assert "teachers" not in teacher


def reversed_keys(value):
    if isinstance(value, dict):
        return {key: reversed_keys(value[key]) for key in reversed(value)}
    return value


def test_digests_are_the_same_everywhere():
    # sha256 of {"a": 1.0, "b": [1.0, true, null, "x"]}: another value would rename every run that is stored
    assert digest({"b": [1, True, None, "x"], "a": 1}) == "b13cda5fc7"
    assert digest(1) == digest(1.0) != digest(True)
    assert digest([1, 2]) == digest((1.0, 2)) != digest([2, 1])


@pytest.mark.parametrize("kind", KINDS)
def test_spelling_is_no_part_of_the_identity(kind):
    original = run(kind)
    described = original.as_dict()
    assert Run.from_dict(reversed_keys(described)).digest == original.digest
    assert digest(floats(described)) == digest(described)


def floats(value):
    """The same numbers, written with a point."""
    if isinstance(value, dict):
        return {key: floats(item) for key, item in value.items()}
    if isinstance(value, list):
        return [floats(item) for item in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


@pytest.mark.parametrize("kind", KINDS)
def test_a_runs_seed_is_in_its_path_but_not_in_its_digest(kind):
    runs = [run(kind, seed) for seed in (0, 1, 7)]
    assert len({one.digest for one in runs}) == 1
    assert [one.path for one in runs] == [f"{runs[0].path.removesuffix('0')}{seed}" for seed in (0, 1, 7)]


def test_a_teachers_seed_counts():
    assert run("distill", teacher={"seed": 1}).digest != run("distill").digest
    assert run("distill", 5, teacher={"seed": None}).teacher.seed == 5


def variations(value, path=()):
    """(path, the value with one leaf changed) for every leaf."""
    for key, item in value.items():
        if isinstance(item, dict):
            for where, other in variations(item, (*path, key)):
                yield where, {**value, key: other}
        elif key == "teachers":
            for where, other in variations(item[0], (*path, key)):
                yield where, {**value, key: [other]}
        else:
            yield ".".join((*path, key)), {**value, key: another(item)}


def another(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if value == "rgb":
        return "luminance"
    return [*value, 1] if isinstance(value, list) else "x" if value is None else f"{value}x"


@pytest.mark.parametrize("kind", KINDS)
def test_every_setting_of_a_run_changes_its_digest(kind):
    described = run(kind).as_dict()
    digests = {"": run(kind).digest}
    for where, other in variations(described):
        if where != "seed":
            digests[where] = Run.from_dict(other).digest
    assert len(digests) > 15
    assert len(set(digests.values())) == len(digests)


@pytest.mark.parametrize(
    ("kind", "override"),
    [
        ("distill", {"objective": {"crd": {"weight": 0.0}}}),
        ("distill", {"objective": {"crd": {"weight": 0, "negatives": 7}}}),
        ("train", {"objective": {"kd": {"weight": 0}}}),
        ("train", {"teacher": {"model": "vgg8", "training": {"lr": 0.7}}}),
        ("train", {"inversion": {"bn": 3.0}, "replay": {"alpha": 0.1}}),
        ("distill", {"inversion": {"bn": 3.0}, "distillation": {"passes": 1.5}}),
        ("datafree", {"training": {"lr": 0.7}, "objective": {"ce": {"weight": 0.3}}}),
        ("datafree", {"compute": {"threads": 7, "device": "cpu"}, "tracking": {"uri": "x"}, "results": "there"}),
        ("datafree", {"methods": {"new": {}}, "study": "another"}),
    ],
)
def test_what_a_run_does_not_use_is_no_part_of_it(kind, override):
    assert run(kind, **override) == run(kind)


def test_a_term_that_is_switched_on_again_counts():
    assert run("distill", objective={"crd": {"weight": 0.1}}).digest != run("distill").digest


def test_data_sets_are_shared_by_what_prepares_them():
    path = run().data_path
    assert run("datafree", dataset={"pad": 3, "flip": True, "validation": 0.1}).data_path == path
    assert run(dataset={"image_size": 20}).data_path != path


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"extra": 1}, "extra"),
        ({"dataset": {"extra": 1}}, "extra"),
        ({"model": DROP}, "model"),
        ({"training": {"lr": DROP}}, "lr"),
        ({"training": {"milestones": DROP}}, "milestones"),
        ({"dataset": 5}, "dataset"),
    ],
)
def test_a_run_written_by_hand_is_checked(change, word):
    with pytest.raises(ConfigError, match=word):
        Run.from_dict(changed(change, run().as_dict()))


def test_a_data_free_run_written_by_hand_is_checked():
    with pytest.raises(ConfigError, match="training"):
        Run.from_dict(changed({"distillation": {"training": DROP}}, run("datafree").as_dict()))


# -------------------------------------------------------------------------------------------------------------- slugs

HOSTILE = [
    " ",
    "a b",
    "a  b",
    " a b",
    "a;b",
    "a'b",
    'a"b',
    "a`b",
    "$(rm -rf)",
    "${HOME}",
    "a|b",
    "a&b",
    ".",
    "..",
    "...",
    "../x",
    "../../etc/passwd",
    "/abs",
    "a/b",
    "a\\b",
    "a:b",
    "a.b",
    ".a.b",
    "a\nb",
    "a\x00b",
    "a\tb",
    "-rf",
    "é",
    "e\u0301",
    "мир",
    "日本",
    "٣",
    "*",
    "?",
    "{a}",
    "~",
    "~root",
    "a" * 80,
    "a" * 81,
    "a" * 300,
    "a" * 299 + "b",
    "é" * 300,
    "torchvision:resnet18",
    "torchvision.resnet18",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_becomes_one_safe_part_of_a_path(name):
    safe = slug(name)
    assert safe not in ("", ".", "..")
    assert len(safe.encode()) <= 80
    assert set(safe) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.")


def test_an_empty_name_becomes_a_part_of_a_path():
    assert slug("")


def test_different_names_stay_different():
    assert len({slug(name) for name in HOSTILE}) == len(set(HOSTILE))


def test_plain_names_stay_as_they_are():
    for name in ("wrn_16_2", "crd-kd", "a.b", "A" * 80):
        assert slug(name) == name


# -------------------------------------------------------------------------------------------------------------- files


def test_a_yaml_mapping_is_read(tmp_path):
    (tmp_path / "a.yaml").write_text("a: {b: [1, 0.5, true, null, 'é']}\n", "utf-8")
    assert read_yaml(tmp_path / "a.yaml") == {"a": {"b": [1, 0.5, True, None, "é"]}}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "null"),
        (b"# nothing\n", "null"),
        (b"- 1\n- 2\n", "a list"),
        (b"text", "'text' (text)"),
        (b"5", "5 (integer)"),
        (b"a: 1\nb: [1\n", "not valid YAML in line"),
        (b"a: 1\n  b: 2\n", "in line 2"),
        (b"a:\n\t- 1\n", "in line 2"),
        (b"a: *missing\n", "in line 1"),
        (b"a: !!python/object/apply:os.system [id]\n", "in line 1"),
        (b"{[1]: 2}", "not valid YAML"),
        (b"a: \xff\xfe\n", "cannot be read"),
        (b"a: x\x00y\n", "not valid YAML"),
        (b"a: 2020-99-99\n", "not valid YAML"),
    ],
)
def test_what_is_no_mapping_is_refused_in_one_line(tmp_path, content, words):
    file = tmp_path / "a.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_yaml(file)
    text = str(caught.value)
    assert text.startswith(f"{file}: ")
    assert words in text
    assert text.isprintable()


def test_a_key_given_twice_is_refused(tmp_path):
    """YAML would forget the first silently: two `settings:` in a study lose the first one's values."""
    file = tmp_path / "a.yaml"
    file.write_text("a: 1\nb: 2\na: 3\n")
    with pytest.raises(ConfigError, match="'a'"):
        read_yaml(file)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path)
