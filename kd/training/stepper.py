"""Runs the steps of runs: as they are, or captured in a CUDA graph once (kd/training/cuda_graph.py) and then replayed.

A step is a function without arguments or result. What it reads and what it leaves behind are tensors that are changed
in place; what else decides the course of a step (which stage, with or without the adversary) is part of its name. On a
CPU, and with `compute.capture: off`, steps run as they are: the numbers are the same.

Runs of one process may ask for their steps together (`kd run --together N`): these are captured next to each other,
each on a stream of its own, and give the numbers that they give alone.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple
from weakref import WeakValueDictionary

import torch
from torch import nn

from kd.runtime.checkpoint import global_rng
from kd.training import cuda_graph
from kd.training.cuda_graph import Step
from kd.training.team import Team

WARM_UP = 3  # calls before a step is captured: they create optimisers' states, gradients and libraries' handles


class Stepper:
    """Runs the steps of one run on its device, captured where that is possible.

    A step that makes the host wait for the device, or that CUDA refuses to capture, runs as it is from then on, and
    `say` is told why, once. `serve` runs what is asked for; runs that are made together pass theirs to a common one.
    """

    def __init__(
        self,
        device: torch.device,
        capture: Literal["auto", "off"] = "auto",
        say: Callable[[str], Any] = print,
        graphs: Graphs | None = None,
        serve: Callable[[Request], BaseException | None] | None = None,
        compile: Literal["auto", "on", "off"] = "auto",
    ):
        self.device, self.say = device, say
        self.devices = [device]  # of all processes that share the run's steps
        self.team = Team()  # these processes
        self.capture = capture == "auto" and device.type == "cuda"
        self.graphs = graphs or Graphs(device)
        self.serve = serve or (lambda request: self.graphs.run([request])[0])
        self.compile = compile  # asked by kd.training.compiled, which notes in `compiled` the names of the networks
        self.compiled: list[str] = []
        self.cache: Path | None = None  # folder that keeps what the compiler makes, for later runs
        self.own_random: Callable[[], AbstractContextManager] = contextlib.nullcontext  # torch's own generators
        self.next_batch: Callable[[], Hashable] = object  # what identifies the batch that the next step draws
        self.generators: list[torch.Generator] = []
        self.clock: Callable[[], float] = time.perf_counter  # of runs made together: each has its share of the time
        self.together = 1  # how many runs have been made together with this one at most, itself included
        self.captured: dict[str, int] = {}  # name of a step -> how many steps the last graph with it holds
        self.refused: dict[str, str] = {}  # name of a step -> why it is not captured
        self.by_itself: set[str] = set()  # names of steps that draw from torch's own generators
        self._modules: list[nn.Module] = []

    def watch(self, *modules: nn.Module | None) -> None:
        """Capture no step that changes a number of these modules which is no tensor: a replay would not change it."""
        self._modules += [module for module in modules if module is not None]

    def numbers(self) -> list[tuple[str, Any]]:
        """Return all plain numbers and texts of the watched modules, each with a name for people."""
        return [
            (f"{type(each).__name__}.{name}", value)
            for module in self._modules
            for each in module.modules()
            for name, value in vars(each).items()
            if isinstance(value, bool | int | float | str)
        ]

    def draws_from(self, generator: torch.Generator) -> torch.Generator:
        """Return a generator that steps draw from; its draws go on from replay to replay."""
        self.generators.append(generator)
        return generator

    def answers_of(self, teacher: Callable[..., Any], identity: Hashable) -> Callable[..., Any]:
        """Return a frozen teacher that answers once for all captured steps that show it the same batch.

        `identity` tells it from other teachers, `next_batch` one batch from another.
        """

        def answer(images: torch.Tensor, **asked: bool) -> Any:
            return self.graphs.once((identity, tuple(sorted(asked))), lambda: teacher(images, **asked))

        return answer

    def run(self, name: str, step: Step) -> None:
        """Run a step once, as it is or by replaying what was captured under its name. Raises what the step raises."""
        if (error := self.serve(Request(self, name, step))) is not None:
            raise error

    def may_capture(self, name: str) -> bool:
        """Return whether a step may be captured, as far as is known."""
        return self.capture and name not in self.refused

    def refuse(self, name: str, why: str) -> None:
        """Let a step run as it is from now on, and say why."""
        self.refused[name] = why
        self.say(f"the {name} is not captured: {why}; it runs as it is, which is slower")

    @property
    def computed(self) -> dict[str, Any]:
        """Return how the steps were computed, for run.json."""
        return {
            "captured": sorted(self.captured),
            "not_captured": self.refused,
            "together": self.together,
            "compiled": self.compiled,
            "processes": len(self.devices),
        }


class Request(NamedTuple):
    """A step that a run asks for."""

    stepper: Stepper
    name: str
    step: Step


class Graphs:
    """What is captured on one GPU of this process, and what its runs have in common."""

    def __init__(self, device: torch.device):
        self.device = device
        self._common: WeakValueDictionary[Hashable, Any] = WeakValueDictionary()
        self._memory: Any = None  # of all graphs
        self._calls: Counter[tuple] = Counter()
        self._graphs: dict[tuple, cuda_graph.Graph | None] = {}  # None: these steps cannot be captured together
        self._alike: dict[tuple, tuple[int, ...]] = {}  # which of the steps draw the same batch, as far back as known
        self._answers: dict[Hashable, tuple[Any, Any]] = {}  # during a capture: answers, and when they are ready
        self._batch: int | None = None  # of the step that is being captured, alike for those that draw the same one

    def common(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Return what another run of this process has made under this key and still uses, else what `make` returns."""
        if (found := self._common.get(key)) is None:
            found = self._common[key] = make()
        return found

    def run(self, requests: list[Request]) -> list[BaseException | None]:
        """Run the steps that are asked for at the same time, each once; return what each has raised."""
        errors: list[BaseException | None] = [None] * len(requests)
        together: list[int] = []
        for position, (stepper, name, step) in enumerate(requests):
            if not stepper.may_capture(name):
                errors[position] = _as_own(requests[position], step)
            elif len(requests) > 1 and name in stepper.by_itself:
                (errors[position],) = self.run([requests[position]])
            else:
                together.append(position)
        found = self._run([requests[position] for position in together]) if together else []
        for position, error in zip(together, found, strict=True):
            errors[position] = error
        return errors

    def _run(self, able: list[Request]) -> list[BaseException | None]:
        """Run steps that may be captured: as they are at first, the last time watched; then captured and replayed."""
        key = tuple((id(request.stepper), request.name) for request in able)
        batches = [request.stepper.next_batch() for request in able] if len(able) > 1 else [None]
        alike, all_differ = tuple(map(batches.index, batches)), tuple(range(len(able)))
        if self._alike.setdefault(key, alike) not in (alike, all_differ):  # the graph shares what is no longer the same
            self._alike[key] = all_differ
            self._graphs.pop(key, None)
        if graph := self._graphs.get(key):
            error = _as_own(able[0], graph.replay) if len(able) == 1 else _outcome(graph.replay)
            return [error] * len(able)
        if key in self._graphs:
            return [self.run([request])[0] for request in able]
        self._calls[key] += 1
        if self._calls[key] <= WARM_UP:
            return [self._warm_up(request, self._calls[key] == WARM_UP) for request in able]
        self._capture(key, able)
        return self.run(able)

    def _warm_up(self, request: Request, watched: bool) -> BaseException | None:
        if not watched:
            with cuda_graph.aside(self.device):
                return _as_own(request, request.step)
        with request.stepper.own_random():
            before, numbers = global_rng(), request.stepper.numbers()
            with cuda_graph.aside(self.device), cuda_graph.waits() as waits:
                error = _outcome(request.step)
            if any(not _same(global_rng()[kind], state) for kind, state in before.items()):
                request.stepper.by_itself.add(request.name)
        if changed := [now[0] for now, then in zip(request.stepper.numbers(), numbers, strict=False) if now != then]:
            request.stepper.refuse(request.name, f"it changes {changed[0]}, which is no tensor")
        if waits:
            request.stepper.refuse(request.name, f"it makes the host wait for the GPU ({waits[0]})")
        return error

    def _capture(self, key: tuple, able: list[Request]) -> None:
        batches = self._alike[key] if len(able) > 1 else [None]
        steps = [partial(self._noting, batch, request.step) for batch, request in zip(batches, able, strict=True)]
        generators = [generator for request in able for generator in request.stepper.generators]
        try:
            self._memory = self._memory or cuda_graph.new_memory()
            self._graphs[key] = cuda_graph.Graph(steps, self.device, generators, self._memory)
        except Exception as error:
            self._memory = None  # nobody knows what a failed capture left in it
            self._graphs = {key: None for key, graph in self._graphs.items() if graph is None}  # see cuda_graph.Graph
            self._graphs[key] = None  # of several, each is tried by itself
            if len(able) == 1:
                able[0].stepper.refuse(able[0].name, str(error).strip().partition("\n")[0])
            return
        finally:
            self._answers.clear()
        for request in able:
            request.stepper.captured[request.name] = len(able)

    def _noting(self, batch: int | None, step: Step) -> None:
        """Run a step so that its teacher's answer serves later steps with the same batch."""
        self._batch = batch
        try:
            step()
        finally:
            self._batch = None

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Return what `make` returns; while steps are captured, what it returned for the same batch before."""
        if self._batch is None:
            return make()
        key = (self._batch, key)
        if key not in self._answers:
            self._answers[key] = make(), cuda_graph.ready_now(self.device)
            return self._answers[key][0]
        answer, ready = self._answers[key]
        if ready is not None:
            torch.cuda.current_stream(self.device).wait_event(ready)
        return answer

    def forget(self, stepper: Stepper) -> None:
        """Free the memory of all graphs with steps of a run that has ended."""
        for kept in (self._graphs, self._calls, self._alike):
            for key in [key for key in kept if any(owner == id(stepper) for owner, _ in key)]:
                del kept[key]


def _same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    return one is other or (one is not None and other is not None and torch.equal(one, other))


def _as_own(request: Request, step: Step) -> BaseException | None:
    """Run a step with torch's own generators as its run left them; return what it has raised."""
    with request.stepper.own_random():
        return _outcome(step)


def _outcome(step: Step) -> BaseException | None:
    """Run a step and return what it has raised: one run's error is not another's."""
    try:
        step()
    except BaseException as error:
        return error
    return None
