"""Where a number comes from: its run's identity, digests of the code, the commit, the environment. Imports no torch."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

from kd.registry import models
from kd.registry.datasets import DATASETS
from kd.registry.kinds import KINDS
from kd.registry.losses import LOSSES
from kd.runtime.files import file_digest
from kd.runtime.messages import masked
from kd.settings.run import Run
from kd.settings.shapes import Dataset

ROOT = Path(__file__).resolve().parents[2]
# Rooms whose code changes no number of a run: a digest does not follow imports into them.
NOT_FOLLOWED = ("kd.runtime", "kd.registry", "kd.settings")
PACKAGES = ("torch", "torchvision", "numpy", "pandas", "snakemake", "mlflow", "optuna", "scikit-learn")


def run_code(run: Run) -> str:
    """Return the digest of the code that decides a run's numbers: its loop, losses, networks and all that they import.

    The rooms of NOT_FOLLOWED do not count, nor do comments, docstrings, formatting, and losses or models of other runs.
    """
    networks = [run.model, *(teacher.model for teacher in run.teachers or ())]
    parts = [LOSSES[name].code for name in sorted(run.objective or {})]
    parts += [run.inversion.entry.code] if run.inversion else []
    modules = [KINDS[run.kind].loop, *(code.split(":")[0] for code in parts)]
    modules += [models.source(name) for name in networks]
    modules += ["kd.data.streamed"] if run.dataset.stream else []
    before = [name.split(":")[0] for name in networks if ":" in name]
    modules += [module for module in before if module not in models.LIBRARIES]
    chosen = parts + [models.built_from(name) for name in networks]
    return _digest_modules(frozenset(modules), tuple(chosen))


def identity_of(run: Run, data_file: Path, teacher_weights: list[Path]) -> str:
    """Identify a run by settings, seed, code, data and teachers; results with another identity are ignored."""
    made_from = "-".join(file_digest(path) for path in (data_file, *teacher_weights))
    return f"{run.digest}-{run.seed}-{run_code(run)}-{made_from}"


def outdated(
    record: dict[str, Any], run: Run, data_file: Path, teacher_weights: list[Path], freeze_code: bool = False
) -> str:
    """Say what has changed since a finished run was made; empty where nothing has, so that it need not be made again.

    Contents are compared, never time stamps. A file that is gone counts as unchanged. This is the one place that knows:
    runs, `kd status` and the workflow all ask here.
    """
    try:
        settings, seed, code, data, *teachers = record["identity"].split("-")
    except (KeyError, ValueError, AttributeError):
        return "made by another version of kd"
    if (settings, seed) != (run.digest, str(run.seed)):
        return "made with other settings"
    if code != run_code(run) and not freeze_code:
        return "made by other code"
    if _differs(data_file, data):
        return "made from other data"
    if len(teachers) != len(teacher_weights) or any(map(_differs, teacher_weights, teachers)):
        return "made with another teacher"
    return ""


def _differs(file: Path, digest: str) -> bool:
    try:
        return file_digest(file) != digest
    except FileNotFoundError:
        return False


def report_code() -> str:
    """Return the digest of the code that makes tables, figures and the report, its style and script included."""
    files = sorted(file for ending in ("css", "js") for file in (ROOT / "kd/reports/page").glob(f"*.{ending}"))
    return _digest_modules(frozenset({"kd.reports.publish"}), tuple(file_digest(file) for file in files))


def data_code(dataset: Dataset) -> str:
    """Return the digest of the code that prepares a data set."""
    if dataset.stream:
        return _digest_modules(frozenset({"kd.data.file_list"}))
    return _digest_modules(frozenset({"kd.data.prepare", DATASETS[dataset.name].split(":")[0]}))


@cache
def _digest_modules(entries: frozenset[str], also: tuple[str, ...] = ()) -> str:
    found: set[str] = set()
    waiting = set(entries)
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            waiting |= {name for name in _imports(module) if not name.startswith(NOT_FOLLOWED)}
    text = "".join(f"{module}:{_code(module)}\n" for module in sorted(found)) + "\n".join(also)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


@cache
def _tree(module: str) -> ast.Module:
    """Return a module's syntax tree; an empty one without Python source (an extension): only its name counts."""
    spec = models.find_spec(module)  # imports no package, which would run its code
    if spec is None or not spec.has_location or not str(spec.origin).endswith(".py"):
        return ast.Module([], [])
    return ast.parse(Path(spec.origin).read_bytes())


@cache
def _code(module: str) -> str:
    """Return the digest of a module's text, unparsed from its syntax tree: without docstrings, comments and layout."""
    tree = _tree.__wrapped__(
        module
    )  # a tree that may be changed; reading it again takes a quarter of the time of a copy
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body[:1] = [] if len(node.body) > 1 else [ast.Pass()]
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()


@cache
def _imports(module: str) -> frozenset[str]:
    """Return the modules of kd that a module imports anywhere in its text."""
    names = set()
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(name for name in names if name.split(".")[0] == "kd" and _is_module(name))


@cache
def _is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def environment() -> dict[str, str]:
    """Return versions of what decides the numbers, and the machine."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        tf32 = torch.backends.cudnn.allow_tf32  # torch's default; matrix products are in full float32
        versions["convolutions"] = "tf32 where float32 is asked for" if tf32 else "float32"
        versions |= {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
    machine = {"platform": platform.platform(), "processor": processor(), "host": platform.node()}
    return {"python": platform.python_version(), **machine, **versions}


def processor() -> str:
    """Return the CPU's name, as Linux knows it; elsewhere what Python knows."""
    try:
        known = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.M)
    except OSError:
        known = None
    return known[1] if known else platform.processor() or platform.machine()


def git_state() -> dict[str, str]:
    """Return commit and local changes of the code, without secrets in URIs.

    $KD_COMMIT wins: whoever sets it vouches for the code. A repository that merely surrounds kd's folder is not its
    history.
    """
    if given := os.environ.get("KD_COMMIT"):
        return {"commit": given, "diff": ""}
    top = os.fsdecode(_git("rev-parse", "--show-toplevel").removesuffix(b"\n"))
    if not top or Path(top).resolve() != ROOT:
        return {"commit": "unknown", "diff": ""}
    commit = _git("rev-parse", "HEAD").decode() or "unknown"
    parts = ("kd", "workflow", "config", "Snakefile")
    new = _git("ls-files", "-z", "--others", "--exclude-standard", "--", *parts).split(b"\0")[:-1]
    diffs = [_git("diff", "HEAD", "--", *parts), *(_git("diff", "--no-index", "--", "/dev/null", name) for name in new)]
    return {"commit": commit.strip(), "diff": masked(b"".join(diffs).decode(errors="backslashreplace"))}


def _git(*command: str | bytes) -> bytes:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *command], capture_output=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return b""
    return done.stdout if done.returncode in (0, 1) else b""  # 1: there is a difference
