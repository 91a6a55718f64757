"""Files that a user gives and that change a run's numbers. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from kd.runtime.files import file_digest, whole_path
from kd.runtime.messages import ConfigError, shown

RELATIVE = "paths are relative to the folder that kd is started in"


@dataclass(frozen=True)
class GivenFile:
    """A file that comes from outside. Its content identifies it, its place does not.

    `file` is None where nobody needs the place: a student's job reads what its teacher's run has stored.
    """

    digest: str
    file: str | None = field(default=None, compare=False)

    @classmethod
    def at(cls, place: str, key: str) -> GivenFile:
        """Return the file at a place. Raises ConfigError, with the setting's key, where none can be read."""
        whole = whole_path(place, key)
        try:
            return cls(file_digest(Path(whole)), whole)
        except (OSError, ValueError):
            raise ConfigError(f"{key}: no file {shown(place)}; {RELATIVE}") from None

    def unchanged(self, key: str) -> str:
        """Return the place. Raises ConfigError, with the setting's key, where another content is there now."""
        try:
            same = file_digest(Path(self.file)) == self.digest
        except OSError:
            same = False
        if not same:
            raise ConfigError(f"{key}: {self.file} has changed since the study was read; start again")
        return self.file
