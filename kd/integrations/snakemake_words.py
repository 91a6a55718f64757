"""What Snakemake says without an event: it is known by its first words."""

from __future__ import annotations

import re

STOPPED = ("Terminating processes on user request", "Cancelling snakemake on user request")
SHOWN = ("Will exit after", "Shutting down")
NOT_SHOWN = ("Exiting because a job execution failed", "WorkflowError:\nAt least one job did not complete")
NOTHING, RESTART = "Nothing to be done", re.compile(r"Trying to restart job ([\w-]+)\.")
MORE = "For further error details"  # see log files, which Snakemake does not name
PROGRAM_FAILED = "CalledProcessError"  # of a job's program, whose own log says more
INTERRUPTED = re.compile(r"exit status 130|SIGINT")
