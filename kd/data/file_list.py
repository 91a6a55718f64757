"""A folder of images that are read while runs learn from them: what is prepared is the list of its files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from kd.data.folder import list_tree
from kd.data.listing import SPLITS
from kd.data.raw import Source
from kd.runtime.files import write_atomically
from kd.runtime.messages import bearable
from kd.runtime.progress import inform
from kd.settings.shapes import Dataset


def prepare(dataset: Dataset, path: Path, source: Source, say: Callable[[str], Any] = inform) -> dict[str, Any]:
    """Write the files' names, below the root, the labels [N], the class names and the tree's listing to `path`.

    No image is opened. Returns what was found, as kd.data.prepare.prepare does, and where. Raises ConfigError for a
    tree of another shape, and for an empty file.
    """
    root = source.root or Path(os.path.expanduser(dataset.root))
    tree = list_tree(root, dataset.classes)
    content: dict[str, Any] = {"classes": tree.classes, "listing": tree.listing}
    for split in SPLITS:
        names = [os.fsencode(f"{split}/{folder.name}/{name}") for folder, found in tree.files[split] for name in found]
        content[f"{split}_files"] = torch.frombuffer(bytearray(b"\0".join(names)), dtype=torch.uint8)
        content[f"{split}_labels"] = torch.from_numpy(tree.labels(split))
    used = {split: len(content[f"{split}_labels"]) for split in SPLITS}
    line = bearable(
        f"{root}: {used['train']:,} training and {used['test']:,} test images of {len(tree.classes)} classes listed, "
        f"to be decoded while runs learn from them; skipped: {str(tree.skipped) or 'nothing'}"
    )
    say(line)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: torch.save(content, file))
    found = {split: {"used": number} for split, number in used.items()}
    return {**found, "skipped": tree.skipped.counts(), "root": os.path.abspath(root), "lines": [line]}
