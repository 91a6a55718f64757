"""A study: named experiments whose axes expand to one table, a row per run. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from kd.runtime.files import whole_path
from kd.runtime.messages import ConfigError, escaped, suggest
from kd.runtime.yaml_files import read_yaml
from kd.settings.merging import merge, teacher_models
from kd.settings.run import Run
from kd.settings.schema import settings_schema
from kd.settings.shapes import Compute, Dataset
from kd.settings.validation import Checker
from kd.studies.claims import expanded, require_runs
from kd.studies.command_line import retyped
from kd.studies.expansion import COLUMNS, Expansion
from kd.studies.files import find_study, project, quick_version, read_study, study_faults
from kd.studies.search import Tuning


@dataclass(frozen=True)
class Study:
    """Everything that a study asks for."""

    name: str
    title: str
    root: Path  # the results folder
    table: pd.DataFrame  # COLUMNS, one row per run and experiment; `path` repeats where experiments share a run
    runs: dict[str, Run]  # path below the results folder -> run; teachers included
    datasets: dict[str, Dataset]  # path of the prepared file below the results folder -> data set
    roots: dict[str, str | None]  # the same paths -> where the data lies
    experiments: dict[str, dict[str, Any]]  # name -> title, view and `note`, on quoted numbers
    claims: dict[str, dict[str, Any]]  # name -> what it says and the tests it must pass, for kd.studies.claims
    tunings: dict[str, Tuning]
    compute: Compute
    tracking: dict[str, Any]
    settings: dict[str, Any] = field(repr=False)  # the merged settings, for the record

    @property
    def students(self) -> list[str]:
        """Paths of the runs that the tables compare, each once."""
        return list(dict.fromkeys(self.table["path"]))


def load_study(config: Path, schemas: Path, given: dict[str, Any], for_search: bool = False) -> Study:
    """Read config/config.yaml and the study that it or `given` (the command line) names; check everything; expand.

    Raises ConfigError with one line per mistake, before anything is run. `for_search`: what needs the best settings of
    a search that has none yet is left out, with the claims, instead of being refused.
    """
    given = {
        key: retyped(value) if isinstance(value, dict) or key == "quick" else value for key, value in given.items()
    }
    study_schema = read_yaml(schemas / "study.schema.yaml")
    defaults = read_yaml(config)
    if unknown := sorted(set(given) - set(settings_schema()["properties"])):
        raise ConfigError(f"--config {unknown[0]}: unknown key; {suggest(unknown[0], sorted(defaults))}")
    asked = merge(defaults, given)
    chosen, studies = str(asked.get("study")), config.parent / "studies"
    name, path = find_study(chosen, [studies])
    study = read_study(path, studies)
    if asked.get("quick") is True:
        name, study = f"{name}-quick", quick_version(study, path)
    if faults := study_faults(study, study_schema, defaults):
        raise ConfigError("\n".join(f"{path}: {fault}" for fault in faults))
    base = merge(defaults, study.get("settings", {}), {"methods": study.get("methods", {})}, given, {"study": chosen})
    if isinstance(base["results"], str):
        base["results"] = whole_path(base["results"], f"{path}: results")
    check = Checker(settings_schema())
    check(base, str(path), of_study=True)
    expansion = Expansion(base, study, path, check, given, name)
    rows = [row for experiment in study["experiments"] for row in expansion.rows(experiment)]
    untuned = list(expansion.untuned.values())
    if untuned and not for_search:
        raise ConfigError("\n".join(untuned))
    table, claims = pd.DataFrame(rows, columns=COLUMNS), {} if untuned else study.get("claims", {})
    require_runs(claims, table, str(path))
    shown = {
        key: value for key, value in study["experiments"].items() if not untuned or key in set(table["experiment"])
    }
    return Study(
        name=name,
        title=_one_line(study["title"]),
        root=Path(base["results"]),
        table=table,
        runs=expansion.runs,
        datasets=expansion.datasets,
        roots=expansion.roots,
        experiments={
            key: {
                "title": _one_line(value.get("title", key)),
                "view": value.get("view", "methods"),
                "note": _quoted_note(value),
            }
            for key, value in shown.items()
        },
        claims=expanded(claims, table),
        tunings=expansion.tunings,
        compute=Compute(**base["compute"]),
        tracking=base["tracking"],
        settings=base,
    )


def asked_study(name: str | None, settings: dict[str, Any]) -> Study:
    """Return the study of a name or path (None: as the settings or config.yaml say) with settings as in --config.

    Raises ConfigError as `load_study` does.
    """
    if name and "study" in settings:
        raise ConfigError(f"--config study: the study is given twice, first as {name!r}; name it once")
    given = {**settings, **({"study": name} if name else {})}
    return load_study(project() / "config/config.yaml", project() / "workflow/schemas", given)


def _quoted_note(experiment: dict[str, Any]) -> str:
    """Return the line under a table that says whose numbers are quoted, and how good the teachers there were."""
    if not (quoted := experiment.get("quoted")):
        return ""
    pairs = zip(experiment["pairs"], quoted.get("teachers", []), strict=False)
    teachers = {"+".join(teacher_models(teacher)): number for (teacher, _), number in pairs if number is not None}
    listed = ", ".join(f"{name} {number:.2f} %" for name, number in teachers.items())
    return f"\nQuoted, not measured here: {_one_line(quoted['source'])}{f'; its teachers: {listed}' * bool(listed)}.\n"


def _one_line(title: str) -> str:
    """Return a title as tables and figures can print it."""
    return escaped(" ".join(title.split()))
