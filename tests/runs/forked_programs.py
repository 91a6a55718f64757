"""Python programs that share the imports of whole runs: one process, and a fork of it for each program.

As a program it reads [code, [argument, ...]] as a line of JSON from stdin and answers [exit code, stderr].
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).resolve().parent.parent
SECONDS = 120  # after which a program is killed by SIGALRM


class Ended(NamedTuple):
    returncode: int  # negative: the signal that killed the program
    stderr: str


class ForkedPrograms:
    """Context manager: a process that has imported what whole runs need and runs programs in forks of itself."""

    def __init__(self) -> None:
        path = os.pathsep.join(map(str, [TESTS.parent, TESTS, *filter(None, [os.environ.get("PYTHONPATH")])]))
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=TESTS.parent,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        )

    def __enter__(self) -> ForkedPrograms:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()

    def __call__(self, code: str, *arguments: str) -> Ended:
        """Run a program to its end."""
        self.process.stdin.write(json.dumps([code, arguments]) + "\n")
        self.process.stdin.flush()
        return Ended(*json.loads(self.process.stdout.readline()))


def run_as_main(code: str, arguments: list[str]) -> int:
    """Run a program in this process; return its exit code."""
    sys.argv = ["-c", *arguments]
    try:
        exec(compile(code, "<program>", "exec"), {"__name__": "__main__"})
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def main() -> None:
    import conftest  # noqa: F401, imported once for all forks, as are the next two
    import torch._dynamo  # noqa: F401, by the first optimiser: some seconds

    import kd.integrations.tuning  # noqa: F401

    for line in sys.stdin:
        code, arguments = json.loads(line)
        with tempfile.TemporaryFile("w+") as errors:
            process = os.fork()
            if process == 0:
                os.dup2(errors.fileno(), 2)
                os.dup2(errors.fileno(), 1)
                signal.alarm(SECONDS)
                ended = run_as_main(code, arguments)
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(ended)
            returncode = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
            errors.seek(0)
            print(json.dumps([returncode, errors.read()]), flush=True)


if __name__ == "__main__":
    main()
