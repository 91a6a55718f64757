"""What every script of the workflow needs: readable errors, and the settings that are no params.

`snakemake` is the object that Snakemake gives a script. Settings that change no number (compute, tracking) come through
its `config`, because a changed param would run everything again.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from kd.config import Compute, ConfigError, Run


@contextmanager
def job(log: str) -> Iterator[Callable[[str], None]]:
    """Around a script's work; gives `say(text)`, which writes to the log file and to stderr.

    A user's mistake or a diverged run ends in one line and exit code 1; anything else in its traceback.
    """
    path = Path(log)
    path.parent.mkdir(parents=True, exist_ok=True)

    def say(text: str) -> None:
        print(text, file=sys.stderr)
        with path.open("a") as file:
            print(text, file=file)

    try:
        yield say
    except (ConfigError, FloatingPointError) as error:
        say(f"error: {error}")
        sys.exit(1)
    except Exception:
        say(traceback.format_exc())
        sys.exit(1)


def results_of(snakemake: Any) -> Path:
    return Path(snakemake.config["results"])


def compute_of(snakemake: Any) -> Compute:
    return Compute(**snakemake.config["compute"])


def tracker_of(snakemake: Any, run: Run, folder: Path, say: Callable[[str], None]) -> AbstractContextManager:
    """The MLflow tracker of a run, tagged with the study's names for it; a null context where tracking is off."""
    import pandas as pd

    tracking = snakemake.config["tracking"]
    if not tracking["enabled"]:
        return nullcontext()
    from kd.tracking import Tracker, store_uri

    results, table = results_of(snakemake), pd.read_csv(snakemake.input.study, keep_default_na=False)
    names = table[table["path"] == run.path]
    aliases = {key: ", ".join(dict.fromkeys(names[key])) for key in ("experiment", "method", "ablation")}
    tags = {
        **(aliases if len(names) else {"method": "teacher" if run.kind == "train" else "trial"}),
        "dataset": run.dataset.name,
        "teacher": run.teacher.model if run.teacher else "",
        "student": run.model,
        "scale": str(run.scale),
        "seed": str(run.seed),
        "kind": run.kind,
        "path": folder.as_posix(),
        "digest": run.digest,
    }
    name = "/".join(folder.parts[-4:])
    study = Path(snakemake.input.study).parent.name
    return Tracker(folder, store_uri(tracking, results), study, results, name, tags, run.as_dict(), say)
