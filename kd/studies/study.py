"""A study: named experiments whose axes expand to one table, a row per run. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from kd.runtime.messages import ConfigError, suggest
from kd.runtime.yaml_files import parse_yaml, read_yaml
from kd.settings.run import Compute, Dataset, Run, digest, merge, run_of, teacher_models
from kd.settings.validation import Checker, schema_faults
from kd.studies.claims import expanded, require_runs

FULL = "full"  # the ablation that switches nothing off
STUDY_WIDE = ("study", "quick", "results", "methods", "compute", "tracking")  # no part of a single run
PANELS = 24  # of a figure that shows one run each
COLUMNS = ["experiment", "dataset", "teacher", "student", "method", "ablation", "scale", "seed", "kind", "path"]


@dataclass(frozen=True)
class Tuning:
    """One search: a run whose settings `space` names are left to Optuna."""

    name: str
    settings: dict[str, Any]  # merged settings, the validation split held out
    space: dict[str, dict[str, Any]]  # dotted setting -> {low, high[, log]} or {choices}
    seed: int
    trials: int

    @property
    def identity(self) -> dict[str, Any]:
        """What a trial depends on; more trials are the same search."""
        return {"name": self.name, "settings": self.settings, "space": self.space, "seed": self.seed}

    @property
    def folder(self) -> str:
        """Its folder's name: a search with other settings or another space is another search."""
        return f"{self.name}-{digest(self.identity)}"

    def run(self, suggestion: dict[str, Any]) -> Run:
        """The run of one trial, from values for the dotted settings of the space."""
        return run_of(merge(self.settings, nested(suggestion)), self.seed)


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
    experiments: dict[str, dict[str, Any]]  # name -> title and view
    claims: dict[str, dict[str, Any]]  # name -> what it says and the tests it must pass, for kd.studies.claims
    tunings: dict[str, Tuning]
    compute: Compute
    tracking: dict[str, Any]
    settings: dict[str, Any] = field(repr=False)  # the merged settings, for the record

    @property
    def students(self) -> list[str]:
        """Paths of the runs that the tables compare, each once."""
        return list(dict.fromkeys(self.table["path"]))

    def examples(self, kind: str, among: set[str] | None = None) -> dict[str, str]:
        """First pair, scale and seed of each method and ablation of a kind, as many as a figure has: label -> path.

        `among` are the paths that may be chosen, such as those of finished runs; all by default.
        """
        rows = self.table[self.table["kind"] == kind]
        rows = rows if among is None else rows[rows["path"].isin(among)]
        rows = rows.drop_duplicates(["method", "ablation"]).drop_duplicates("path").head(PANELS)
        return _labelled(rows)

    def alone(self, path: str) -> dict[str, str]:
        """The student without a teacher beside a distilled run (same experiment, pair, scale, seed): label -> path."""
        same = ["experiment", "teacher", "student", "scale", "seed"]
        rows = self.table[self.table["kind"] == "train"].merge(self.table.loc[self.table["path"] == path, same])
        return _labelled(rows.head(1))


def _labelled(rows: pd.DataFrame) -> dict[str, str]:
    """What figures call runs -> their paths."""
    return {f"{row.method} ({row.ablation}), {100 * row.scale:.4g} %": row.path for row in rows.itertuples()}


def load_study(config: Path, schemas: Path, given: dict[str, Any]) -> Study:
    """Read config/config.yaml and the study it or `given` (the command line) names; check everything; expand.

    Raises ConfigError, a line per fault, before anything is run.
    """
    given = {
        key: _retyped(value) if isinstance(value, dict) or key == "quick" else value for key, value in given.items()
    }
    settings_schema, study_schema = (read_yaml(schemas / f"{name}.schema.yaml") for name in ("config", "study"))
    defaults = read_yaml(config)
    if unknown := sorted(set(given) - set(settings_schema["properties"])):
        raise ConfigError(f"--config {unknown[0]}: unknown key; {suggest(unknown[0], sorted(defaults))}")
    chosen = str(merge(defaults, given).get("study"))
    name, path = _find(chosen, config.parent / "studies")
    study = _read_study(path)
    if merge(defaults, given).get("quick") is True:
        name, study = f"{name}-quick", _quick(study, path)
    if faults := schema_faults(study, study_schema):
        raise ConfigError("\n".join(f"{path}: {fault}" for fault in faults))
    base = merge(defaults, study.get("settings", {}), {"methods": study.get("methods", {})}, given, {"study": chosen})
    check = Checker(settings_schema)
    check(base, str(path))
    expansion = _Expansion(base, study, path, check, given)
    rows = [row for experiment in study["experiments"] for row in expansion.rows(experiment)]
    table, claims = pd.DataFrame(rows, columns=COLUMNS), study.get("claims", {})
    require_runs(claims, table, str(path))
    return Study(
        name=name,
        title=study["title"],
        root=Path(base["results"]),
        table=table,
        runs=expansion.runs,
        datasets=expansion.datasets,
        roots=expansion.roots,
        experiments={
            key: {"title": value.get("title", key), "view": value.get("view", "methods")}
            for key, value in study["experiments"].items()
        },
        claims=expanded(claims, table),
        tunings={key: expansion.tuning(key, value) for key, value in study.get("tune", {}).items()},
        compute=Compute(**base["compute"]),
        tracking=base["tracking"],
        settings=base,
    )


def _read_study(path: Path, below: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A study file, merged over the one that it extends, if any."""
    study = read_yaml(path)
    extended = study.pop("extends", None)
    if extended is None:
        return study
    below = (*below, path)
    _, parent = _find(str(extended), path.parent, f"{path}: extends")
    if parent in below:
        chain = " -> ".join(file.stem for file in (*below, parent))
        raise ConfigError(f"{path}: extends: these studies extend each other, {chain}; take `extends` out of one")
    return _over(_read_study(parent, below), study)


def _over(study: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Changes merged over a study. A null takes out what may be there; among settings it is a value like any other."""
    merged = merge(study, changes)
    for key in set(study) & set(changes):
        if changes[key] is None:
            del merged[key]
        elif key != "settings" and isinstance(study[key], dict) and isinstance(changes[key], dict):
            for name in [name for name, value in changes[key].items() if value is None]:
                del merged[key][name]
    return merged


def _quick(study: dict[str, Any], path: Path) -> dict[str, Any]:
    """The study's small version: what stands under `quick` merged over the rest."""
    if not isinstance(study.get("quick"), dict):
        raise ConfigError(f"{path}: quick: this study has no small version; leave --config quick=true away, or add one")
    return _over({key: value for key, value in study.items() if key != "quick"}, study["quick"])


def _retyped(value: Any) -> Any:
    """Snakemake hands nested values of --config on as text: {epochs: 5} comes as {"epochs": "5"}."""
    if isinstance(value, dict):
        return {key: _retyped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_retyped(item) for item in value]
    try:
        return parse_yaml(value) if isinstance(value, str) else value
    except ConfigError:
        return value


def _find(study: str, folder: Path, key: str = "study") -> tuple[str, Path]:
    """Name and file of a study given by name or by path."""
    path = Path(study) if study.endswith((".yaml", ".yml")) else folder / f"{study}.yaml"
    known = sorted(file.stem for file in folder.glob("*.yaml"))
    if Path(study).suffix == "" and (study not in known or "/" in study):
        raise ConfigError(f"{key}: got {study!r}; {suggest(study, known)}, or the path of a .yaml file")
    if not _is_file(path):
        raise ConfigError(f"{key}: no file {str(path)!r}; give a name ({', '.join(known)}) or the path of a .yaml file")
    if schema_faults(path.stem, {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"}):
        raise ConfigError(f"{key}: the file name {path.name!r} names the study; use letters, digits, `_` and `-` in it")
    return path.stem, path


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long
        return False


class _Expansion:
    """Turns experiments into rows; each distinct combination of settings is validated once."""

    def __init__(self, base: dict[str, Any], study: dict[str, Any], path: Path, check: Checker, given: dict):
        self.study, self.path, self.check = study, path, check
        self.wide = {key: base[key] for key in STUDY_WIDE}  # not copied for every run
        self.base, self.given = (
            {key: value for key, value in settings.items() if key not in STUDY_WIDE} for settings in (base, given)
        )
        self.runs: dict[str, Run] = {}
        self.datasets: dict[str, Dataset] = {}
        self.roots: dict[str, str | None] = {}
        self.methods = base["methods"]
        ablations = {FULL: {}, **study.get("ablations", {})}
        self.ablations = {name: self._overrides(value, f"ablations.{name}") for name, value in ablations.items()}

    def _overrides(self, value: Any, key: str) -> dict[str, Any]:
        """Overrides, read from a file where a path is given (the file that tuning writes, for example)."""
        if not isinstance(value, str):
            return value
        if not _is_file(Path(value)):
            hint = "write it (`snakemake tune` writes the best settings) or correct it"
            raise ConfigError(f"{self.path}: {key}: no file {value!r}; {hint}")
        return read_yaml(Path(value))

    def rows(self, name: str) -> list[dict[str, Any]]:
        experiment = self.study["experiments"][name]
        rows = []
        axes = (experiment["pairs"], experiment["methods"], experiment.get("ablations", [FULL]))
        for (teacher, student), method, ablation in product(*axes):
            for scale in experiment.get("scales", [None]):
                settings = self._settings(
                    f"experiments.{name}", method, ablation, (teacher, student), scale, experiment.get("settings", {})
                )
                for seed in experiment["seeds"]:
                    run = run_of(settings, seed)
                    self.runs[run.path] = run
                    self._add_inputs(run, settings)
                    rows.append(
                        {
                            "experiment": name,
                            "dataset": run.dataset.label,
                            "teacher": "+".join(teacher_models(teacher)),
                            "student": student,
                            "method": method,
                            "ablation": ablation,
                            "scale": run.scale,
                            "seed": seed,
                            "kind": run.kind,
                            "path": run.path,
                        }
                    )
        return rows

    def tuning(self, name: str, entry: dict[str, Any]) -> Tuning:
        override = merge(entry.get("settings", {}), {"dataset": {"validation": entry["validation"]}})
        settings = self._settings(f"tune.{name}", entry["method"], FULL, entry["pair"], entry["scale"], override)
        space = {key: dict(values) for key, values in entry["space"].items()}
        tuning = Tuning(name, settings, space, entry["seed"], entry["trials"])
        for key, values in space.items():  # both ends of every range must be settings that a run may have
            where = f"{self.path}: tune.{name}.space.{key}"
            if "low" in values and not values["low"] < values["high"]:
                raise ConfigError(f"{where}: low is {values['low']} and high {values['high']}; low must be below high")
            if values.get("log") and values["low"] <= 0:
                raise ConfigError(f"{where}: low is {values['low']}; a log range needs low above 0")
            for value in values.get("choices", [values.get("low"), values.get("high")]):
                self.check(merge(settings, nested({key: value})), where)
            if "low" in values:
                values["integer"] = _at_schema(self.check.schema, key) == "integer"
        for key in STUDY_WIDE:  # how trials are computed is no part of the search
            del settings[key]
        self._add_inputs(run_of(settings, tuning.seed), settings)
        return tuning

    def _settings(self, where, method, ablation, pair, scale, override) -> dict[str, Any]:
        for kind, word, known in (("methods", method, self.methods), ("ablations", ablation, self.ablations)):
            if word not in known:
                raise ConfigError(f"{self.path}: {where}.{kind}: got {word!r}; {suggest(word, sorted(known))}")
        chosen = {"teacher": {"model": pair[0]}, "student": {"model": pair[1]}}
        if scale is not None:
            chosen["scale"] = scale
        names = teacher_models(pair[0])
        teachers = [self._of_network("teachers", name, method) for name in names]
        if any(other != teachers[0] for other in teachers):
            raise ConfigError(
                f"{self.path}: teachers: {' and '.join(sorted(set(names)))} are one ensemble in {where} but have "
                "unlike settings there; give them the same, or none"
            )
        for_all, for_method = zip(teachers[0], self._of_network("students", pair[1], method), strict=True)
        own = merge(*for_all, self.methods[method], *for_method, self.ablations[ablation], override)
        if wide := sorted(set(own) & set(STUDY_WIDE)):
            place = f"{self.path}: {where} ({method}, {ablation})"
            raise ConfigError(f"{place}: {wide[0]}: holds for a whole study; move it to the study's `settings`")
        settings = merge(self.base, own, self.given, chosen) | self.wide
        self.check(settings, f"{self.path}: {where} ({method}, {ablation})")
        return settings

    def _of_network(self, kind: str, name: str, method: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the study says of a teacher or student: overrides for all its runs, and for those of this method."""
        said = self.study.get(kind, {}).get(name, {})
        methods = said.get("methods", {})
        if unknown := sorted(set(methods) - set(self.methods)):
            hint = suggest(unknown[0], sorted(self.methods))
            raise ConfigError(f"{self.path}: {kind}.{name}.methods: got {unknown[0]!r}; {hint}")
        return {key: value for key, value in said.items() if key != "methods"}, methods.get(method, {})

    def _add_inputs(self, run: Run, settings: dict[str, Any]) -> None:
        self.datasets[run.data_path], self.roots[run.data_path] = run.dataset, settings["dataset"]["root"]
        self.runs |= {teacher.path: teacher for teacher in run.teachers or ()}


def _at_schema(schema: dict[str, Any], dotted: str) -> str:
    """`integer` where the schema takes no other number."""
    place = schema
    for part in dotted.split("."):
        if "$ref" in place:
            place = schema["$defs"][place["$ref"].rsplit("/", 1)[1]]
        place = place.get("properties", {}).get(part) or place.get("additionalProperties") or {}
    kinds = place.get("type", []) if isinstance(place, dict) else []
    kinds = [kinds] if isinstance(kinds, str) else kinds
    return "integer" if "integer" in kinds and "number" not in kinds else "number"


def nested(dotted: dict[str, Any]) -> dict[str, Any]:
    """{"a.b": 1} -> {"a": {"b": 1}}."""
    result: dict[str, Any] = {}
    for key, value in dotted.items():
        *parents, last = key.split(".")
        place = result
        for part in parents:
            place = place.setdefault(part, {})
        place[last] = value
    return result
