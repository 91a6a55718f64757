"""Dry runs of Snakemake that share the imports: one process, and a fork of it for each, two at a time.

As a program it reads [[argument, ...], ...] as a line of JSON from stdin and answers [[exit code, what was said], ...].
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
KD = ["kd.integrations.jobs"]  # imported before the forks, with all that it imports


class DryRuns:
    """Context manager: a process in `project` that runs `snakemake` with any arguments."""

    def __init__(self, project: Path, edited: Path | None = None, **environment: str):
        """`edited`: where a copy of kd lies that may change between dry runs; each of them imports it again."""
        path = os.pathsep.join([str(edited or ROOT), *filter(None, [environment.pop("PYTHONPATH", "")])])
        self.process = subprocess.Popen(
            [sys.executable, __file__, *(KD if edited is None else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=project,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment, "PYTHONPATH": path},
        )

    def __enter__(self) -> DryRuns:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()

    def __call__(self, *commands: list[str]) -> list[tuple[int, str]]:
        """Return exit code and output of each command, in their order."""
        self.process.stdin.write(json.dumps(commands) + "\n")
        self.process.stdin.flush()
        return [(code, said) for code, said in json.loads(self.process.stdout.readline())]


def start(arguments: list[str]) -> tuple[int, Any]:
    """Fork and run `snakemake` with these arguments; return the process and the file of its output."""
    out = tempfile.TemporaryFile("w+")  # noqa: SIM115, closed by `main`
    process = os.fork()
    if process == 0:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.argv = ["snakemake", *arguments]
        code = 70
        try:
            from snakemake.cli import main

            main(arguments)
            code = 0
        except SystemExit as end:
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return process, out


def answer(commands: list[list[str]]) -> list[tuple[int, str]]:
    """Run all commands, two at a time."""
    waiting, running = list(enumerate(commands)), {}
    results: list[Any] = [None] * len(waiting)
    while waiting or running:
        while waiting and len(running) < 2:
            number, arguments = waiting.pop(0)
            process, out = start(arguments)
            running[process] = (number, out)
        process, status = os.wait()
        number, out = running.pop(process)
        with out:
            out.seek(0)
            results[number] = (os.waitstatus_to_exitcode(status), out.read())
    return results


if __name__ == "__main__":
    for module in ("jsonschema", "pandas", "snakemake.cli", "snakemake.workflow", *sys.argv[1:]):
        importlib.import_module(module)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)
