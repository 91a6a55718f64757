"""Data sets by name. This file imports no torch, so that names can be checked before any job starts.

To add one: write `kd/data/<name>.py` with a function `load(dataset: Dataset) -> RawData` and add its line here.
"""

from __future__ import annotations

DATASETS: dict[str, str] = {
    "digits": "kd.data.digits:load",
}
