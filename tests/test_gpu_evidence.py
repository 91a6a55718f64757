"""benchmarks/gpu_evidence.py in miniature: a queue killed and gone on with elsewhere, and what travels."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import ROOT, execute, tiny_run

from kd.runtime.checkpoint import Checkpoint, halved
from kd.runtime.messages import ConfigError

SCRIPT = ROOT / "benchmarks/gpu_evidence.py"
# Pairs, scales, and training with data; modules are made like pairs (bf16 is slow on a CPU, and the same code).
SECTIONS = ("WRN-40-2 to WRN-16-1, ssdkd-cifar100", "Scales, ssdkd-cifar100", "CRD")
# As on a bare GPU machine: without the packages of the workflow.
BARE = """
import sys
for name in ("snakemake", "mlflow", "optuna", "jsonschema"):
    sys.modules[name] = None
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "jsonschema" else found(name, *rest)
"""


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(SCRIPT.parent))
    yield importlib.import_module("gpu_evidence")
    sys.path.remove(str(SCRIPT.parent))


def start(folder: Path, **options: object) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(BARE)
    (folder / "COMMIT").write_text("abc123\n")
    given = {"minutes": 10, "together": 1, "device": "cpu", "out": folder / "out", "results": folder / "results"}
    given |= {"data": folder / "data", "teachers": folder / "teachers", "commit": folder / "COMMIT", **options}
    command = [sys.executable, str(SCRIPT), "--miniature"]
    for name, value in given.items():
        command += [f"--{name.replace('_', '-')}"] + [str(value)] * (value is not True)
    command += ["--sections", *SECTIONS]
    environment = {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}", "OMP_NUM_THREADS": "1", "GIT_DIR": "none"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def numbers(folder: Path) -> pd.DataFrame:
    rows = pd.read_csv(folder / "out/results.csv").sort_values("path").reset_index(drop=True)
    return rows[["path", "section", "method", "ablation", "scale", "accuracy", "agreement", "student_steps"]]


def test_a_queue_killed_and_gone_on_with_elsewhere_gives_the_same_table(tmp_path: Path) -> None:
    whole = start(tmp_path / "whole")
    said, _ = whole.communicate(timeout=900)
    assert whole.returncode == 0, said
    expected = numbers(tmp_path / "whole")
    assert len(expected) == expected["path"].nunique() == 12

    first = start(tmp_path / "first", part_mb=0.5, together=2)
    deadline = time.monotonic() + 600
    while not (tmp_path / "first/out/results.csv").exists() or len(numbers(tmp_path / "first")) < 4:
        assert first.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    first.send_signal(signal.SIGTERM)
    said, _ = first.communicate(timeout=120)
    assert first.returncode == 128 + signal.SIGTERM, said
    done = len(numbers(tmp_path / "first"))
    parts = sorted((tmp_path / "first/out").glob("state.*"))
    assert 4 <= done < len(expected)
    assert len(parts) > 2
    assert all(part.stat().st_size <= 500_000 for part in parts)
    assert "| Scales, ssdkd-cifar100 |" in (tmp_path / "first/out/evidence.md").read_text()

    second = start(tmp_path / "second", state=tmp_path / "first/out")
    said, _ = second.communicate(timeout=900)
    assert second.returncode == 0, said
    assert f"{len(expected)} of {len(expected)} runs are done" in said
    pd.testing.assert_frame_equal(numbers(tmp_path / "second"), expected)
    log = (tmp_path / "second/results/work.log").read_text()
    assert log.count("done: accuracy") == len(expected) - done, "what was done is not done again"
    rows = pd.read_csv(tmp_path / "second/out/results.csv")
    assert set(rows["commit"]) == {"abc123"}
    text = (tmp_path / "second/out/evidence.md").read_text()
    for title in ("At 10 % scale", "Data scales", "Teacher and student of one style"):
        assert f"### {title}" in text

    third = start(tmp_path / "third", state=tmp_path / "second/out", minutes=0, figures=True)
    said, _ = third.communicate(timeout=300)
    assert third.returncode == 0, said
    assert (tmp_path / "third/out/evidence.md").read_text() == text
    drawn = tmp_path / "third/out/figures"
    figures = {file.relative_to(drawn).as_posix() for file in drawn.rglob("*.png")}
    for name in ("scale", "synthetic-images", "synthetic-course"):
        assert f"ssdkd-cifar100-float32/{name}.png" in figures
    assert {"crd-cifar100-float32/correlations.png", "crd-cifar100-float32/same-style.png"} <= figures


def test_results_know_rounded_teachers_only(tmp_path: Path, script, store: Path, monkeypatch) -> None:
    """A student's teacher has the weights that travel, whether it was trained here or brought."""
    options = script.parsed(
        ["--miniature", "--device", "cpu", "--results", str(tmp_path), "--teachers", f"{tmp_path}/t"]
    )
    teacher = tiny_run("kd").teacher
    data = tmp_path / teacher.data_path
    data.parent.mkdir(parents=True)
    data.symlink_to(store / teacher.data_path)
    execute(teacher, store, tmp_path / teacher.path)
    before = torch.load(tmp_path / teacher.path / "weights.pt", weights_only=True)
    queue = type("Queue", (), {"teachers": {teacher.path: teacher}, "runs": {teacher.path: teacher}})
    assert script.finished(queue, tmp_path) == set(), "not before it is kept"
    script.keep_teachers(queue, options)
    assert script.finished(queue, tmp_path) == {teacher.path}
    after = torch.load(tmp_path / teacher.path / "weights.pt", weights_only=True)
    for name, value in before.items():
        assert torch.equal(after[name], value.half().float() if value.is_floating_point() else value)


# --------------------------------------------------------------------------------------------------------- what travels


def test_a_worker_that_hangs_is_killed_with_its_children(script, monkeypatch) -> None:
    monkeypatch.setattr(script, "GRACE_SECONDS", 0.5)
    deaf = "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    child = f"{deaf}print('up', flush=True); time.sleep(60)"
    command = [sys.executable, "-c", f"{deaf}subprocess.run([sys.executable, '-c', {child!r}])"]
    worker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, process_group=0)
    assert worker.stdout.readline() == "up\n"
    script.end(worker)
    assert worker.returncode == -signal.SIGKILL
    assert worker.stdout.read() == "", "its child is gone, too: nobody holds the pipe"


def test_runs_share_the_gpu_as_asked_and_teachers_have_it_alone(tmp_path: Path, script, monkeypatch) -> None:
    queue = script.Queue(tmp_path, True, ["Modules, ssdkd-cifar10"])
    commands, done = [], set()

    class Worker:
        def __init__(self, command, **_: object) -> None:
            commands.append(command)
            done.update(run.path for run in queue.next(done, {"digits": True}))

        def poll(self) -> int:
            return 0

        def send_signal(self, _: int) -> None: ...
        def wait(self, _: float) -> None: ...

    monkeypatch.setattr(script.subprocess, "Popen", Worker)
    monkeypatch.setattr(script, "finished", lambda *_: set(done))
    monkeypatch.setattr(script, "prepare", lambda *_: {"digits": True})
    monkeypatch.setattr(script, "SHARING", ("--together", "N"))
    for name in ("save", "keep_teachers"):
        monkeypatch.setattr(script, name, lambda *_: None)
    options = script.parsed(["--results", str(tmp_path), "--together", "3"])
    script.work(queue, options, time.monotonic() + 60)
    assert [command[command.index("--together") + 1] for command in commands] == ["1", "3"], "a teacher, then students"


def test_what_fails_at_the_end_does_not_keep_the_rest_from_being_saved(tmp_path: Path, script, monkeypatch) -> None:
    queue = script.Queue(tmp_path, True)
    options = script.parsed(["--results", str(tmp_path / "r"), "--out", str(tmp_path)])
    (tmp_path / "steps.json").write_text("{}")

    def fails(*_: object) -> None:
        raise ValueError("does not fit half precision")

    monkeypatch.setattr(script, "keep_teachers", fails)
    assert "1 parts" in script.save(queue, options)[-1]
    with tarfile.open(tmp_path / "state.00") as tar:
        assert tar.getnames() == ["steps.json"]


@pytest.fixture
def travel(script):
    return script.travel


def checkpoint(folder: Path, numbers: int) -> Path:
    folder.mkdir()
    Checkpoint(folder, "me", 60, lambda text: None).save({"part": Part({"w": torch.randn(numbers)})})
    return folder / "checkpoint.pt"


def test_what_does_not_fit_is_rounded_or_stays_behind_and_is_named(tmp_path: Path, travel) -> None:
    out, there = tmp_path / "out", tmp_path / "there"
    out.mkdir()
    (out / "state.07").write_bytes(b"of an earlier day")
    content = os.urandom(200_000)
    (tmp_path / "run.json").write_bytes(content)
    (tmp_path / "teacher.pt").write_bytes(bytes(500_000))
    files = {name: checkpoint(tmp_path / name, size) for name, size in (("a", 20_000), ("b", 50_000), ("c", 50_000))}
    said = travel.pack(
        out,
        needed=[(tmp_path / "run.json", "results/runs/x/run.json")],
        wanted=[(tmp_path / "teacher.pt", "teachers/t.pt")],
        checkpoints=[(file, f"results/{name}/checkpoint.pt") for name, file in files.items()],
        part=100_000,
        limit=460_000,
    )
    assert [line.partition(" ")[2] for line in said[:3]] == [
        "does not fit and stays behind",
        "travels in half precision",
        "stays behind: its run starts again",
    ]
    sizes = [file.stat().st_size for file in sorted(out.glob("state.*"))]
    assert set(sizes[:-1]) == {100_000}
    assert sum(sizes) <= 460_000
    assert travel.unpack(out, {"results": there}, tmp_path / "rest") == len(sizes)
    assert (there / "runs/x/run.json").read_bytes() == content
    assert (there / "a/checkpoint.pt").read_bytes() == files["a"].read_bytes()
    assert 0.4 < (there / "b/checkpoint.pt").stat().st_size / files["b"].stat().st_size < 0.6
    assert not (there / "c").exists()


def test_what_is_there_is_not_overwritten(tmp_path: Path, travel) -> None:
    (tmp_path / "x").write_text("brought")
    travel.pack(tmp_path, [(tmp_path / "x", "results/x")], [], [], 10**6, 10**6)
    (tmp_path / "r").mkdir()
    (tmp_path / "r/x").write_text("newer")
    travel.unpack(tmp_path, {"results": tmp_path / "r"}, tmp_path)
    assert (tmp_path / "r/x").read_text() == "newer"


def test_a_state_that_is_not_whole_is_refused_in_a_line(tmp_path: Path, script) -> None:
    options = script.parsed(["--state", str(tmp_path)])
    with pytest.raises(ConfigError, match=r"holds no state\.00"):
        script.restore(options)
    (tmp_path / "state.00").write_bytes(b"x" * 700)
    with pytest.raises(ConfigError, match="is not whole"):
        script.restore(options)


class Part:
    def __init__(self, state: dict) -> None:
        self.state = state

    def state_dict(self) -> dict:
        return self.state

    def load_state_dict(self, state: dict) -> None:
        self.state = state


def test_a_halved_checkpoint_is_half_as_large_and_goes_on(tmp_path: Path) -> None:
    weights = torch.randn(50_000)
    state = {"w": weights, "step": torch.tensor(3.0), "images": torch.arange(2000), "rows": [(torch.randn(2000), 1)]}
    Checkpoint(tmp_path, "me", 60, lambda text: None).save({"part": Part(state)})
    small = halved((tmp_path / "checkpoint.pt").read_bytes())
    assert len(small) < 0.6 * (tmp_path / "checkpoint.pt").stat().st_size
    (tmp_path / "checkpoint.pt").write_bytes(small)
    said: list[str] = []
    found = Part({})
    assert Checkpoint(tmp_path, "me", 60, said.append).restore({"part": found})
    assert "half precision" in said[0]
    assert torch.equal(found.state["w"], weights.half().float())
    assert torch.equal(found.state["rows"][0][0], state["rows"][0][0].half().float())
    assert torch.equal(found.state["images"], state["images"])
    with pytest.raises(ValueError, match="is damaged"):
        halved(b"torn")


def test_a_halved_second_moment_does_not_become_zero(tmp_path: Path) -> None:
    """Adam divides by its root: the next step would be a million times too long."""
    squares = torch.full((2000,), 1e-9).cumsum(0)
    Checkpoint(tmp_path, "me", 60, lambda text: None).save({"part": Part({"v": squares, "large": 1e6 * squares + 1e6})})
    (tmp_path / "checkpoint.pt").write_bytes(halved((tmp_path / "checkpoint.pt").read_bytes()))
    found = Part({})
    assert Checkpoint(tmp_path, "me", 60, lambda text: None).restore({"part": found})
    torch.testing.assert_close(found.state["v"], squares, rtol=2**-8, atol=0)
    assert found.state["large"].isfinite().all()
