"""The names of the tensors in a file of weights, read without torch: what a dry run can know of it."""

from __future__ import annotations

import zipfile
from pathlib import Path

LARGEST_HEADER = 2**27  # of a safetensors file, in bytes, as the format allows


def names_in(file: Path) -> str | None:
    """Return a text that contains the names of a file's tensors; None where they cannot be read.

    Files of torch.save (since 1.6) and of safetensors are understood.
    """
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                pickles = [name for name in archive.namelist() if name.endswith("data.pkl")]
                return archive.read(pickles[0]).decode("latin-1") if pickles else None
        with file.open("rb") as opened:
            size = int.from_bytes(opened.read(8), "little")
            header = opened.read(size) if size <= LARGEST_HEADER else b""
    except (OSError, ValueError, zipfile.BadZipFile):
        return None
    return header.decode("latin-1") if header.startswith(b"{") else None
