"""Checkpoints that are whole and do not fit: of another device, of an older format; nothing of them stays."""

from __future__ import annotations

import io
import os
import signal
from pathlib import Path

import pytest
import torch
from conftest import execute, tiny_run
from saved_steps import Step, names, restored, saved
from test_checkpoint import Training

from kd.runtime import checkpoint as module
from kd.runtime.checkpoint import Checkpoint, Stopped
from kd.runtime.messages import ConfigError


def rewrite(file: Path, change) -> None:
    """Write a checkpoint again, with a good checksum, after `change(content)`."""
    content = torch.load(io.BytesIO(module._payload(file.read_bytes())), weights_only=True)
    change(content)
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with file.open("wb") as opened:
        module._write(opened, buffer.getbuffer())


def of_a_gpu(content) -> None:
    content["state"]["random"]["generator"] = torch.zeros(16, dtype=torch.uint8)  # seed and offset; a CPU's has 5,056


def of_an_older_format(content) -> None:
    del content["state"]["journal"]["counts"]


def of_other_parts(content) -> None:
    content["state"]["rows"] = content["state"].pop("journal")


def with_other_global_generators(content) -> None:
    content["torch_rng"]["cpu"] = torch.zeros(16, dtype=torch.uint8)  # the last thing that is set


def without_identity(content) -> None:
    del content["identity"]


def with_texts_for_numbers(content) -> None:
    content["state"]["journal"]["pending"] = {"loss": None}  # would be read at the end of the epoch


def of_another_optimiser(content) -> None:
    for group in content["state"]["optimizer"]["param_groups"]:
        del group["momentum"]  # would be read at the next step


def with_momentum_of_another_network(content) -> None:
    for state in content["state"]["optimizer"]["state"].values():
        state["momentum_buffer"] = torch.zeros(3)  # a fused step would write behind its end


CHANGES = [of_a_gpu, of_an_older_format, of_other_parts, with_other_global_generators, without_identity]
CHANGES += [with_texts_for_numbers, of_another_optimiser, with_momentum_of_another_network]
WHERE = {"crd": 30, "ssdkd": 13}  # the step at which a run is stopped, in its second epoch


@pytest.fixture(scope="module")
def begun(store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Per method: the folder of an undisturbed run, and the checkpoint of one that was stopped on its way."""
    made = {}
    for method, step in WHERE.items():
        folder = tmp_path_factory.mktemp(method)
        execute(tiny_run(method), store, folder / "undisturbed")
        original, boundaries = Checkpoint.stop_or_save, []

        def stop_or_save(self, parts, original=original, boundaries=boundaries, step=step):
            boundaries.append(True)
            if len(boundaries) == step:
                os.kill(os.getpid(), signal.SIGTERM)
            original(self, parts)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Checkpoint, "stop_or_save", stop_or_save)
            with pytest.raises(Stopped):
                execute(tiny_run(method), store, folder / "stopped")
        made[method] = folder / "undisturbed", folder / "stopped/checkpoint.pt"
    return made


@pytest.mark.parametrize("method", WHERE)
@pytest.mark.parametrize("change", CHANGES)
def test_a_run_that_cannot_use_its_checkpoint_ends_as_an_undisturbed_one(method, change, begun, store, tmp_path):
    undisturbed, stopped = begun[method]
    folder, log = tmp_path / "run", tmp_path / "log.txt"
    folder.mkdir()
    (folder / "checkpoint.pt").write_bytes(stopped.read_bytes())
    rewrite(folder / "checkpoint.pt", change)
    execute(tiny_run(method), store, folder, log=log)
    for name in ("metrics.json", "history.csv", "weights.pt"):
        assert (folder / name).read_bytes() == (undisturbed / name).read_bytes()
    [line] = [line for line in log.read_text().splitlines() if "checkpoint.pt" in line]
    assert "checkpoint.pt cannot be loaded here (" in line
    assert line.endswith("; put aside as checkpoint.unusable.pt; the run begins again")


def test_the_one_before_it_is_used_and_what_was_put_aside_goes_on_elsewhere(tmp_path: Path) -> None:
    first, said = Training(), []
    checkpoint = Checkpoint(tmp_path, "me", 60.0, said.append)
    checkpoint.save(first.parts)
    expected = first.steps(3)
    checkpoint.save(first.parts)
    whole = checkpoint.files[0].read_bytes()
    later = first.steps(2)
    rewrite(checkpoint.files[0], of_a_gpu)
    again = Training()
    assert checkpoint.restore(again.parts)
    assert again.steps(3) == expected
    assert names(tmp_path) == ["checkpoint.previous.pt", "checkpoint.unusable.pt"]
    assert said[0].startswith("checkpoint.pt cannot be loaded here (")
    assert "where it goes on once it is renamed back" in said[0]
    assert said[0].endswith("put aside as checkpoint.unusable.pt; the one before it is tried")
    assert said[1:] == ["resumed from checkpoint.previous.pt"]
    rewrite(tmp_path / "checkpoint.unusable.pt", lambda content: content["state"].update(random=of_a_cpu(whole)))
    (tmp_path / "checkpoint.unusable.pt").rename(checkpoint.files[0])
    assert checkpoint.restore(again.parts)
    assert again.steps(2) == later


def of_a_cpu(whole: bytes):
    return torch.load(io.BytesIO(module._payload(whole)), weights_only=True)["state"]["random"]


def test_a_file_that_is_no_torch_file_behind_a_good_checksum_is_put_aside(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, 1, 2)
    with checkpoint.files[0].open("wb") as file:
        module._write(file, memoryview(b"not made by torch.save"))
    assert restored(checkpoint) == 1
    assert names(tmp_path) == ["checkpoint.previous.pt", "checkpoint.unusable.pt"]


def test_a_half_loaded_checkpoint_leaves_no_trace(tmp_path: Path) -> None:
    """Every kind of part is changed before the last one refuses; the optimiser's state was empty before."""

    class Refusing(Step):
        def load_state_dict(self, state):
            super().load_state_dict(state)
            if self.step:
                raise KeyError("slots")

    trained = Training()
    trained.steps(3)
    Checkpoint(tmp_path, "me", 60.0, print).save({**trained.parts, "last": Step(3)})
    fresh, expected, last = Training(), Training().steps(4), Refusing(0)
    torch.manual_seed(0)
    Training()  # draws what the constructor draws, so that the global generators agree
    assert not Checkpoint(tmp_path, "me", 60.0, lambda text: None).restore({**fresh.parts, "last": last})
    assert fresh.steps(4) == expected
    assert last.step == 0


@pytest.mark.parametrize("fault", [torch.OutOfMemoryError, MemoryError, OSError])
def test_a_fault_of_the_machine_is_none_of_the_file(fault: type[Exception], tmp_path: Path) -> None:
    class Failing(Step):
        def load_state_dict(self, state):
            raise fault

    checkpoint = saved(tmp_path, 1)
    with pytest.raises(fault):
        checkpoint.restore({"part": Failing()})
    assert restored(checkpoint) == 1


@pytest.mark.parametrize(
    ("error", "kept"), [(TypeError("odd"), False), (ConfigError("wrong"), True), (RuntimeError("CUDA"), True)]
)
def test_what_leads_to_an_error_later_is_not_tried_at_every_start(tmp_path: Path, error, kept) -> None:
    """State that loads and is unfit all the same: the next start goes on from the one before it, or begins again."""
    training, said = Training(), []
    Checkpoint(tmp_path, "me", 60.0).save(training.parts)
    checkpoint = Checkpoint(tmp_path, "me", 60.0, said.append)
    assert checkpoint.restore(Training().parts)
    with pytest.raises(type(error)), checkpoint:
        raise error
    assert checkpoint.files[0].exists() == kept
    assert (tmp_path / "checkpoint.unusable.pt").exists() != kept
    assert kept or said[-1].startswith("checkpoint.pt may have led to this error; put aside as checkpoint.unusable.pt")
    assert Checkpoint(tmp_path, "me", 60.0, said.append).restore(Training().parts) == kept


def test_an_error_after_a_later_save_puts_nothing_aside(tmp_path: Path) -> None:
    training = Training()
    checkpoint = Checkpoint(tmp_path, "me", 60.0)
    checkpoint.save(training.parts)
    assert checkpoint.restore(training.parts)
    checkpoint.save(training.parts)
    with pytest.raises(TypeError), checkpoint:
        raise TypeError("of another kind")
    assert sorted(names(tmp_path)) == ["checkpoint.previous.pt", "checkpoint.pt"]


def test_what_was_put_aside_before_stays(tmp_path: Path) -> None:
    """A GPU's checkpoint of hours must not give way to one that a mistaken start on a CPU left."""
    for number in range(3):
        (tmp_path / "checkpoint.pt").write_bytes(b"foreign %d" % number)
        Checkpoint(tmp_path, "me", 60.0, lambda text: None).restore(Training().parts)
    aside = ["checkpoint.unusable.pt", "checkpoint.unusable-2.pt", "checkpoint.unusable-3.pt"]
    assert [(tmp_path / name).read_bytes() for name in aside] == [b"foreign 0", b"foreign 1", b"foreign 2"]


def test_a_folder_in_its_place_is_put_aside_with_a_line(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, 1, 2)
    (tmp_path / "checkpoint.pt").unlink()
    (tmp_path / "checkpoint.pt").mkdir()
    assert restored(checkpoint) == 1
    aside = "checkpoint.pt is no file; put aside as checkpoint.unusable.pt; the one before it is tried"
    assert checkpoint.say == [aside, "resumed from checkpoint.previous.pt"]
    assert (tmp_path / "checkpoint.unusable.pt").is_dir()
