"""How fast kd's steps are on a GPU, and what each decision is worth there: python benchmarks/gpu_steps.py --out FOLDER

Each part is a question with a prediction that was written before, and a verdict where there is a bar; its answer is
appended to FOLDER/steps.json as it comes, so that a stopped run goes on, and all are printed. A part that fails says so
and does not hold up the others. It needs no data: random images cost the same. On a machine without a GPU the parts
run on its CPU, small ones with --miniature.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

if find_spec("kd") is None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.append(str(Path(__file__).resolve().parent))

import torch
from gpu_subjects import (
    Lesson,
    Size,
    World,
    as_runs_have_it,
    culprit,
    flops,
    literal_epoch_of,
    milliseconds,
    no_waiting,
    verdict,
    wait,
)
from PIL import Image

from kd.batch import Batch
from kd.data.augment import Augment
from kd.runtime.files import write_json
from kd.training.step import train_step

# --------------------------------------------------------------------------------------------------------------- parts


def ceiling(size: Size, device: torch.device) -> dict[str, Any]:
    """8192-cubed bf16 product. Prediction: 790 TFLOP/s on an H200."""
    a, b = (torch.randn(size.square, size.square, device=device).bfloat16() for _ in range(2))
    ms = milliseconds(lambda: a @ b, device, size.rounds)
    return {"ms": ms, "tflops": 2 * size.square**3 / ms / 1e9}


def precision(size: Size, device: torch.device) -> dict[str, Any]:
    """Student steps in float32 (tf32 convolutions) and bf16. Prediction: 1.0x for WRN, which the launches of its small
    kernels bound, and 2x for the ResNets."""
    answer = {}
    for pair in size.pairs:
        world = World(pair, size, device)
        needed = flops(world.step)
        for name in ("float32", "bf16"):
            ms = milliseconds(lambda world=world, name=name: world.step(name), device, size.rounds)
            answer[f"{' to '.join(pair)}, {name}"] = {"ms": ms, "tflops": needed / ms / 1e9}
    return answer


def teacher(size: Size, device: torch.device) -> dict[str, Any]:
    """The training of the WRN teacher: 120 epochs of 97 steps of 512 images. Prediction: 150 s in float32, which memory
    bounds, and 90 s in bf16. Bar: 180 s."""
    answer = {}
    for name in ("float32", "bf16"):
        lesson = Lesson((None, size.pairs[0][0]), size.taught, size, device)
        ms = milliseconds(lambda lesson=lesson, name=name: lesson.step(name), device, size.rounds)
        seconds = 120 * 97 * ms / 1e3
        answer[name] = {"ms": ms, "s": seconds, "bar": verdict(seconds < 180)}
    return answer


def algorithms(size: Size, device: torch.device) -> dict[str, Any]:
    """What cuDNN may choose from, bf16 steps: deterministic algorithms (as runs have it), all, all after trying them.
    Prediction: all no faster, tried ones 1.1x for the ResNets."""
    answer = {}
    cudnn = torch.backends.cudnn
    try:
        for pair in size.pairs:
            for name, choice in (("deterministic", (True, False)), ("all", (False, False)), ("tried", (False, True))):
                cudnn.deterministic, cudnn.benchmark = choice
                world = World(pair, size, device)
                ms = milliseconds(lambda world=world: world.step("bf16"), device, size.rounds)
                answer[f"{' to '.join(pair)}, {name}"] = {"ms": ms}
    finally:
        as_runs_have_it()
    return answer


def memory_format(size: Size, device: torch.device) -> dict[str, Any]:
    """channels_last against contiguous, bf16 steps. Prediction: 1.3x for the ResNets, nothing for WRN."""
    answer = {}
    for pair in size.pairs:
        for name, form in (("channels_last", torch.channels_last), ("contiguous", torch.contiguous_format)):
            world = World(pair, size, device, form)
            world.augment = _in_format(world.augment, form)
            ms = milliseconds(lambda world=world: world.step("bf16"), device, size.rounds)
            answer[f"{' to '.join(pair)}, {name}"] = {"ms": ms}
    return answer


def _in_format(augment: Augment, form: Any) -> Any:
    """Undo the channels_last of kd's augmentation."""
    return lambda images, generator: augment(images, generator).contiguous(memory_format=form)


def compiled(size: Size, device: torch.device) -> dict[str, Any]:
    """torch.compile of both networks. Prediction: 1.5x for WRN, 1.1x for the ResNets, and 60 s to compile, which runs
    of a minute do not earn back."""
    answer: dict[str, Any] = {}
    for pair in size.pairs:
        world = World(pair, size, device)
        eager = milliseconds(lambda world=world: world.step("bf16"), device, size.rounds)
        start = time.perf_counter()
        try:
            world.teacher.compile()
            world.student.compile()
            world.step("bf16")
            wait(device)
        except Exception as error:  # any: no compiler, an operator that it does not know
            answer[" to ".join(pair)] = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"}
            continue
        took = time.perf_counter() - start
        ms = milliseconds(lambda world=world: world.step("bf16"), device, size.rounds)
        answer[" to ".join(pair)] = {"eager_ms": eager, "ms": ms, "ratio": eager / ms, "compile_s": took}
    return answer


def graphs(size: Size, device: torch.device) -> dict[str, Any]:
    """A student step captured in a CUDA graph and replayed. Prediction: 2.5x for WRN, 1.1x for the ResNets."""
    if device.type != "cuda":
        return {"not measured": "there are no CUDA graphs on a CPU"}
    answer: dict[str, Any] = {}
    for pair in size.pairs:
        world = World(pair, size, device)
        batch = world.batch()

        def step(world: World = world, batch: Batch = batch) -> None:
            train_step(world.student, world.teacher, world.objective, batch, world.optimizer, "bf16")

        eager = milliseconds(step, device, size.rounds)
        try:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):
                    step()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                step()
        except RuntimeError as error:  # an operator that cannot be captured
            answer[" to ".join(pair)] = {"failed": str(error).splitlines()[0][:120]}
            continue
        ms = milliseconds(graph.replay, device, size.rounds)
        answer[" to ".join(pair)] = {"eager_ms": eager, "ms": ms, "ratio": eager / ms}
    return answer


def optimisers(size: Size, device: torch.device) -> dict[str, Any]:
    """SGD's own step, fused against foreach. Prediction: 2x, of a tenth of the step."""
    world = World(size.pairs[0], size, device)
    world.step()
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}
    parameters = list(world.student.parameters())
    answer = {}
    for name in ("fused", "foreach"):
        optimizer = torch.optim.SGD(parameters, **options, **{name: True})
        answer[name] = {"ms": milliseconds(optimizer.step, device, size.rounds)}
    return answer


def literal_epoch(size: Size, device: torch.device) -> dict[str, Any]:
    """An epoch against the reference's way: hooks in all passes, PNG files, a value to the host at each step.
    Prediction: 6x. Bar: 5x."""
    pair = size.pairs[0]
    world = World(pair, size, device)
    a = milliseconds(world.epoch, device, 3)
    literal = World(pair, size, device, torch.contiguous_format)
    with tempfile.TemporaryDirectory() as folder:
        for number, image in enumerate(literal.buffer.images.cpu()):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(Path(folder, f"{number:05}.png"))
        epoch = literal_epoch_of(literal, Path(folder), device)
        b = milliseconds(epoch, device, 3, warm_up=1)  # of seconds each
    return {"kd_ms": a, "literal_ms": b, "ratio": b / a, "bar": verdict(b / a >= 5)}


def synchronisations(size: Size, device: torch.device) -> dict[str, Any]:
    """Does anything in an epoch wait for the device? Prediction and bar: nothing."""
    loops = {" to ".join(pair): World(pair, size, device).epoch for pair in size.pairs}
    loops["training"] = Lesson((None, size.pairs[0][0]), 64, size, device).step
    loops["CRD"] = Lesson(size.pairs[0], 64, size, device).step
    answer = {}
    for name, loop in loops.items():
        loop()
        try:
            with no_waiting(device):
                loop()
            answer[name] = {"waits": "none, met" if device.type == "cuda" else "not known on a CPU"}
        except RuntimeError as error:
            answer[name] = {"waits": f"MISSED: {str(error).splitlines()[0][:120]} in {culprit(error)}"}
    return answer


def utilisation(size: Size, device: torch.device) -> dict[str, Any]:
    """An epoch in bf16 as a share of the measured bf16 rate. Prediction: ResNets 35 %, WRN 4 %. Bar: 30 % for the
    ResNets."""
    peak = ceiling(size, device)["tflops"]
    answer = {}
    for pair in size.pairs:
        world = World(pair, size, device)
        needed = flops(lambda world=world: world.epoch("bf16"))
        ms = milliseconds(lambda world=world: world.epoch("bf16"), device, 5, warm_up=1)
        rate = needed / ms / 1e9
        answer[" to ".join(pair)] = {"ms": ms, "pflop": needed / 1e15, "tflops": rate, "share": rate / peak}
    answer[" to ".join(size.pairs[-1])]["bar"] = verdict(rate / peak >= 0.3)
    return answer


def profile(size: Size, device: torch.device) -> dict[str, Any]:
    """Where an epoch's time goes: the operators that take the most. Prediction: convolutions 70 % for the ResNets; for
    WRN the host, which launches kernels of a few microseconds."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    answer = {}
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    key = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    for pair in size.pairs:
        world = World(pair, size, device)
        world.epoch("bf16")
        wait(device)
        start = time.perf_counter()
        with profiled(activities=activities) as found:
            world.epoch("bf16")
            wait(device)
        events = sorted(found.key_averages(), key=lambda event: -getattr(event, key))[:12]
        total = 1e6 * (time.perf_counter() - start)
        answer[" to ".join(pair)] = {event.key[:60]: f"{100 * getattr(event, key) / total:.1f} %" for event in events}
    return answer


# In the order of their worth; what takes minutes (to compile) comes last.
PARTS = (ceiling, utilisation, precision, teacher, synchronisations, literal_epoch, profile, graphs)
PARTS += (memory_format, algorithms, optimisers, compiled)


def measure(out: Path, until: float, miniature: bool, device: str = "auto") -> None:
    """Measure all parts that steps.json lacks, while there is time."""
    chosen = torch.device("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else torch.device(device)
    as_runs_have_it()
    size, file = Size(miniature), out / "steps.json"
    answers = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    name = torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else "cpu"
    for part in PARTS:
        missing = "failed" in answers.get(part.__name__, {"failed": "not asked yet"})
        if missing and time.monotonic() < until:
            start = time.monotonic()
            try:
                found = part(size, chosen)
            except Exception as error:  # a part is no reason to lose the minutes of the others
                traceback.print_exc()
                found = {"failed": f"{type(error).__name__}: {error}"[:200]}
            took = round(time.monotonic() - start, 1)
            answers[part.__name__] = {"device": name, "torch": torch.__version__, "took_s": took, **found}
            write_json(file, answers)
            print(markdown({part.__name__: answers[part.__name__]}), flush=True)
    if chosen.type == "cuda":
        torch.cuda.empty_cache()


def markdown(answers: dict[str, Any]) -> str:
    lines = []
    for part in PARTS:
        if part.__name__ in answers:
            found = dict(answers[part.__name__])
            lines += [f"**{part.__name__}** ({found.pop('device')}, torch {found.pop('torch')}). {_prose(part)}", ""]
            lines += [f"- {key}: {_shown(value)}" for key, value in found.items()] + [""]
    return "\n".join(lines)


def _prose(part: Callable) -> str:
    return " ".join(part.__doc__.split())


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(item)}" for key, item in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--out", type=Path, default=Path("results/gpu-evidence"))
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--miniature", action="store_true")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    measure(options.out, time.monotonic() + 60 * options.minutes, options.miniature, options.device)


if __name__ == "__main__":
    main()
