"""Which MLflow store is used, where a local one keeps its files, and what to do about one that refuses.

Where results are sent is decided at every start. What lies in the results folder is named relative to it, so that a
copy of the folder is a project of its own. No password is kept or shown.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import random
import re
import shlex
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from kd.runtime.files import appended, refuse_links_of_others
from kd.runtime.messages import masked

EXPERIMENT = re.compile(r"\w[\w-]*")  # a study's name; an SQLite store has a folder of this name
ARTIFACTS = "mlartifacts"  # next to the file of an SQLite store, a folder per experiment
# Older MLflows open such an experiment at its runs. 3.17 asks the browser's local storage and the link only.
SHOWN_AS = {"mlflow.experimentKind": "custom_model_development"}
VIEW = "kd"  # key of the saved view that links name: its columns, order and filter
PAGES = "http://127.0.0.1:5000"  # where `mlflow ui` answers by default
DRIVERS = {"psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}  # module -> package, where the names differ
PAUSES = (1.0, 4.0)  # seconds before another try
AWAY = re.compile(  # words of MLflow, urllib3, libpq
    r"failed with (timeout )?exception|Connection refused|timeout expired|server closed the connection|"
    r"could not translate host name|the database system is "
)
BUSY = re.compile(r"IntegrityError|database is locked|[Dd]eadlock")  # others write at the same time
SCHEMES = "http://, https://, sqlite:///, postgresql://, mysql:// or mssql://"

# A store that is away must not hang a study for minutes; these settings are MLflow's and libpq's own, unless the user
# chose others. Who tries again is `patiently`: MLflow itself would repeat what was done, and make a run twice.
for _name, _value in {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
    "PGCONNECT_TIMEOUT": "10",
}.items():
    os.environ.setdefault(_name, _value)
os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # it would show a password


class StoreFault(RuntimeError):
    """A store that answers, but cannot take what is sent; the text says what to do."""


class Store:
    """One MLflow store. `uri` may hold a password; `name` does not, and is what files and messages say."""

    def __init__(self, settings: dict[str, Any], results: Path):
        """Take tracking.uri, else $MLFLOW_TRACKING_URI, else an SQLite file in the results folder."""
        self.models: bool = settings.get("models", True)  # networks as models, else as weights.pt
        local = f"sqlite:///{(results / 'mlflow.db').resolve()}"
        self.uri: str = settings["uri"] or os.environ.get("MLFLOW_TRACKING_URI") or local
        sqlite = re.match(r"sqlite(?:\+\w+)?:///([^?]+)", self.uri)
        self.file = Path(sqlite[1]).resolve() if sqlite else None
        self.name = masked(self.uri)
        if self.file is not None and self.file.is_relative_to(results.resolve()):
            self.name = f"sqlite:{self.file.relative_to(results.resolve()).as_posix()}"

    def make_ready(self, experiment: str) -> None:
        """Create a missing SQLite store, before parallel jobs would all try to, and settle one that was moved."""
        if self._has_tables():
            self.settle()
        elif self.file is not None:
            with quiet():
                self.experiment(self.client(), experiment)

    def settle(self) -> None:
        """Let kd's experiments in an SQLite store keep their files next to it, also after it was moved or copied.

        MLflow stores absolute paths; those of a copy would lead into the folder that it was copied from.
        """
        if not self._has_tables():
            return
        with contextlib.closing(sqlite3.connect(self.file, timeout=30)) as database, database:
            found = database.execute("SELECT experiment_id, name, artifact_location FROM experiments").fetchall()
            for number, name, old in found:
                new = self._place(name)
                if old == new or not re.fullmatch(rf"file://.*/{ARTIFACTS}/{re.escape(quote(name))}", old or ""):
                    continue  # settled, or none of kd's
                database.execute("UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", (new, number))
                database.execute(
                    "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) "
                    "WHERE experiment_id = ? AND substr(artifact_uri, 1, ?) = ?",
                    (new, len(old) + 1, number, len(old) + 1, f"{old}/"),
                )

    def number(self, experiment: str) -> str | None:
        """Return the id of an experiment in an SQLite store that is there; None where it is not, or of a server."""
        if not self._has_tables():
            return None
        with contextlib.closing(sqlite3.connect(self.file, timeout=30)) as database:
            found = database.execute("SELECT experiment_id FROM experiments WHERE name = ?", (experiment,)).fetchone()
        return str(found[0]) if found else None

    def runs(self, experiments: set[str]) -> set[str]:
        """Return the ids of all runs of some experiments, deleted ones included: a store may have been set up again."""
        if self.file is None:
            return self._runs_of_server(experiments)
        if not self._has_tables():
            return set()
        with contextlib.closing(sqlite3.connect(self.file, timeout=30)) as database:
            return {row[0] for row in database.execute("SELECT run_uuid FROM runs")}

    def _has_tables(self) -> bool:
        """Whether this is an SQLite file that MLflow has set up: a start that was killed may leave an empty one."""
        if self.file is None or not self.file.exists():
            return False
        with contextlib.closing(sqlite3.connect(self.file, timeout=30)) as database:
            return bool(database.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiments'").fetchall())

    def _runs_of_server(self, experiments: set[str]) -> set[str]:
        from mlflow.entities import ViewType

        client, ids = self.client(), set()
        for found in filter(None, map(client.get_experiment_by_name, sorted(experiments))):
            token: str | None = ""
            while token is not None:
                page = client.search_runs([found.experiment_id], "", ViewType.ALL, 1000, page_token=token or None)
                ids |= {run.info.run_id for run in page}
                token = page.token or None
        return ids

    @contextlib.contextmanager
    def turn(self, seconds: float) -> Iterator[bool]:
        """Wait that long until no other process of kd writes to an SQLite store; yields whether it is this one's turn.

        SQLite lets processes wait for each other, but not in turn: of hundreds some would wait until they fail.
        """
        lock = None
        if self.file is not None and self.file.parent.is_dir():
            lock = appended(self.file.with_name(f"{self.file.name}.lock"))
        with contextlib.closing(lock) if lock else contextlib.nullcontext():
            yield lock is None or _locked(lock, seconds)

    def patiently(self, call: Callable[[], Any]) -> Any:
        """Return what `call` returns, which may be repeated: up to three times while the store is away or busy."""
        for pause in PAUSES:
            try:
                return call()
            except Exception as error:
                if not (_is_away(error) or BUSY.search(str(error))):
                    raise
                time.sleep(pause)
        return call()

    def client(self) -> Any:
        """Return MLflow's client. Raises at once where MLflow would try for an hour to open a file or a database."""
        from mlflow import MlflowClient

        if self.file is not None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            refuse_links_of_others([self.file])
            with contextlib.closing(sqlite3.connect(self.file, timeout=30)) as database:
                database.execute("PRAGMA schema_version")
        elif re.match(r"(postgresql|mysql|mssql)\b", self.uri):
            import sqlalchemy

            engine = sqlalchemy.create_engine(self.uri, poolclass=sqlalchemy.NullPool)
            engine.connect().close()
        return MlflowClient(tracking_uri=self.uri)

    def experiment(self, client: Any, name: str) -> str:
        """Return the id of an experiment, made if it is missing. Raises StoreFault for one that was deleted."""
        from mlflow.exceptions import MlflowException

        if (found := client.get_experiment_by_name(name)) is None:
            place = self._place(name) if self.file else None  # a server keeps artifacts where it likes
            try:
                return client.create_experiment(name, artifact_location=place, tags=SHOWN_AS)
            except MlflowException:  # another job was faster
                found = client.get_experiment_by_name(name)
        if found.lifecycle_stage == "deleted":
            place, number = masked(self.uri), found.experiment_id
            raise StoreFault(
                f"experiment {name!r} was deleted there; bring it back with `MLFLOW_TRACKING_URI={place} mlflow "
                f"experiments restore --experiment-id {number}`, or remove it for good with `mlflow gc`"
            )
        return found.experiment_id

    def link(self, number: str) -> str:
        """Return the address of an experiment's runs, with kd's columns, in MLflow's pages."""
        pages = re.sub(r"(?<=://)\S*@", "", self.uri).rstrip("/") if self.uri.startswith("http") else PAGES
        return f"{pages}/#/experiments/{number}/runs?workflowType=machine_learning&viewStateShareKey={VIEW}"

    @property
    def command(self) -> str | None:
        """Return the command that shows the store at PAGES; None for a server, which shows itself."""
        if self.uri.startswith("http"):
            return None
        uri = masked(self.uri)
        if self.file is not None:
            here = Path.cwd()
            uri = f"sqlite:///{self.file.relative_to(here) if self.file.is_relative_to(here) else self.file}"
        return f"mlflow ui --backend-store-uri {shlex.quote(uri)}"

    def _place(self, experiment: str) -> str:
        return (self.file.parent / ARTIFACTS / experiment).as_uri()

    def trouble(self, error: Exception) -> str:
        """Say in a line what is wrong with the store and what to do."""
        text, store = masked(" ".join(str(error).split())), f"MLflow store {self.name}"
        if isinstance(error, StoreFault):
            return f"{store}: {text}"
        if isinstance(error, ModuleNotFoundError) and error.name:
            package = DRIVERS.get(error.name, error.name)
            return f"{store} needs Python's module {error.name}; install it with `pip install {package}`"
        if any(words in text for words in ("unsupported URI", "filesystem tracking backend", "Invalid SQLite URL")):
            return f"{store} is of no kind that can be used; write tracking.uri or $MLFLOW_TRACKING_URI with {SCHEMES}"
        if _is_away(error):
            words = r"timed out|\d+ error responses|Connection refused|Remote end closed connection|Connection reset"
            reason = re.search(rf"\[Errno -?\d+\] ([\w ]+)|{words}", text)
            rest = text.rpartition("Caused by ")[2].rpartition("failed with exception ")[2][:200]
            return f"{store} is away ({(reason[1] or reason[0]) if reason else rest})"
        hint = "look at tracking.uri and $MLFLOW_TRACKING_URI, at your rights and at the store's own log"
        return f"{store} refuses ({type(error).__name__}: {text[:300]}); {hint}"


def _is_away(error: Exception) -> bool:
    return isinstance(error, ConnectionError) or bool(AWAY.search(str(error)))


def _locked(file: Any, seconds: float) -> bool:
    """Lock a file; where its disk knows no locks, SQLite's own have to do."""
    until = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
            time.sleep(random.uniform(0.02, 0.2))
        except OSError:
            return True


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the lines that Alembic and MLflow print about tables and migrations, and the errors that they log before
    they raise them.
    """
    import mlflow  # noqa: F401  (its import sets the levels of its loggers)

    names = ("mlflow", "mlflow.store.db.utils", "alembic", "alembic.runtime.migration")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
