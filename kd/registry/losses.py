"""Distillation losses, one file each.

Every loss answers `loss(student: Output, teacher: Output, batch: Batch)` with one value per sample, [B]; losses that
relate the samples of a batch to each other give a scalar.

To add one: write `kd/losses/<name>.py` and add its line to LOSSES. A stateless loss is a function
`name(student, teacher, batch, *, setting=default)`; one with state (memory banks, embeddings) is a
`torch.nn.Module` whose constructor takes `(context: LossContext, *, setting=default)`. The keyword arguments are
the settings a study may give; validation reads them from the file without importing torch.
"""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

LOSSES: dict[str, str] = {
    "ce": "kd.losses.ce:ce",
    # on logits
    "kd": "kd.losses.kd:kd",
    "dkd": "kd.losses.dkd:dkd",
    "dist": "kd.losses.dist:dist",
    # on the penultimate feature
    "crd": "kd.losses.crd:CRD",
    "rkd": "kd.losses.rkd:rkd",
    "pkt": "kd.losses.pkt:pkt",
    "cc": "kd.losses.cc:CC",
    # on intermediate maps
    "fitnet": "kd.losses.fitnet:FitNet",
    "at": "kd.losses.at:at",
    "sp": "kd.losses.sp:sp",
    "vid": "kd.losses.vid:VID",
    "nst": "kd.losses.nst:nst",
    "kdsvd": "kd.losses.kdsvd:kdsvd",
    "reviewkd": "kd.losses.reviewkd:ReviewKD",
    "simkd": "kd.losses.simkd:SimKD",
    # in two stages
    "ab": "kd.losses.ab:AB",
    "ft": "kd.losses.ft:FT",
    "fsp": "kd.losses.fsp:FSP",
}

ONE_TEACHER = ("simkd",)  # the student takes over parts of its teacher: not for ensembles
OF_TERMS = {"weight": "float", "warmup": "int"}  # settings of every term beside its loss's own


@cache
def loss_settings(name: str) -> dict[str, str]:
    """Keyword arguments of a loss with their annotations, read from its source without importing torch."""
    arguments = _arguments(name).kwonlyargs
    return {item.arg: ast.unparse(item.annotation) if item.annotation else "" for item in arguments}


@cache
def loss_defaults(name: str) -> dict[str, Any]:
    """What these arguments are where a study does not give them."""
    given = _arguments(name)
    pairs = zip(given.kwonlyargs, given.kw_defaults, strict=True)
    return {item.arg: ast.literal_eval(value) for item, value in pairs if value is not None}


@cache
def _arguments(name: str) -> ast.arguments:
    module, attribute = LOSSES[name].split(":")
    spec = importlib.util.find_spec(module)
    tree = ast.parse(Path(spec.origin).read_text())
    node = next(item for item in tree.body if getattr(item, "name", None) == attribute)
    if isinstance(node, ast.ClassDef):
        node = next(item for item in node.body if getattr(item, "name", None) == "__init__")
    return node.args
