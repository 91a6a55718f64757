"""Several runs of one process on one GPU: they work in turns, and what their steps compute runs at the same time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import torch

from kd.runs import devices
from kd.runtime.checkpoint import Stopped, global_rng, set_global_rng, stopping_on_signals
from kd.runtime.messages import ConfigError
from kd.runtime.turns import SharedClock, Turns
from kd.settings.shapes import Compute
from kd.training.stepper import Graphs, Request, Stepper

Stepping = Callable[[Compute, Callable[[str], Any]], AbstractContextManager[Stepper]]


@contextmanager
def alone(compute: Compute, say: Callable[[str], Any]) -> Iterator[Stepper]:
    """Reserve the devices of one run and return what runs its steps there."""
    with devices.reserved_devices(compute, say) as reserved:
        if len(reserved) > 1:  # neither a capture nor a compiler sees what the other processes do
            compute = replace(compute, capture="off", compile="off")
        stepper = Stepper(reserved[0], compute.capture, say, compile=compute.compile)
        stepper.devices = reserved
        try:
            yield stepper
        finally:
            stepper.graphs.forget(stepper)


class Company:
    """Runs that are made together on one device, which is reserved once for all of them.

    Only one of them works at a time, so nothing of theirs meets; torch's own generators are kept for each. Their steps,
    whichever each asks for, are run together.
    """

    def __init__(self, compute: Compute, say: Callable[[str], Any]):
        if compute.processes > 1:
            raise ConfigError(f"compute.gpu: got {compute.gpu}; runs that are made together share one GPU")
        self.compute, self.say = compute, say
        self.stopped_by = 0  # the signal that asked to stop
        self._clock, self._steppers = SharedClock(), set[Stepper]()  # of the runs under way
        self._turns = Turns(self._serve, self._leave, self._enter)
        self._random: dict[int, dict[str, Any]] = {}

    def work(self, functions: list[Callable[[], Any]]) -> None:
        """Run the functions, which make runs with `stepping`, until all have ended.

        SIGTERM and Ctrl-C stop all runs. Raises what a function raised, Stopped last of all.
        """
        with devices.reserved_devices(self.compute, self.say) as (device,), stopping_on_signals(self._stop):
            self._device, self._graphs = device, Graphs(device)
            errors = [error for error in self._turns.work(functions) if error is not None]
        for error in sorted(errors, key=lambda error: isinstance(error, Stopped)):
            raise error
        if self.stopped_by:
            raise Stopped(self.stopped_by)

    @contextmanager
    def stepping(self, compute: Compute, say: Callable[[str], Any]) -> Iterator[Stepper]:
        """Return what runs the steps of the run that is about to begin."""
        number = self._turns.number
        torch.set_num_threads(compute.threads)
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
        stepper = Stepper(self._device, compute.capture, say, self._graphs, self._turns.meet, compute.compile)
        stepper.own_random = lambda: self._own_random(number)
        stepper.clock = self._clock
        self._steppers.add(stepper)
        for each in self._steppers:
            each.together = max(each.together, len(self._steppers))
        try:
            with self._clock.used():
                yield stepper
        finally:
            self._steppers.discard(stepper)
            self._graphs.forget(stepper)

    def pause(self) -> None:
        """Let the other runs work for a while. Raises Stopped after SIGTERM."""
        self._turns.pause()
        if self.stopped_by:
            raise Stopped(self.stopped_by)

    def _serve(self, asked: dict[int, Request]) -> dict[int, BaseException | None]:
        return dict(zip(asked, self._graphs.run(list(asked.values())), strict=True))

    @contextmanager
    def _own_random(self, number: int) -> Iterator[None]:
        self._enter(number)
        yield
        self._leave(number)

    def _leave(self, number: int) -> None:
        self._random[number] = global_rng()

    def _enter(self, number: int) -> None:
        if number in self._random:
            set_global_rng(self._random[number])

    def _stop(self, number: int) -> None:
        self.stopped_by = number
