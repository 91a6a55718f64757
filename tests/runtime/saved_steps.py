"""The smallest checkpoints: saving steps and reading them back."""

import errno

import torch

from kd.runtime.checkpoint import Checkpoint


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
    """What a checkpoint said, line by line."""

    def __call__(self, text):
        self.append(text)


def saved(folder, *steps, identity="me"):
    """Save these steps one after the other; return the checkpoint."""
    said = Said()
    checkpoint = Checkpoint(folder, identity, 60.0, said)
    for step in steps:
        checkpoint.save({"part": Step(step)})
    return checkpoint


def restored(checkpoint):
    """Return the step that is restored from a checkpoint; None if there is no good file."""
    part = Step(-1)
    return part.step if checkpoint.restore({"part": part}) else None


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")
