"""The base class of losses: its defaults, what it refuses, and how functions become losses."""

import pytest
import torch
from torch import nn

from kd.batch import Batch, Output
from kd.losses.base import CONTRACT, FunctionLoss, Loss
from kd.losses.objective import build_loss
from kd.runtime.messages import ConfigError


def test_the_defaults_ask_for_nothing():
    loss = Loss()
    assert (loss.signed, loss.first_epochs, loss.first_lr, loss.logits, dict(loss.logged)) == (False, 0, None, None, {})
    assert not loss.state_dict()
    student = nn.Identity()
    assert loss.adopt(student, nn.Identity()) is student
    stages = {"first_epochs", "first_stage", "first_lr", "trains_student"}
    assert {"forward", "signed", *stages, "logged", "logits", "adopt"} == CONTRACT


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [
        ("first_epoch", "first_epochs"),
        ("firstepochs", "first_epochs"),
        ("first_stages", "first_stage"),
        ("first_rl", "first_lr"),
        ("sined", "signed"),
        ("logd", "logged"),
        ("loggits", "logits"),
        ("adpot", "adopt"),
        ("foward", "forward"),
    ],
)
def test_a_misspelt_name_is_an_error(misspelt, meant):
    """As a class attribute, a method, and an attribute that the constructor sets."""
    message = rf"^Mine\.{misspelt}: did you mean '{meant}'\?"
    for value in (1, lambda self: None):
        with pytest.raises(TypeError, match=message):
            type("Mine", (Loss,), {misspelt: value})

    class Mine(Loss):
        def __init__(self):
            super().__init__()
            setattr(self, misspelt, 1)

    with pytest.raises(TypeError, match=message):
        Mine()


def test_other_names_are_free():
    class Mine(Loss):
        first_epochs = 3
        _logd = 1

        def __init__(self):
            super().__init__()
            self.layer, self.margin, self.embedding = nn.Linear(1, 1), 2.0, nn.Identity()
            self.training = True

        def project(self):
            return self._logd

    assert Mine().project() == 1


def test_a_function_becomes_a_loss_with_its_settings_and_no_state():
    loss = build_loss("kd", None, temperature=2.0)
    assert isinstance(loss, FunctionLoss)
    assert not loss.state_dict()
    student, teacher = (Output(torch.randn(3, 4), torch.empty(3, 0)) for _ in range(2))
    batch = Batch(torch.empty(3, 0), torch.zeros(3).long(), torch.arange(3), torch.ones(3))
    assert torch.equal(loss(student, teacher, batch), build_loss("kd", None, temperature=2.0)(student, teacher, batch))
    assert not torch.equal(loss(student, teacher, batch), build_loss("kd", None)(student, teacher, batch))


def test_a_setting_that_a_loss_does_not_know_is_refused():
    with pytest.raises(ConfigError, match=r"^kd: unknown setting 'temprature'; did you mean 'temperature'\?"):
        build_loss("kd", None, temprature=2.0)
