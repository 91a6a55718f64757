"""`tuned: NAME` in a study: the best settings of a search, in place of values. Imports no torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from kd.runtime.messages import ConfigError, shown, suggest
from kd.settings.merging import merge
from kd.studies.search import Tuning, folder_of
from kd.studies.trials import best_settings, is_of

TUNED, ONLY = "tuned", "best"  # the key; its value where a study has one search
NAME = r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"


class Winners:
    """Looks up what searches have chosen: those of this study by name, those of others as STUDY/NAME.

    `missing` collects a line for each that has not chosen yet; whoever needs it says so.
    """

    def __init__(self, root: Path, study: str, tunings: dict[str, Tuning], path: Path, asked: str):
        self.root, self.study, self.tunings, self.path, self.asked = root, study, tunings, path, asked
        self.missing: dict[str, str] = {}  # where it is used -> what is missing

    def over(self, overrides: dict[str, Any], where: str) -> dict[str, Any]:
        """Return overrides with the best settings of a search below them, where they name one. Raises ConfigError."""
        if TUNED not in overrides:
            return overrides
        rest = {key: value for key, value in overrides.items() if key != TUNED}
        return merge(self.of(overrides[TUNED], where), rest)

    def names(self, word: str) -> bool:
        """Whether a word that might be the path of a file is the name of a search."""
        return word == ONLY or word in self.tunings or re.fullmatch(f"{NAME}/{NAME}", word) is not None

    def of(self, search: Any, where: str) -> dict[str, Any]:
        """Return what a search has chosen; {} and a line in `missing` where it has not. Raises ConfigError."""
        place = f"{self.path}: {where}"
        if not isinstance(search, str) or not self.names(search):
            allowed = suggest(str(search), [*self.tunings, ONLY])
            raise ConfigError(f"{place}.{TUNED}: got {shown(search)}; {allowed}, or STUDY/NAME of another study")
        study, _, name = search.rpartition("/")
        if search == ONLY and ONLY not in self.tunings:
            if len(self.tunings) != 1:
                have = (
                    f"{len(self.tunings)} searches ({', '.join(self.tunings)})"
                    if self.tunings
                    else "no `tune:` section"
                )
                raise ConfigError(
                    f"{place}: {TUNED}: got {ONLY}; the study has {have}; name one, or STUDY/NAME of another"
                )
            [name] = self.tunings
        folder, tuning = folder_of(self.root, study or self.study, name), None if study else self.tunings[name]
        if (found := best_settings(folder, tuning)) is None:
            quick = study.removesuffix("-quick")
            asked = f"study={quick}{' quick=true' * (quick != study)}" if study else self.asked
            command = f"snakemake --cores all tune --config {asked}"
            changed = tuning is not None and (folder / "search.json").exists() and not is_of(folder, tuning)
            why = "has other settings or another space than when it was run" if changed else "has no best settings yet"
            self.missing[where] = f"{place}: search {name} {why}; tune first: {command}"
        return found or {}
