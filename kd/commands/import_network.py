"""a network that another code has trained, as a teacher's weights"""

from __future__ import annotations

import argparse
from pathlib import Path

from kd.commands.arguments import path, positive
from kd.registry.published import PUBLISHED
from kd.runtime.files import write_atomically
from kd.runtime.messages import ConfigError


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=path, help="its checkpoint or state dict")
    parser.add_argument("--from", choices=PUBLISHED, required=True, dest="source", help="the code that wrote the file")
    parser.add_argument("--model", required=True, help="the network, by kd's name (docs/add-a-model.md) or the code's")
    parser.add_argument(
        "--image-size", type=positive, metavar="N", help="pixels, for torchvision's (default: 224); vit_* need theirs"
    )
    parser.add_argument("--out", type=path, metavar="FILE", help="file to write (default: <model>-<from>.pt, here)")


def do(given: argparse.Namespace) -> int:
    import torch

    from kd.models.imported import read, study_lines

    imported = read(given.file, given.source, given.model, given.image_size)
    out = given.out or Path(f"{imported.model.replace(':', '-')}-{given.source}.pt")
    if out.exists():
        raise ConfigError(f"--out: {out} exists already; name another file, or remove it")
    write_atomically(out, lambda file: torch.save(imported.network.state_dict(), file))
    left_out = f", {len(imported.left_out)} tensors of heads for training left out" if imported.left_out else ""
    print(f"{out}: {imported.model}, {imported.network.num_classes} classes, all {imported.tensors} tensors{left_out}")
    print(f"In a study:\n\n{study_lines(imported, given.source, out)}", end="")
    return 0
