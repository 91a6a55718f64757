"""Study files: found by name or path, merged over the study that they extend. Imports no torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from kd.runs.provenance import ROOT
from kd.runtime.files import is_file, whole_path
from kd.runtime.messages import ConfigError, suggest
from kd.runtime.yaml_files import read_yaml
from kd.settings.merging import merge
from kd.settings.validation import schema_faults

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
EXAMPLES = {  # of lists that are easily written in another shape
    "pairs": "pairs: [[wrn_16_2, wrn_10_1]]",
    "pair": "pair: [wrn_16_2, wrn_10_1]",
    "methods": "methods: [kd, ssdkd]",
    "ablations": "ablations: [full]",
    "scales": "scales: [0.1, 1.0]",
    "seeds": "seeds: [0, 1, 2]",
}


def project() -> Path:
    """Return the folder with config/ and workflow/: the current one, or that of the package."""
    return Path.cwd() if Path("config/config.yaml").is_file() else ROOT


def find_study(study: str, folders: list[Path], key: str = "study") -> tuple[str, Path]:
    """Return name and file of a study that `key` gives by name or by path.

    A name is looked up in `folders`, the first one that has it wins. Raises ConfigError where nothing is found.
    """
    study = whole_path(study, key)
    if Path(study).suffix == "":
        found = {file.stem: file for folder in reversed(folders) for file in sorted(folder.glob("*.yaml"))}
        if study not in found:
            raise ConfigError(f"{key}: got {study!r}; {suggest(study, sorted(found))}, or the path of a .yaml file")
        path = found[study]
    else:
        path = Path(study) if study.endswith((".yaml", ".yml")) else folders[0] / f"{study}.yaml"
    if not is_file(path):
        known = ", ".join(sorted({file.stem for folder in folders for file in folder.glob("*.yaml")}))
        raise ConfigError(f"{key}: no file {str(path)!r}; give a name ({known}) or the path of a .yaml file")
    if not NAME.fullmatch(path.stem):
        raise ConfigError(f"{key}: the file name {path.name!r} names the study; use letters, digits, `_` and `-` in it")
    return path.stem, path


def read_study(path: Path, studies: Path, below: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a study file and merge it over the study that it extends, if any.

    `extends` is a name or a path, looked up next to the extending file first; then names in `studies` (the project's
    config/studies), paths in the current folder. Raises ConfigError.
    """
    study = read_yaml(path)
    extended = study.pop("extends", None)
    if extended is None:
        return study
    extended, below = str(extended), (*below, path.resolve())
    if is_file(path.parent / extended) and not Path(extended).is_absolute():
        extended = str(path.parent / extended)
    near = [] if extended == path.stem else [path.parent]  # a file called demo may extend the project's demo
    _, parent = find_study(extended, [*near, studies], f"{path}: extends")
    if parent.resolve() in below:
        chain = " -> ".join(file.stem for file in (*below, parent))
        raise ConfigError(f"{path}: extends: these studies extend each other, {chain}; remove `extends` from one")
    return overlay(read_study(parent, studies, below), study)


def overlay(study: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Merge changes over a study. null removes what it names; among settings it is a value like any other."""
    merged = merge(study, changes)
    for key in set(study) & set(changes):
        if changes[key] is None:
            del merged[key]
        elif key != "settings" and isinstance(study[key], dict) and isinstance(changes[key], dict):
            for name in [name for name, value in changes[key].items() if value is None]:
                del merged[key][name]
    return merged


def quick_version(study: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the study's small version: its key `quick` merged over the rest. Raises ConfigError without that key."""
    if not isinstance(study.get("quick"), dict):
        raise ConfigError(f"{path}: quick: this study has no small version; leave out --config quick=true, or add one")
    return overlay({key: value for key, value in study.items() if key != "quick"}, study["quick"])


def study_faults(study: dict[str, Any], schema: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    """Return a readable line per violation of the schema of studies, with a hint for frequent mistakes.

    `settings` are those of config.yaml, which belong below `settings` in a study.
    """
    misplaced = sorted(key for key in study if key in settings and key not in schema["properties"])
    hints = [f"top level: {key}: is a setting of runs; write it below `settings:`" for key in misplaced]
    rest = {key: value for key, value in study.items() if key not in misplaced}
    return hints + [_with_example(fault) for fault in schema_faults(rest, schema)]


def _with_example(fault: str) -> str:
    place, _, problem = fault.partition(": ")
    names = [part for part in place.split(".") if not part.isdigit()]
    shape = names[0] in ("experiments", "tune") and re.search(
        r"; allowed: (a list|text or a list|at least|at most)", problem
    )
    return f"{fault}; write {EXAMPLES[names[-1]]}" if shape and names[-1] in EXAMPLES else fault
