"""Every distiller in a whole run, first stages, ensembles and views, at tiny size."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import COMPUTE, ROOT, execute, tiny_run
from PIL import Image
from torch import nn

from kd.batch import Batch, LossContext, Output
from kd.data import views
from kd.data.augment import Augment
from kd.data.prepare import prepare
from kd.data.raw import Source
from kd.losses.base import Loss
from kd.losses.objective import EnsembleObjective, Objective
from kd.models.build import build
from kd.models.classifier import Classifier, Ensemble, Reusing
from kd.registry.losses import LOSSES
from kd.runs.run import run_step
from kd.runtime.checkpoint import Checkpoint, Stopped
from kd.runtime.files import read_json
from kd.runtime.messages import ConfigError
from kd.runtime.yaml_files import read_yaml
from kd.settings.run import Run, slug
from kd.training.step import train_step

METHODS = {
    name: method
    for name, method in read_yaml(ROOT / "config/config.yaml")["methods"].items()
    if method["kind"] == "distill"
}
QUICK = {"training__epochs": 1, "scale": 0.1}


def quick(method: str, seed: int = 0, **changes):
    """One epoch on a tenth of the digits, teacher and student of equal widths; one epoch of a first stage."""
    for loss in ("ab", "ft", "fsp"):
        if loss in METHODS[method]["objective"]:
            changes.setdefault(f"objective__{loss}__first_epochs", 1)
    return tiny_run(method, seed, **{"teacher__model": "wrn_10_1", **QUICK, **changes})


def with_teachers(run: Run, store: Path, folder: Path) -> dict[str, float]:
    """The run, once its teachers are there."""
    for teacher in run.teachers:
        execute(teacher, store, store / teacher.path)  # at once, where it is complete
    return execute(run, store, folder)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_with_data_makes_a_run(method: str, store: Path, tmp_path: Path) -> None:
    run = quick(method)
    metrics = with_teachers(run, store, tmp_path)
    assert metrics["teacher_accuracy"] > 50
    history = pd.read_csv(tmp_path / "history.csv")
    assert len(history) == 1 + any(loss in run.objective for loss in ("ab", "ft", "fsp"))
    assert history["loss"].notna().all()
    assert ("crd_bound" in history) == ("crd" in run.objective)


def test_a_first_stage_comes_before_the_schedule_and_learns_apart(store: Path, tmp_path: Path, monkeypatch) -> None:
    """FT's paraphraser learns in the first stage alone, the student and the translator in the second alone."""
    seen: list[tuple[float, dict, dict]] = []
    original = Checkpoint.stop_or_save

    def watch(self: Checkpoint, parts: dict) -> None:
        copied = [
            {name: value.clone() for name, value in parts[part].named_parameters()} for part in ("student", "objective")
        ]
        seen.append((parts["optimizer"].param_groups[0]["lr"], *copied))
        original(self, parts)

    monkeypatch.setattr(Checkpoint, "stop_or_save", watch)
    run = quick("ft", objective__ft__first_epochs=2, objective__ft__first_lr=0.003)
    with_teachers(run, store, tmp_path)
    seen = seen[-3 * 2 :]
    steps = len(seen) // 3
    assert [lr for lr, _, _ in seen] == [0.003] * 2 * steps + [0.1] * steps
    start, boundary = seen[0], seen[2 * steps]

    def moved(before: dict, after: dict) -> set[str]:
        return {name.split(".")[1] for name in before if not torch.equal(before[name], after[name])}

    assert moved(start[1], boundary[1]) == set(), "the student has no part in the first stage"
    assert moved(start[2], boundary[2]) == {"encoder", "decoder"}
    assert moved(boundary[2], seen[-1][2]) == {"translator"}
    assert any(not torch.equal(value, seen[-1][1][name]) for name, value in boundary[1].items())


STAGES, RISING = ("ab", {"objective__ab__first_epochs": 2}), ("dkd", {"objective__dkd__warmup": 3})


@pytest.mark.parametrize(
    ("method", "changes", "stop_at"),
    [  # in the first stage, at its end, after it (two steps an epoch); while a weight rises; beside layers of its own
        *((*STAGES, step) for step in (3, 4, 6)),
        (*RISING, 3),
        ("simkd", {}, 3),
        ("reviewkd", {}, 3),
    ],
)
def test_a_run_in_stages_resumes_exactly(method, changes, stop_at, store: Path, tmp_path: Path, monkeypatch) -> None:
    run = quick(method, training__epochs=2, **changes)
    with_teachers(run, store, tmp_path / "whole")
    original, calls = Checkpoint.stop_or_save, []

    def stop(self: Checkpoint, parts: dict) -> None:
        calls.append(True)
        if len(calls) == stop_at:
            self.stopping = 15
        original(self, parts)

    monkeypatch.setattr(Checkpoint, "stop_or_save", stop)
    with pytest.raises(Stopped):
        execute(run, store, tmp_path / "killed")
    monkeypatch.setattr(Checkpoint, "stop_or_save", original)
    execute(run, store, tmp_path / "killed")
    for name in ("metrics.json", "history.csv"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()


def test_what_a_loss_refuses_in_a_job_is_said_in_one_line_with_its_name() -> None:
    shapes = ((4, 2, 2),) * 3
    context = LossContext(4, 4, torch.zeros(5, dtype=torch.int64), 2, torch.Generator(), shapes, shapes)
    with pytest.raises(ConfigError, match=r"^objective\.crd: negatives_from: other_classes finds no negatives: .*$"):
        Objective({"crd": {"weight": 1.0}}, context)
    with pytest.raises(ConfigError, match=r"^objective\.fitnet: no layer 3 among 3 maps .*$"):
        Objective({"fitnet": {"weight": 1.0, "layer": 3}}, context)
    with pytest.raises(ConfigError, match=r"^objective\.kdsvd: .* has no 9 singular vectors; choose a smaller k$"):
        Objective({"kdsvd": {"weight": 1.0, "k": 9}}, context)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_losses_that_make_the_student_another_network_have_one_teacher(name: str) -> None:
    module, attribute = LOSSES[name].code.split(":")
    loss = getattr(importlib.import_module(module), attribute)
    assert (isinstance(loss, type) and loss.adopt is not Loss.adopt) == LOSSES[name].one_teacher


def test_a_weight_rises_in_a_straight_line_from_the_end_of_the_first_stage() -> None:
    objective = Objective({"ce": {"weight": 2.0}, "kd": {"weight": 8.0, "temperature": 1.0, "warmup": 4}}, None)
    student, teacher = (Output(torch.randn(3, 5), torch.zeros(3, 0)) for _ in range(2))
    batch = Batch(torch.zeros(3), torch.tensor([0, 1, 2]), torch.arange(3), torch.ones(3))
    p, q = (output.logits.softmax(1) for output in (teacher, student))
    ce, kd = -q[torch.arange(3), batch.labels].log(), (p * (p / q).log()).sum(1)
    for epoch, weight in enumerate([2.0, 4.0, 6.0, 8.0, 8.0]):
        objective.begin(epoch)
        torch.testing.assert_close(objective(student, teacher, batch), 2 * ce + weight * kd)
    objective.losses["kd"].first_epochs = 3
    objective.begin(4)
    assert objective.weight("kd") == 4.0


# --------------------------------------------------------------------------------------------------------- signed maps


class Small(Classifier):
    """A user's network, which has nothing but `stages`."""

    def __init__(self):
        super().__init__(in_channels=3, image_size=8)
        self.stem, self.body = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, 2, padding=1)
        self.head = nn.Linear(6, 3)

    def stages(self, images):
        stem = self.stem(images).relu()
        return [stem, self.body(stem).relu()]


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("name", ["ab", "reviewkd", "at"])
def test_a_network_with_stages_alone_learns_and_is_asked_for_signed_maps_where_a_loss_wants_them(name, several) -> None:
    torch.manual_seed(0)
    student, teacher = Small(), Small().eval()
    shapes, labels = student.map_shapes(), torch.arange(6) % 3
    context = LossContext(6, 6, labels, 3, torch.Generator().manual_seed(0), shapes, shapes, teacher)
    objective = Objective({name: {"weight": 1.0}}, context)
    if several:
        objective = EnsembleObjective([objective, Objective({name: {"weight": 1.0}}, context)])
    objective.begin(0)
    before, asked = [parameter.detach().clone() for parameter in student.body.parameters()], []
    for network in (student, teacher):
        network.register_forward_pre_hook(lambda module, args, kwargs: asked.append(kwargs), with_kwargs=True)
    batch = Batch(torch.randn(6, 3, 8, 8), labels, torch.arange(6), torch.ones(6))
    optimizer = torch.optim.SGD([*student.parameters(), *objective.parameters()], lr=0.1)
    asking = Ensemble([teacher, teacher]).each if several else teacher
    step = train_step(student, asking, objective, batch, optimizer, "float32")
    assert step.loss.isfinite().all()
    assert len(asked) == 2 + several
    assert all(kwargs == {"maps": True} | ({} if name == "at" else {"signed": True}) for kwargs in asked)
    assert all(not torch.equal(*pair) for pair in zip(before, student.body.parameters(), strict=True))


# --------------------------------------------------------------------------------------------- the teacher's classifier


@pytest.mark.parametrize("teacher_name", ["resnet8", "wrn_10_2", "vgg8", "mobilenetv2_half"])
def test_a_student_classifies_with_its_teachers_pooling_and_head(teacher_name: str) -> None:
    """Built from the equation: head_t(pool_t(projector(F_s))), nothing of the teacher's stages left."""
    torch.manual_seed(0)
    sizes = {"num_classes": 3, "image_size": 16}
    teacher, student = build(teacher_name, **sizes).eval(), build("wrn_10_1", **sizes).eval()
    width = teacher.map_shapes()[-1][0]
    projector = nn.Conv2d(64, width, 1)
    images = torch.randn(2, 3, 16, 16)
    last = nn.functional.adaptive_avg_pool2d(student(images, maps=True).maps[-1], min(4, teacher.map_shapes()[-1][1]))
    reusing = Reusing(student, projector, teacher).eval()
    torch.testing.assert_close(reusing(images).logits, teacher.head(teacher.pool(projector(last))))
    assert torch.equal(reusing(images, signed=True).logits, reusing(images).logits)
    kept = sum(p.numel() for p in reusing.parameters()) - sum(
        p.numel() for p in [*student.parameters(), *projector.parameters()]
    )
    assert kept < 0.35 * sum(p.numel() for p in teacher.parameters())
    assert not [name for name in reusing.state_dict() if name.startswith("student.head")], "its own head is unused"


def test_simkd_is_the_mean_squared_error_and_what_it_scores_is_what_it_saves(store: Path, tmp_path: Path) -> None:
    run = quick("simkd", training__epochs=6, scale=1.0)
    metrics = with_teachers(run, store, tmp_path)
    assert metrics["accuracy"] > 50
    weights = torch.load(tmp_path / "weights.pt")
    assert {name.split(".")[0] for name in weights} == {"student", "projector", "teacher"}
    history = pd.read_csv(tmp_path / "history.csv")
    assert history["train_accuracy"].iloc[-1] > 0.5, "by the teacher's classifier"
    assert not [name for name in weights if name.startswith("student.head")]
    learned = sum(value.numel() for name, value in weights.items() if "running_" not in name and "num_b" not in name)
    assert metrics["parameters"] == learned
    with pytest.raises(ConfigError, match=r"objective.simkd: takes over the classifier of one teacher; got 2"):
        with_teachers(quick("simkd", teacher__model=["wrn_10_1", "resnet8"]), store, tmp_path / "two")


# ----------------------------------------------------------------------------------------------------------- ensembles


def test_an_ensemble_is_the_mean_over_its_teachers_objectives() -> None:
    class Loss(nn.Module):
        maps, first_epochs, first_lr, first, losses = True, 0, None, False, {}

        def __init__(self, factor: float):
            super().__init__()
            self.factor = factor

        def forward(self, student, teacher, batch):
            return self.factor * (student.logits - teacher.logits).abs().sum(1)

        def logged(self):
            return {"x": torch.tensor(self.factor)}

    objective = EnsembleObjective([Loss(1.0), Loss(3.0)])
    student = Output(torch.zeros(2, 3), torch.zeros(2, 0))
    teachers = [Output(torch.full((2, 3), value), torch.zeros(2, 0)) for value in (1.0, 2.0)]
    batch = Batch(torch.zeros(2), torch.zeros(2), torch.arange(2), torch.ones(2))
    assert objective(student, teachers, batch).tolist() == [(3 * 1 + 3 * 3 * 2) / 2] * 2
    assert objective.logged()["x"] == 2.0


def test_an_ensemble_classifies_by_its_mean_probability() -> None:
    members = [build("wrn_10_1", num_classes=4, image_size=8).eval() for _ in range(3)]
    images = torch.randn(5, 3, 8, 8)
    expected = torch.stack([member(images).logits.softmax(1) for member in members]).mean(0)
    torch.testing.assert_close(Ensemble(members)(images).logits.softmax(1), expected)


@pytest.mark.parametrize("method", ["kd", "crd", "at"])
def test_a_student_learns_from_teachers_of_several_kinds(method: str, store: Path, tmp_path: Path) -> None:
    names = ["resnet8", "wrn_10_1", "wrn_10_1"]
    run = tiny_run(method, teacher__model=names, **QUICK)
    assert [(teacher.model, teacher.seed) for teacher in run.teachers] == [
        *(("resnet8", 0), ("wrn_10_1", 0), ("wrn_10_1", 1))
    ]
    assert run.path.split("/")[2] == f"{slug('+'.join(names))}--wrn_10_1"
    assert run.path.split("/")[2].startswith("resnet8.wrn_10_1.wrn_10_1.")
    metrics = with_teachers(run, store, tmp_path)
    alone = [read_json(store / teacher.path / "metrics.json")["accuracy"] for teacher in run.teachers]
    assert metrics["teacher_accuracy"] >= min(alone)
    single = tiny_run(method, teacher__model="resnet8", **QUICK)
    assert single.digest != run.digest


# --------------------------------------------------------------------------------------------------------------- views


def test_views_are_linear_in_the_image_and_leave_out_what_they_say() -> None:
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.25, 0.3])
    augment = Augment(mean, std, 0, False)
    grey = torch.full((1, 3, 2, 2), 0.7)
    colour = torch.rand(1, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    lifted = colour + 0.1
    normal = {name: augment.normalise(image) for name, image in (("c", colour), ("l", lifted))}
    chroma, luma = (
        {key: views.mix(x, views.weights(view, std)) for key, x in normal.items()}
        for view in ("chrominance", "luminance")
    )
    assert chroma["c"].shape == (1, 2, 2, 2)
    assert luma["c"].shape == (1, 1, 2, 2)
    torch.testing.assert_close(chroma["c"], chroma["l"], rtol=0, atol=1e-5)  # more light is no other colour
    torch.testing.assert_close(luma["l"] - luma["c"], torch.full((1, 1, 2, 2), 0.1 / 0.25))
    red, green, blue = colour[0]
    zero = 0.299 * mean[0] + 0.587 * mean[1] + 0.114 * mean[2]
    torch.testing.assert_close(luma["c"][0, 0], (0.299 * red + 0.587 * green + 0.114 * blue - zero) / 0.25)
    weight = views.weights("chrominance", std)
    light, dark = (views.mix(augment.normalise(image), weight) for image in (grey, 0 * grey))
    torch.testing.assert_close(light, dark)  # a grey has no colour, however light


def test_a_network_looks_through_its_view_and_keeps_its_state_dict() -> None:
    augment = Augment(torch.zeros(3), torch.ones(3), 0, False)
    plain = build("resnet8", num_classes=3, in_channels=2, image_size=8).eval()
    names = set(plain.state_dict())
    images = torch.randn(2, 3, 8, 8)
    expected = plain(views.mix(images, views.weights("chrominance", augment.std)), maps=True)
    views.look_through("chrominance", plain, augment)
    actual = plain(images, maps=True, signed=True)
    assert torch.equal(actual.logits, expected.logits)
    assert len(actual.maps) == len(actual.signed) == 4
    assert plain.map_shapes()[0] == (16, 8, 8)
    assert set(plain.state_dict()) == names


def test_luminance_teaches_chrominance(tmp_path: Path) -> None:
    """On colour images of a folder: classes differ in brightness and in hue."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("test", 8)):
        for number, colour in enumerate(((200, 40, 40), (90, 160, 90))):
            folder = tmp_path / f"images/{split}/class{number}"
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = np.clip(np.array(colour) + rng.normal(0, 20, (8, 8, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    where = {"dataset__name": "folder", "dataset__root": str(tmp_path / "images")}
    fast = {"training__batch_size": 16, "teacher__training__batch_size": 16, "training__epochs": 3}
    changes = {**where, **fast, "teacher__training__epochs": 3}
    run = tiny_run("kd", teacher__view="luminance", student__view="chrominance", **changes)
    assert (run.view, run.teacher.view) == ("chrominance", "luminance")
    results = tmp_path / "results"
    data = results / run.data_path
    data.parent.mkdir(parents=True)
    prepare(run.dataset, data, Source(tmp_path / "images", results, download=False))
    run_step(run.teacher, results / run.teacher.path, data, [], COMPUTE)
    metrics = run_step(run, results / run.path, data, [results / run.teacher.path / "weights.pt"], COMPUTE)
    assert torch.load(results / run.teacher.path / "weights.pt")["stem.0.weight"].shape[1] == 1
    assert torch.load(results / run.path / "weights.pt")["stem.weight"].shape[1] == 2
    assert metrics["teacher_accuracy"] == metrics["accuracy"] == 100.0


def test_grey_images_have_no_colours_to_show(store: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"view: got 'luminance'; images of 1 channel\(s\) have no colours"):
        execute(tiny_run("scratch", student__view="luminance"), store, tmp_path)
