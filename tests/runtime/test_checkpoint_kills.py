"""Checkpoints and signals: a stop at a boundary, a kill at any moment."""

import os
import signal
import subprocess
import sys
import threading

import pytest
from saved_steps import Said, Step, names, restored

from kd.runtime.checkpoint import Checkpoint


def test_a_signal_is_noted_and_answered_at_a_boundary(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    said = Said()
    checkpoint = Checkpoint(tmp_path, "me", 60.0, said)
    with checkpoint:
        checkpoint.stop_or_save({"part": Step(1)})
        assert not checkpoint.files[0].exists()
        os.kill(os.getpid(), signal.SIGTERM)
        assert checkpoint.stopping
        with pytest.raises(SystemExit) as stopped:
            checkpoint.stop_or_save({"part": Step(2)})
    assert stopped.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert any("asked to stop" in text for text in said)
    assert restored(checkpoint) == 2


def test_the_old_handler_comes_back_after_an_exception(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyError), Checkpoint(tmp_path, "me", 60.0, Said()):
        raise KeyError
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_thread_leaves_signals_alone(tmp_path):
    before, done = signal.getsignal(signal.SIGTERM), []

    def work():
        with Checkpoint(tmp_path, "me", 0.0, Said()) as checkpoint:
            checkpoint.stop_or_save({"part": Step(4)})
            done.append(restored(checkpoint))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [4]
    assert signal.getsignal(signal.SIGTERM) is before


KILLS = """
import os, random, select, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from kd.runtime.checkpoint import Checkpoint

class Step:
    def __init__(self, step=0): self.step = step
    def state_dict(self): return {"step": self.step, "tensor": torch.full((30000,), float(self.step))}
    def load_state_dict(self, state):
        assert state["tensor"].eq(state["step"]).all()
        self.step = state["step"]

folder, seen, draw = Path(sys.argv[1]), 0, random.Random(0)
for round in range(15):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        checkpoint, part = Checkpoint(folder, "me", 60.0, lambda text: None), Step()
        checkpoint.restore({"part": part})
        while True:
            part.step += 1
            checkpoint.save({"part": part})
            os.write(writing, b"%d\\n" % part.step)
    os.close(writing)
    reports = os.read(reading, 1000)
    time.sleep(draw.random() * 0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while more := os.read(reading, 65536):
        reports += more
    os.close(reading)
    promised = int(reports.split()[-1])
    said, part = [], Step()
    assert Checkpoint(folder, "me", 60.0, said.append).restore({"part": part}), said
    assert not any("damaged" in text for text in said), said
    assert promised <= part.step <= promised + 1, (promised, part.step)
    assert promised > seen
    seen = promised
print(seen)
"""


def test_a_kill_at_any_moment_leaves_the_last_save(tmp_path):
    done = python(KILLS, str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 15


def python(code, *arguments):
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)


STOP = """
import sys, time
from pathlib import Path
from kd.runtime.checkpoint import Checkpoint

class Step:
    step = 0
    def state_dict(self): return {"step": self.step}

part = Step()
with Checkpoint(Path(sys.argv[1]), "me", 3600.0) as checkpoint:
    while True:
        part.step += 1
        checkpoint.stop_or_save({"part": part})
        if part.step == 3:
            print("ready", flush=True)
        time.sleep(0.01)
"""


def test_sigterm_saves_and_leaves_with_143(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", STOP, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        output, _ = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 143
    assert "asked to stop: state saved" in output
    content = Checkpoint(tmp_path, "me", 60.0, Said())._read(tmp_path / "checkpoint.pt")
    assert content["state"]["part"]["step"] >= 3
    assert names(tmp_path) == ["checkpoint.pt"]
