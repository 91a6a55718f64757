"""Merged settings checked before anything runs, a readable line per fault. Imports no torch."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from kd.registry import models
from kd.registry.datasets import DATASETS, GREY
from kd.registry.losses import LOSSES, OF_TERMS, loss_settings, require_pair, setting_faults
from kd.registry.models import map_shapes
from kd.registry.sources import SOURCES
from kd.runtime.messages import ConfigError, kind_of, shown, suggest, wanted_kind
from kd.runtime.yaml_files import read_yaml
from kd.settings.merging import active, merge, teacher_models
from kd.settings.run import LARGEST, Run
from kd.settings.schema import settings_schema


class Checker:
    """Checks merged settings against the schema, then what a schema cannot say.

    It remembers the sections that were found without fault: the runs of a study share most of them.
    """

    def __init__(self, schema: dict[str, Any]):
        self.schema = schema
        self._good: set[tuple[str, str]] = set()

    def __call__(self, settings: dict[str, Any], source: str) -> None:
        """Raises ConfigError with one line per fault: key, what came, what is allowed, what to do."""
        sections = {key: (str(key), repr(value)) for key, value in settings.items()}
        fresh, schema = settings, self.schema
        if set(settings) == set(schema["properties"]):
            fresh = {key: settings[key] for key, section in sections.items() if section not in self._good}
            schema = {**schema, "required": []}
        faults = schema_faults(fresh, schema)
        if not faults:
            self._good |= set(sections.values())
            faults = list(_meaning_faults(settings))
        if faults:
            raise ConfigError("\n".join(f"{source}: {fault}" for fault in faults))


def validate(settings: dict[str, Any], schema: dict[str, Any], source: str) -> None:
    """Check settings once. Raises ConfigError as Checker does."""
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
        if teacher.kind != "train":
            raise ConfigError(f"{source}: teachers.kind: got {shown(teacher.kind)}; allowed: train")
        validate_run(teacher, project, f"{source}: teachers")
    if teachers := own.pop("teachers", []):
        names = [teacher["model"] for teacher in teachers]
        recipe = {key: teachers[0][key] for key in ("view", "training")}
        own["teacher"] = {"model": names if len(names) > 1 else names[0], **recipe}
    settings = merge({**defaults, **({"objective": {}} if "objective" in own else {})}, own)
    check(settings, source)


@cache
def _checker(project: Path) -> tuple[dict[str, Any], Checker]:
    """The defaults and their check, read once: a list may hold thousands of runs."""
    return read_yaml(project / "config/config.yaml"), Checker(settings_schema())


def schema_faults(value: Any, schema: dict[str, Any]) -> list[str]:
    """One readable line per violation of a JSON schema; of numbers that are none alone where jsonschema is missing, as
    on a bare GPU machine, whose studies were checked elsewhere."""
    errors = []
    if importlib.util.find_spec("jsonschema") is not None:
        errors = sorted(
            _validator()(schema).iter_errors(value), key=lambda error: [str(part) for part in error.absolute_path]
        )
    return [_explain(error) for error in errors] + [
        f"{path}: got {shown(number)}; allowed: a finite number, an integer up to 2^53"
        for path, number in _not_finite(value)
    ]


@cache
def _validator() -> Any:
    """JSON Schema takes 20.0 for an integer; range(20.0) does not, nor do we."""
    import jsonschema  # only where a whole configuration is read; a run by hand needs no jsonschema

    base = jsonschema.Draft202012Validator
    strict = base.TYPE_CHECKER.redefine("integer", lambda _, item: isinstance(item, int) and not isinstance(item, bool))
    return jsonschema.validators.extend(base, type_checker=strict)


def _not_finite(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Places of NaN and infinity, which no comparison of a schema refuses."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from _not_finite(item, f"{path}.{_plain(key)}" if path else _plain(key))
    if (isinstance(value, float) and not math.isfinite(value)) or (isinstance(value, int) and abs(value) > LARGEST):
        yield path, value


def _explain(error: Any) -> str:
    path = ".".join(_plain(part) if isinstance(part, str) else str(part) for part in error.absolute_path) or "top level"
    rule, allowed, came = error.validator, error.validator_value, error.instance
    if rule == "additionalProperties":
        known = sorted(error.schema.get("properties", {}))
        unknown = next(key for key in came if key not in known)
        return f"{path}: unknown key {shown(unknown)}; {suggest(str(unknown), known)}"
    if rule == "required":
        missing = next(key for key in allowed if key not in came)
        return f"{path}: key {missing!r} is missing; add it"
    if rule == "type":
        words = {"array": "a list", "object": "a mapping", "string": "text"}
        wanted = " or ".join(words.get(kind, kind) for kind in ([allowed] if isinstance(allowed, str) else allowed))
        hint = "; write 0.001, not 1e-3" if isinstance(came, str) and "number" in wanted and _is_number(came) else ""
        return f"{path}: got {kind_of(came)}; allowed: {wanted}{hint}"
    if rule == "enum":
        return f"{path}: got {shown(came)}; {suggest(str(came), [str(item) for item in allowed])}"
    limits = {"minimum": ">=", "maximum": "<=", "exclusiveMinimum": ">", "exclusiveMaximum": "<"}
    if rule in limits:
        return f"{path}: got {shown(came)}; allowed: {limits[rule]} {allowed}"
    if rule == "pattern":
        return f"{path}: got {shown(came)}; allowed: text that matches {allowed}"
    if rule in ("minItems", "maxItems", "minProperties", "minLength"):
        return f"{path}: got {shown(came)}; allowed: {'at least' if rule.startswith('min') else 'at most'} {allowed}"
    if rule == "uniqueItems":
        return f"{path}: got {shown(came)}; allowed: each entry once"
    if rule == "oneOf":
        return f"{path}: got {shown(came)}; allowed: {{low, high}} with an optional log, or {{choices}}"
    return f"{path}: {error.message}"


def _impossible_pairs(settings: dict[str, Any], teachers: list, terms: dict[str, Any]) -> Iterator[str]:
    """Losses that cannot relate the maps of teacher and student."""
    try:
        size, student = settings["dataset"]["image_size"], settings["student"]["model"]
        student_maps = map_shapes(student, size)
        for (_, teacher), (name, values) in product(teachers, terms.items()):
            teacher_maps = map_shapes(teacher, size)
            if student_maps and teacher_maps:
                require_pair(name, student_maps, teacher_maps, **values)
    except ValueError as error:
        yield f"objective.{error} ({teacher} -> {student})"


def _meaning_faults(settings: dict[str, Any]) -> Iterator[str]:
    """Faults that need to know models, data sets and losses."""
    folder = settings["results"]
    if (
        not folder.isprintable()
        or set(folder) & set("{}")
        or any(len(os.fsencode(part)) > 200 for part in folder.split("/"))
    ):
        yield f"results: got {shown(folder)}; allowed: the path of a folder without braces and control characters"
    if settings["dataset"]["name"] not in DATASETS:
        name = settings["dataset"]["name"]
        yield f"dataset.name: got {shown(name)}; {suggest(name, list(DATASETS))}"
    if settings["dataset"]["name"] == "folder" and settings["dataset"]["root"] is None:
        yield "dataset.root: got null; needed by dataset.name folder: the path of train/<class>/ and test/<class>/"
    names = [("teacher", name) for name in teacher_models(settings["teacher"]["model"])]
    for who, name in (*names, ("student", settings["student"]["model"])):
        try:
            models.check(name)
        except ValueError as error:
            yield f"{who}.model: {error}"
    if settings["kind"] == "datafree":
        yield from _datafree_faults(settings, names)
    for who in ("student",) if settings["kind"] == "train" else ("student", "teacher"):
        view, name = settings[who]["view"], settings["dataset"]["name"]
        if view != "rgb" and name in GREY:
            yield f"{who}.view: got {view!r}; the images of dataset.name {name} have no colours: take view: rgb"
    terms = active(settings["objective"])
    if (
        settings["kind"] == "distill"
        and len(names) > 1
        and (single := [name for name in sorted(terms) if LOSSES[name].one_teacher])
    ):
        yield f"teacher.model: got {len(names)} networks; objective.{single[0]} takes over the parts of one: name one"
    if settings["kind"] != "datafree" and not terms:
        yield "objective: every weight is 0; give at least one loss a weight above 0"
    of_terms = [fault for name, values in settings["objective"].items() for fault in _term_faults(name, values)]
    yield from of_terms
    if settings["kind"] == "distill" and not of_terms:
        yield from _impossible_pairs(settings, names, terms)
    if settings["kind"] == "train" and (teaching := sorted(set(terms) - {"ce"})):
        yield f"objective.{teaching[0]}: needs a teacher, but kind is train; set kind: distill"
    for who in ("training", "teacher.training", "distillation.training"):
        training = settings
        for part in who.split("."):
            training = training[part]
        late = [epoch for epoch in training["milestones"] if epoch >= training["epochs"]]
        if training["schedule"] == "steps" and late:
            fitting = _fitting_milestones(training["milestones"], training["epochs"])
            hint = f"write milestones: {fitting} in {who}, or schedule: cosine"
            yield f"{who}.milestones: got {late[0]}; allowed: below epochs ({training['epochs']}); {hint}"
        if training["nesterov"] and training["momentum"] == 0:
            yield f"{who}.nesterov: needs momentum above 0; got momentum 0; set nesterov: false or raise the momentum"


def _datafree_faults(settings: dict[str, Any], teachers: list[tuple[str, str]]) -> Iterator[str]:
    """Faults that need to know the data-free source."""
    if len(teachers) > 1:
        yield f"teacher.model: got {len(teachers)} networks; data-free distillation has one teacher"
    source, size = SOURCES[name := settings["inversion"]["source"]], settings["dataset"]["image_size"]
    if source.needs_batchnorm and models.has_batchnorm(teachers[0][1]) is False:
        yield (
            f"teacher.model: {teachers[0][1]} has no batch normalisation, whose statistics guide inversion.source "
            f"{name}; take another teacher"
        )
    if size % source.size_multiple:
        yield f"dataset.image_size: got {size}; the {name} needs a multiple of {source.size_multiple}"


def _fitting_milestones(milestones: list[int], epochs: int) -> list[int]:
    """Scale milestones so that the last is at 7/8 of the epochs, as 210 of 240: what a user may copy."""
    scaled = {round(epoch * 0.875 * epochs / max(milestones)) for epoch in milestones}
    return sorted({max(epoch, 1) for epoch in scaled if max(epoch, 1) < epochs})


def _term_faults(name: str, values: dict[str, Any]) -> Iterator[str]:
    """Faults of one term of an objective: keys, types, then ranges, which only values of the right type have."""
    if name not in LOSSES:
        yield f"objective.{name}: unknown loss; {suggest(name, list(LOSSES))}"
        return
    known, sound = OF_TERMS | loss_settings(name), True
    for key in values:
        if key not in known:
            yield f"objective.{name}.{_plain(key)}: unknown key; {suggest(str(key), list(known))}"
        elif wanted := wanted_kind(values[key], known[key]):
            hint = "; write 10.0, not 1e1" if isinstance(values[key], str) and _is_number(values[key]) else ""
            yield f"objective.{name}.{key}: got {kind_of(values[key])}; allowed: {wanted}{hint}"
            sound = False
    if not sound:
        return
    if values.get("warmup", 0) < 0:
        yield f"objective.{name}.warmup: got {shown(values['warmup'])}; allowed: >= 0"
    for key, value, allowed in setting_faults(name, values):
        yield f"objective.{name}.{key}: got {shown(value)}; allowed: {allowed}"


def _plain(key: Any) -> str:
    return key if isinstance(key, str) and key.isprintable() else repr(key)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
