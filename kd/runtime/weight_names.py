"""The names of the tensors in a file of weights, read without torch: what a dry run can know of it."""

from __future__ import annotations

import zipfile
from pathlib import Path

LARGEST_HEADER = 2**27  # in bytes, as the format of safetensors allows


def names_in(file: Path) -> str | None:
    """Return a text that contains the names of a file's tensors; None where they cannot be read.

    Files of torch.save (since 1.6) and of safetensors are understood.
    """
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                infos = [info for info in archive.infolist() if info.filename.endswith("data.pkl")]
                # one that would unfold to more than the memory is not read
                found = infos and infos[0].file_size <= LARGEST_HEADER
                return archive.read(infos[0]).decode("latin-1") if found else None
        with file.open("rb") as opened:
            size = int.from_bytes(opened.read(8), "little")
            header = opened.read(size) if size <= LARGEST_HEADER else b""
    except (OSError, ValueError, zipfile.BadZipFile):
        return None
    return header.decode("latin-1") if header.startswith(b"{") else None
