"""How steps are captured in a CUDA graph, which is then replayed and spares the host all launches."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator

import torch

Step = Callable[[], None]
FAILED: list[torch.cuda.CUDAGraph] = []  # torch's allocator goes on asking them; they hold no memory of their own
WAITED = "called a synchronizing"  # how torch's warning begins; another one only says that this is a prototype


def new_memory() -> tuple[int, int]:
    """Return memory that graphs may share which are never replayed at the same time: none leaves another anything."""
    return torch.cuda.graph_pool_handle()


class Graph:
    """Steps captured next to each other, each on its own stream.

    Raises what a step raises, RuntimeError for what CUDA cannot capture. All generators then go on where they were, but
    with other states than those that earlier graphs know: such graphs must be captured again.
    """

    def __init__(
        self, steps: list[Step], device: torch.device, generators: list[torch.Generator], memory: tuple[int, int]
    ) -> None:
        self.steps = steps  # what they work on must live as long as the graph
        drawn_from = [*generators, torch.cuda.default_generators[device.index or 0]]
        before = [generator.clone_state() for generator in drawn_from]
        self.graph = torch.cuda.CUDAGraph()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # later versions of torch find the generators by themselves
            for generator in generators:
                self.graph.register_generator_state(generator)
        try:
            with torch.cuda.stream(torch.cuda.current_stream(device)), torch.cuda.graph(self.graph, memory):
                whole = torch.cuda.current_stream(device)
                streams = [torch.cuda.Stream(device) for _ in steps]
                for step, stream in zip(steps, streams, strict=True):
                    stream.wait_stream(whole)
                    with torch.cuda.stream(stream):
                        step()
                for stream in streams:
                    whole.wait_stream(stream)
        except Exception as error:
            FAILED.append(self.graph)
            for generator, state in zip(drawn_from, before, strict=True):  # a failed capture leaves them unusable
                generator.graphsafe_set_state(state)
            raise error.__context__ or error from None  # that the capture could not end hides why

    def replay(self) -> None:
        """Run all steps once."""
        self.graph.replay()


def ready_now(device: torch.device) -> torch.cuda.Event | None:
    """Return an event that other streams can wait for; None on a CPU."""
    return torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None


@contextlib.contextmanager
def aside(device: torch.device) -> Iterator[None]:
    """Run on a stream of its own, as a capture does: what is created there belongs to no other stream."""
    current, side = torch.cuda.current_stream(device), _side(device)
    side.wait_stream(current)
    with torch.cuda.stream(side):
        yield
    current.wait_stream(side)


@functools.cache
def _side(device: torch.device) -> torch.cuda.Stream:
    """Return the one stream of all warm-ups: what one has freed serves the next."""
    return torch.cuda.Stream(device)


@contextlib.contextmanager
def waits() -> Iterator[list[str]]:
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
    found += [f"{warning.filename}:{warning.lineno}" for warning in noted if WAITED in str(warning.message)]
