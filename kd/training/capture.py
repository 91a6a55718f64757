"""Steps as CUDA graphs: captured once, then replayed, which spares the host all launches.

A step is a function without arguments or result. What it reads and what it leaves behind are tensors that are changed
in place; what else decides the course of a step (which stage, with or without the adversary) is part of its name. On a
CPU, and with `compute.capture: off`, steps run as they are: the numbers are the same.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch

Step = Callable[[], None]
WARM_UP = 3  # calls before a step is captured: they create optimisers' states, gradients and libraries' handles


class Stepper:
    """Runs the steps of one run on its device, each of them captured on a GPU where it can be.

    A step that makes the host wait for the device, or that CUDA refuses to capture, runs as it is from then on, and
    `say` is told why, once.
    """

    def __init__(
        self,
        device: torch.device,
        capture: Literal["auto", "off"] = "auto",
        say: Callable[[str], Any] = print,
    ):
        self.device, self.say = device, say
        self.capture = capture == "auto" and device.type == "cuda"
        self.generators: list[torch.Generator] = []
        self._calls: dict[str, int] = {}
        self._graphs: dict[str, Graph] = {}
        self.refused: dict[str, str] = {}  # name of a step -> why it is not captured

    def draws_from(self, generator: torch.Generator) -> torch.Generator:
        """Return a generator that steps draw from; its draws go on from replay to replay."""
        self.generators.append(generator)
        return generator

    def run(self, name: str, step: Step) -> None:
        """Run a step once, as it is or by replaying what was captured under its name."""
        if graph := self._graphs.get(name):
            graph.replay()
        elif not self.capture or name in self.refused:
            step()
        else:
            self._approach(name, step)

    def _approach(self, name: str, step: Step) -> None:
        """Run a step that is not captured yet: as it is at first, the last of these times watched; then capture it."""
        calls = self._calls[name] = self._calls.get(name, 0) + 1
        if calls < WARM_UP:
            with _aside(self.device):
                step()
        elif calls == WARM_UP:
            with _aside(self.device), _waits() as found:
                step()
            if found:
                self._refuse(name, f"it makes the host wait for the GPU ({found[0]})")
        else:
            try:
                self._graphs[name] = Graph([step], self.device, self.generators)
            except RuntimeError as error:
                self._refuse(name, str(error).strip().partition("\n")[0])
            self.run(name, step)

    def _refuse(self, name: str, why: str) -> None:
        self.refused[name] = why
        self.say(f"the {name} is not captured: {why}; it runs as it is, which is slower")

    @property
    def computed(self) -> dict[str, Any]:
        """Return how the steps were computed, for run.json."""
        return {"captured": sorted(self._graphs), "not_captured": self.refused}


class Graph:
    """Steps captured next to each other, each on its own stream.

    Raises RuntimeError for what CUDA cannot capture; all generators are then as they were.
    """

    def __init__(self, steps: list[Step], device: torch.device, generators: list[torch.Generator]):
        self.steps = steps  # what they work on must live as long as the graph
        drawn_from = [*generators, torch.cuda.default_generators[device.index]]
        before = [generator.clone_state() for generator in drawn_from]
        self.graph = torch.cuda.CUDAGraph()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # later versions of torch find the generators by themselves
            for generator in generators:
                self.graph.register_generator_state(generator)
        try:
            with torch.cuda.graph(self.graph):
                whole = torch.cuda.current_stream(device)
                streams = [torch.cuda.Stream(device) for _ in steps]
                for step, stream in zip(steps, streams, strict=True):
                    stream.wait_stream(whole)
                    with torch.cuda.stream(stream):
                        step()
                for stream in streams:
                    whole.wait_stream(stream)
        except RuntimeError:
            for generator, state in zip(drawn_from, before, strict=True):  # a failed capture leaves them unusable
                generator.graphsafe_set_state(state)
            raise

    def replay(self) -> None:
        """Run all steps once."""
        self.graph.replay()


@contextlib.contextmanager
def _aside(device: torch.device) -> Iterator[None]:
    """Run on a stream of its own, as a capture does: what is created there belongs to no other stream."""
    current, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    side.wait_stream(current)
    with torch.cuda.stream(side):
        yield
    current.wait_stream(side)


@contextlib.contextmanager
def _waits() -> Iterator[list[str]]:
    """Fill the list that is given, on the way out, with the places where the host waited for the device."""
    found: list[str] = []
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    found += [f"{warning.filename}:{warning.lineno}" for warning in noted if "synchroniz" in str(warning.message)]
