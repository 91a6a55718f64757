"""Distillation losses by name: their code, settings and the networks they can relate. Imports no torch.

To add one: write `kd/losses/<name>.py` and its entry in LOSSES; docs/add-a-loss.md shows how. The names, types and
defaults of a loss's settings are those of its keyword-only arguments, read from its source without importing it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from kd.registry import keywords
from kd.registry.loss_pairs import (
    ALL,
    LAST,
    STAGES,
    PairRule,
    Shapes,
    channels_left_by_factor,
    channels_left_by_factor_rate,
    convolution_at_layer,
    convolutions_between_stages,
    equal_widths,
    same_number_of,
    singular_vectors_of_stages,
)
from kd.registry.setting import Setting
from kd.runtime.messages import ConfigError, suggest, wanted_kind


@dataclass(frozen=True)
class Rule:
    """What a setting must be, given the loss's other settings."""

    key: str
    wanted: str
    holds: Callable[[dict[str, Any]], bool]


@dataclass(frozen=True)
class Entry:
    """All that is known of a loss without importing it; only `code` counts in the code digest of its runs."""

    code: str  # module:name
    settings: dict[str, Setting] = field(default_factory=dict)  # each keyword-only argument
    rules: tuple[Rule, ...] = ()  # between settings
    pairs: tuple[PairRule, ...] = ()  # which networks it relates
    one_teacher: bool = False  # the student takes over parts of its teacher: refused for ensembles
    dense: bool = False  # fits networks that say a class for every pixel


TEMPERATURE = Setting("divides the logits of both networks", above=0)
FIRST_EPOCHS = Setting("epochs of the first stage, before the schedule begins", at_least=0)
KEEP = Setting("keep the loss in the main stage; otherwise it is 0 there")

LOSSES: dict[str, Entry] = {
    "ce": Entry("kd.losses.ce:ce", dense=True),
    # on logits
    "kd": Entry("kd.losses.kd:kd", {"temperature": TEMPERATURE}, dense=True),
    "dkd": Entry(
        "kd.losses.dkd:dkd",
        {
            "alpha": Setting("weight of the target class", at_least=0),
            "beta": Setting("weight of the other classes", at_least=0),
            "temperature": TEMPERATURE,
        },
    ),
    "dist": Entry(
        "kd.losses.dist:dist",
        {
            "beta": Setting("weight of the correlation between classes", at_least=0),
            "gamma": Setting("weight of the correlation between samples", at_least=0),
            "temperature": TEMPERATURE,
        },
    ),
    # on the penultimate feature
    "crd": Entry(
        "kd.losses.crd:CRD",
        {
            "embedding": Setting("a linear embedding of each feature, or none"),
            "feat_dim": Setting("width of the linear embeddings", at_least=1),
            "negatives": Setting("negatives per anchor; with a queue, its length", at_least=1),
            "tau": Setting("temperature of the scores", above=0),
            "momentum": Setting("share that a row of the memory bank keeps in an update", at_least=0, below=1),
            "negatives_from": Setting("which samples are negatives: those of other classes, or all others"),
            "positive": Setting("the positive of an anchor: the same sample, or a random one of its class"),
            "estimator": Setting("the estimator of mutual information: nce is the paper's"),
            "memory": Setting("a bank with a row per training sample, or a queue of the last embeddings"),
        },
        rules=(
            # other indices may share the class: a relaxed positive could be one of them
            Rule(
                "positive",
                "exact when negatives_from is other_indices",
                lambda of: of["positive"] != "relax" or of["negatives_from"] != "other_indices",
            ),
            # a queue holds no embedding of a given sample
            Rule(
                "positive",
                "exact when memory is queue",
                lambda of: of["positive"] != "relax" or of["memory"] != "queue",
            ),
        ),
        dense=True,
    ),
    "rkd": Entry(
        "kd.losses.rkd:rkd",
        {
            "distance_weight": Setting("weight of the distances", at_least=0),
            "angle_weight": Setting("weight of the angles", at_least=0),
        },
        dense=True,
    ),
    "pkt": Entry("kd.losses.pkt:pkt", dense=True),
    "cc": Entry("kd.losses.cc:CC", {"feat_dim": Setting("width of the embeddings", at_least=1)}, dense=True),
    # on intermediate maps
    "fitnet": Entry(
        "kd.losses.fitnet:FitNet",
        {"layer": Setting("which map, counted from 0, the stem's", at_least=0)},
        pairs=(convolution_at_layer,),
        dense=True,
    ),
    "at": Entry(
        "kd.losses.at:at",
        {"p": Setting("exponent of the activations", at_least=1)},
        pairs=(same_number_of(STAGES),),
        dense=True,
    ),
    "sp": Entry("kd.losses.sp:sp", pairs=(same_number_of(LAST),), dense=True),
    "vid": Entry(
        "kd.losses.vid:VID",
        {
            "init_pred_var": Setting("initial variance of every channel; above eps"),
            "eps": Setting("the smallest variance", above=0),
        },
        rules=(Rule("init_pred_var", "above eps", lambda of: of["init_pred_var"] > of["eps"]),),
        pairs=(same_number_of(STAGES),),
        dense=True,
    ),
    "nst": Entry("kd.losses.nst:nst", pairs=(same_number_of(STAGES),), dense=True),
    "kdsvd": Entry(
        "kd.losses.kdsvd:kdsvd",
        {"k": Setting("singular vectors of each of the teacher's maps", at_least=1)},
        pairs=(same_number_of(STAGES, at_least=2), equal_widths(STAGES), singular_vectors_of_stages),
        dense=True,
    ),
    "reviewkd": Entry(
        "kd.losses.reviewkd:ReviewKD",
        {"max_mid_width": Setting("largest width of the fused maps, else that of the student's feature", at_least=1)},
        pairs=(same_number_of(STAGES),),
        dense=True,
    ),
    "simkd": Entry(
        "kd.losses.simkd:SimKD",
        {"factor": Setting("the projector's inner width is the teacher's divided by this", at_least=1)},
        pairs=(same_number_of(LAST), channels_left_by_factor),
        one_teacher=True,
    ),
    # in two stages
    "ab": Entry(
        "kd.losses.ab:AB",
        {
            "first_epochs": FIRST_EPOCHS,
            "margin": Setting("distance from the boundary that the student's neurons must reach", above=0),
            "connectors": Setting("convolutions at all stages, or only where the shapes of the maps are unequal"),
            "keep": KEEP,
        },
        pairs=(same_number_of(STAGES), convolutions_between_stages),
        dense=True,
    ),
    "ft": Entry(
        "kd.losses.ft:FT",
        {
            "first_epochs": FIRST_EPOCHS,
            "first_lr": Setting("learning rate of the first stage", above=0),
            "factor_rate": Setting("channels of the factors, as a share of the teacher's", above=0),
        },
        pairs=(same_number_of(LAST), channels_left_by_factor_rate),
        dense=True,
    ),
    "fsp": Entry(
        "kd.losses.fsp:FSP",
        {"first_epochs": FIRST_EPOCHS, "keep": KEEP},
        pairs=(same_number_of(ALL, at_least=2), equal_widths(ALL)),
        dense=True,
    ),
}

OF_TERMS = {"weight": "float", "warmup": "int"}  # settings of every term, next to those of its loss


def loss_settings(name: str) -> dict[str, str]:
    """Return the settings of a loss, each with its annotation as text."""
    return keywords.annotations(LOSSES[name].code)


def loss_defaults(name: str) -> dict[str, Any]:
    """Return the defaults of a loss's settings; one without a default is missing."""
    return keywords.defaults(LOSSES[name].code)


def setting_faults(name: str, settings: dict[str, Any]) -> Iterator[tuple[str, Any, str]]:
    """Yield (key, value, what it must be) for each fault in a loss's settings, defaults where none are given."""
    entry, values = LOSSES[name], loss_defaults(name) | settings
    for key, annotation in loss_settings(name).items():
        if annotation.startswith("Literal") and (choices := wanted_kind(values[key], annotation)):
            yield key, values[key], f"one of {choices}"
    for key, setting in entry.settings.items():
        if not setting.holds(values[key]):
            yield key, values[key], setting.allowed
    for rule in entry.rules:
        if not rule.holds(values):
            yield rule.key, values[rule.key], rule.wanted


def require_settings(name: str, **settings: Any) -> None:
    """Refuse settings that a loss does not know or that are out of range. Raises ConfigError."""
    known = loss_settings(name)
    for key in settings.keys() - known.keys():
        raise ConfigError(f"{name}: unknown setting {key!r}; {suggest(key, list(known))}")
    for key, value, wanted in setting_faults(name, settings):
        raise ConfigError(f"{name}: {key} must be {wanted}; got {value!r}")


def require_pair(name: str, student: Shapes, teacher: Shapes, **settings: Any) -> None:
    """Refuse networks, by the shapes of all their maps, that the loss cannot relate with these settings.

    Raises:
        ConfigError: in one line: what is impossible, with both shapes, and what to do.
    """
    for rule in LOSSES[name].pairs:
        rule(name, student, teacher, loss_defaults(name) | settings)
