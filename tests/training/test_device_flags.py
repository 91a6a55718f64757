"""What a run sets in torch where it changes numbers."""

import torch
from conftest import tiny_run

from kd.data.dataset import load
from kd.training.device_flags import set_flags
from kd.training.networks import student_and_teacher
from kd.training.stepper import Stepper


def test_cudnn_is_deterministic_once_a_run_has_its_networks(store, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    run = tiny_run("scratch")
    cpu = torch.device("cpu")
    student_and_teacher(run, load(store / run.data_path, run.dataset, cpu), [], Stepper(cpu))
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    set_flags()
    assert not torch.backends.cudnn.benchmark
