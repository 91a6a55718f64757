"""What is demanded of every configuration, however hostile, and small studies to put hostile words into."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from conftest import PAIR, ROOT, TINY
from forked_dry_runs import DryRuns

from kd.runtime.messages import ConfigError
from kd.settings.merging import merge
from kd.settings.run import Run
from kd.studies.study import Study, load_study

CONFIG, SCHEMAS = ROOT / "config/config.yaml", ROOT / "workflow/schemas"
UNREADABLE = ("Traceback", "jsonschema", "Failed validating", "On instance", "<class '", "Error")
SAFE_PATH = re.compile(r"[A-Za-z0-9_./-]+")
Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def assert_readable(message: str, file: Path | str = "") -> None:
    """Every fault is one printable line of bearable length that names the file."""
    lines = message.split("\n")
    assert lines != [""]
    for line in lines:
        assert line.isprintable(), ascii(line)[:300]
        assert len(line) < 1000, line[:300]
        assert str(file) in line or "/etc/passwd: " in line, line[:300]
        assert not [word for word in UNREADABLE if word in line.replace(str(file), "")], line[:300]


def assert_safe(study: Study) -> None:
    """Whatever names a study used, what it writes lies below its results folder, and a run survives its file."""
    assert study.runs
    for text in (study.title, str(study.root), *(entry["title"] for entry in study.experiments.values())):
        text.encode()  # what is printed and written has to be writable
    folders = [f"studies/{study.name}/tune/{tuning.name}" for tuning in study.tunings.values()]
    figures = [f"studies/{study.name}/figures/{name}.png" for name in study.experiments]
    for path in [*study.runs, *study.datasets, *folders, *figures]:
        assert_safe_path(path)
    assert set(study.table["path"]) <= set(study.runs)
    for path, run in study.runs.items():
        assert_round_trip(run)
        assert run.path == path


def assert_safe_path(path: str) -> None:
    assert SAFE_PATH.fullmatch(path), path
    parts = path.split("/")
    assert all(part not in ("", ".", "..") and len(part) <= 200 for part in parts), path
    assert not Path(path).is_absolute()


def assert_round_trip(run: Run) -> None:
    described = run.as_dict()
    again = Run.from_dict(json.loads(json.dumps(described, allow_nan=False)))
    assert again == run
    assert again.as_dict() == described
    assert (again.digest, again.path) == (run.digest, run.path)
    assert_safe_path(run.path)
    for seed in (run.seed, run.teacher.seed if run.teacher else 0):
        assert 0 <= seed < 2**63  # torch takes no more


def listing(folder: Path) -> set[str]:
    """What lies in a folder, without what Snakemake and Python keep for themselves."""
    found = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    return {path for path in found if not path.startswith(".snakemake") and "__pycache__" not in path}


def load(file: Path, **given: Any) -> Study | None:
    """A study, found safe; None where it was refused readably."""
    try:
        study = load_study(CONFIG, SCHEMAS, {"study": str(file), **given})
    except ConfigError as error:
        assert_readable(str(error), file)
        return None
    assert_safe(study)
    return study


def told(name: str, error: Exception) -> str:
    return f"{name[:120]} -> {type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"


# ----------------------------------------------------------------------------------------------------------- the DAG


def fault_of(code: int, said: str) -> str:
    """What is wrong with the end of a dry run: it has to succeed, or to give error lines alone; empty: nothing."""
    if "Traceback" in said:
        return "Traceback: " + said.strip().splitlines()[-1][:300]
    if code == 0:
        return ""
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    return "" if errors and all(len(line) < 1100 for line in errors) else f"no error line: {said[-400:]}"


def dry_runs(project: Path, cases: dict[str, list[str]], **environment: str) -> None:
    """Require that `snakemake -n --config` succeeds or gives error lines for each case, and that no file comes into
    being."""
    before = listing(project)
    with DryRuns(project, **environment) as snakemake:
        done = snakemake(*(["-n", "-q", "--config", *config] for config in cases.values()))
    results = zip(cases, done, strict=True)
    faults = {name: fault for name, (code, said) in results if (fault := fault_of(code, said))}
    assert not faults, f"{len(faults)} of {len(cases)}:\n" + "\n".join(
        f"{name}: {fault}" for name, fault in faults.items()
    )
    new = {path for path in listing(project) - before if path.split("/")[0] != "results"}
    assert not new


# ----------------------------------------------------------------------------------------------------------- studies


def own_study(**changes: Any) -> dict[str, Any]:
    own = {key: value for key, value in TINY.items() if key != "methods"}
    experiment = {"pairs": [PAIR], "methods": ["scratch"], "seeds": [0]}
    return merge({"title": "Named", "settings": own, "experiments": {"a": experiment}}, changes)


def searching(**changes: Any) -> dict[str, Any]:
    search = {"pair": PAIR, "method": "ssdkd", "scale": 0.3, "seed": 0, "trials": 2, "validation": 0.2}
    return {**search, "space": {"replay.alpha": {"low": 0.0, "high": 1.0}}, **changes}


def with_experiment(**values: Any) -> dict[str, Any]:
    return own_study(experiments={"a": values})


PLACES: dict[str, Callable[[str], dict[str, Any]]] = {
    "experiment": lambda word: {**own_study(), "experiments": {word: own_study()["experiments"]["a"]}},
    "method": lambda word: merge(with_experiment(methods=[word]), {"methods": {word: {"kind": "train"}}}),
    "unknown method": lambda word: with_experiment(methods=[word]),
    "ablation": lambda word: merge(with_experiment(ablations=[word]), {"ablations": {word: {"scale": 0.5}}}),
    "unknown ablation": lambda word: with_experiment(ablations=[word]),
    "file of an ablation": lambda word: own_study(ablations={"x": word}),
    "search": lambda word: own_study(tune={word: searching()}),
    "setting of a search": lambda word: own_study(tune={"t": searching(space={word: {"low": 0, "high": 1}})}),
    "part of a setting of a search": lambda word: own_study(
        tune={"t": searching(space={f"replay.{word}": {"low": 0.0, "high": 1.0}})}
    ),
    "choice of a search": lambda word: own_study(
        tune={"t": searching(space={"inversion.generator.meta": {"choices": ["maml", word]}})}
    ),
    "teacher": lambda word: with_experiment(pairs=[[word, PAIR[1]]], methods=["kd"]),
    "student": lambda word: with_experiment(pairs=[[PAIR[0], word]]),
    "module of a model": lambda word: with_experiment(pairs=[[PAIR[0], f"{word}:build"]]),
    "function of a model": lambda word: with_experiment(pairs=[[PAIR[0], f"kd.models.wrn:{word}"]]),
    "torchvision's model": lambda word: with_experiment(pairs=[[PAIR[0], f"torchvision:{word}"]]),
    "data set": lambda word: own_study(settings={"dataset": {"name": word}}),
    "root": lambda word: own_study(settings={"dataset": {"name": "folder", "root": word}}),
    "name of a root": lambda word: own_study(settings={"dataset": {"name": "folder", "root": f"images/{word}"}}),
    "class": lambda word: own_study(settings={"dataset": {"classes": ["zero", word]}}),
    "loss": lambda word: own_study(settings={"objective": {word: {"weight": 1.0}}}),
    "setting of a loss": lambda word: own_study(settings={"objective": {"ce": {word: 1.0}}}),
    "view": lambda word: with_experiment(view=word),
    "title": lambda word: own_study(title=word),
    "title of an experiment": lambda word: with_experiment(title=word),
    "results": lambda word: own_study(settings={"results": word}),
    "tracking": lambda word: own_study(settings={"tracking": {"uri": word}}),
    "device": lambda word: own_study(settings={"compute": {"device": word}}),
    "kind": lambda word: own_study(settings={"kind": word}),
    "study": lambda word: own_study(settings={"study": word}),
    "key": lambda word: own_study(**{word: 1}),
    "key of a section": lambda word: own_study(settings={"training": {word: 1}}),
    "value": lambda word: own_study(settings={"training": {"lr": word}}),
}
