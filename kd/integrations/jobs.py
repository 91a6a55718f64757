"""What the workflow and its scripts call: readable errors, settings that are not params, start and end of a study.

`snakemake` is the object that Snakemake passes to a script. Settings that change no number (compute, tracking) come
through its `config`, because a changed param would run everything again.
"""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from kd.data.raw import Source
from kd.runtime.files import write_atomically
from kd.runtime.messages import ConfigError, disk_fault
from kd.runtime.run_lock import TakenOver
from kd.settings.run import Run
from kd.settings.shapes import Compute
from kd.studies.study import Study


@contextmanager
def job(log: str) -> Iterator[Callable[[str], None]]:
    """Run a script's work in this context; yields `say(text)`, which writes to the log file and to stderr.

    A user's mistake, a diverged run, a run that another process took over and a disk that fails end with one line and
    exit code 1; any other error with its traceback.
    """
    path = Path(log)

    def say(text: str) -> None:
        print(text, file=sys.stderr)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                print(text, file=file)
        except OSError:  # a disk that is full, read-only or away: stderr has it
            pass

    try:
        yield say
    except (ConfigError, FloatingPointError, TakenOver) as error:
        say(f"error: {error}")
        sys.exit(1)
    except KeyboardInterrupt:  # while waiting; at work it is a wish to stop, and the state is saved
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        fault = disk_fault(error)
        say(f"error: {fault}" if fault else traceback.format_exc())
        sys.exit(1)


def results_of(snakemake: Any) -> Path:
    return Path(snakemake.config["results"])


def compute_of(snakemake: Any) -> Compute:
    return Compute(**snakemake.config["compute"])


def source_of(snakemake: Any) -> Source:
    """Return where the data set of a `prepare_data` job is read from."""
    results, file = results_of(snakemake), Path(snakemake.output[0])
    root = snakemake.config["roots"][file.relative_to(results).as_posix()]
    download = snakemake.config["compute"]["download"]
    return Source(root and Path(root).expanduser(), results / "data/downloads", download)


def open_study(study: Study, say: Callable[[str], None]) -> None:
    """List the study's runs and create a local MLflow store before the first job, since parallel jobs cannot.

    A store that cannot be made is reported; the study goes on without it. Raises ConfigError where the results folder
    cannot be written.
    """
    folder = study.root / "studies" / study.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "runs.csv", lambda file: study.table.to_csv(file, index=False))
    except OSError as error:
        raise ConfigError(f"results: got {str(study.root)!r}; {disk_fault(error) or error}") from None
    if study.tracking["enabled"]:
        from kd.integrations.tracking import create_local_store, store_uri

        uri = store_uri(study.tracking, study.root)
        try:
            create_local_store(uri, study.name, study.root)
        except Exception as error:
            say(f"MLflow store {uri} cannot be made ({type(error).__name__}); `python -m kd sync` sends all runs later")


def close_study(study: Study, say: Callable[[str], None]) -> None:
    """Send to MLflow, after the last job, what it does not have yet, and the study's tables and figures."""
    if study.tracking["enabled"]:
        from kd.integrations.tracking import log_study, store_uri, sync

        folder = study.root / "studies" / study.name
        try:
            sync(study.root, say)
            log_study(store_uri(study.tracking, study.root), study.name, study.root, folder)
        except Exception as error:
            say(f"tables and figures not sent to MLflow ({type(error).__name__})")


def tracker_of(snakemake: Any, run: Run, folder: Path, say: Callable[[str], None]) -> AbstractContextManager:
    """Return the MLflow tracker of a run, tagged with the study's names for it; a null context with tracking off."""
    tracking = snakemake.config["tracking"]
    if not tracking["enabled"]:
        return nullcontext()
    import pandas as pd

    from kd.integrations.tracking import Tracker, store_uri

    results, study = results_of(snakemake), snakemake.config["study_name"]
    table = pd.read_csv(results / "studies" / study / "runs.csv", keep_default_na=False)
    names = table[table["path"] == run.path]
    aliases = {key: ", ".join(dict.fromkeys(names[key])) for key in ("experiment", "method", "ablation")}
    tags = {
        **(aliases if len(names) else {"method": "teacher" if run.kind == "train" else "trial"}),
        "dataset": run.dataset.name,
        "teacher": run.teacher_names,
        "student": run.model,
        "scale": str(run.scale),
        "seed": str(run.seed),
        "kind": run.kind,
        "path": folder.as_posix(),
        "digest": run.digest,
    }
    name = "/".join(folder.parts[-4:])
    return Tracker(folder, store_uri(tracking, results), study, results, name, tags, run.as_dict(), say)
