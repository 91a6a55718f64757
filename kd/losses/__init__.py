"""Distillation losses, one file each.

Every loss answers `loss(student: Output, teacher: Output, batch: Batch)` with one value per sample, [B]; losses that
relate the samples of a batch to each other give a scalar.

To add one: write `kd/losses/<name>.py` and add its line to LOSSES. A stateless loss is a function
`name(student, teacher, batch, *, setting=default)`; one with state (memory banks, embeddings) is a
`torch.nn.Module` whose constructor takes `(context: LossContext, *, setting=default)`. The keyword arguments are
the settings a study may give; validation reads them from the file without importing torch.
"""

from __future__ import annotations

LOSSES: dict[str, str] = {
    "ce": "kd.losses.ce:ce",
    "kd": "kd.losses.kd:kd",
    "crd": "kd.losses.crd:CRD",
}
