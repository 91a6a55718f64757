"""Speed, memory and agreement of the CRD loss against a literal reference: python benchmarks/crd.py

A is kd.losses.crd.CRD; B follows the equations to the letter: it gathers a [B, K + 1, d] copy of each memory bank,
takes a batched product and lets autograd do the rest. One step is the draw of the negatives, the loss, its backward
and the update of the banks. Batch 64, K 16384, 128-d embeddings, banks of 50,000 rows, one thread.

Then whole training steps of the paper's pair resnet32x4 -> resnet8x4, cross entropy plus CRD or plus KD; and
the augmentation of a batch against torchvision's transforms of PIL images that are in memory already.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

if find_spec("kd") is None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from kd.batch import Batch, LossContext, Output
from kd.data.augment import Augment
from kd.losses.crd import CRD
from kd.losses.objective import Objective
from kd.models.build import build
from kd.runtime.torchvision_compat import import_torchvision
from kd.settings.shapes import Training
from kd.training.optimisers import sgd
from kd.training.step import train_step

BATCH, NEGATIVES, FEAT_DIM, SAMPLES, CLASSES = 64, 16384, 128, 50_000, 100
STUDENT_DIM, TEACHER_DIM = 64, 128
TAU, MOMENTUM = 0.07, 0.5
ROUNDS = 15
TEACHER, STUDENT, SIZE, STEP_ROUNDS = "resnet32x4", "resnet8x4", 32, 11
OBJECTIVES = {
    "kd": {"ce": {"weight": 0.1}, "kd": {"weight": 0.9, "temperature": 4.0}},
    "crd": {"ce": {"weight": 1.0}, "crd": {"weight": 0.8}},
}
SCHEDULE = Training(
    epochs=240,
    batch_size=BATCH,
    lr=0.05,
    schedule="steps",
    milestones=(),
    gamma=0.1,
    final_lr=0.0,
    momentum=0.9,
    nesterov=False,
    weight_decay=5e-4,
)
MEAN, STD = (0.507, 0.487, 0.441), (0.267, 0.256, 0.276)
BAR_SPEED, BAR_MEMORY, BAR_STEP, BAR_AUGMENT = 12, 100, 1.15, 5


class LiteralCRD:
    """The equations of CRD, written down directly; embeddings and banks are copied from a CRD so that both agree."""

    def __init__(self, crd: CRD, labels: Tensor, generator: torch.Generator, dtype: torch.dtype) -> None:
        def copy(tensor: Tensor) -> Tensor:
            return tensor.detach().to(dtype, copy=True)

        self.generator = generator
        self.labels = labels
        self.others = [(labels != k).nonzero().squeeze(1) for k in range(int(labels.max()) + 1)]
        self.parameters = [copy(p).requires_grad_() for p in crd.parameters()]
        self.student_bank, self.teacher_bank = copy(crd.student_bank), copy(crd.teacher_bank)
        self.student_z = self.teacher_z = None

    def draw(self, index: Tensor) -> Tensor:
        """Negatives of other classes, sample by sample: [B, K]."""
        rows = []
        for label in self.labels[index].tolist():
            pick = torch.randint(len(self.others[label]), (NEGATIVES,), generator=self.generator)
            rows.append(self.others[label][pick])
        return torch.stack(rows)

    def scores(self, anchor: Tensor, bank: Tensor, rows: Tensor) -> Tensor:
        """exp(dot / tau) of each anchor with its gathered bank rows: [B, K + 1]."""
        gathered = bank.index_select(0, rows.view(-1)).view(*rows.shape, FEAT_DIM)  # [B, K + 1, d]
        return torch.exp(torch.bmm(gathered, anchor[:, :, None]).squeeze(2) / TAU)

    def nce(self, scores: Tensor) -> Tensor:
        """- log(P_pos / (P_pos + m Pn + eps)) - sum log(m Pn / (P_neg + m Pn + eps)): [B]."""
        noise, eps = NEGATIVES / SAMPLES, 1e-7
        positive, negatives = scores[:, 0], scores[:, 1:]
        positive_term = torch.log(positive / (positive + noise + eps))
        negative_term = torch.log(noise / (negatives + noise + eps)).sum(1)
        return -(positive_term + negative_term)

    def __call__(self, student: Tensor, teacher: Tensor, index: Tensor, negatives: Tensor | None = None) -> Tensor:
        student_weight, student_bias, teacher_weight, teacher_bias = self.parameters
        s = F.normalize(student @ student_weight.T + student_bias)
        t = F.normalize(teacher @ teacher_weight.T + teacher_bias)
        rows = torch.cat([index[:, None], self.draw(index) if negatives is None else negatives], dim=1)
        student_scores = self.scores(s, self.teacher_bank, rows)
        teacher_scores = self.scores(t, self.student_bank, rows)
        if self.student_z is None:
            self.student_z = student_scores.mean().item() * SAMPLES
            self.teacher_z = teacher_scores.mean().item() * SAMPLES
        loss = self.nce(student_scores / self.student_z) + self.nce(teacher_scores / self.teacher_z)
        with torch.no_grad():
            for bank, embedding in ((self.student_bank, s), (self.teacher_bank, t)):
                bank[index] = F.normalize(MOMENTUM * bank[index] + (1 - MOMENTUM) * embedding)
        return loss


class Setting:
    """Both implementations on the same features, labels and first banks."""

    def __init__(self, literal_dtype: torch.dtype = torch.float32) -> None:
        self.generator = torch.Generator().manual_seed(0)
        labels = torch.arange(SAMPLES) % CLASSES
        context = LossContext(STUDENT_DIM, TEACHER_DIM, labels, CLASSES, self.generator)
        self.crd = CRD(context, feat_dim=FEAT_DIM, negatives=NEGATIVES, tau=TAU, momentum=MOMENTUM)
        self.literal = LiteralCRD(self.crd, labels, torch.Generator().manual_seed(0), literal_dtype)
        self.student = torch.randn(BATCH, STUDENT_DIM, generator=self.generator).relu()
        self.teacher = torch.randn(BATCH, TEACHER_DIM, generator=self.generator).relu()
        self.index = torch.randperm(SAMPLES, generator=self.generator)[:BATCH]
        self.batch = Batch(torch.empty(BATCH, 0), labels[self.index], self.index, torch.ones(BATCH))

    def fast(self) -> tuple[Tensor, list[Tensor]]:
        """One step of A: loss [B] and gradients of the student's feature and of all embeddings."""
        student = self.student.clone().requires_grad_()
        logits = torch.empty(BATCH, 0)
        loss = self.crd(Output(logits, student), Output(logits, self.teacher), self.batch)
        return loss.detach(), torch.autograd.grad(loss.mean(), [student, *self.crd.parameters()])

    def slow(self, negatives: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """One step of B, likewise."""
        dtype = self.literal.student_bank.dtype
        student = self.student.to(dtype, copy=True).requires_grad_()
        loss = self.literal(student, self.teacher.to(dtype), self.index, negatives)
        return loss.detach(), torch.autograd.grad(loss.mean(), [student, *self.literal.parameters])


def measure_time() -> tuple[list[float], list[float]]:
    """Seconds per step of A and B, interleaved after a warm-up."""
    setting = Setting()
    seconds: dict[str, list[float]] = {"fast": [], "slow": []}
    for round_ in range(-2, ROUNDS):
        for name in ("fast", "slow"):
            start = time.perf_counter()
            getattr(setting, name)()
            if round_ >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds["fast"], seconds["slow"]


def resident(key: str) -> float:
    """MiB of this process's resident memory: VmRSS now, VmHWM at its peak (getrusage's peak survives exec: no use)."""
    return (
        next(int(line.split()[1]) for line in Path("/proc/self/status").open(encoding="utf-8") if line.startswith(key))
        / 1024
    )


def extra_memory(name: str) -> float:
    """MiB by which five steps of `fast` or `slow` lift this process's peak above what it held before them."""
    setting = Setting()
    before = resident("VmRSS")
    for _ in range(5):
        getattr(setting, name)()
    return resident("VmHWM") - before


def extra_memory_of_fresh_process(name: str) -> float:
    command = [sys.executable, __file__, "--extra-memory", name]
    return json.loads(subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout)


def measure_agreement() -> list[tuple[str, float]]:
    """Largest relative differences of float32 A from float64 B on the same negatives, over two consecutive steps."""
    setting = Setting(torch.float64)
    worst = {"loss": 0.0, "gradient": 0.0, "student bank": 0.0, "teacher bank": 0.0}
    for _ in range(2):
        state = setting.generator.get_state()
        _, negatives = setting.crd.draw(setting.index)
        setting.generator.set_state(state)  # the step draws the same again
        loss, gradients = setting.fast()
        reference_loss, reference_gradients = setting.slow(negatives)
        for key, pairs in (
            ("loss", [(loss, reference_loss)]),
            ("gradient", list(zip(gradients, reference_gradients, strict=True))),
            ("student bank", [(setting.crd.student_bank, setting.literal.student_bank)]),
            ("teacher bank", [(setting.crd.teacher_bank, setting.literal.teacher_bank)]),
        ):
            worst[key] = max(worst[key], *(float((a - b).norm() / b.norm()) for a, b in pairs))
    return list(worst.items())


def measure_steps() -> dict[str, list[float]]:
    """Seconds per training step with KD and with CRD, interleaved after a warm-up: same teacher, same images."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    shape = {"num_classes": CLASSES, "in_channels": 3, "image_size": SIZE}
    teacher = build(TEACHER, **shape).eval().requires_grad_(False).to(memory_format=torch.channels_last)
    labels = torch.arange(SAMPLES) % CLASSES
    images = torch.randn(BATCH, 3, SIZE, SIZE, generator=generator).contiguous(memory_format=torch.channels_last)
    index = torch.randperm(SAMPLES, generator=generator)[:BATCH]
    batch = Batch(images, labels[index], index, torch.ones(BATCH))
    worlds = {}
    for name, terms in OBJECTIVES.items():
        student = build(STUDENT, **shape).train().to(memory_format=torch.channels_last)
        context = LossContext(
            student_dim=student.feature_dim,
            teacher_dim=teacher.feature_dim,
            labels=labels,
            num_classes=CLASSES,
            generator=generator,
            student_maps=student.map_shapes(),
            teacher_maps=teacher.map_shapes(),
            teacher=teacher,
        )
        objective = Objective(terms, context)
        worlds[name] = student, objective, sgd([student, objective], SCHEDULE)
    seconds: dict[str, list[float]] = {name: [] for name in worlds}
    for round_ in range(-2, STEP_ROUNDS):
        for name, (student, objective, optimizer) in worlds.items():
            start = time.perf_counter()
            train_step(student, teacher, objective, batch, optimizer, "float32")
            if round_ >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def measure_augmentation() -> tuple[list[float], list[float]]:
    """Seconds per batch, kd's and PIL's, interleaved: crop after padding by 4, flip, normalisation of 32x32 images."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (BATCH, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    augment = Augment(torch.tensor(MEAN), torch.tensor(STD), 4, True)
    transforms = import_torchvision().transforms
    moved = [transforms.RandomCrop(SIZE, padding=4), transforms.RandomHorizontalFlip()]
    one = transforms.Compose([*moved, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    seconds: tuple[list[float], list[float]] = ([], [])
    for round_ in range(-2, 4 * ROUNDS):
        for times, call in (
            (seconds[0], lambda: augment(images, generator)),
            (seconds[1], lambda: torch.stack([one(picture) for picture in pictures])),
        ):
            start = time.perf_counter()
            call()
            if round_ >= 0:
                times.append(time.perf_counter() - start)
    return seconds


def main() -> None:
    agreement = measure_agreement()
    fast, slow = (statistics.median(seconds) for seconds in measure_time())
    fast_memory, slow_memory = (extra_memory_of_fresh_process(name) for name in ("fast", "slow"))
    speed = slow / fast
    print(f"CRD: batch {BATCH}, K {NEGATIVES}, {FEAT_DIM}-d, banks of {SAMPLES:,}, one thread, median of {ROUNDS}\n")
    print(f"{'':24}{'A kd':>10}{'B literal':>12}{'ratio':>14}   bar")
    for quantity, a, b, ratio, bar, met in (
        ("step, ms", fast * 1e3, slow * 1e3, f"B/A {speed:.1f}", f">= {BAR_SPEED:g}", speed >= BAR_SPEED),
        (
            "extra peak memory, MiB",
            fast_memory,
            slow_memory,
            f"A/B {fast_memory / slow_memory:.3f}",
            f"A < {BAR_MEMORY} MiB",
            fast_memory < BAR_MEMORY,
        ),
    ):
        print(f"{quantity:24}{a:10.1f}{b:12.1f}{ratio:>14}   {bar} {'met' if met else 'MISSED'}")
    seconds = {name: statistics.median(values) for name, values in measure_steps().items()}
    ratio = seconds["crd"] / seconds["kd"]
    print(f"\ntraining step, {TEACHER} -> {STUDENT}, {SIZE}x{SIZE}, median of {STEP_ROUNDS}")
    print(f"  with KD {seconds['kd'] * 1e3:.0f} ms, with CRD {seconds['crd'] * 1e3:.0f} ms, ratio {ratio:.3f}", end="")
    print(f"   <= {BAR_STEP} {'met' if ratio <= BAR_STEP else 'MISSED'}")
    batched, pil = (statistics.median(times) for times in measure_augmentation())
    print(f"\naugmentation of {BATCH} images, median of {4 * ROUNDS}")
    print(f"  batched {batched * 1e3:.2f} ms, PIL {pil * 1e3:.2f} ms, ratio {pil / batched:.1f}", end="")
    print(f"   >= {BAR_AUGMENT} {'met' if pil / batched >= BAR_AUGMENT else 'MISSED'}")
    print("\nrelative difference, A in float32 from B in float64, same negatives, worst of two steps")
    for key, difference in agreement:
        print(f"  {key:22}{difference:12.1e}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["--extra-memory"]:
        print(json.dumps(extra_memory(sys.argv[2])))
    else:
        main()
