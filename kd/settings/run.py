"""Settings: merged by one explicit rule and cut down to what one run needs. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields, is_dataclass
from functools import cache, cached_property
from pathlib import PurePath
from typing import Any, Literal

from kd.registry.losses import LOSSES, OF_TERMS, loss_settings
from kd.runtime.messages import ConfigError, kind_of, wanted_kind

# ------------------------------------------------------------------------------------------------------------ shapes
# Field names equal the keys of config/config.yaml and of its schema (a test compares them); values live only there.


@dataclass(frozen=True)
class Dataset:
    """`root` is where the data lies. It is a setting of `folder` alone: other data sets are the same everywhere, and
    where they were found is no part of a run (`run_of` leaves it out)."""

    name: str
    root: str | None
    classes: int | tuple[str, ...] | None
    image_size: int
    validation: float
    pad: int
    flip: bool

    @property
    def label(self) -> str:
        """What paths and tables call it: cifar100, cifar100-20 (a subset of its classes), folder-flowers."""
        count = len(self.classes) if isinstance(self.classes, tuple) else self.classes
        return "-".join(filter(None, [self.name, PurePath(self.root or "").name, str(count or "")]))

    @property
    def prepared(self) -> dict[str, Any]:
        """What its prepared file depends on, and nothing else: augmentation and splits happen later."""
        return {key: _plain(getattr(self, key)) for key in ("name", "root", "classes", "image_size")}

    @classmethod
    def from_prepared(cls, prepared: dict[str, Any]) -> Dataset:
        """The data set that `prepared` described, without split and augmentation."""
        return _section(cls, {**prepared, "validation": 0.0, "pad": 0, "flip": False}, "dataset")


@dataclass(frozen=True)
class Training:
    epochs: int
    batch_size: int
    lr: float
    schedule: str
    milestones: tuple[int, ...]
    gamma: float
    final_lr: float
    momentum: float
    nesterov: bool
    weight_decay: float


@dataclass(frozen=True)
class Inversion:
    images: str
    batch_size: int
    warmup: int
    steps: int
    lr_generator: float
    lr_noise: float
    bn: float
    oh: float
    adv: float
    bn_momentum: float
    meta: str
    reset_epoch: int | None
    noise_dim: int
    width: int


@dataclass(frozen=True)
class Modulation:
    diversity: float
    gamma: float
    class_of: str
    gradient: bool
    normalise: bool


@dataclass(frozen=True)
class Replay:
    full_size: int | None
    replacement: str
    initial_priority: str
    alpha: float
    beta: float
    final_beta: float | None
    eps: float
    priority_feedback: bool
    normalise_weights: bool
    refresh: str


@dataclass(frozen=True)
class Distillation:
    temperature: float
    passes: float
    training: Training


@dataclass(frozen=True)
class Compute:
    """How a run is computed; no part of its identity."""

    device: str
    threads: int
    checkpoint_seconds: float
    freeze_code: bool
    pretrained: bool
    download: bool
    slots_per_gpu: int
    gpu: int
    mem_mb: int
    runtime: int

    @classmethod
    def by_hand(cls, **given: Any) -> Compute:
        """Of a run without Snakemake, which alone asks for gpu, mem_mb and runtime."""
        values = {"device": "auto", "threads": 1, "checkpoint_seconds": 60.0, "slots_per_gpu": 1}
        values |= {"freeze_code": False, "pretrained": True, "download": True}
        return cls(**values | {"gpu": 1, "mem_mb": 1, "runtime": 1} | given)


@dataclass(frozen=True)
class Run:
    """One run: every setting that changes its numbers, and nothing else.

    Teachers are runs of kind `train`, nested in the runs of their students, so that a student's identity covers its
    teachers'; more than one are an ensemble. What a kind does not use is None.
    """

    kind: str  # train, distill or datafree
    dataset: Dataset
    model: str
    view: Literal["rgb", "luminance", "chrominance"]  # what the network sees of an image
    scale: float
    precision: str
    seed: int
    training: Training | None = None  # train, distill
    objective: dict[str, dict[str, Any]] | None = None  # train, distill
    teachers: tuple[Run, ...] | None = None  # distill, datafree
    inversion: Inversion | None = None  # datafree, as are the following
    modulation: Modulation | None = None
    replay: Replay | None = None
    distillation: Distillation | None = None

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> Run:
        """The run that `as_dict` described. Raises ConfigError for a key that is missing or unknown."""
        values = dict(settings)
        for name, shape in _SECTIONS.items():
            if values.get(name) is not None:
                values[name] = _section(shape, values[name], name)
        if values.get("teachers") is not None:
            if not isinstance(values["teachers"], list | tuple) or not values["teachers"]:
                raise ConfigError(f"teachers: got {kind_of(values['teachers'])}; a list of runs is needed")
            values["teachers"] = tuple(_section(Run, teacher, "teachers") for teacher in values["teachers"])
        if values.get("objective") is not None:
            if not isinstance(values["objective"], dict):
                raise ConfigError(f"objective: got {kind_of(values['objective'])}; a mapping is needed")
            values["objective"] = {name: _terms(name, terms) for name, terms in values["objective"].items()}
        run = _build(cls, values, "run")
        for name in USED.get(run.kind, ()):
            if getattr(run, name) is None:
                raise ConfigError(f"run: key {name!r} is missing; a run of kind {run.kind} needs it")
        return run

    def as_dict(self) -> dict[str, Any]:
        """Plain mappings, lists and numbers, without what this kind does not use."""
        return _without_none(_plain(self))

    @cached_property
    def digest(self) -> str:
        """Ten hex digits that identify the settings; seeds of one run share them (a teacher's seed counts)."""
        return digest({key: value for key, value in self.as_dict().items() if key != "seed"})

    @cached_property
    def path(self) -> str:
        """Folder of the run below results/: a function of the settings alone, so that every study finds it."""
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
        """The prepared data set below results/."""
        return f"data/{slug(self.dataset.label)}-{digest(self.dataset.prepared)}.pt"


USED = {  # by the kinds of run, beside what all need
    "train": ("training", "objective"),
    "distill": ("training", "objective", "teachers"),
    "datafree": ("teachers", "inversion", "modulation", "replay", "distillation"),
}
_SECTIONS = {
    "dataset": Dataset,
    "training": Training,
    "inversion": Inversion,
    "modulation": Modulation,
    "replay": Replay,
    "distillation": Distillation,
}


def _require(values: dict[str, Any], key: str, name: str) -> None:
    if key not in values:
        raise ConfigError(f"{name}: key {key!r} is missing; add it")


def _terms(loss: str, terms: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(terms, dict):
        raise ConfigError(f"objective.{loss}: got {kind_of(terms)}; a mapping is needed")
    known = OF_TERMS | (loss_settings(loss) if loss in LOSSES else {})
    return {key: _decimal(value) if known.get(key) == "float" else value for key, value in terms.items()}


@cache
def _described(settings: str) -> Run:
    """A run from JSON: the students of a study share few teachers."""
    return Run.from_dict(json.loads(settings))


def _section(shape: type, values: dict[str, Any], name: str) -> Any:
    if isinstance(values, shape):
        return values
    if not isinstance(values, dict):
        raise ConfigError(f"{name}: got {kind_of(values)}; a mapping is needed")
    if shape is Run:
        return Run.from_dict(values)
    if shape is Distillation:
        _require(values, "training", name)
        values = {**values, "training": _section(Training, values["training"], "distillation.training")}
    if shape is Training:
        _require(values, "milestones", name)
        if not isinstance(values["milestones"], list | tuple):
            raise ConfigError(f"{name}.milestones: got {kind_of(values['milestones'])}; a list is needed")
        values = {**values, "milestones": tuple(values["milestones"])}
    if shape is Dataset and isinstance(values.get("classes"), list):
        values = {**values, "classes": tuple(values["classes"])}
    return _build(shape, values, name)


def _build(shape: type, values: dict[str, Any], name: str) -> Any:
    kinds = _annotations(shape)
    if unknown := sorted(set(values) - set(kinds), key=str):
        raise ConfigError(f"{name}: unknown key {unknown[0]!r}; allowed: {', '.join(sorted(kinds))}")
    values = {key: _decimal(value) if kinds[key] == "float" else value for key, value in values.items()}
    for key, value in values.items():
        if wanted := wanted_kind(value, kinds[key]):
            raise ConfigError(f"{name}.{key}: got {kind_of(value)}; allowed: {wanted}")
    try:
        return shape(**values)
    except TypeError as error:
        raise ConfigError(f"{name}: {error}") from None


@cache
def _annotations(shape: type) -> dict[str, str]:
    return {field.name: field.type for field in fields(shape)}


def _decimal(value: Any) -> Any:
    """1 and 1.0 are one setting: written in one way, they are also one param for Snakemake."""
    exact = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST
    return float(value) if exact else value


def _plain(value: Any) -> Any:
    """Dataclasses as mappings, tuples as lists: what JSON and YAML hold."""
    kind = type(value)
    if kind in _SCALARS:
        return value
    if is_dataclass(value):
        return {name: _plain(getattr(value, name)) for name in _annotations(kind)}
    if kind is dict:
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


_SCALARS = frozenset({str, int, float, bool, type(None)})


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    """Sections that a kind does not use are left out; a setting that is null inside a section stays."""
    kept = {key: value for key, value in values.items() if value is not None or key not in _OPTIONAL}
    if kept.get("teachers"):
        kept["teachers"] = [_without_none(teacher) for teacher in kept["teachers"]]
    return kept


_OPTIONAL = {field.name for field in fields(Run) if field.default is None}


def slug(name: str) -> str:
    """A name as a safe part of a path: letters, digits, `_`, `-` and `.`, never longer than 80 characters."""
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "." for c in name).strip(".")
    return safe if safe and safe == name and len(safe) <= 80 else f"{safe[:60]}.{digest(name)}"


def digest(value: Any) -> str:
    """Ten hex digits of a plain value, the same on every machine; 1 and 1.0 are the same number."""
    return hashlib.sha256(json.dumps(_numbers(value), sort_keys=True).encode()).hexdigest()[:10]


def _numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_numbers(item) for item in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


# ------------------------------------------------------------------------------------------------------------ merging

LARGEST = 2**53  # integers up to here are floats, too: digests tell them apart


def merge(base: dict[str, Any], *overrides: dict[str, Any]) -> dict[str, Any]:
    """Mappings merge key by key, everything else is replaced; nothing given is changed."""
    merged = _copy(base)
    for override in overrides:
        _update(merged, override)
    return merged


def _update(place: dict[str, Any], override: dict[str, Any]) -> None:
    for key, value in override.items():
        if isinstance(value, dict) and isinstance(place.get(key), dict):
            _update(place[key], value)
        else:
            place[key] = _copy(value)


def _copy(value: Any) -> Any:
    """Each time anew what an alias of YAML names twice, so that a change in one place is none in the other."""
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


def run_of(settings: dict[str, Any], seed: int) -> Run:
    """Cut merged, validated settings down to the run they describe."""
    kind, model = settings["kind"], settings["student"]["model"]
    view = settings["student"]["view"]
    common = {key: settings[key] for key in ("dataset", "scale", "precision")}
    if settings["dataset"]["name"] != "folder":
        common["dataset"] = {**settings["dataset"], "root": None}
    with_data = {"training": settings["training"], "objective": active(settings["objective"])}
    if kind == "train":
        return Run.from_dict({"kind": kind, "model": model, "view": view, "seed": seed, **common, **with_data})
    recipe = settings["teacher"]
    names = teacher_models(recipe["model"])
    teachers = [
        {
            "kind": "train",
            "model": name,
            "view": recipe["view"],
            "seed": (seed * len(names) if recipe["seed"] is None else recipe["seed"]) + names[:place].count(name),
            **common,
            "scale": 1.0,
            "training": recipe["training"],
            "objective": {"ce": {"weight": 1.0}},
        }
        for place, name in enumerate(names)
    ]
    datafree = ("inversion", "modulation", "replay", "distillation")
    own = with_data if kind == "distill" else {key: settings[key] for key in datafree}
    own |= {"teachers": [_described(json.dumps(teacher)) for teacher in teachers]}
    return Run.from_dict({"kind": kind, "model": model, "view": view, "seed": seed, **common, **own})


def teacher_models(model: str | list[str]) -> list[str]:
    """The setting teacher.model as a list: one name, or several for an ensemble, where a name again is another seed."""
    return [model] if isinstance(model, str) else list(model)


def active(objective: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The terms of an objective whose weight is not 0: weight 0 is how a term is switched off."""
    return {name: terms for name, terms in objective.items() if terms["weight"] != 0}
