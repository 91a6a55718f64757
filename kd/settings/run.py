"""One run: every setting that changes its numbers, and its identity. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from functools import cache, cached_property
from typing import Any, Literal

from kd.registry.kinds import KINDS
from kd.registry.losses import LOSSES, OF_TERMS, loss_settings
from kd.registry.setting import Setting
from kd.registry.sources import SOURCES, source_settings
from kd.runtime.messages import ConfigError, kind_of, literals, shown, suggest, wanted_kind
from kd.settings.given_file import GivenFile
from kd.settings.shapes import Dataset, Distillation, Inversion, Modulation, Replay, Training

LARGEST = 2**53  # integers up to here are floats, too: digests tell them apart


@dataclass(frozen=True)
class Run:
    """One run: every setting that changes its numbers, and nothing else.

    Teachers are runs of kind `train`, or `given` where the user has trained them, nested in the runs of their students,
    so that a student's identity covers its teachers'; more than one are an ensemble. What a kind does not use is None.
    """

    kind: str  # given, train, distill or datafree
    dataset: Dataset
    model: str
    view: Literal["rgb", "luminance", "chrominance", "depth"]  # what the network sees of an image
    scale: float
    precision: str
    seed: int
    weights: GivenFile | None = None  # given
    training: Training | None = None  # train, distill
    objective: dict[str, dict[str, Any]] | None = None  # train, distill
    teachers: tuple[Run, ...] | None = None  # distill, datafree
    inversion: Inversion | None = None  # datafree, as are the following
    modulation: Modulation | None = None
    replay: Replay | None = None
    distillation: Distillation | None = None

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> Run:
        """Return the run that `as_dict` or `identity` described, without effect what has none.

        Raises ConfigError for a key that is missing or unknown, or a value of the wrong type.
        """
        values = {key: _section(key, value) for key, value in settings.items()}
        run = _build(cls, values, "run")
        for name in KINDS[run.kind].uses if run.kind in KINDS else ():
            if getattr(run, name) is None:
                raise ConfigError(f"run: key {name!r} is missing; a run of kind {run.kind} needs it")
        return run._effective()

    def _effective(self) -> Run:
        """Return the same run with settings that change nothing here at their neutral values."""
        if self.inversion is None:
            return self
        run = self if self.distillation.steps is None else replace(self, distillation=self.distillation.effective())
        entry = self.inversion.entry
        if entry.modulates and self.modulation is None:
            raise ConfigError("run: key 'modulation' is missing; images that are synthesised need it")
        if not entry.modulates:
            run = replace(run, modulation=None, replay=replace(run.replay, initial_priority="max"))
        if not entry.synthesises:  # the buffer is filled once
            replay = replace(run.replay, replacement="oldest", admitted=1.0)
            run = replace(run, replay=replay, distillation=replace(run.distillation, rounds=1))
        return run

    def as_dict(self) -> dict[str, Any]:
        """Return plain mappings, lists and numbers, without what this kind does not use."""
        return _plain(self)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """`as_dict` without settings at their neutral values: one that is born later changes no old run's identity."""
        return _plain(self, without_neutral=True)

    @cached_property
    def digest(self) -> str:
        """Ten hex digits that identify the settings; seeds of one run share them (a teacher's seed counts)."""
        return digest({key: value for key, value in self.identity.items() if key != "seed"})

    def with_seed(self, seed: int) -> Run:
        """Return the same run with another seed; what does not depend on it is not computed again."""
        other = replace(self, seed=seed)
        other.__dict__.update(digest=self.digest, data_path=self.data_path)
        return other

    @cached_property
    def path(self) -> str:
        """The run's folder below results/. It depends on the settings only, so every study finds it."""
        networks = "--".join(slug(name) for name in (self.teacher_names, self.model) if name)
        label = "-".join(sorted(self.objective)) if self.kind == "distill" else self.kind
        return f"runs/{slug(self.dataset.label)}/{networks}/{label}-{self.digest}/seed{self.seed}"

    @property
    def teacher(self) -> Run | None:
        """The only teacher, or an ensemble's first."""
        return self.teachers[0] if self.teachers else None

    @property
    def teacher_names(self) -> str:
        """The teachers' networks, an ensemble's with `+` between; empty without a teacher."""
        return "+".join(teacher.model for teacher in self.teachers or ())

    @cached_property
    def data_path(self) -> str:
        """The file of the prepared data set below results/."""
        return f"data/{slug(self.dataset.label)}-{digest(self.dataset.prepared)}.pt"


_SECTIONS = {
    "dataset": Dataset,
    "weights": GivenFile,
    "training": Training,
    "modulation": Modulation,
    "replay": Replay,
    "distillation": Distillation,
}


def _section(key: str, values: Any) -> Any:
    """Return the value of a run's key: a section as its dataclass, everything else as it is."""
    known = key in _SECTIONS or key in ("inversion", "objective", "teachers")
    if values is None or not known or is_dataclass(values):
        return values
    if key == "teachers":
        if not isinstance(values, list | tuple) or not values:
            raise ConfigError(f"teachers: got {kind_of(values)}; a list of runs is needed")
        return tuple(each if isinstance(each, Run) else _teacher(_mapping(each, key)) for each in values)
    _mapping(values, key)
    if key == "inversion":
        return values if isinstance(values, Inversion) else _inversion(values)
    if key == "objective":
        return {name: _terms(name, terms) for name, terms in values.items()}
    if key == "distillation":
        if "training" not in values:
            raise ConfigError("distillation: key 'training' is missing; add it")
        values = {**values, "training": _section("training", values["training"])}
    built = _build(_SECTIONS[key], values, key)
    return built.effective() if isinstance(built, Training) else built


def _teacher(values: dict[str, Any]) -> Run:
    try:
        return Run.from_dict(values)
    except ConfigError as error:
        raise ConfigError(f"teachers: {error}") from None


def _mapping(values: Any, name: str) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise ConfigError(f"{name}: got {kind_of(values)}; a mapping is needed")
    return values


def _terms(loss: str, terms: dict[str, Any]) -> dict[str, Any]:
    _mapping(terms, f"objective.{loss}")
    known = OF_TERMS | (loss_settings(loss) if loss in LOSSES else {})
    return {key: _decimal(value, known.get(key, "")) for key, value in terms.items()}


def _inversion(values: dict[str, Any]) -> Inversion:
    source = values.get("source")
    if source not in SOURCES:
        raise ConfigError(f"inversion.source: got {kind_of(source)}; {suggest(str(source), list(SOURCES))}")
    if unknown := sorted(set(values) - {"source", source}, key=str):
        raise ConfigError(f"inversion: unknown key {unknown[0]!r}; allowed with source {source}: source, {source}")
    where, kinds = f"inversion.{source}", source_settings(source)
    given = _mapping(values.get(source) or {}, where)
    files = {key: value for key, value in given.items() if isinstance(value, dict) and key in SOURCES[source].files}
    checked = _checked({key: value for key, value in given.items() if key not in files}, kinds, where)
    return Inversion.of(
        source, checked | {key: _build(GivenFile, value, f"{where}.{key}") for key, value in files.items()}
    )


def _build(shape: type, values: dict[str, Any], name: str) -> Any:
    values = _checked(values, _annotations(shape), name)
    if missing := [item.name for item in fields(shape) if item.default is MISSING and item.name not in values]:
        raise ConfigError(f"{name}: key {missing[0]!r} is missing; add it")
    return shape(**values)


def _checked(values: dict[str, Any], kinds: dict[str, str], name: str) -> dict[str, Any]:
    """Refuse unknown keys and wrong types; return the values as annotated: integers as floats, lists as tuples."""
    if unknown := sorted(set(values) - set(kinds), key=str):
        raise ConfigError(f"{name}: unknown key {unknown[0]!r}; allowed: {', '.join(sorted(kinds))}")
    checked = {}
    for key, value in values.items():
        if isinstance(value, list) and "tuple" in kinds[key]:
            value = tuple(value)
        wanted = tuple if value is not None or "None" not in kinds[key] else type(None)
        if kinds[key].startswith("tuple") and not isinstance(value, wanted):
            raise ConfigError(f"{name}.{key}: got {kind_of(value)}; a list is needed")
        checked[key] = _decimal(value, kinds[key])
        if (allowed := literals(kinds[key])) and value not in allowed:
            raise ConfigError(f"{name}.{key}: got {shown(value)}; {suggest(str(value), list(allowed))}")
        if wanted := wanted_kind(checked[key], kinds[key]):
            raise ConfigError(f"{name}.{key}: got {kind_of(value)}; allowed: {wanted}")
    return checked


@cache
def _annotations(shape: type) -> dict[str, str]:
    return {item.name: item.type for item in fields(shape)}


def _decimal(value: Any, annotation: str) -> Any:
    """Return an integer as a float where one is wanted: 1 and 1.0 are one setting, and one param for Snakemake."""
    exact = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST
    return float(value) if exact and annotation == "float" else value


def _plain(value: Any, without_neutral: bool = False) -> Any:
    """Return dataclasses as mappings and tuples as lists, as JSON and YAML hold them; of a run only what it uses."""
    kind = type(value)
    if kind in _SCALARS:
        return value
    if kind is Inversion:
        given = _significant(value.settings, value.entry.settings) if without_neutral else value.settings
        given = {key: _plain(each, without_neutral) for key, each in given.items()}
        return {"source": value.source, **({value.source: given} if given else {})}
    if is_dataclass(value):
        plain = {}
        for name, default in (_identifying if without_neutral else _fields)(kind):
            each = getattr(value, name)
            if each != default if without_neutral else each is not None or default is not None:
                plain[name] = _plain(each, without_neutral)
        if kind is Run and without_neutral and value.objective:
            plain["objective"] = {name: _of_term(name, terms) for name, terms in value.objective.items()}
        return plain
    if kind is dict:
        return {key: _plain(each, without_neutral) for key, each in value.items()}
    return [_plain(each, without_neutral) for each in value] if isinstance(value, list | tuple) else value


def _of_term(loss: str, terms: dict[str, Any]) -> dict[str, Any]:
    """Return a term without its loss's settings at their neutral values, and without a warm-up of no epochs."""
    known = {"warmup": NO_WARMUP, **(LOSSES[loss].settings if loss in LOSSES else {})}
    return _significant(terms, known)


def _significant(values: dict[str, Any], settings: dict[str, Setting]) -> dict[str, Any]:
    """Return the values that are not at the neutral value of their setting."""
    return {key: value for key, value in values.items() if key not in settings or settings[key].neutral != value}


@cache
def _fields(shape: type) -> tuple[tuple[str, Any], ...]:
    """Return names and defaults (MISSING without one) of a dataclass's fields."""
    return tuple((item.name, item.default) for item in fields(shape))


@cache
def _identifying(shape: type) -> tuple[tuple[str, Any], ...]:
    """Return the same without the fields that never compare: where a file lies."""
    return tuple((item.name, item.default) for item in fields(shape) if item.compare)


NO_WARMUP = Setting("", neutral=0)
_SCALARS = frozenset({str, int, float, bool, type(None)})


def slug(name: str) -> str:
    """Return a name as a safe part of a path: letters, digits, `_`, `-` and `.`, never longer than 80 characters."""
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "." for c in name).strip(".")
    return safe if safe and safe == name and len(safe) <= 80 else f"{safe[:60]}.{digest(name)}"


def digest(value: Any) -> str:
    """Return ten hex digits of a plain value, the same on every machine; 1 and 1.0 are the same number."""
    return hashlib.sha256(json.dumps(_numbers(value), sort_keys=True).encode()).hexdigest()[:10]


def _numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_numbers(item) for item in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
