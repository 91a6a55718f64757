"""Checkpoints: exact resume; torn, damaged and foreign files; full disks; kills at any moment."""

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from kd.runtime import checkpoint as module
from kd.runtime.checkpoint import MAGIC, Checkpoint, RandomState, Stopped
from kd.runtime.files import read_json, write_atomically, write_json


class Step:
    """The smallest part of a checkpoint."""

    def __init__(self, step=0):
        self.step = step

    def state_dict(self):
        return {"step": self.step, "tensor": torch.full((50,), float(self.step))}

    def load_state_dict(self, state):
        assert state["tensor"].eq(state["step"]).all()
        self.step = state["step"]


class Said(list):
    def __call__(self, text):
        self.append(text)


def saved(folder, *steps, identity="me"):
    """A checkpoint with these steps saved one after the other."""
    said = Said()
    checkpoint = Checkpoint(folder, identity, 60.0, said)
    for step in steps:
        checkpoint.save({"part": Step(step)})
    return checkpoint


def restored(checkpoint):
    """The step that a checkpoint gives back; None without one."""
    part = Step(-1)
    return part.step if checkpoint.restore({"part": part}) else None


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# ------------------------------------------------------------------------------------------------------ exact resume


class Training:
    """A few steps that depend on every kind of state."""

    def __init__(self):
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 1))
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=0.1)
        self.schedule = torch.optim.lr_scheduler.StepLR(self.optimiser, 2, 0.5)
        self.generator = torch.Generator().manual_seed(1)
        self.parts = {
            "model": self.model,
            "optimiser": self.optimiser,
            "schedule": self.schedule,
            "random": RandomState(self.generator),
        }

    def steps(self, count):
        values = []
        for _ in range(count):
            images = torch.randn(16, 4, generator=self.generator)
            loss = (self.model(torch.nn.functional.dropout(images, 0.3)) ** 2).mean()
            self.optimiser.zero_grad()
            loss.backward()
            self.optimiser.step()
            self.schedule.step()
            values.append(loss.item())
        return [*values, *torch.rand(3).tolist(), *torch.rand(3, generator=self.generator).tolist()]


def test_a_resumed_run_goes_on_with_the_same_bits(tmp_path):
    first = Training()
    first.steps(3)
    said = Said()
    Checkpoint(tmp_path, "me", 60.0, said).save(first.parts)
    expected = first.steps(4)
    again = Training()
    torch.rand(7)
    assert Checkpoint(tmp_path, "me", 60.0, said).restore(again.parts)
    assert again.steps(4) == expected
    assert said == ["resumed from checkpoint.pt"]
    for a, b in zip(first.model.state_dict().values(), again.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_saving_draws_no_random_number(tmp_path):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    saved(tmp_path, 1, 2)
    assert torch.equal(torch.get_rng_state(), state)


def test_without_a_checkpoint_nothing_is_touched(tmp_path):
    state = torch.get_rng_state()
    said = Said()
    part = Step(5)
    assert not Checkpoint(tmp_path, "me", 60.0, said).restore({"part": part})
    assert part.step == 5
    assert torch.equal(torch.get_rng_state(), state)
    assert said == []


def test_the_newest_two_are_kept_and_removed_at_the_end(tmp_path):
    checkpoint = saved(tmp_path, 1, 2, 3)
    assert names(tmp_path) == ["checkpoint.previous.pt", "checkpoint.pt"]
    assert restored(checkpoint) == 3
    checkpoint.files[0].unlink()
    assert restored(checkpoint) == 2
    checkpoint.remove()
    checkpoint.remove()
    assert names(tmp_path) == []
    assert restored(checkpoint) is None


def test_what_a_killed_save_left_is_removed_at_the_end_too(tmp_path):
    checkpoint = saved(tmp_path, 1)
    (tmp_path / "checkpoint.new.pt").write_bytes(b"whole, but not yet in its place")
    (tmp_path / ".checkpoint.new.pt.12345.tmp").write_bytes(b"torn")
    (tmp_path / "weights.pt").write_bytes(b"the run's own")
    checkpoint.remove()
    assert names(tmp_path) == ["weights.pt"]


def test_saving_when_it_is_time(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    checkpoint = Checkpoint(tmp_path, "me", 60.0, Said())
    for passed, exists in ((59.9, False), (60.0, True)):
        now[0] = 1000.0 + passed
        checkpoint.stop_or_save({"part": Step(1)})
        assert checkpoint.files[0].exists() == exists
    now[0] += 59.0
    checkpoint.stop_or_save({"part": Step(2)})
    assert restored(checkpoint) == 1
    now[0] += 1.0
    checkpoint.stop_or_save({"part": Step(3)})
    assert restored(checkpoint) == 3


# -------------------------------------------------------------------------------------- torn, damaged, foreign files


def refuses(checkpoint, word):
    """The newest is refused with a word, and the one before it is used."""
    checkpoint.say.clear()
    assert restored(checkpoint) == 1
    assert len(checkpoint.say) == 2
    assert checkpoint.say[0].startswith("checkpoint.pt ")
    assert word in checkpoint.say[0]
    assert checkpoint.say[1] == "resumed from checkpoint.previous.pt"


def test_a_torn_file_is_refused_at_every_length(tmp_path):
    whole = saved(tmp_path, 2).files[0].read_bytes()
    lengths = {0, 1, len(MAGIC) - 1, len(MAGIC), len(MAGIC) + 1, len(MAGIC) + 63, len(MAGIC) + 64, len(MAGIC) + 65}
    lengths |= set(range(0, len(whole), max(1, len(whole) // 40))) | {len(whole) - 1}
    for length in sorted(lengths):
        checkpoint = saved(tmp_path, 1, 2)
        checkpoint.files[0].write_bytes(whole[:length])
        refuses(checkpoint, "damaged")


def test_a_flipped_bit_is_noticed_wherever_it_is(tmp_path):
    checkpoint = saved(tmp_path, 1, 2)
    whole = checkpoint.files[0].read_bytes()
    previous = checkpoint.files[1].read_bytes()
    positions = [*range(0, len(MAGIC) + 70, 5), *range(0, len(whole), max(1, len(whole) // 60)), len(whole) - 1]
    for number, position in enumerate(positions):
        torn = bytearray(whole)
        torn[position] ^= 1 << number % 8
        checkpoint.files[0].write_bytes(torn)
        checkpoint.files[1].write_bytes(previous)
        refuses(checkpoint, "damaged")


def test_longer_files_and_other_files_are_refused(tmp_path):
    whole = saved(tmp_path, 2).files[0].read_bytes()
    for content in (whole + b"\0", whole[1:], whole * 2, b"\0" * len(whole), b"text", MAGIC * 100):
        checkpoint = saved(tmp_path, 1, 2)
        checkpoint.files[0].write_bytes(content)
        refuses(checkpoint, "damaged")


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    saved(tmp_path, 7, identity="other")
    said = Said()
    checkpoint = Checkpoint(tmp_path, "me", 60.0, said)
    assert restored(checkpoint) is None
    assert len(said) == 1
    assert "other settings or other code" in said[0]
    saved(tmp_path, 1)  # the foreign one is now the previous one
    saved(tmp_path, 8, identity="other")
    said.clear()
    refuses(checkpoint, "other settings or other code")


def test_two_bad_files_mean_a_fresh_start(tmp_path):
    checkpoint = saved(tmp_path, 1, 2)
    for file in checkpoint.files:
        file.write_bytes(b"")
    state = torch.get_rng_state()
    assert restored(checkpoint) is None
    assert torch.equal(torch.get_rng_state(), state)
    assert [text.split()[0] for text in checkpoint.say] == ["checkpoint.pt", "checkpoint.previous.pt"]
    checkpoint.save({"part": Step(3)})
    assert restored(checkpoint) == 3


# --------------------------------------------------------------------------------------------------------- full disks


def full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("call", ["fsync", "write"])
def test_a_full_disk_costs_only_that_save(tmp_path, monkeypatch, call):
    checkpoint = saved(tmp_path, 1, 2)
    with monkeypatch.context() as patched:
        if call == "fsync":
            patched.setattr(os, "fsync", full_disk)
        else:
            patched.setattr(module, "_write", full_disk)
        checkpoint.save({"part": Step(3)})
    assert len(checkpoint.say) == 1
    assert "No space left" in checkpoint.say[0]
    assert names(tmp_path) == ["checkpoint.previous.pt", "checkpoint.pt"]
    assert restored(checkpoint) == 2
    checkpoint.save({"part": Step(4)})
    assert restored(checkpoint) == 4


class Interrupted(BaseException):
    """Stands for a kill."""


@pytest.mark.parametrize("kind", [OSError, Interrupted])
@pytest.mark.parametrize("which", [1, 2, 3])
def test_every_moment_between_two_renames_leaves_a_good_file(tmp_path, monkeypatch, which, kind):
    checkpoint = saved(tmp_path, 1, 2)
    fail_at_rename(monkeypatch, which, kind)
    if kind is OSError:
        checkpoint.save({"part": Step(3)})
    else:
        with pytest.raises(Interrupted):
            checkpoint.save({"part": Step(3)})
    monkeypatch.undo()
    assert restored(checkpoint) == 2
    checkpoint.save({"part": Step(4)})
    assert restored(checkpoint) == 4


def fail_at_rename(monkeypatch, which, kind):
    """The `which`-th rename from now on fails."""
    calls, rename = [], Path.replace

    def replace(self, target):
        calls.append(target)
        if len(calls) == which:
            raise kind("stop here")
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", replace)


@pytest.mark.parametrize("which", [1, 2, 3])
@pytest.mark.parametrize("bad", [b"", None], ids=["damaged", "foreign"])
def test_a_bad_file_does_not_push_out_the_good_one_before_it(tmp_path, monkeypatch, bad, which):
    """Killed at a rename of the first save after resuming from the previous file."""
    checkpoint = saved(tmp_path, 1, 2)
    if bad is None:
        saved(tmp_path, 9, identity="other")  # the previous one is now step 2 of ours
    else:
        checkpoint.files[0].write_bytes(bad)
    good = restored(checkpoint)
    assert good == (2 if bad is None else 1)
    fail_at_rename(monkeypatch, which, Interrupted)
    with contextlib.suppress(Interrupted):
        checkpoint.save({"part": Step(good + 1)})
    monkeypatch.undo()
    assert restored(checkpoint) in (good, good + 1)


def test_a_stop_that_could_not_save_does_not_say_that_it_did(tmp_path, monkeypatch):
    checkpoint = saved(tmp_path, 1)
    monkeypatch.setattr(os, "fsync", full_disk)
    checkpoint.stopping = signal.SIGTERM
    with pytest.raises(Stopped):
        checkpoint.stop_or_save({"part": Step(2)})
    assert any("not written" in text for text in checkpoint.say)
    assert not any("state saved" in text for text in checkpoint.say)


# -------------------------------------------------------------------------------------------------- signals and kills


def test_a_signal_is_taken_note_of_and_answered_at_a_boundary(tmp_path):
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


# -------------------------------------------------------------------------------------------------------- whole files


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt, SystemExit])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, error):
    file = tmp_path / "a.json"
    write_json(file, {"old": 1})

    def fail(stream):
        stream.write(b"half")
        raise error

    with pytest.raises(error):
        write_atomically(file, fail)
    assert names(tmp_path) == ["a.json"]
    assert read_json(file) == {"old": 1}


@pytest.mark.parametrize("place", ["fsync", "replace"])
def test_a_disk_that_fails_late_leaves_the_old_file(tmp_path, monkeypatch, place):
    file = tmp_path / "a.json"
    write_json(file, {"old": 1})
    with monkeypatch.context() as patched:
        if place == "fsync":
            patched.setattr(os, "fsync", full_disk)
        else:
            patched.setattr(Path, "replace", full_disk)
        with pytest.raises(OSError, match="No space"):
            write_json(file, {"new": 2})
    assert names(tmp_path) == ["a.json"]
    assert read_json(file) == {"old": 1}


def test_the_content_is_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    order, fsync, rename = [], os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda number: (order.append(os.fstat(number).st_size), fsync(number))[1])
    monkeypatch.setattr(Path, "replace", lambda self, target: (order.append(target.name), rename(self, target))[1])
    write_atomically(tmp_path / "a", lambda stream: stream.write(b"12345"))
    assert order == [5, "a"]


def test_json_files_have_one_form(tmp_path):
    write_json(tmp_path / "a", {"b": [1, 0.1, None], "a": {"d": 1, "c": True}})
    write_json(tmp_path / "b", {"a": {"c": True, "d": 1}, "b": [1, 0.1, None]})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    text = (tmp_path / "a").read_text()
    assert text.endswith("}\n")
    assert json.loads(text) == read_json(tmp_path / "a") == {"a": {"c": True, "d": 1}, "b": [1, 0.1, None]}
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a", {"a": float("nan")})
    assert (tmp_path / "a").read_text() == text
    assert names(tmp_path) == ["a", "b"]
