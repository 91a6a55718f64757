"""What identifies a run: its path, its digest, and what is no part of them."""

import json

import numpy as np
import pytest
import yaml
from settings_cases import BASE, DROP, KINDS, ROOT, changed, faults_of, run

from kd.runtime.messages import ConfigError
from kd.settings.merging import merge, run_of
from kd.settings.run import Run, digest
from kd.settings.validation import validate_run


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


OTHERS = {
    "rgb": "luminance",
    "steps": "cosine",
    "prediction": "target",
    "oldest": "random",
    "max": "phi",
    "drawn": "all",
    "random": "own",
    "maml": "reptile",
    "float32": "bf16",
}


def another(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str) and value in OTHERS:
        return OTHERS[value]
    return [*value, 1] if isinstance(value, list) else "x" if value is None else f"{value}x"


@pytest.mark.parametrize("kind", KINDS)
def test_every_setting_of_a_run_changes_its_digest(kind):
    described = run(kind).as_dict()
    digests = {"": run(kind).digest}
    for where, other in variations(described):
        if where != "seed" and not where.endswith(("final_lr", "inversion.source")):  # see below
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
        ("train", {"inversion": {"generator": {"bn": 3.0}}, "replay": {"alpha": 0.1}}),
        ("distill", {"inversion": {"generator": {"bn": 3.0}}, "distillation": {"passes": 1.5}}),
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
        ({"dataset": 5}, "dataset"),
    ],
)
def test_a_run_written_by_hand_is_checked(change, word):
    with pytest.raises(ConfigError, match=word):
        Run.from_dict(changed(change, run().as_dict()))


def test_a_data_free_run_written_by_hand_is_checked():
    with pytest.raises(ConfigError, match="training"):
        Run.from_dict(changed({"distillation": {"training": DROP}}, run("datafree").as_dict()))


# ----------------------------------------------------------------------------------------- settings without effect


COSINE = {"training": {"schedule": "cosine"}}


@pytest.mark.parametrize(
    ("kind", "chosen", "without_effect"),
    [
        ("train", COSINE, {"training": {"milestones": [3]}}),
        ("train", COSINE, {"training": {"gamma": 0.7}}),
        ("distill", {}, {"training": {"final_lr": 0.01}}),
        ("train", {"training": {"milestones": []}}, {"training": {"gamma": 0.7}}),
        ("distill", {"teacher": COSINE}, {"teacher": {"training": {"milestones": [2]}}}),
        ("datafree", {"distillation": COSINE}, {"distillation": {"training": {"milestones": [2]}}}),
        *(
            ("datafree", {"inversion": {"source": "original"}}, without_effect)
            for without_effect in (
                {"inversion": {"generator": {"bn": 3.0, "steps": 7}}},
                {"modulation": {"gamma": 0.3}},
                {"replay": {"replacement": "random"}},
                {"replay": {"initial_priority": "phi"}},
                {"replay": {"admitted": 0.5}},
                {"distillation": {"rounds": 2}},
            )
        ),
        *(
            ("datafree", {"inversion": {"source": "adversarial", "adversarial": {"batch_size": 32}}}, without_effect)
            for without_effect in ({"modulation": {"gamma": 0.3}}, {"replay": {"initial_priority": "phi"}})
        ),
        ("datafree", {}, {"distillation": {"rounds": 1}}),
        ("datafree", {"distillation": {"steps": 7}}, {"distillation": {"passes": 3.0}}),
    ],
)
def test_a_setting_without_effect_is_no_part_of_a_run(kind, chosen, without_effect):
    plain, changed = run(kind, **chosen), run(kind, **merge(chosen, without_effect))
    assert changed == plain
    assert (changed.digest, changed.path, changed.identity) == (plain.digest, plain.path, plain.identity)


def test_what_has_an_effect_with_one_choice_has_it():
    assert run(training={"final_lr": 0.01, **COSINE["training"]}) != run(**COSINE)
    original = {"inversion": {"source": "original"}}
    assert run("datafree", **original) != run("datafree")
    assert run("datafree", distillation={"rounds": 2}) != run("datafree")
    adversarial = {"inversion": {"source": "adversarial", "adversarial": {"batch_size": 32}}}
    assert run("datafree", **merge(adversarial, {"replay": {"admitted": 0.5}})) != run("datafree", **adversarial)
    assert run("datafree", **merge(original, {"replay": {"alpha": 0.1}})) != run("datafree", **original)


def test_a_source_that_is_chosen_by_name_has_its_defaults():
    written = run("datafree").inversion
    short = run_of({**merge(BASE, KINDS["datafree"]), "inversion": {"source": "generator"}}, 0).inversion
    assert short.settings == {**written.settings, "reset_epoch": 120}


def test_a_file_of_a_source_counts_by_its_content(tmp_path):
    """Wherever it lies; the place is kept for the job, which refuses a file that has changed since."""
    first, other = tmp_path / "words.npy", tmp_path / "elsewhere.npy"
    np.save(first, np.eye(10))
    other.write_bytes(first.read_bytes())
    asked, elsewhere = ({"source": "nayer", "nayer": {"embeddings": str(file)}} for file in (first, other))
    embedded, moved = run("datafree", inversion=asked), run("datafree", inversion=elsewhere)
    assert embedded == moved
    assert embedded.digest == moved.digest != run("datafree", inversion={"source": "nayer"}).digest
    again = Run.from_dict(json.loads(json.dumps(embedded.as_dict())))
    assert again == embedded
    assert again.inversion.arguments()["embeddings"] == str(first)
    validate_run(again, ROOT, "by hand")
    np.save(first, np.eye(10) + 1)
    assert run("datafree", inversion=asked).digest != embedded.digest
    with pytest.raises(ConfigError, match=r"inversion.nayer.embeddings: .*words.npy has changed since the study was"):
        again.inversion.arguments()
    first.unlink()
    assert again.digest == embedded.digest, "the record of a run says what it was"
    [line] = faults_of({"kind": "datafree", "inversion": asked})
    assert line.startswith("my.yaml: inversion.nayer.embeddings: no file ")
    assert "paths are relative to the folder that kd is started in" in line
