"""What the workflow and its scripts call: readable errors, settings that are not params, start and end of a study.

`snakemake` is the object that Snakemake passes to a script. Settings that change no number (compute, tracking) come
through its `config`, because a changed param would run everything again.
"""

from __future__ import annotations

import errno
import json
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kd.integrations.stopped_jobs as stopped_jobs
from kd.data.raw import Source
from kd.runs.folder import METRICS, files_of, finished
from kd.runtime.files import appended, on_the_way, refuse_links_of_others, stamp_now_if_later, write_atomically
from kd.runtime.lines import Lines
from kd.runtime.messages import ConfigError, disk_fault, masked
from kd.runtime.progress import QUIETLY, inform
from kd.runtime.run_lock import TakenOver
from kd.settings.run import Run
from kd.settings.shapes import Compute
from kd.studies.command_line import command_for
from kd.studies.search import Tuning, figures_of, flatten, folder_of, tidy
from kd.studies.status import trials_done
from kd.studies.study import Study
from kd.studies.trials import BEST, TABLE, read_results, told

if TYPE_CHECKING:
    import pandas as pd


@contextmanager
def job(log: str) -> Iterator[Callable[..., None]]:
    """Run a script's work in this context; yields `say(text)`, which writes to the log file and, if `shown`, to stderr.

    A user's mistake, a diverged run, a run that another process took over and a disk that fails end with one line and
    exit code 1; any other error with its traceback. Where the study's own lines are on the terminal (LINES_OF_STUDY),
    these show the error, and whatever else the job writes to stderr goes to its log: bars, warnings of libraries.
    """
    path = Path(log)
    with QUIETLY:
        path.parent.mkdir(parents=True, exist_ok=True)
    lines = _beside_log(path) if os.environ.get(stopped_jobs.LINES_OF_STUDY) else None

    def say(text: str, shown: bool = True) -> None:
        if shown:
            lines.wrapped(text) if lines else inform(text)
        note(text)

    def note(text: str) -> bool:
        with QUIETLY, appended(path) as file:
            print(text, file=file)
            return True
        return False  # a disk that is full, read-only or away

    def fail(text: str) -> None:
        if not note(text) or not lines:
            inform(text)

    try:
        yield say
    except (ConfigError, FloatingPointError, TakenOver) as error:
        fail(f"error: {error}")
        sys.exit(1)
    except KeyboardInterrupt:  # while waiting; at work it is a wish to stop, and the state is saved
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        fault = disk_fault(error)
        fail(f"error: {fault}" if fault else traceback.format_exc())
        sys.exit(1)


def _beside_log(log: Path) -> Lines | None:
    """Send this process's stderr to its log from now on; return lines to where it went before. None if that fails."""
    with QUIETLY, appended(log) as file:
        terminal = os.fdopen(os.dup(2), "w", encoding="utf-8", errors="backslashreplace")
        os.dup2(file.fileno(), 2)
        return Lines(terminal)
    return None


def results_of(snakemake: Any) -> Path:
    return Path(snakemake.config["results"])


def compute_of(snakemake: Any) -> Compute:
    return Compute(**snakemake.config["compute"])


def source_of(snakemake: Any) -> Source:
    """Return where the data set of a `prepare_data` job is read from."""
    results, file = results_of(snakemake), Path(snakemake.output[0])
    root = snakemake.config["roots"][file.relative_to(results).as_posix()]
    download = snakemake.config["compute"]["download"]
    return Source(root and Path(root), results / "data/downloads", download, snakemake.threads)


STORE_TROUBLE = "store-trouble.txt"  # in a study's folder: what the first run said of its MLflow store, since the start
STORAGES = "KD_SEARCH_STORAGES"  # environment variable: jobs inherit the URLs of databases, which may hold passwords


def searches_of(study: Study) -> dict[str, dict[str, Any]]:
    """Return how a study's searches are run, as Snakemake may write it into its files; URLs go by the environment."""
    urls = {name: tuning.storage for name, tuning in study.tunings.items() if tuning.storage}
    if urls:
        os.environ[STORAGES] = json.dumps(urls)
    return {name: tuning.options for name, tuning in study.tunings.items()}


def tuning_of_job(snakemake: Any) -> Tuning:
    """Return the search of a `worker` or `best` job: what identifies it comes as a param, the rest by the config."""
    identity = dict(snakemake.params.tuning)
    urls = json.loads(os.environ.get(STORAGES, "{}"))
    options = snakemake.config["searches"][identity["name"]]
    return Tuning(**identity | options, storage=urls.get(identity["name"]))


def search_lines(study: Study) -> list[str]:
    """Say what the searches of a study have found, and where it is, for the end of `snakemake tune`."""
    lines = []
    for name, tuning in study.tunings.items():
        folder = folder_of(study.root, study.name, name)
        results = read_results(folder, tuning)
        complete = [result for result in results.values() if result["state"] == "COMPLETE"]
        if not complete or not (folder / BEST).exists():
            continue
        winner = max(complete, key=lambda result: result["value"])
        chosen = tidy(winner["params"])
        values = ", ".join(f"{key.rsplit('.', 1)[-1]} {chosen[key]}" for key in tuning.space)
        lines += [
            f"search {name}: {len(results)} trials ({told(results)})",
            f"  best     trial {winner['number']}, {tuning.measured} {winner['value']:.2f} %: {values}",
            f"  settings {folder / BEST}   (in a study: `tuned: {name}`)",
            f"  trials   {folder / TABLE}",
            f"  figures  {folder / 'figures'}/: {', '.join(figures_of(tuning.space))} (.png, .svg)",
        ]
    return lines


def open_study(study: Study, say: Callable[[str], None]) -> None:
    """List the study's runs and create a local MLflow store before the first job, since parallel jobs cannot.

    Files that are stamped in the future (copied from a machine whose clock is wrong) are stamped now: Snakemake would
    throw away what is made of them.
    A store that cannot be made is reported; the study goes on without it. Raises ConfigError where the results folder
    cannot be written, or the study's is a link of another user's.
    """
    folder = study.root / "studies" / study.name
    refuse_links_of_others(on_the_way(folder, study.root))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / STORE_TROUBLE).unlink(missing_ok=True)
        logs = study.root / "logs"
        logs.mkdir(exist_ok=True)
        if not os.access(logs, os.W_OK):  # Snakemake makes folders there before each job
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(logs))
        write_atomically(folder / "runs.csv", lambda file: study.table.to_csv(file, index=False))
    except OSError as error:
        raise ConfigError(f"results: got {str(study.root)!r}; {disk_fault(error) or error}") from None
    made = [f"{path}/{name}" for path, run in study.runs.items() for name in files_of(run.kind)]
    stamp_now_if_later(study.root / path for path in (*study.datasets, *made))
    if study.tracking["enabled"]:
        from kd.integrations.store import Store

        store = Store(study.tracking, study.root)
        try:
            store.make_ready(study.name)
        except Exception as error:
            say(f"{store.trouble(error)}; the study goes on, `{sync_command(study.settings)}` sends all runs later")


def close_study(study: Study, say: Callable[[str], None], to: str | None = None) -> int:
    """Send to MLflow what it does not have yet of the study's runs, and the study's view: rows, tables, figures.

    Runs that were made by hand are sent, too. `to` is another store's URI. Says where to look, and returns how many
    runs were brought up to date.
    """
    if not study.tracking["enabled"] and not to:
        return 0
    from kd.integrations.store import Store
    from kd.integrations.study_view import note_study
    from kd.integrations.tracking import note, read_state, sync

    tracking = {**study.tracking, "uri": to or study.tracking["uri"]}
    store, later, folders = Store(tracking, study.root), sync_command(study.settings, to), []
    for path, run in _tracked_runs(study):
        folder = study.root / path
        if (folder / METRICS).exists():
            folders.append(folder)
            if not read_state(folder):
                note(folder, {**description(study.name, study.table, run, path), "sent": {}}, say)
    said: list[str] = []
    sent = sync(folders, store, said.append, later)
    folder = study.root / "studies" / study.name
    if folders and not any(later in text for text in said):
        titles = {name: experiment["title"] for name, experiment in study.experiments.items()}
        note_study(folder, study.name, study.title, titles)
        _show_study(store, folder, study.root, later, said.append)
    for text in said:
        say(text)
    return sent


def sync_all(results: Path, tracking: dict[str, Any], say: Callable[[str], None], to: str | None = None) -> int:
    """Send to MLflow what it does not have yet of all runs and studies in a results folder; `to` is a store's URI.

    Returns the number of runs brought up to date.
    """
    from kd.integrations.store import Store
    from kd.integrations.study_view import TITLES, read_titles
    from kd.integrations.tracking import TRACKED, sync

    elsewhere = f" --to {shlex.quote(masked(to))}" if to else ""
    store, later = Store({**tracking, "uri": to or tracking["uri"]}, results), f"python -m kd sync{elsewhere}"
    said: list[str] = []
    sent = sync((file.parent for file in sorted(results.glob(f"**/{TRACKED}"))), store, said.append, later)
    for folder in sorted(file.parent for file in results.glob(f"studies/*/{TITLES}")):
        if read_titles(folder) and not any(later in text for text in said):
            _show_study(store, folder, results, later, said.append)
    for text in said:
        say(text)
    return sent


def _show_study(store: Any, folder: Path, results: Path, later: str, say: Callable[[str], None]) -> None:
    """Bring a study's view up to date and say where it is; a store that fails, or a file, costs a line."""
    from kd.integrations.study_view import log_study

    try:
        link = log_study(store, folder, results)
    except Exception as error:
        say(f"{store.trouble(error)}; `{later}` sends tables and figures later")
        return
    say(_where(store, link))


def seen_in_mlflow(study: Study) -> str | None:
    """Say where a study is in a local MLflow store, without opening MLflow; None where that is not known."""
    from kd.integrations.store import Store

    store = Store(study.tracking, study.root)
    number = store.number(study.name) if study.tracking["enabled"] else None
    return _where(store, store.link(number)) if number else None


def _where(store: Any, link: str) -> str:
    return f"MLflow: {link}" + (f"\n  after `{store.command}`" if store.command else "")


def _tracked_runs(study: Study) -> Iterator[tuple[str, Run]]:
    """Yield the paths of a study's runs below the results folder, those of finished trials included."""
    yield from study.runs.items()
    for tuning in study.tunings.values():
        for number in sorted(trials_done(study, tuning)):
            path = f"studies/{study.name}/tune/{tuning.name}/trial{number}/run"
            if (record := finished(study.root / path)) is not None:
                yield path, Run.from_dict(record["settings"])


def sync_command(settings: dict[str, Any], to: str | None = None) -> str:
    """Return the command that sends a study's runs to MLflow."""
    return command_for(settings, "sync") + (f" --to {shlex.quote(masked(to))}" if to else "")


def without_secret(tracking: dict[str, Any]) -> dict[str, Any]:
    """Return tracking's settings as Snakemake may write them into its files: jobs inherit the URI by environment."""
    if tracking["uri"]:
        os.environ["MLFLOW_TRACKING_URI"] = tracking["uri"]
    return {**tracking, "uri": None}


def tracker_of(snakemake: Any, run: Run, folder: Path, say: Callable[..., None]) -> AbstractContextManager:
    """Return the MLflow tracker of a run, tagged with the study's names for it; a null context with tracking off.

    What it says stands in the job's log. The first run that says something tells the study, whose terminal shows it:
    a store that is away is not told there by each of 300 runs.
    """
    tracking = snakemake.config["tracking"]
    if not tracking["enabled"]:
        return nullcontext()
    import pandas as pd

    from kd.integrations.store import Store
    from kd.integrations.tracking import Tracker

    results, study = results_of(snakemake), snakemake.config["study_name"]
    table = pd.read_csv(results / "studies" / study / "runs.csv", keep_default_na=False)
    described = description(study, table, run, folder.relative_to(results).as_posix())

    def tell(text: str) -> None:
        say(text, False)
        with QUIETLY, (results / "studies" / study / STORE_TROUBLE).open("x", encoding="utf-8") as file:
            file.write(text)

    return Tracker(folder, Store(tracking, results), described, tell, sync_command(snakemake.config))


def description(study: str, table: pd.DataFrame, run: Run, path: str) -> dict[str, Any]:
    """Return how MLflow shows a run, as Tracker takes it: by the study's first names for it.

    A run that serves several rows of the study gets an MLflow run in each at the study's end.
    """
    from kd.integrations.summaries import row_name

    rows = table[table["path"] == run.path].to_dict("records")
    if rows and path == run.path:
        names = {key: rows[0][key] for key in ("experiment", "method", "ablation")}
        name = row_name(rows[0], table)
    elif run.kind in ("train", "given"):
        names, name = {"method": "teacher"}, f"teacher {run.model}, seed {run.seed}"
        name += f", {run.dataset.label}" if table["dataset"].nunique() > 1 else ""
    else:
        names, name = {"method": "trial"}, ", ".join(path.split("/")[-3:-1])
    tags = {
        **names,
        "dataset": run.dataset.label,
        "teacher": run.teacher_names,
        "student": run.model,
        "scale": str(run.scale),
        "seed": str(run.seed),
        "kind": run.kind,
        "path": path,
        "digest": run.digest,
    }
    data = {"name": run.dataset.label, "source": run.data_path, "context": "training"}
    if run.kind in ("datafree", "given"):
        data["context"] = "evaluation"
    return {"experiment": study, "name": name, "tags": tags, "params": flatten(run.as_dict()), "dataset": data}
