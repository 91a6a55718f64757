"""Checkpoints: exact resume; torn, damaged and foreign files; full disks."""

import contextlib
import os
import signal
from pathlib import Path

import pytest
import torch
from saved_steps import Said, Step, full_disk, names, restored, saved

from kd.runtime import checkpoint as module
from kd.runtime.checkpoint import MAGIC, Checkpoint, RandomState, Stopped

# --------------------------------------------------------------------------------------------------------- exact resume


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


# ----------------------------------------------------------------------------------------- torn, damaged, foreign files


def refuses(checkpoint, word):
    """Assert that the newest file is refused with this word and the one before it is used."""
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
    saved(tmp_path, 1)  # the foreign file is now the previous one
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


# ----------------------------------------------------------------------------------------------------------- full disks


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
    """Make the `which`-th rename from now on fail."""
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
        saved(tmp_path, 9, identity="other")  # our step 2 is now the previous file
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
