"""What is checked beyond single mistakes."""

import pytest
import yaml
from settings_cases import BASE, DEFAULTS, KINDS, SCHEMA, distilled, faults_of

from kd.runtime.messages import ConfigError
from kd.settings.merging import merge
from kd.settings.validation import validate


def test_a_pair_that_a_loss_cannot_relate_is_refused_by_name():
    fsp = {"kind": "distill", "objective": {"fsp": {"weight": 50.0}}}
    with pytest.raises(ConfigError, match=r"^x: objective\.fsp: maps of .* \(wrn_16_2 -> wrn_16_1\)$"):
        validate(merge(DEFAULTS, fsp), SCHEMA, "x")
    ensemble = {"teacher": {"model": ["wrn_16_1", "wrn_16_2"]}}
    with pytest.raises(ConfigError, match=r"^x: objective\.fsp: maps of .* \(wrn_16_2 -> wrn_16_1\)$"):
        validate(merge(DEFAULTS, fsp, ensemble), SCHEMA, "x")
    off = {"objective": {"fsp": {"weight": 0.0}}}
    validate(merge(DEFAULTS, fsp, off, {"objective": {"ce": {"weight": 1.0}}}), SCHEMA, "x")


def test_real_images_need_no_teacher_with_batch_normalisation():
    plain = {"kind": "datafree", "teacher": {"model": "torchvision:alexnet"}, "inversion": {"source": "original"}}
    validate(merge(DEFAULTS, plain), SCHEMA, "x")


def test_what_only_the_bn_weight_asks_of_a_teacher_is_asked_with_it_only():
    plain = {"kind": "datafree", "teacher": {"model": "torchvision:alexnet"}, "inversion": {"source": "adversarial"}}
    validate(merge(DEFAULTS, plain), SCHEMA, "x")
    with pytest.raises(ConfigError, match="no batch normalisation"):
        validate(merge(DEFAULTS, plain, {"inversion": {"adversarial": {"bn": 0.1}}}), SCHEMA, "x")
    older = merge(DEFAULTS, plain)  # a config.yaml from before that source
    del older["inversion"]["adversarial"], older["distillation"]["rounds"]
    validate(older, SCHEMA, "x")


def test_rounds_that_divide_the_steps_or_round_up_passes_are_accepted():
    for shape in ({"steps": 400, "rounds": 80}, {"steps": 400, "rounds": 400}, {"steps": None, "rounds": 7}):
        validate(merge(DEFAULTS, {"kind": "datafree", "distillation": shape}), SCHEMA, "x")


def test_an_unknown_loss_is_named_for_an_ensemble_too():
    terms = {"cee": {"weight": 1.0}}
    lines = faults_of({"kind": "distill", "teacher": {"model": ["wrn_16_1", "wrn_16_2"]}, "objective": terms})
    assert any("objective.cee: unknown loss" in line for line in lines)


def test_data_free_methods_have_one_teacher():
    ensemble = {"kind": "datafree", "teacher": {"model": ["wrn_16_1", "wrn_16_2"]}}
    with pytest.raises(ConfigError, match=r"teacher\.model: got 2 networks; data-free"):
        validate(merge(DEFAULTS, ensemble), SCHEMA, "x")


def test_images_that_stay_in_their_files_need_a_folder_and_its_normalisation():
    stream = {"dataset": {"name": "folder", "root": "imagenet", "stream": True}}
    known = merge(stream, {"dataset": {"mean": [0.5] * 3, "std": [0.2] * 3}})
    validate(merge(DEFAULTS, known), SCHEMA, "x")
    for wrong, line in (
        (stream, "dataset.mean: got null; with dataset.stream nothing is read beforehand"),
        (merge(known, {"dataset": {"name": "cifar10"}}), "dataset.stream: got true with dataset.name 'cifar10'; only"),
        (merge(known, {"dataset": {"channels": 1, "mean": [0.5], "std": [0.2]}}), "dataset.channels: got 1; with"),
        (
            merge(known, {"kind": "datafree", "inversion": {"source": "original"}}),
            "inversion.source: got original, whose images are held in memory; set dataset.stream: false",
        ),
        (merge(known, {"teacher": {"weights": "no.pt"}}), "relative to the folder that kd is started in; ImageNet's:"),
    ):
        assert any(line in fault for fault in faults_of(wrong)), faults_of(wrong)


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
@pytest.mark.parametrize("key", ["training.lr", "inversion.generator.bn", "replay.eps", "scale", "objective.ce.weight"])
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
