"""Dry runs of Snakemake that share the imports: a fork for each, two at a time.

Reads [[argument, ...], ...] as JSON from stdin and writes [[exit code, what was said], ...] to stdout.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from typing import Any

import jsonschema
import pandas
import snakemake.cli
import snakemake.workflow

import kd.integrations.jobs
import kd.studies.study

PRELOADED = (jsonschema, pandas, snakemake.workflow, kd.integrations.jobs, kd.studies.study)


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
            snakemake.cli.main(arguments)
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


def main() -> None:
    waiting = list(enumerate(json.load(sys.stdin)))
    results: list[Any] = [None] * len(waiting)
    running: dict[int, tuple[int, Any]] = {}
    while waiting or running:
        while waiting and len(running) < 2:
            number, arguments = waiting.pop(0)
            process, out = start(arguments)
            running[process] = (number, out)
        process, status = os.wait()
        number, out = running.pop(process)
        with out:
            out.seek(0)
            results[number] = [os.waitstatus_to_exitcode(status), out.read()]
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
