"""Numbers that are not finite: nothing is written, and who is to blame is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import COMPUTE, execute, tiny_run, tiny_settings
from torch import nn

from kd.integrations.trial_storage import TrialStorage
from kd.integrations.tuning import best, trial
from kd.losses.crd import CRD
from kd.runs.run import run_step
from kd.runtime.messages import ConfigError
from kd.studies.search import Tuning
from kd.training import datafree, with_data
from kd.training.diagnosis import Unhealthy

STEPS = {"scratch": 44, "kd": 44, "crd": 44, "ssdkd": 21}
LR = {"scratch": "lower training.lr", "kd": "lower training.lr", "crd": "lower training.lr"}
LR["ssdkd"] = "lower distillation.training.lr"
WRITTEN = ("weights.pt", "metrics.json", "history.csv", "run.json", "correlations.npz", "synthetic.npz")


@pytest.fixture
def after_the_last_step(monkeypatch: pytest.MonkeyPatch):
    """Return a function that lets something happen to a run's student and objective after its last step."""

    def after(method: str, happen) -> None:
        for loop in (with_data, datafree):

            def step(student, teacher, objective, *given, original=loop.train_step, taken=[]):  # noqa: B006
                made = original(student, teacher, objective, *given)
                taken.append(True)
                if len(taken) % STEPS[method] == 0:
                    happen(student, objective)
                return made

            monkeypatch.setattr(loop, "train_step", step)

    return after


def diverge(student: nn.Module, _objective: nn.Module) -> None:
    with torch.no_grad():
        student.head.bias[0] = torch.nan


def explode(student: nn.Module, _objective: nn.Module) -> None:
    with torch.no_grad():
        student.head.weight.fill_(3e38)
        student.head.bias.fill_(3e38)


@pytest.mark.parametrize("method", STEPS)
@pytest.mark.parametrize(
    ("happen", "who"),
    [
        (diverge, "the student's weights are not finite (first: head.bias)"),
        (explode, "the student's logits are not finite"),
    ],
)
def test_a_student_that_diverges_in_its_last_step_writes_nothing(
    method: str, happen, who: str, store: Path, tmp_path: Path, after_the_last_step
) -> None:
    after_the_last_step(method, happen)
    with pytest.raises(Unhealthy) as stopped:
        execute(tiny_run(method), store, tmp_path)
    assert str(stopped.value).startswith("after the last epoch; loss is ")
    assert f"{who}; {LR[method]}" in str(stopped.value)
    assert not [name for name in WRITTEN if (tmp_path / name).exists()]
    assert "after the last epoch" in json.loads((tmp_path / "ended.json").read_text())["error"]


@pytest.mark.parametrize("method", ["kd", "crd", "ssdkd"])
def test_a_teacher_whose_logits_are_not_finite_is_named(method: str, store: Path, tmp_path: Path) -> None:
    own, run = Path(shutil.copytree(store, tmp_path / "results")), tiny_run(method)
    file = own / run.teacher.path / "weights.pt"
    state = torch.load(file, weights_only=True)
    state["stem.1.running_var"].fill_(-1.0)  # finite, but its square root is not
    torch.save(state, file)
    with pytest.raises(ConfigError) as stopped:  # no divergence, which would count as a result of a search
        execute(run, own, tmp_path / "run")
    words = "the logits of the teacher resnet8 are not finite; delete its weights in "
    assert f"{words}{run.teacher.path} below the results folder, which are then made again" in str(stopped.value)
    assert "lr" not in str(stopped.value)


def test_a_teacher_that_turns_after_the_last_step_is_named_as_well(store, tmp_path, after_the_last_step, monkeypatch):
    teachers = []
    original = with_data.student_and_teacher

    def noted(*given):
        made = original(*given)
        teachers.append(made[1])
        return made

    monkeypatch.setattr(with_data, "student_and_teacher", noted)
    after_the_last_step("kd", lambda *_: teachers[0].head.bias.fill_(torch.inf))
    with pytest.raises(ConfigError, match=r"the logits of the teacher resnet8 are not finite"):
        execute(tiny_run("kd"), store, tmp_path)


def test_a_loss_whose_memory_is_not_finite_is_named(store: Path, tmp_path: Path, monkeypatch) -> None:
    """The student stays finite here, because its gradient is kept from it."""
    forward = CRD.forward

    def spoilt(self, student, teacher, batch):
        loss = forward(self, student, teacher, batch).detach() * torch.nan
        self.student_bank.fill_(torch.nan)
        return loss

    monkeypatch.setattr(CRD, "forward", spoilt)
    with pytest.raises(
        Unhealthy, match=r"loss is nan; the losses' own state is not finite \(first: crd.student_bank\)"
    ):
        execute(tiny_run("crd"), store, tmp_path)


def test_a_search_with_a_trial_that_diverges_at_its_end_completes(
    store: Path, tmp_path: Path, after_the_last_step, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny_settings("scratch", dataset__validation=0.2)
    space = {"training.lr": {"low": 0.01, "high": 0.1, "integer": False}}
    tuning, starts = Tuning("s", settings, space, seed=0, trials=2), []
    storage = TrialStorage(tuning, tmp_path, "s", print)

    def search(number: int) -> Path:
        def objective(suggestion: dict, folder: Path, report: object) -> float:
            starts.append(number)
            run = tuning.run(suggestion)
            return run_step(run, folder, store / run.data_path, [], COMPUTE)["accuracy"]

        trial(storage, number, objective)
        return tmp_path / f"trial{number}/trial.json"

    monkeypatch.setitem(STEPS, "scratch", 2 * 16)  # of a fifth fewer images
    after_the_last_step("scratch", lambda *parties: diverge(*parties) if starts[-1] == 0 else None)
    differs = {"seconds": 0, "checksum": ""}
    whole = json.loads(search(0).read_bytes()) | differs
    assert (whole["state"], whole["value"]) == ("FAIL", None)
    assert "the student's weights are not finite" in whole["note"]
    (tmp_path / "trial0/trial.json").unlink()  # killed before it was written, after Optuna was told
    files = [search(0), search(1)]
    assert json.loads(files[0].read_bytes()) | differs == whole
    assert best(tmp_path, tuning).winner["number"] == 1
    assert starts == [0, 0, 1]
