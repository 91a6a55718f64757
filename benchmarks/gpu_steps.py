"""How fast kd's steps are on a GPU: python benchmarks/gpu_steps.py --out FOLDER [--compiled]

What is timed is kd's own code: the loops of kd.training with their steppers, on random images, which cost the same.
Each part is a question. Its sentence says the bar, for one NVIDIA H200, and what a prototype of captured steps took
there in November 2026 (torch 2.11); its answer is appended to FOLDER/steps.json as it comes, so that a stopped run
goes on, and all are printed. A part that fails says so and does not hold up the others.

All parts but the compiled one are made to take 30 s in all on an H200: what one has captured, the next ones replay.
Without a GPU they run on the CPU, as plain steps; small ones with --miniature.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
import traceback
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

if find_spec("kd") is None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.append(str(Path(__file__).resolve().parent))

import gpu_networks
import torch
from gpu_clock import flops, kernels, milliseconds
from gpu_subjects import (
    SCALE,
    STEP,
    Lab,
    Size,
    Watching,
    captured,
    difference,
    epoch,
    literal_epoch_of,
    one_by_one,
    plain_and_captured,
)

from kd.runtime.files import write_json
from kd.training.stepper import Request

PRECISIONS = ("bf16", "float32")


def ceiling(lab: Lab) -> dict[str, Any]:
    """bf16 product of 8192-cubed matrices, the rate that steps are compared with. Measured: 736 TFLOP/s."""
    square = lab.size.square
    a, b = (torch.randn(square, square, device=lab.device).bfloat16() for _ in range(2))
    ms = milliseconds(lambda: a @ b, lab.clock())
    lab.rate = 2 * square**3 / ms / 1e9
    return {"ms": ms, "tflops": lab.rate}


def steps(lab: Lab) -> dict[str, Any]:
    """A student step of SSD-KD, 256 images. Bars in bf16: WRN 3.3 ms, ResNet 6.0 ms and 35 % of the bf16 rate.
    Measured in bf16 (float32): WRN 4.06 (5.6), compiled 3.28; ResNet 7.64 (11.6), compiled 6.05."""
    answer = {}
    for pair, bar in zip(lab.size.pairs, (3.3, 6.0), strict=False):
        for precision in PRECISIONS:
            one = lab.distillation(pair, precision)
            found = plain_and_captured(lab, one.stepper, STEP, one._step)
            tflops = flops(one._step) / found["ms"] / 1e9
            found |= {"tflops": tflops, "share": tflops / rate(lab)}
            if precision == "bf16":
                found |= judged(lab, found["ms"], bar)
            answer[f"{' to '.join(pair)}, {precision}"] = found
    share = answer[f"{' to '.join(lab.size.pairs[-1])}, bf16"]["share"]
    return {**answer, "share of the bf16 rate": judged(lab, share, 0.35, at_least=True)}


def inversion(lab: Lab) -> dict[str, Any]:
    """An epoch's inversion, 5 generator steps on 256 images, with and without the adversary. Bars: 60 ms for
    WRN-40-2, 90 ms for ResNet-34. Measured in float32: 88 and 130 ms (one by one 268 and 278)."""
    answer = {}
    for pair, bar in zip(lab.size.pairs, (60, 90), strict=False):
        for precision in PRECISIONS:
            one = lab.distillation(pair, precision)
            without = [(-2, "without")] * (precision == "bf16" and pair == lab.size.pairs[0])  # it costs most
            for learned, name in [(1, "with the adversary"), *without]:
                call = partial(one.source.batch, learned, one.student, one.buffer)
                ms = milliseconds(call, lab.clock(2, 1, warm_up=1))
                step = "inversion step" + (" with the adversary" if learned > 0 else "")
                found = {"ms": ms, "captured": captured(one.stepper, step)} | judged(lab, ms, bar)
                answer[f"{pair[0]}, {precision}, {name}"] = found
    return answer


def epochs(lab: Lab) -> dict[str, Any]:
    """An epoch of SSD-KD, inversion and 40 steps; for WRN against the reference's way: hooks in all passes, PNG files,
    a value to the host at each step. Bar: 15 times as fast. Measured: 5.9 times, launched one by one. A whole run has
    45 s (ResNet 85 s) from start to record; its 200 epochs take what is shown."""
    answer, wrn = {}, lab.size.pairs[0]
    with tempfile.TemporaryDirectory() as folder:
        literal = literal_epoch_of(lab, Path(folder))
        literal(2)  # not counted
        one = lab.distillation(wrn, "float32")
        reference = milliseconds(partial(literal, one.steps), lab.clock(1, 1, warm_up=0))
    with one_by_one(one.stepper):
        plain = milliseconds(partial(epoch, one), lab.clock(1, 1, warm_up=0))
    answer = {"reference": {"ms": reference}, "one by one, float32": {"ms": plain, "ratio": reference / plain}}
    for pair, precision in [(wrn, "float32"), *((pair, "bf16") for pair in lab.size.pairs)]:
        one = lab.distillation(pair, precision)
        ms = milliseconds(partial(epoch, one), lab.clock(2, 1, warm_up=1))
        found = {"ms": ms, "s_of_200": 200 * ms / 1e3, "captured": captured(one.stepper, STEP)}
        if pair == wrn:
            found |= {"ratio": reference / ms} | judged(lab, reference / ms, 15, at_least=True)
        answer[f"{' to '.join(pair)}, {precision}"] = found
    return answer


def crd(lab: Lab) -> dict[str, Any]:
    """A step of CRD, WRN-40-2 to WRN-16-2, 64 images, 16,384 negatives, banks of 50,000. Bar: 2.5 ms. Measured:
    float32 3.19, bf16 2.69 (one by one 23.5 and 24.8)."""
    answer = {}
    for precision in PRECISIONS:
        run = lab.run("crd", lab.size.crd_pair, precision)
        ms, how = with_data(lab, [run])
        answer[precision] = {"ms": ms, "captured": how} | judged(lab, ms, 2.5)
    return answer


def teacher_training(lab: Lab) -> dict[str, Any]:
    """The WRN-40-2 teacher: 120 epochs of 97 steps of 512 images. Bar: 110 s. Measured: float32 235 s, bf16 144 s
    (one by one 280 and 209)."""
    answer = {}
    for precision in PRECISIONS:
        (run,) = lab.run("ssdkd", lab.size.pairs[0], precision).teachers
        ms, how = with_data(lab, [run])
        seconds = 120 * 97 * ms / 1e3
        answer[precision] = {"ms": ms, "s": seconds, "captured": how} | judged(lab, seconds, 110)
    return answer


def together(lab: Lab) -> dict[str, Any]:
    """SSD-KD students of one process, WRN in bf16, a graph for all, ms per student. Bar: four at 2.2 ms. Measured:
    1, 2, 4, 8 at 4.06, 3.12, 2.64, 2.59."""
    answer = {}
    for count in (1, 2, 4):
        some = [lab.distillation(lab.size.pairs[0], "bf16", seed) for seed in range(count)]

        def go_on(some: list[Any] = some) -> None:
            for error in lab.graphs.run([Request(one.stepper, STEP, one._step) for one in some]):
                if error is not None:
                    raise error

        ms = milliseconds(go_on, lab.clock()) / count
        answer[f"{count}"] = {"ms": ms, "captured": captured(some[0].stepper, STEP, count)}
    answer["4"] |= judged(lab, ms, 2.2)
    return answer


def together_with_data(lab: Lab) -> dict[str, Any]:
    """KD students of one process on the same batches of 64, WRN in bf16: the teacher answers once for all. ms per
    student, of their whole loops in turns; no bar, not measured before."""
    answer = {}
    for count in (1, 2, 4):
        terms = [{"kd": {"temperature": 2.0 + number}} for number in range(count)]
        runs = [lab.run("kd", lab.size.pairs[0], "bf16", objective=term) for term in terms]
        ms, how = with_data(lab, runs)
        answer[f"{count}"] = {"ms": ms / count, "captured": how}
    return answer


def waits(lab: Lab) -> dict[str, Any]:
    """Does anything in the loops wait for the device, with steps launched one by one? Bar: nothing. Measured:
    nothing."""
    found = {}
    for pair in lab.size.pairs:
        few = {"distillation": {"passes": 4 * lab.size.batch / (SCALE * lab.size.images)}}
        one = lab.new_distillation(pair, "bf16", 0, "off", **few)
        watching = one.journal = Watching(lab.device, one.journal.counts)
        for _ in range(2):
            epoch(one)
        found[" to ".join(pair)] = watching.waits
    for method in ("scratch", "kd", "crd"):
        few = {"scale": 4 * lab.size.with_data / lab.size.images, "training": {"epochs": 2}}
        watching = Watching(lab.device)
        lab.with_data([lab.run(method, lab.size.crd_pair, "bf16", **few)], None, "off", watching)
        found[method] = watching.waits
    if lab.device.type != "cuda":
        return dict.fromkeys(found, "not known on a CPU")
    return {name: f"MISSED: {', '.join(sorted(set(at)))[:200]}" if at else "none, met" for name, at in found.items()}


def same_numbers(lab: Lab) -> dict[str, Any]:
    """Do 8 captured steps leave the weights that 8 plain ones leave? Bar: the same bytes. Measured in whole runs only:
    metrics.json of a small run was the same."""
    answer = {}
    for precision in PRECISIONS:
        students = []
        for capture in ("off", "auto"):
            one = lab.new_distillation(lab.size.pairs[0], precision, 0, capture)
            for _ in range(8):
                one.stepper.run(STEP, one._step)
            run = lab.run("crd", lab.size.crd_pair, precision)
            (student,), (stepper,) = lab.with_data([run], lab.clock(1, 8, warm_up=0), capture)
            students.append((one.student, student))
            steppers = one.stepper, stepper
        hows = captured(steppers[0], STEP), captured(steppers[1], "step")
        for what, plain, replayed, how in zip(("SSD-KD", "CRD"), *students, hows, strict=True):
            same, largest = difference(plain, replayed)
            found = {"difference": largest, "captured": how} | verdict(lab, same, "the same bytes")
            answer[f"{what}, {precision}"] = found
    return answer


def kernels_by_kind(lab: Lab) -> dict[str, Any]:
    """Where the GPU's time goes in one captured bf16 step: shares of the kernels' own summed time, which the profiler
    does not change. Measured: BatchNorm, elementwise kernels and copies are more than half; 7.5 ms for ResNet."""
    answer = {}
    for pair in lab.size.pairs:
        one = lab.distillation(pair, "bf16")
        milliseconds(partial(one.stepper.run, STEP, one._step), lab.clock(1, 1))  # captured, if no other part did it
        found = kernels(partial(one.stepper.run, STEP, one._step), lab.device)
        answer[" to ".join(pair)] = {"captured": captured(one.stepper, STEP), **found}
    return answer


def compiled(lab: Lab) -> dict[str, Any]:
    """A student step in bf16 with both networks compiled (compute.compile: on), then captured. Bars: WRN 3.3 ms, ResNet
    6.0 ms. Measured: 3.28 after 33 s of compiling, 6.05 after 28 s."""
    answer = {}
    for pair, bar in zip(lab.size.pairs, (3.3, 6.0), strict=False):
        one = lab.new_distillation(pair, "bf16", 0, "auto")
        one.stepper.compile = "on"
        one.compile()
        ms = milliseconds(partial(one.stepper.run, STEP, one._step), lab.clock())
        found = {"ms": ms, "captured": captured(one.stepper, STEP), "compiled": " ".join(one.stepper.compiled) or "no"}
        found |= {"compile_s": one.journal.seconds["compiling"]}
        answer[" to ".join(pair)] = found | judged(lab, ms, bar)
    return answer


def candidates(lab: Lab) -> dict[str, Any]:
    """A captured bf16 step with one thing changed in a network (benchmarks/gpu_networks.py). Predictions stand in
    docs/gpu.md: -0.1 to +0.5 ms each."""
    answer = {}
    teachers = {"folded teacher": gpu_networks.folded, "teacher cast once": gpu_networks.cast_once}
    norms = {"BatchNorm in float16": gpu_networks.HalfBatchNorm, "BatchNorm in float32": gpu_networks.FullBatchNorm}
    for pair in lab.size.pairs:
        for name in ("as it is", *teachers, *norms):
            change = partial(gpu_networks.with_batchnorm, kind=norms.get(name, torch.nn.BatchNorm2d))
            one = lab.new_distillation(pair, "bf16", 0, "auto", change=change)
            one.networks = one.student, teachers.get(name, lambda teacher: teacher)(one.teacher)
            ms = milliseconds(partial(one.stepper.run, STEP, one._step), lab.clock())
            answer[f"{' to '.join(pair)}, {name}"] = {"ms": ms, "captured": captured(one.stepper, STEP)}
    return answer


# In the order of their worth; only on request what takes half a minute for each network.
PARTS = (ceiling, steps, inversion, together, epochs, crd, teacher_training, same_numbers, waits, kernels_by_kind)
PARTS += (together_with_data,)
ON_REQUEST = (candidates, compiled)


def with_data(lab: Lab, runs: list[Any]) -> tuple[float, str]:
    """Return the time in which loops with data, together, do one step each, in ms, and whether these were captured."""
    clock = lab.clock()
    _, steppers = lab.with_data(runs, clock)
    return clock.milliseconds, captured(steppers[0], "step", len(runs))


def rate(lab: Lab) -> float:
    """Return the bf16 rate in TFLOP/s, measured once per call of this script."""
    return ceiling(lab)["tflops"] if lab.rate != lab.rate else lab.rate


def judged(lab: Lab, value: float, bar: float, at_least: bool = False) -> dict[str, str]:
    return verdict(lab, value >= bar if at_least else value <= bar, f"{'>=' if at_least else '<='} {bar:g}")


def verdict(lab: Lab, met: bool, bar: str) -> dict[str, str]:
    """Return whether a bar is met; bars are for GPUs."""
    return {f"bar {bar}": "no bar for a CPU" if lab.device.type != "cuda" else "met" if met else "MISSED"}


def measure(out: Path, until: float, miniature: bool, device: str = "auto", asked: tuple = ()) -> None:
    """Measure all parts that steps.json lacks and those that are asked for, while there is time."""
    chosen = torch.device("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else torch.device(device)
    name = "cpu"
    if chosen.type == "cuda":
        chosen = torch.device("cuda", chosen.index or 0)
        torch.cuda.set_device(chosen)
        name = torch.cuda.get_device_name(chosen)
    torch.set_num_threads(1)
    file = out / "steps.json"
    answers = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    lab, seconds = None, 0.0
    for part in (*PARTS, *asked):
        missing = "failed" in answers.get(part.__name__, {"failed": "not asked yet"})
        if missing and time.monotonic() < until:
            start = time.monotonic()
            lab = lab or Lab(Size(miniature), chosen)
            try:
                found = part(lab)
            except Exception as error:  # a part is no reason to lose the minutes of the others
                traceback.print_exc()
                found = {"failed": f"{type(error).__name__}: {error}"[:200]}
            took = round(time.monotonic() - start, 1)
            seconds += took
            answers[part.__name__] = {"device": name, "torch": torch.__version__, "took_s": took, **found}
            write_json(file, answers)
            print(markdown({part.__name__: answers[part.__name__]}), flush=True)
            gc.collect()  # graphs and their runs know each other
    print(f"{seconds:.1f} s in all\n", flush=True)
    del lab
    if chosen.type == "cuda":
        torch.cuda.empty_cache()


def markdown(answers: dict[str, Any]) -> str:
    lines = []
    for part in PARTS + ON_REQUEST:
        if part.__name__ in answers:
            found = dict(answers[part.__name__])
            prose = " ".join(part.__doc__.split())
            lines += [f"**{part.__name__}** ({found.pop('device')}, torch {found.pop('torch')}). {prose}", ""]
            lines += [f"- {key}: {_shown(value)}" for key, value in found.items()] + [""]
    return "\n".join(lines)


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
    parser.add_argument("--compiled", action="store_true", help="changed and compiled networks, too; takes minutes")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + 60 * options.minutes
    measure(options.out, until, options.miniature, options.device, ON_REQUEST * options.compiled)


if __name__ == "__main__":
    main()
