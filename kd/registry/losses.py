"""Distillation losses, one file each.

Every loss answers `loss(student: Output, teacher: Output, batch: Batch)` with one value per sample, [B]; losses that
relate the samples of a batch to each other give a scalar.

To add one: write `kd/losses/<name>.py` and add its line to LOSSES. A stateless loss is a function
`name(student, teacher, batch, *, setting=default)`; one with state (memory banks, embeddings) is a
`torch.nn.Module` whose constructor takes `(context: LossContext, *, setting=default)`. The keyword arguments are
the settings a study may give; validation reads them from the file without importing torch.
"""

from __future__ import annotations

from typing import Any

from kd.registry import keywords

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


def loss_settings(name: str) -> dict[str, str]:
    """Keyword arguments of a loss with their annotations, read from its source without importing torch."""
    return keywords.annotations(LOSSES[name])


def loss_defaults(name: str) -> dict[str, Any]:
    """Default values of these arguments."""
    return keywords.defaults(LOSSES[name])
