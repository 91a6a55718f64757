"""What was read of a data set: numbers for its record, and the lines that a user reads."""

from __future__ import annotations

import hashlib
from typing import Any

from torch import Tensor

from kd.data.raw import Tree
from kd.runtime.messages import bearable


def found(name: str, classes: int, train: Tensor, test: Tensor, std: Tensor, tree: Tree | None) -> dict[str, Any]:
    """Return what was read, as JSON holds it.

    train, test: images [N, C, S, S] as they are stored; std: [C], of the training images. `lines` are for the user.
    """
    keys = [[hashlib.sha256(image).digest() for image in images.numpy()] for images in (train, test)]
    where = {key: place for place, key in reversed([*enumerate(keys[0])])}
    leaked = [place for place, key in enumerate(keys[1]) if key in where]
    constant = (std == 0).nonzero()[:, 0].tolist() if len(train) else []
    used = [{"used": len(each), "duplicates": len(each) - len(set(each))} for each in keys]
    lines = []
    if tree:
        name = str(tree.root)
        repeated = " and ".join(
            f"{split['duplicates']:,} {kind}" for split, kind in zip(used, ("training", "test"), strict=True)
        )
        lines.append(
            f"{name}: {len(train):,} training and {len(test):,} test images of {classes} classes used; "
            f"skipped: {str(tree.skipped) or 'nothing'}; identical to another of their split: {repeated}"
        )
    if leaked:
        pair = ""
        if tree:
            pair = f" ({tree.test_files[leaked[0]]} is {tree.train_files[where[keys[1][leaked[0]]]]})"
        lines.append(
            f"WARNING: {name}: {len(leaked):,} of {len(test):,} test images are identical to training images{pair}: "
            "on them a score shows what was learned by heart"
        )
    if constant:
        channels = ", ".join(str(channel + 1) for channel in constant)
        lines.append(
            f"{name}: the training images never change in channel {channels} of {len(std)}: it is shifted, not scaled"
        )
    return {
        "train": used[0],
        "test": used[1],
        "test_in_train": len(leaked),
        "constant_channels": constant,
        "skipped": tree.skipped.counts() if tree else {},
        "listing": tree.listing if tree else None,
        "lines": [bearable(line) for line in lines],
    }
