"""Data sets by name. This file imports no torch, so that names can be checked before any job starts.

To add one: write `kd/data/<name>.py` with a function `load(dataset: Dataset, source: Source) -> RawData` and add its
line here, as docs/add-a-dataset.md shows.
"""

from __future__ import annotations

DATASETS: dict[str, str] = {
    "digits": "kd.data.digits:load",
    "cifar10": "kd.data.cifar:load",
    "cifar100": "kd.data.cifar:load",
    "fashion_mnist": "kd.data.fashion_mnist:load",
    "folder": "kd.data.folder:load",
}
GREY = ("digits", "fashion_mnist")  # their images have no colours, so the only view of them is rgb
