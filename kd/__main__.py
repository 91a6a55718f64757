"""`python -m kd`: runs by hand, without Snakemake, MLflow or Optuna; what a study needs, and where it stands."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys

from kd.commands import compare, export, import_network, plan, run, status, sync, tables
from kd.runtime.messages import ConfigError, disk_fault

COMMANDS = {
    "run": run,
    "plan": plan,
    "status": status,
    "tables": tables,
    "compare": compare,
    "import": import_network,
    "export": export,
    "sync": sync,
}


def main(arguments: list[str] | None = None) -> int:
    """Return 0, or 1 after a readable line on stderr per mistake or failed run."""
    parser = argparse.ArgumentParser(prog="python -m kd", description=__doc__)
    commands = parser.add_subparsers(required=True, dest="command")
    for name, command in COMMANDS.items():
        command.add(commands.add_parser(name, help=command.__doc__))
    if isinstance(sys.stdout, io.TextIOWrapper):  # a locale that lacks a title's letters
        sys.stdout.reconfigure(errors="backslashreplace")
    given = parser.parse_args(arguments)
    given.arguments = sys.argv[1:] if arguments is None else arguments
    try:
        return COMMANDS[given.command].do(given)
    except ConfigError as error:
        print("".join(f"error: {line}\n" for line in str(error).splitlines()), end="", file=sys.stderr)
        return 1
    except BrokenPipeError:  # of a reader such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if not (fault := disk_fault(error)):
            raise
        print(f"error: {fault}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
