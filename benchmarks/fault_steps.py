"""The kinds of step that benchmarks/faults.py disturbs: what each starts from, does, and leaves behind.

Runs are the suite's tiny ones (tests/conftest.py), on a part of the digits, with a checkpoint after every step.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import yaml
from conftest import COMPUTE, PAIR, ROOT, TINY, tiny_run, tiny_settings

from kd.__main__ import main as command
from kd.data.raw import Source
from kd.integrations import tracking
from kd.integrations.jobs import job
from kd.integrations.searching import search
from kd.integrations.store import Store
from kd.integrations.tuning import best
from kd.reports.figures.search import draw
from kd.runs.folder import inputs_of
from kd.runs.kept_teachers import KEPT, keep
from kd.runs.prepared_data import prepare_step
from kd.runs.run import run_step
from kd.runs.worker import work_through
from kd.runtime import run_lock
from kd.runtime.files import read_json, write_json
from kd.runtime.messages import ConfigError
from kd.runtime.progress import inform
from kd.settings.merging import merge, run_of
from kd.settings.run import Run
from kd.studies.search import Tuning, flatten, folder_of
from kd.studies.study import load_study

OFTEN = dataclasses.replace(COMPUTE, checkpoint_seconds=1e-9)
RESULTS = Path("results")
URI = "KD_FAULTS_URI"  # environment variable: the MLflow server of the tracked run, in place of the local store
SOURCE = Source(None, RESULTS / "data/downloads", download=False)
MINE = "teacher.pt"  # weights that a user brings


class Step(NamedTuple):
    """A kind of step. All three work in the present folder; `before` and `of` may be what others have made."""

    name: str
    before: Callable[[], Any]  # makes what the step starts from, once
    do: Callable[[], Any]  # ends as a job does: SystemExit with 1 after a line that says why
    resumes: bool = True  # has checkpoints of its own


def small(method: str, **dotted: Any) -> Run:
    """Return a run of some ten steps."""
    given = {"teacher__training__batch_size": 512} | dotted
    return tiny_run(method, **given)


def with_data(method: str, **dotted: Any) -> Run:
    return small(method, scale=0.2, **dotted)


def make(*runs: Run, together: int = 1, gpu: int = 1, pretrained: bool = False) -> None:
    """Make runs as `python -m kd run` does, with what they need."""
    compute = dataclasses.replace(OFTEN, gpu=gpu, pretrained=pretrained)
    failed = work_through(list(runs), RESULTS, compute, SOURCE, together=together)
    for place, message in failed.items():
        inform(f"error: {place}: {message}")
    if failed:
        sys.exit(1)


def prepare_data() -> None:
    """Prepare the digits as the workflow's script does."""
    run = with_data("kd")
    with job("job.txt") as say:
        prepare_step(run.dataset, RESULTS / run.data_path, SOURCE, say)


def with_teacher() -> None:
    make(with_data("kd").teacher)


def of_method(name: str, **dotted: Any) -> Step:
    """Return the step that makes a student with a method, whose teacher is there."""
    run = (with_data if name in ("kd", "crd", "fsp") else small)(name, **dotted)
    return Step(f"{'distill' if run.kind == 'distill' else 'data-free'}: {name}", with_teacher, lambda: make(run))


def bring_a_teacher() -> None:
    with_teacher()
    shutil.move(RESULTS / with_data("kd").teacher.path / "weights.pt", MINE)
    shutil.rmtree(RESULTS / "runs")


def take_over() -> None:
    settings = merge(tiny_settings("kd", scale=0.2), {"teacher": {"weights": str(Path(MINE).resolve())}})
    given = run_of(settings, 0).teacher
    given = dataclasses.replace(given, weights=dataclasses.replace(given.weights, file=MINE))
    make(given)


def keep_a_teacher() -> None:
    with_teacher()
    run = with_data("kd").teacher
    folder = RESULTS / run.path
    keep(run, folder, read_json(folder / "metrics.json"), KEPT)
    shutil.rmtree(folder)


def tuning() -> Tuning:
    settings = merge(tiny_settings("kd", scale=0.2, **SHORT_KD), {"dataset": {"validation": 0.2}})
    space = {"training.lr": {"low": 0.05, "high": 0.2, "integer": False}}
    return Tuning("t", settings, space, seed=0, trials=2, sampler="random")


def work_on_a_search() -> None:
    make(run_of(tuning().settings, 0).teacher)
    with job("job.txt") as say:
        search(tuning(), "mine", RESULTS, OFTEN, lambda run, folder: contextlib.nullcontext(), None, say)


def choose_the_best() -> None:
    """Do what `snakemake tune` does with a search whose trials are done: look at them, and workflow/scripts/best.py."""
    work_on_a_search()
    folder = folder_of(RESULTS, "mine", "t")
    with job("job.txt") as say:
        winner, trials, importances = best(folder, tuning())
        draw(folder / "figures", trials, tuning(), importances)
        say(f"best trial {winner['number']}")


STUDY = {
    "title": "Faults",
    "settings": {key: value for key, value in TINY.items() if key != "methods"} | {"tracking": {"enabled": False}},
    "methods": TINY["methods"],
    "experiments": {
        "data": {"view": "pairs", "pairs": [PAIR], "methods": ["scratch", "kd"], "seeds": [0]},
        "scale": {"view": "scale", "pairs": [PAIR], "methods": ["ssdkd"], "scales": [0.3, 0.6], "seeds": [0]},
    },
}


def of_study() -> list[Run]:
    study = load_study(ROOT / "config/config.yaml", ROOT / "workflow/schemas", {"study": str(Path("faults.yaml"))})
    return list(study.runs.values())


def finished_study() -> None:
    Path("faults.yaml").write_text(yaml.safe_dump(STUDY), encoding="utf-8")
    make(*of_study())


def write_tables() -> None:
    """Do what the rules collect, tables, figures and page do."""
    if code := command(["tables", "faults.yaml"]):
        sys.exit(code)


def with_store() -> None:
    with_teacher()
    Store({"uri": None}, RESULTS).make_ready("faults")


def tracked() -> None:
    """Make a run that sends its curves after each epoch, then send what is missing; write down what has arrived."""
    tracking.OPEN_AFTER_SECONDS = tracking.SEND_EVERY_SECONDS = 0.0
    folder, uri = RESULTS / KD.path, os.environ.get(URI)
    store = Store({"uri": uri, "models": False}, RESULTS)
    data = {"name": "digits", "source": KD.data_path, "context": "training"}
    params = flatten(KD.as_dict())
    said = {"experiment": "faults", "name": "kd", "tags": {"path": KD.path}, "params": params, "dataset": data}
    with job("job.txt") as say:
        with_teacher()  # whose files may have been damaged
        with contextlib.suppress(Exception):  # as kd.integrations.jobs.open_study, which says so
            store.make_ready("faults")
        run_step(KD, folder, *inputs_of(KD, RESULTS), OFTEN, tracking.Tracker(folder, store, said, say))
        tracking.sync([folder], store, say)
        if not uri:
            try:
                found = _arrived(store)
            except Exception as error:
                raise ConfigError(f"{store.name} cannot be read: {error}") from None
            write_json(RESULTS / "arrived.json", found)


def _arrived(store: Store) -> list[Any]:
    """Return what the store holds of each run: state, curves, final numbers, files. One that was made again because a
    file of it was damaged is there twice, with equal numbers, and is named once.
    """
    client = store.client()
    [number] = [each.experiment_id for each in client.search_experiments() if each.name == "faults"]
    found = [
        {
            "status": run.info.status,
            "params": len(run.data.params),
            "curve": sorted([m.step, m.value] for m in client.get_metric_history(run.info.run_id, "train_accuracy")),
            "accuracy": run.data.metrics.get("accuracy"),
            "files": sorted(file.path for file in client.list_artifacts(run.info.run_id)),
        }
        for run in client.search_runs([number])
    ]
    return [each for place, each in enumerate(found) if each not in found[:place]]


SHORT_KD = {"training__batch_size": 128}
KD = with_data("kd", **SHORT_KD)
SCRATCH = with_data("scratch", **SHORT_KD)
STEPS = {
    "prepare": Step("prepare data", lambda: None, prepare_data, resumes=False),
    "teacher": Step("train: teacher", prepare_data, lambda: make(KD.teacher)),
    "kd": of_method("kd", **SHORT_KD),
    "crd": of_method("crd", **SHORT_KD),
    "fsp": of_method("fsp", **SHORT_KD),
    "ssdkd": of_method("ssdkd", scale=0.5),
    "fast": of_method("fast", scale=0.5),
    "cmi": of_method("cmi", scale=0.5),
    "nayer": of_method("nayer", scale=0.5, seed=1),
    "given": Step("given teacher", bring_a_teacher, take_over, resumes=False),
    "kept": Step("kept teacher", keep_a_teacher, lambda: make(KD.teacher, pretrained=True), resumes=False),
    "together": Step("two runs together", with_teacher, lambda: make(KD, SCRATCH, together=2)),
    "team": Step("a run of three processes", with_teacher, lambda: make(KD, gpu=3)),
    "worker": Step("search: worker", lambda: make(run_of(tuning().settings, 0).teacher), work_on_a_search),
    "best": Step("search: best settings", work_on_a_search, choose_the_best, resumes=False),
    "tracked": Step("a run that MLflow follows", with_store, tracked),
    "tables": Step("tables, figures, report", finished_study, write_tables, resumes=False),
}


# ------------------------------------------------------------------------------------------------------- what it leaves


def _record(text: bytes) -> Any:
    """Return what may not differ in run.json: seconds, memory and dates may."""
    record = json.loads(text)
    return {key: record.get(key) for key in ("settings", "identity", "counts", "classes", "train_images", "code")}


def _trial(text: bytes) -> Any:
    return {key: value for key, value in json.loads(text).items() if key not in ("seconds", "optuna_trial", "checksum")}


def _table(text: bytes) -> Any:
    frame = pd.read_csv(io.BytesIO(text))
    may = ("seconds", "started", "finished", "peak_memory", "commit")
    return frame[[name for name in frame if not name.startswith(may)]].to_csv()


CONTENT: dict[str, Callable[[bytes], Any] | None] = {  # of files that are not equal byte for byte; None: not compared
    "run.json": _record,
    "trial.json": _trial,
    "suggestion.json": lambda text: json.loads(text)["params"],
    "trials.csv": _table,
    "best.yaml": lambda text: [line for line in text.splitlines() if not line.startswith(b"#")],
    "optuna.log": None,  # in what order workers and resumed ones asked
    "report.html": None,  # holds drawings
    "mlflow.json": None,
    "report.json": None,  # of which records, with their dates
    "results.csv": _table,
    "mlflow.db": None,
}
OTHERS = ("mlartifacts", "mlflow.db-", "mlflow.db.", "job.txt")  # with names of each run, or of each attempt
PARTS = ("checkpoint", "lock.", "ended.json")  # of runs under way: gone when these are complete
ASIDE = ("unusable", "damaged", ".aside")  # put aside, with a line


def differences(world: Path, reference: Path) -> tuple[list[str], list[str], list[str]]:
    """Return the files that differ or are missing, what is left over, and what was put aside."""
    here, there = _files(world), _files(reference)
    aside = sorted(name for name in here - there if any(part in name for part in ASIDE))
    left = sorted(here - there - set(aside))
    differ = [
        name for name in sorted(there) if name not in here or _content(world / name) != _content(reference / name)
    ]
    return differ, left, aside


def _files(folder: Path) -> set[str]:
    return {
        file.relative_to(folder).as_posix()
        for file in folder.rglob("*")
        if not file.is_dir() and not any(part in file.as_posix() for part in OTHERS)
    }


def _content(file: Path) -> Any:
    if file.suffix == ".svg":  # has random names inside; the .png of the same drawing is compared
        return None
    change = CONTENT.get(file.name, lambda text: text)
    try:
        return None if change is None else change(file.read_bytes())
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"unreadable: {error}"


def checkpoints(world: Path) -> set[Path]:
    """Return the folders with a checkpoint that can be gone on from."""
    return {
        file.parent
        for file in world.rglob("checkpoint*.pt")
        if file.name in ("checkpoint.pt", "checkpoint.previous.pt")
    }


def warm_up() -> None:
    """Import here what steps import when they begin, so that each attempt need not."""
    import matplotlib.pyplot  # noqa: F401
    import torch._dynamo

    import kd.integrations.tuning
    import kd.training.datafree
    import kd.training.given
    import kd.training.with_data  # noqa: F401

    torch.set_num_threads(1)
    run_lock.DEAD_AFTER_SECONDS = 2.0  # instead of a minute: a lock that was torn has no owner that the kernel knows
