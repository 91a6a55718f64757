"""The kinds of run: what makes their numbers, which settings and files are theirs. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """One kind of run."""

    loop: str  # the module of kd/training whose `compute` makes the numbers
    uses: tuple[str, ...]  # sections of the settings that it needs, in addition to every run's
    arrays: str | None = None  # the arrays that it writes in addition to the files of every run, by name
    may_use: tuple[str, ...] = ()  # sections that some runs of this kind use
    shared: bool = False  # several processes may share its steps, each on a GPU


KINDS = {
    "given": Kind("kd.training.given", ("weights",)),
    "train": Kind("kd.training.with_data", ("training", "objective"), shared=True),
    "distill": Kind("kd.training.with_data", ("training", "objective", "teachers"), "correlations", shared=True),
    "datafree": Kind(
        "kd.training.datafree", ("teachers", "inversion", "replay", "distillation"), "synthetic", ("modulation",)
    ),
}
