"""The guards of the executor kd-slurm, without a SLURM: what is asked again, what has failed, what is excluded."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import snakemake_executor_plugin_kd_slurm as plugin


class Parent:
    """What of the parent's check a test decides: which jobs it yields, and which it reports."""

    yielded: tuple[str, ...] = ()
    ended: tuple[str, ...] = ()


@pytest.fixture
def executor(monkeypatch: pytest.MonkeyPatch) -> plugin.Executor:
    made = plugin.Executor.__new__(plugin.Executor)
    made.run_uuid, made.logger, made._reported, made._unknown_since = "run", logging.getLogger("test"), set(), {}
    made._submitted_job_clusters, made._started, made.errors, made.successes = set(), time.time(), [], []

    async def check(self: Any, jobs: list[Any]) -> AsyncIterator[Any]:
        for job in jobs:
            if job.external_jobid in Parent.ended:
                self.report_job_success(job)
            elif job.external_jobid in Parent.yielded:
                yield job

    monkeypatch.setattr(plugin.SlurmExecutor, "check_active_jobs", check)
    succeeded = lambda self, job: self.successes.append(job.external_jobid)  # noqa: E731
    monkeypatch.setattr(plugin.SlurmExecutor, "report_job_success", succeeded)
    failed = lambda self, job, **said: self.errors.append((job.external_jobid, said["msg"]))  # noqa: E731
    monkeypatch.setattr(plugin.SlurmExecutor, "report_job_error", failed)
    return made


def checked(
    executor: plugin.Executor, monkeypatch: pytest.MonkeyPatch, known: set[str] | None, output: str = "not/there"
) -> list[str]:
    """The jobs, of 1, 2 and 3, that are to be asked again; `known` are those that squeue lists, None: no answer."""

    async def answer(*_: Any) -> tuple[dict[str, str] | None, float]:
        return (None if known is None else dict.fromkeys(known, "RUNNING")), 0.0

    async def all_of_them() -> list[str]:
        made = SimpleNamespace(output=[output])
        jobs = [SimpleNamespace(external_jobid=number, aux={}, job=made) for number in "123"]
        return [job.external_jobid async for job in executor.check_active_jobs(jobs)]

    monkeypatch.setattr(plugin, "query_job_status", answer)
    return asyncio.run(all_of_them())


def test_jobs_of_a_check_that_failed_are_asked_again(executor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Parent, "yielded", ())  # what the parent does where no attempt is answered
    monkeypatch.setattr(Parent, "ended", ("2",))
    assert checked(executor, monkeypatch, None) == ["1", "3"]
    assert executor.errors == []


def test_a_job_that_slurm_has_forgotten_counts_as_failed_after_a_while(
    executor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = SimpleNamespace(value=0.0)
    monkeypatch.setattr(plugin.time, "monotonic", lambda: now.value)
    monkeypatch.setattr(Parent, "yielded", ("1", "2", "3"))
    monkeypatch.setattr(Parent, "ended", ())
    assert checked(executor, monkeypatch, {"1", "2"}) == ["1", "2", "3"]
    now.value = plugin.GONE_SECONDS - 1
    assert checked(executor, monkeypatch, {"1", "3"}) == ["1", "2", "3"], "3 is back, 2 has only just gone"
    now.value = 2 * plugin.GONE_SECONDS
    assert checked(executor, monkeypatch, {"1", "3"}) == ["1", "3"]
    [(job, said)] = executor.errors
    assert job == "2"
    assert "no longer knows job 2" in said


@pytest.mark.parametrize("age", [-1, 100])
def test_a_forgotten_job_whose_files_are_new_has_succeeded(
    executor: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, age: int
) -> None:
    monkeypatch.setattr(plugin, "GONE_SECONDS", -1.0)
    monkeypatch.setattr(Parent, "yielded", ("1", "2", "3"))
    monkeypatch.setattr(Parent, "ended", ())
    file = tmp_path / "run.json"
    file.touch()
    os.utime(file, (executor._started - age,) * 2)
    assert checked(executor, monkeypatch, {"1", "2"}, str(file)) == ["1", "2"]
    assert executor.successes == (["3"] if age < 0 else [])
    assert [job for job, _ in executor.errors] == ([] if age < 0 else ["3"])


def test_jobs_of_other_clusters_are_not_taken_for_forgotten(executor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin, "GONE_SECONDS", -1.0)
    monkeypatch.setattr(Parent, "yielded", ("1", "2", "3"))
    monkeypatch.setattr(Parent, "ended", ())
    executor._submitted_job_clusters.add("elsewhere")  # squeue lists only those of this one
    assert checked(executor, monkeypatch, set()) == ["1", "2", "3"]


def test_only_names_of_nodes_are_excluded() -> None:
    nodes = plugin._Nodes({"node1"})
    for name in ("None assigned", "", "node[2-3]"):
        nodes.add(name)
    assert nodes == {"node1", "node[2-3]"}


def test_accounting_that_does_not_work_is_found_out() -> None:
    assert plugin._works("true")
    assert not plugin._works("false")
    assert not plugin._works("no-such-program-of-slurm")


def test_sacct_is_never_asked_where_there_is_no_accounting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parent turns to sacct by itself where MinJobAge is short, whatever the settings say."""
    monkeypatch.setattr(plugin.plugin, "is_query_tool_available", lambda tool: True)
    monkeypatch.setattr(plugin, "_works", lambda *command: False)
    monkeypatch.setattr(plugin.SlurmExecutor, "__post_init__", lambda self, test_mode: None)
    settings = SimpleNamespace(status_command="squeue")
    made = plugin.Executor.__new__(plugin.Executor)
    made.workflow, made._failed_nodes = SimpleNamespace(executor_settings=settings), set()
    made.__post_init__()
    assert not plugin.plugin.is_query_tool_available("sacct")
    assert plugin.plugin.is_query_tool_available("sh")


def test_snakemake_finds_the_plugin_where_kd_is_installed(tmp_path: Path) -> None:
    """It looks through the folders of the path: a finder, which editable installs may use, is not seen."""
    program = "import pkgutil; print([each.name for each in pkgutil.iter_modules() if each.name.endswith('kd_slurm')])"
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", program]
    found = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=True).stdout
    assert found == "['snakemake_executor_plugin_kd_slurm']\n"
