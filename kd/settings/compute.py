"""How a run is computed: settings that are no part of its identity. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from kd.registry.kinds import KINDS
from kd.settings.fields import setting


@dataclass(frozen=True, kw_only=True)
class Compute:
    """How a run is computed; no part of its identity."""

    device: str = setting(
        "auto", "auto: a GPU if there is one; or cpu, cuda, cuda:1, ...", pattern="^(auto|cpu|cuda|cuda:[0-9]+)$"
    )
    threads: int = setting(1, "CPU threads per job", at_least=1)
    workers: int = setting(
        4,
        "processes that decode the images of dataset.stream, for each process of a run, on cores of their own; "
        "0: the run itself does",
        at_least=0,
        at_most=256,
    )
    capture: Literal["auto", "off"] = setting(
        "auto", "auto: on a GPU, a whole step is captured in a CUDA graph and replayed; off: steps run as they are"
    )
    compile: Literal["auto", "on", "off"] = setting(
        "auto",
        "torch.compile for the networks of the student's step, on a GPU; auto: where a run is long enough for it",
    )
    checkpoint_seconds: float = setting(60, "how often a running job saves its state", above=0)
    freeze_code: bool = setting(False, "true: finished runs are kept although kd's code has changed since")
    pretrained: bool = setting(True, "use a teacher of the same settings that is kept in results/reference/teachers")
    stage: str = setting(
        "", "folder on a machine's own disk where runs keep a copy of their data, such as $TMPDIR; empty: no copy"
    )
    download: bool = setting(True, "data sets that are not there may be downloaded, to results/data/downloads")
    slots_per_gpu: int = setting(
        1,
        "training jobs that share one GPU: they take turns, 2 overlap start-up and host work, more gain nothing",
        at_least=1,
        at_most=64,
    )
    gpu: int = setting(
        1, "GPUs of a training job; several share each step of a run with data (docs/gpu.md)", at_least=0, at_most=64
    )
    mem_mb: int = setting(3000, "memory of a training job, for SLURM and --resources mem_mb=...", at_least=1)
    runtime: int = setting(240, "minutes of a training job, for SLURM; times the number of the attempt", at_least=1)

    @property
    def gpus(self) -> int:
        """GPU slots that a training job asks for; none where it runs on the CPU."""
        return 0 if self.device == "cpu" else self.gpu

    def for_kind(self, kind: str) -> Compute:
        """Return the settings of a run of this kind: one whose steps cannot be shared asks for one GPU at most."""
        return self if KINDS[kind].shared else replace(self, gpu=min(self.gpu, 1))

    @property
    def processes(self) -> int:
        """Processes that share a run's steps, each on a device of its own."""
        return max(1, self.gpu)

    def cores(self, stream: bool) -> int:
        """Return the CPU cores that a training job asks for; `stream`: whether it decodes images while it learns."""
        return self.processes * (self.threads + (self.workers if stream else 0))

    @classmethod
    def by_hand(cls, **given: Any) -> Compute:
        """Return settings for a run by hand; only Snakemake reads gpu, mem_mb and runtime."""
        return cls(**{item.name: item.metadata["default"] for item in fields(cls)} | given)
