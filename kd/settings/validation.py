"""Merged settings checked before anything runs, a readable line per fault. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from kd.registry import models
from kd.registry.datasets import GREY, SEGMENTATION, WITH_DEPTH
from kd.registry.losses import LOSSES, OF_TERMS, loss_settings, require_pair, setting_faults
from kd.registry.models import map_shapes
from kd.registry.sources import SOURCES, source_defaults
from kd.runtime.files import is_file, whole_path
from kd.runtime.messages import ConfigError, kind_of, shown, suggest, wanted_kind
from kd.runtime.weight_names import names_in
from kd.runtime.yaml_files import read_yaml
from kd.settings.common_faults import common_faults
from kd.settings.given_file import RELATIVE
from kd.settings.merging import active, merge, teacher_models, weight_files
from kd.settings.run import LARGEST, Run
from kd.settings.schema import settings_schema
from kd.settings.schema_faults import is_number, printable, schema_faults

NEEDED_WITHOUT_IMAGES = {  # what a data set would say -> an example
    "dataset.classes": "10, or the list of their names",
    "dataset.channels": "3",
    "dataset.mean": "[0.5, 0.5, 0.5]",
    "dataset.std": "[0.25, 0.25, 0.25]",
    "replay.full_size": "50000, of which scale: 0.1 takes a tenth",
}


class Checker:
    """Checks merged settings against the schema, then what a schema cannot say.

    It remembers the sections that were found without fault: the runs of a study share most of them.
    """

    def __init__(self, schema: dict[str, Any]):
        self.schema = schema
        self._good: set[tuple[str, str]] = set()

    def __call__(self, settings: dict[str, Any], source: str, of_study: bool = False) -> None:
        """Raise ConfigError with one line per fault: key, what came, what is allowed, what to do.

        of_study: they are what a study's runs have in common; method and networks, which experiments set, are left out.
        """
        sections = {key: (str(key), repr(value)) for key, value in settings.items()}
        fresh, schema = settings, self.schema
        if set(settings) == set(schema["properties"]):
            fresh = {key: settings[key] for key, section in sections.items() if section not in self._good}
            schema = {**schema, "required": []}
        faults = schema_faults(fresh, schema)
        if not faults:
            self._good |= set(sections.values())
            faults = list(common_faults(settings) if of_study else _meaning_faults(settings))
        if faults:
            raise ConfigError("\n".join(f"{source}: {fault}" for fault in faults))


def validate(settings: dict[str, Any], schema: dict[str, Any], source: str) -> None:
    """Check settings once, raising ConfigError as Checker does."""
    Checker(schema)(settings, source)


def validate_run(run: Run, project: Path, source: str) -> None:
    """Check the settings of one run by hand as those of a study are checked.

    Raises ConfigError as Checker does.
    """
    defaults, check = _checker(project)
    own = run.as_dict()
    own["student"] = {"model": own.pop("model"), "view": own.pop("view")}
    if not 0 <= own.pop("seed") <= LARGEST:
        raise ConfigError(f"{source}: seed: got {shown(run.seed)}; allowed: 0 to 2^53")
    for teacher in run.teachers or ():
        if teacher.kind not in ("train", "given"):
            raise ConfigError(f"{source}: teachers.kind: got {shown(teacher.kind)}; allowed: train, given")
        validate_run(teacher, project, f"{source}: teachers")
    if run.inversion:  # files by their places, as a study names them
        name, made = run.inversion.source, run.inversion.settings
        places = {key: made[key] and made[key].file for key in run.inversion.entry.files}
        own["inversion"] = {"source": name, name: {**own["inversion"].get(name, {}), **places}}
    if own["kind"] == "given":  # it is a teacher by itself
        own |= {"kind": "train", "teacher": {"weights": own.pop("weights")["file"]}}
    if teachers := own.pop("teachers", []):
        names = [teacher["model"] for teacher in teachers]
        recipe = {key: teachers[0][key] for key in ("view", "training") if key in teachers[0]}
        if files := [teacher["weights"]["file"] for teacher in teachers if "weights" in teacher]:
            recipe["weights"] = files
        own["teacher"] = {"model": names if len(names) > 1 else names[0], **recipe}
    settings = merge({**defaults, **({"objective": {}} if "objective" in own else {})}, own)
    check(settings, source)


@cache
def _checker(project: Path) -> tuple[dict[str, Any], Checker]:
    """Return the defaults and their check, read once: a list may hold thousands of runs."""
    return read_yaml(project / "config/config.yaml"), Checker(settings_schema())


def _meaning_faults(settings: dict[str, Any]) -> Iterator[str]:
    """Yield faults that only models, data sets, losses and sources know."""
    teachers = teacher_models(settings["teacher"]["model"])
    yield from common_faults(settings)
    yield from _no_images_faults(settings)
    yield from _network_faults(settings, teachers)
    yield from _weights_faults(settings, teachers)
    if settings["kind"] == "datafree":
        yield from _datafree_faults(settings, teachers)
    yield from _objective_faults(settings, teachers)


def _no_images_faults(settings: dict[str, Any]) -> Iterator[str]:
    """Yield what is missing where there are no images, and everything is learned from a teacher of the user's."""
    if settings["dataset"]["name"] != "none":
        return
    for key, example in NEEDED_WITHOUT_IMAGES.items():
        section, name = key.split(".")
        if settings[section].get(name) is None and (section != "replay" or settings["kind"] == "datafree"):
            yield f"{key}: got null; dataset.name none has no images that say it; for example {example}"
    if not settings["teacher"].get("weights"):
        yield "teacher.weights: got null; without images (dataset.name none) no teacher can be trained; name your file"
    if settings["kind"] == "distill" or (settings["kind"] == "train" and not settings["teacher"].get("weights")):
        yield f"kind: got {settings['kind']}; without images (dataset.name none) only kind: datafree is possible"
    if settings["kind"] == "datafree" and not SOURCES[source := settings["inversion"]["source"]].synthesises:
        yield f"inversion.source: got {source}; it needs the images of a data set, and dataset.name is none"


def _weights_faults(settings: dict[str, Any], names: list[str]) -> Iterator[str]:
    """Yield files that are not there, or not as many as networks."""
    files = weight_files(settings["teacher"])
    if files and len(files) != len(names):
        yield f"teacher.weights: got {len(files)} files for {len(names)} networks; give one for each, in their order"
    for file in files:
        if not is_file(Path(file)):
            hint = "; ImageNet's: docs/imagenet.md" if settings["dataset"].get("stream") else ""
            yield f"teacher.weights: no file {shown(file)}; {RELATIVE}{hint}"


def _network_faults(settings: dict[str, Any], teachers: list[str]) -> Iterator[str]:
    """Yield faults of names and views."""
    for who, name in (*(("teacher", name) for name in teachers), ("student", settings["student"]["model"])):
        try:
            models.check(name)
        except ValueError as error:
            yield f"{who}.model: {error}"
    named = [] if settings["kind"] == "train" else [("teacher", name) for name in teachers]
    yield from _output_faults(settings["dataset"]["name"], [*named, ("student", settings["student"]["model"])])
    for who in ("student",) if settings["kind"] == "train" else ("student", "teacher"):
        view, name = settings[who]["view"], settings["dataset"]["name"]
        if view != "rgb" and name in GREY:
            yield f"{who}.view: got {view!r}; the images of dataset.name {name} have no colours: take view: rgb"
        elif view == "depth" and settings["dataset"].get("channels") != 4:
            remedy = "set dataset.channels: 4" if name in WITH_DEPTH else "take view: rgb"
            yield f"{who}.view: got {view!r}; only {' and '.join(WITH_DEPTH)} have a depth: {remedy}"


def _has_maps(dataset: str, networks: list[str]) -> bool:
    """Whether a class is said of every pixel."""
    return dataset in SEGMENTATION or (dataset == "none" and any(map(models.is_dense, networks)))


def _output_faults(dataset: str, networks: list[tuple[str, str]]) -> Iterator[str]:
    """Yield networks that say one class per image where labels are maps, and the reverse."""
    maps = dataset in SEGMENTATION
    if dataset == "none" and len({models.is_dense(name) for _, name in networks} - {None}) > 1:
        (_, teacher), *_, (_, student) = networks
        yield f"student.model: got {student}; only one of it and {teacher}, the teacher, labels every pixel"
    for who, name in networks:
        if dataset == "none" or models.is_dense(name) in (maps, None):
            continue
        if maps:
            dense = ", ".join(known for known, entry in models.MODELS.items() if entry.dense)
            yield f"{who}.model: got {name}; the labels of dataset {dataset} are maps; take one of {dense} or your own"
        else:
            yield f"{who}.model: got {name}, which labels every pixel; the images of {dataset} have one class each"


def _datafree_faults(settings: dict[str, Any], teachers: list[str]) -> Iterator[str]:
    """Yield faults that only the data-free source knows."""
    if len(teachers) > 1:
        yield f"teacher.model: got {len(teachers)} networks; data-free distillation has one teacher"
    if not settings["replay"]["with_replacement"] and (alpha := settings["replay"]["alpha"]):
        yield (
            f"replay.with_replacement: got false with replay.alpha {shown(alpha)}; shuffled passes draw every image "
            "equally often: set alpha: 0, or with_replacement: true"
        )
    steps, rounds = (settings["distillation"].get(key, default) for key, default in (("steps", None), ("rounds", 1)))
    if steps is not None and steps % rounds:
        yield (
            f"distillation.rounds: got {rounds}; allowed: a divisor of distillation.steps ({steps}), so that every "
            f"round has as many; set rounds: {math.gcd(steps, rounds)}, or steps: {rounds * (steps // rounds + 1)}"
        )
    source, size = SOURCES[name := settings["inversion"]["source"]], settings["dataset"]["image_size"]
    own = source_defaults(name) | settings["inversion"].get(name, {})
    if source.weights and not any(own[weight] for weight in source.weights):
        yield f"inversion.{name}: every weight is 0; set one of {', '.join(source.weights)} above 0"
    if settings["dataset"].get("stream") and not source.synthesises:
        yield f"inversion.source: got {name}, whose images are held in memory; set dataset.stream: false"
    for key in source.files:
        if own[key] and not is_file(Path(whole_path(own[key], f"inversion.{name}.{key}"))):
            yield f"inversion.{name}.{key}: no file {shown(own[key])}; {RELATIVE}"
    full, made = settings["replay"]["full_size"], own.get("batches", 0) * own.get("batch_size", 0)
    if full is not None and round((scale := settings["scale"]) * full) < made:
        yield (
            f"replay.full_size: got {full} at scale {scale:g}; inversion.{name} makes {made} images a round, all of "
            f"which need room: set full_size: {math.ceil(made / scale)}"
        )
    if _has_maps(settings["dataset"]["name"], [*teachers, settings["student"]["model"]]) and not source.dense:
        yield (
            f"inversion.source: got {name}, which asks for one class per image, and the teacher says one for every "
            f"pixel; take {' or '.join(key for key, entry in SOURCES.items() if entry.dense)}"
        )
    needed = source.needs_batchnorm
    needed = own[needed] > 0 if isinstance(needed, str) else needed
    if needed and _has_batchnorm(teachers[0], weight_files(settings["teacher"])) is False:
        yield (
            f"teacher.model: {teachers[0]} has no batch normalisation, whose statistics guide inversion.source {name}; "
            "take another teacher"
        )
    if size % (multiple := 2 ** own["doublings"] if "doublings" in own else source.size_multiple):
        yield f"dataset.image_size: got {size}; the {name} needs a multiple of {multiple}"


def _has_batchnorm(name: str, files: list[str]) -> bool | None:
    """Return whether a teacher has BatchNorm layers: by its name, else by its file; None where nobody can tell."""
    known = models.has_batchnorm(name)
    if known is None and files and is_file(Path(files[0])):
        names = names_in(Path(files[0]))
        return None if names is None else "running_mean" in names
    return known


def _objective_faults(settings: dict[str, Any], teachers: list[str]) -> Iterator[str]:
    """Yield faults of the losses, each by itself, then together with kind and networks."""
    kind, terms = settings["kind"], active(settings["objective"])
    single = [name for name in sorted(terms) if name in LOSSES and LOSSES[name].one_teacher]
    if kind == "distill" and len(teachers) > 1 and single:
        yield f"teacher.model: got {len(teachers)} networks; objective.{single[0]} takes over parts of one: name one"
    if kind != "datafree" and not terms:
        yield "objective: every weight is 0; give at least one loss a weight above 0"
    if kind != "datafree" and _has_maps(settings["dataset"]["name"], [settings["student"]["model"]]):
        for name in sorted(name for name in terms if name in LOSSES and not LOSSES[name].dense):
            fitting = ", ".join(key for key, entry in LOSSES.items() if entry.dense)
            yield f"objective.{name}: is for one class per image, and there is one for every pixel; take {fitting}"
    of_terms = [fault for name, values in settings["objective"].items() for fault in _term_faults(name, values)]
    yield from of_terms
    if kind == "distill" and not of_terms:
        yield from _pair_faults(settings, teachers, terms)
    if kind == "train" and (teaching := sorted(set(terms) - {"ce"})):
        yield f"objective.{teaching[0]}: needs a teacher, but kind is train; set kind: distill"


def _pair_faults(settings: dict[str, Any], teachers: list[str], terms: dict[str, Any]) -> Iterator[str]:
    """Yield the first loss that cannot relate the maps of teacher and student."""
    try:
        size, student = settings["dataset"]["image_size"], settings["student"]["model"]
        student_maps = map_shapes(student, size)
        for teacher, (name, values) in product(teachers, terms.items()):
            teacher_maps = map_shapes(teacher, size)
            if student_maps and teacher_maps:
                require_pair(name, student_maps, teacher_maps, **values)
    except ValueError as error:
        yield f"objective.{error} ({teacher} -> {student})"


def _term_faults(name: str, values: dict[str, Any]) -> Iterator[str]:
    """Yield faults of one term of an objective: keys, types, then ranges, which only values of the right type have."""
    if name not in LOSSES:
        yield f"objective.{name}: unknown loss; {suggest(name, list(LOSSES))}"
        return
    known, sound = OF_TERMS | loss_settings(name), True
    for key in values:
        if key not in known:
            yield f"objective.{name}.{printable(key)}: unknown key; {suggest(str(key), list(known))}"
        elif wanted := wanted_kind(values[key], known[key]):
            hint = "; write 10.0, not 1e1" if isinstance(values[key], str) and is_number(values[key]) else ""
            yield f"objective.{name}.{key}: got {kind_of(values[key])}; allowed: {wanted}{hint}"
            sound = False
    if not sound:
        return
    if values.get("warmup", 0) < 0:
        yield f"objective.{name}.warmup: got {shown(values['warmup'])}; allowed: >= 0"
    for key, value, allowed in setting_faults(name, values):
        yield f"objective.{name}.{key}: got {shown(value)}; allowed: {allowed}"
