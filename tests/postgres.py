"""A PostgreSQL server of Debian's package, with a folder of its own, that ends with its context."""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import subprocess
import tempfile
from pathlib import Path

from mlflow_servers import free_port

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
PASSWORD = "hidden-word"


class Postgres:
    """Context manager; `url(name)` makes a database of that name and returns its address, with the password."""

    def __init__(self) -> None:
        self.folder, self.port = Path(tempfile.mkdtemp(prefix="kd-postgres-")), free_port()

    def __enter__(self) -> Postgres:
        shutil.chown(self.folder, "postgres")  # no folder of pytest's, which only root may enter
        word = self.folder / "word"
        word.write_text(PASSWORD, encoding="utf-8")
        self._run("initdb", "-D", self.data, "-U", "kd", "-A", "scram-sha-256", f"--pwfile={word}", "--no-sync")
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop("immediate")
        shutil.rmtree(self.folder)

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -k {self.folder}"
        self._run("pg_ctl", "-D", self.data, "-w", "-l", self.folder / "log", "-o", options, "start")

    def stop(self, mode: str = "fast") -> None:
        self._run("pg_ctl", "-D", self.data, "-m", mode, "stop")

    def url(self, name: str = "") -> str:
        name = name or f"db{secrets.token_hex(4)}"
        environment = {**os.environ, "PGPASSWORD": PASSWORD}
        command = ["createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "kd", name]
        subprocess.run([BINARIES[-1].with_name(command[0]), *command[1:]], env=environment, check=True)
        return f"postgresql+psycopg2://kd:{PASSWORD}@127.0.0.1:{self.port}/{name}"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def _run(self, program: str, *arguments: object) -> None:
        command = ["runuser", "-u", "postgres", "--", BINARIES[-1].with_name(program), *map(str, arguments)]
        done = subprocess.run(command, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=120)
        assert done.returncode == 0, command


def missing() -> str:
    """Say what of it is not on this machine."""
    if not BINARIES or os.getuid() != 0:
        return "needs root and Debian's postgresql"
    return "" if importlib.util.find_spec("psycopg2") else "needs psycopg2-binary"
