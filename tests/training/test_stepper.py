"""What is captured together: one run's error is its own, and an answer is shared only while the batch is the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tape import play_on_cpu

from kd.training.stepper import WARM_UP, Graphs, Request, Stepper

CPU = torch.device("cpu")


class Doubling:
    """A run whose teacher doubles its batch; `place` identifies that batch among all runs."""

    def __init__(self, graphs: Graphs, answered: list[int], name: int):
        self.batch, self.out = torch.zeros(()), torch.zeros(())
        self.place, self.said = 0, []
        self.stepper = Stepper(CPU, "auto", self.said.append, graphs)
        self.stepper.next_batch = lambda: self.place
        self.answer = self.stepper.answers_of(lambda batch: answered.append(name) or batch * 2, "teacher")

    def draws(self, place: int) -> Request:
        """Return the request for a step on the batch at this place."""
        self.place = place
        self.batch.fill_(place)
        return Request(self.stepper, "step", self.step)

    def step(self) -> None:
        self.out.copy_(self.answer(self.batch))


@pytest.mark.parametrize(
    ("places", "answers"),  # how often the teacher answers in each graph that is captured
    [
        ([(step, step) for step in range(9)], [1]),
        ([(step, step + 1) for step in range(9)], [2]),
        ([(step, step) for step in range(6)] + [(step, step + 5) for step in range(6)], [1, 2]),
        ([(step, step + 5) for step in range(WARM_UP)] + [(step, step) for step in range(6)], [2]),
        ([(step, step + 5) for step in range(6)] + [(step, step) for step in range(6)], [2]),
        ([(1, 1), (2, 3), (4, 4), (5, 5), (6, 6), (7, 8), (9, 9)], [2]),
    ],
)
def test_an_answer_is_shared_only_while_the_batch_is_the_same(places, answers, monkeypatch) -> None:
    play_on_cpu(monkeypatch)
    graphs, answered, found = Graphs(CPU), [], []
    one, other = (Doubling(graphs, answered, name) for name in range(2))
    for here, there in places:
        del answered[:]
        assert graphs.run([one.draws(here), other.draws(there)]) == [None, None]
        assert (one.out.item(), other.out.item()) == (2 * here, 2 * there)
        if answered and one.stepper.captured:
            found.append(len(answered))
    assert found == answers
    assert one.stepper.captured == {"step": 2}


class Failing(Exception):
    """No RuntimeError."""


@pytest.mark.parametrize("at", range(1, WARM_UP + 3))
@pytest.mark.parametrize("error", [Failing, RuntimeError])
def test_an_error_in_a_step_is_its_own_runs(at: int, error: type[Exception], monkeypatch) -> None:
    """From its `at`-th call on; the fourth is captured, together and then by itself."""
    play_on_cpu(monkeypatch)
    graphs, calls = Graphs(CPU), []
    good = Doubling(graphs, [], 0)

    def bad_step() -> None:
        calls.append(True)
        if len(calls) >= at:
            raise error("on purpose")

    bad = Stepper(CPU, "auto", lambda text: None, graphs)
    for number in range(WARM_UP + 4):
        errors = graphs.run([good.draws(number), Request(bad, "step", bad_step)])
        assert errors[0] is None
        assert good.out.item() == 2 * number
        assert isinstance(errors[1], error) == (len(calls) >= at)
    assert good.stepper.refused == {}


def test_a_failed_capture_lets_all_be_captured_again(monkeypatch) -> None:
    """On a GPU its generators go on with states of which earlier graphs know nothing."""
    play_on_cpu(monkeypatch)
    graphs, said = Graphs(CPU), []
    good = Doubling(graphs, [], 0)
    for number in range(WARM_UP + 2):
        graphs.run([good.draws(number)])
    (first,) = graphs._graphs.values()
    waits = Stepper(CPU, "auto", said.append, graphs)
    for _ in range(WARM_UP + 1):
        assert graphs.run([Request(waits, "odd step", lambda: torch.ones(()).item())]) == [None]
    assert said == [
        "the odd step is not captured: operation not permitted when stream is capturing: aten::_local_scalar_dense; "
        "it runs as it is, which is slower"
    ]
    graphs.run([good.draws(7)])
    assert good.out.item() == 14
    again = [graph for graph in graphs._graphs.values() if graph is not None]
    assert len(again) == 1
    assert again[0] is not first


class Counts(torch.nn.Module):
    """Weights its answer by a number that a replay would not change."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, total: torch.Tensor) -> None:
        self.calls += 1
        total += self.calls


def test_a_number_that_changes_in_a_step_keeps_it_from_being_captured(monkeypatch) -> None:
    play_on_cpu(monkeypatch)
    said, counts, total = [], Counts(), torch.zeros(())
    stepper = Stepper(CPU, "auto", said.append)
    stepper.watch(None, torch.nn.Linear(2, 2), counts)
    for _ in range(WARM_UP + 3):
        stepper.run("step", lambda: counts(total))
    assert total.item() == sum(range(1, WARM_UP + 4))
    assert said == [
        "the step is not captured: it changes Counts.calls, which is no tensor; it runs as it is, which is slower"
    ]


def test_graphs_of_a_run_that_has_ended_are_forgotten(monkeypatch) -> None:
    play_on_cpu(monkeypatch)
    graphs = Graphs(CPU)
    runs: list[Doubling] = [Doubling(graphs, [], name) for name in range(2)]
    asks: list[Callable[[], list[Request]]] = [
        lambda: [run.draws(1) for run in runs],
        lambda: [runs[1].draws(1)],
    ]
    for ask in asks:
        for _ in range(WARM_UP + 2):
            assert set(graphs.run(ask())) == {None}
    assert len(graphs._graphs) == 2
    graphs.forget(runs[0].stepper)
    assert len(graphs._graphs) == len(graphs._calls) == len(graphs._alike) == 1
