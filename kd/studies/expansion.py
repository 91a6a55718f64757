"""The axes of a study's experiments multiplied to rows, each with its run. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

from kd.runtime.files import is_file, whole_path
from kd.runtime.messages import ConfigError, shown, suggest
from kd.runtime.yaml_files import read_yaml
from kd.settings.merging import merge, run_of, teacher_models
from kd.settings.run import Run
from kd.settings.shapes import Dataset
from kd.settings.validation import Checker
from kd.studies.search import Tuning, nested, number_kind
from kd.studies.search_entry import require_sound_range, require_whole_steps, tuning_of, validation_of
from kd.studies.winners import TUNED, Winners

FULL = "full"  # the ablation that switches nothing off
STUDY_WIDE = ("study", "quick", "results", "methods", "compute", "tracking")  # hold for a whole study, not for a run
RUN = ["teacher", "student", "method", "ablation", "scale", "seed", "kind", "path"]
COLUMNS = ["experiment", "dataset", *RUN, "quoted"]  # quoted: accuracy in % that others published


class Expansion:
    """Turns experiments into rows and collects their runs; each distinct combination of settings is checked once."""

    def __init__(
        self, base: dict[str, Any], study: dict[str, Any], path: Path, check: Checker, given: dict[str, Any], name: str
    ):
        self.study, self.path, self.check = study, path, check
        self.wide = {key: base[key] for key in STUDY_WIDE}
        self.base, self.given = (
            {key: value for key, value in settings.items() if key not in STUDY_WIDE} for settings in (base, given)
        )
        self.runs: dict[str, Run] = {}
        self.untuned: dict[str, str] = {}  # what is left out, because a search has no best settings yet -> why
        self.datasets: dict[str, Dataset] = {}
        self.roots: dict[str, str | None] = {}
        self.methods, self.ablations = base["methods"], {FULL: {}}
        self.tunings = {key: self.tuning(key) for key in study.get("tune", {})}
        asked = f"study={base['study']}{' quick=true' * (base['quick'] is True)}"
        self.winners = Winners(Path(base["results"]), name, self.tunings, path, asked)
        self.methods = {key: self.winners.over(value, f"methods.{key}") for key, value in base["methods"].items()}
        ablations = {FULL: {}, **study.get("ablations", {})}
        self.ablations = {key: self._overrides(value, f"ablations.{key}") for key, value in ablations.items()}

    def rows(self, name: str) -> Iterator[dict[str, Any]]:
        """Yield a row (COLUMNS) per run of an experiment. Raises ConfigError."""
        experiment, where = self.study["experiments"][name], f"experiments.{name}"
        for_all, of_methods = self._split(experiment.get("settings", {}), f"{where}.settings")
        axes = [experiment["pairs"], experiment["methods"], experiment.get("ablations", [FULL])]
        quoted = self._quoted(experiment, where)
        for (place, pair), method, ablation, scale in product(
            enumerate(axes[0]), *axes[1:], experiment.get("scales", [None])
        ):
            missing = {f"methods.{method}", f"ablations.{ablation}"} & set(self.winners.missing)
            self.untuned |= {place: self.winners.missing[place] for place in sorted(missing)}
            if missing:
                continue  # whoever loads the study is told
            layers = for_all, of_methods.get(method, {})
            settings = self._settings(where, method, ablation, pair, scale, *layers)
            for run in _runs(settings, experiment["seeds"]):
                self.runs[run.path] = run
                self._add_inputs(run, settings)
                yield {
                    "experiment": name,
                    "dataset": run.dataset.label,
                    "teacher": "+".join(teacher_models(pair[0])),
                    "student": pair[1],
                    "method": method,
                    "ablation": ablation,
                    "scale": run.scale,
                    "seed": run.seed,
                    "kind": run.kind,
                    "path": run.path,
                    "quoted": quoted.get(method, {}).get(place) if ablation == FULL else None,
                }

    def tuning(self, name: str) -> Tuning:
        """Return a search of the study; both ends of every range are checked as settings of a run."""
        entry, where = self.study["tune"][name], f"tune.{name}"
        method, place = entry["method"], f"{self.path}: {where}"
        if TUNED in self.methods.get(method, {}):
            raise ConfigError(
                f"{place}.method: got {method!r}, which is tuned itself; search the method it is made from"
            )
        override = merge(entry.get("settings", {}), {"dataset": {"validation": validation_of(entry)}})
        settings = self._settings(where, method, FULL, entry["pair"], entry.get("scale"), override)
        if settings["dataset"]["name"] == "none":  # nothing to hold out: the teacher is the study's own
            settings["dataset"] = {**settings["dataset"], "validation": 0.0}
        space = {key: dict(values) for key, values in entry["space"].items()}
        for key, values in space.items():
            require_sound_range(values, f"{place}.space.{key}")
            for value in values.get("choices", [values.get("low"), values.get("high")]):
                self.check(merge(settings, nested({key: value})), f"{place}.space.{key}")
            if "low" in values:
                values["integer"] = number_kind(self.check.schema, key) == "integer"
                require_whole_steps(values, f"{place}.space.{key}")
        for key in STUDY_WIDE:  # how trials are computed is no part of the search
            del settings[key]
        self._add_inputs(run_of(settings, entry.get("seed", 0)), settings)
        return tuning_of(name, entry, settings, space, place)

    def _overrides(self, value: Any, key: str) -> dict[str, Any]:
        """Return overrides: as they are, those that a search has found, or those in a file whose path is given."""
        if not isinstance(value, str):
            return self.winners.over(value, key)
        if self.winners.names(value) and not is_file(Path(value)):
            return self.winners.of(value, key)
        file = Path(whole_path(value, f"{self.path}: {key}"))
        if not is_file(file):
            known = f", or name a search ({', '.join(self.tunings)})" if self.tunings else ""
            hint = f"write it, correct the path{known}"
            raise ConfigError(f"{self.path}: {key}: no file {value!r}; {hint}")
        return read_yaml(file)

    def _settings(self, where, method, ablation, pair, scale, *overrides) -> dict[str, Any]:
        """Merge and check the settings of one combination; the result shares parts with what it was merged from."""
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
                "unlike settings there; give them the same settings, or none"
            )
        for_all, for_method = zip(teachers[0], self._of_network("students", pair[1], method), strict=True)
        layers = [*for_all, self.methods[method], *for_method, self.ablations[ablation], *overrides]
        if wide := sorted({key for layer in layers for key in layer if key in STUDY_WIDE}):
            place = f"{self.path}: {where} ({method}, {ablation})"
            raise ConfigError(f"{place}: {wide[0]}: holds for a whole study; move it to the study's `settings`")
        settings = _laid_over(self.base, *layers, self.given, chosen) | self.wide
        self.check(settings, f"{self.path}: {where} ({method}, {ablation})")
        return settings

    def _of_network(self, kind: str, name: str, method: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return a teacher's or student's overrides in the study: those for all its runs, and those for this method."""
        for_all, of_methods = self._split(self.study.get(kind, {}).get(name, {}), f"{kind}.{name}")
        return for_all, of_methods.get(method, {})

    def _split(self, said: dict[str, Any], where: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """Split overrides into those for all runs, and those for single methods, which they have below `methods`."""
        methods = said.get("methods", {})
        if not (isinstance(methods, dict) and all(isinstance(value, dict) for value in methods.values())):
            raise ConfigError(
                f"{self.path}: {where}.methods: got {shown(methods)}; allowed: a mapping of methods to overrides"
            )
        self._require_methods(methods, self.methods, f"{where}.methods")
        return {key: value for key, value in said.items() if key != "methods"}, methods

    def _require_methods(self, named: Iterable[str], known: Iterable[str], where: str) -> None:
        if unknown := sorted(set(named) - set(known)):
            raise ConfigError(f"{self.path}: {where}: got {unknown[0]!r}; {suggest(unknown[0], sorted(known))}")

    def _quoted(self, experiment: dict[str, Any], where: str) -> dict[str, dict[int, float]]:
        """Return what others published for an experiment: method -> place of the pair -> accuracy in %."""
        quoted, pairs = experiment.get("quoted", {}), experiment["pairs"]
        methods = quoted.get("methods", {})
        self._require_methods(methods, experiment["methods"], f"{where}.quoted.methods")
        lists = {f"methods.{method}": numbers for method, numbers in methods.items()}
        for name, numbers in {"teachers": quoted.get("teachers", pairs), **lists}.items():
            if len(numbers) != len(pairs):
                raise ConfigError(
                    f"{self.path}: {where}.quoted.{name}: got {len(numbers)} numbers; "
                    f"needed: {len(pairs)}, one per pair, null where there is none"
                )
        return {method: dict(enumerate(numbers)) for method, numbers in methods.items()}

    def _add_inputs(self, run: Run, settings: dict[str, Any]) -> None:
        """Note the data set and the teachers of a run."""
        root = settings["dataset"]["root"]
        self.datasets[run.data_path] = run.dataset
        self.roots[run.data_path] = root and whole_path(root, f"{self.path}: dataset.root")
        self.runs |= {teacher.path: teacher for teacher in run.teachers or ()}


def _runs(settings: dict[str, Any], seeds: list[int]) -> Iterator[Run]:
    """Yield a run per seed. What all seeds share is built and digested once, a large part of a study's expansion."""
    first = run_of(settings, seeds[0])
    yield first
    shared = first.kind == "train" or settings["teacher"]["seed"] is not None  # else each seed has its own teachers
    for seed in seeds[1:]:
        yield first.with_seed(seed) if shared else run_of(settings, seed)


def _laid_over(base: dict[str, Any], *overrides: dict[str, Any]) -> dict[str, Any]:
    """Merge as kd.settings.merging.merge does, but copy only the mappings that change: quick, and only to be read."""
    result = dict(base)
    for override in overrides:
        for key, value in override.items():
            below = result.get(key)
            both = isinstance(value, dict) and isinstance(below, dict)
            result[key] = _laid_over(below, value) if both else value
    return result
