"""Snakemake's SLURM executor, with guards against what made a study wait for ever or fail again and again.

docs/cluster.md describes each case. Everything else is the parent's: `--executor kd-slurm` submits as `slurm` does.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import snakemake_executor_plugin_slurm as plugin
from snakemake_executor_plugin_slurm import Executor as SlurmExecutor
from snakemake_executor_plugin_slurm import ExecutorSettings, common_settings
from snakemake_executor_plugin_slurm.job_status_query import (
    is_query_tool_available,
    query_job_status,
    query_job_status_squeue,
)
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo

__all__ = ["Executor", "ExecutorSettings", "common_settings"]

GONE_SECONDS = 20.0  # a job that squeue has not known for as long, and that nobody saw end, has ended


class Executor(SlurmExecutor):
    """Submits to SLURM and forgets no job.

    - Where `sacct` is installed and has no accounting behind it, `squeue` is asked: the parent would ask in vain.
    - A job whose state could not be asked (the controller is away) is asked again: the parent would drop it.
    - A job that SLURM no longer knows has ended: well where all its files are new, else it counts as failed and is
      submitted again. The parent would wait for it for ever.
    - A job that never had a node excludes none: the parent would exclude one called "None assigned".
    """

    def __post_init__(self, test_mode: bool = False) -> None:
        self._started = time.time()
        if not _works("sacct", "--noheader", "--starttime", "now"):
            self.workflow.executor_settings.status_command = "squeue"
            plugin.is_query_tool_available = _without_sacct  # it would turn to sacct where MinJobAge is short
        super().__post_init__(test_mode)
        self._failed_nodes = _Nodes(self._failed_nodes)
        self._reported: set[str] = set()
        self._unknown_since: dict[str, float] = {}

    def report_job_success(self, job_info: SubmittedJobInfo) -> None:
        self._reported.add(job_info.external_jobid)
        super().report_job_success(job_info)

    def report_job_error(self, job_info: SubmittedJobInfo, *given: Any, **named: Any) -> None:
        self._reported.add(job_info.external_jobid)
        super().report_job_error(job_info, *given, **named)

    async def check_active_jobs(self, active_jobs: list[SubmittedJobInfo]) -> AsyncIterator[SubmittedJobInfo]:
        """Yield the jobs that are to be asked again."""
        async for _ in super().check_active_jobs(active_jobs):
            pass  # those that it leaves out without a report are active as well
        active = [job for job in active_jobs if job.external_jobid not in self._reported]
        known = await self._known() if active else None
        for job in active:
            if known is None or not self._is_gone(job.external_jobid, known):
                yield job
            elif self._has_made_its_files(job):
                self.report_job_success(job)
            else:
                log = job.aux.get("slurm_logfile")
                message = f"SLURM no longer knows job {job.external_jobid}, and nobody saw it end; it counts as failed."
                self.report_job_error(job, msg=message, aux_logs=[str(log)] if log else [])

    async def _known(self) -> set[str] | None:
        """Return the ids of all jobs of this start that squeue lists; None where it does not answer, or not for all."""
        if self._submitted_job_clusters:
            return None
        states, _ = await query_job_status(query_job_status_squeue(self.run_uuid), self.logger)
        return None if states is None else {job.split("_")[0] for job in states}

    def _is_gone(self, job: str, known: set[str]) -> bool:
        if job.split("_")[0] in known:
            self._unknown_since.pop(job, None)
            return False
        return time.monotonic() - self._unknown_since.setdefault(job, time.monotonic()) >= GONE_SECONDS

    def _has_made_its_files(self, job: SubmittedJobInfo) -> bool:
        """Whether every output was written since this start. A run's record is written last of all."""
        try:
            return all(Path(file).stat().st_mtime >= self._started for file in job.job.output)
        except OSError:
            return False


def _without_sacct(tool: str) -> bool:
    return tool != "sacct" and is_query_tool_available(tool)


def _works(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


class _Nodes(set[str]):
    """Nodes to exclude: names of nodes only."""

    def add(self, node: str) -> None:
        if node and not any(character.isspace() for character in node):
            super().add(node)
