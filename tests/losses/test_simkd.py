"""SimKD's loss against loops in float64."""

import pytest
import torch
from torch import nn

from kd.batch import Batch, LossContext, Output
from kd.losses.objective import Objective, build_loss
from kd.losses.simkd import SimKD
from kd.models.build import build
from kd.models.classifier import Classifier
from kd.runtime.messages import ConfigError


class Teacher(Classifier):
    def __init__(self, width, signed):
        super().__init__(in_channels=1, image_size=4)
        self.head = nn.Linear(width, 3)
        self.maps_are_signed = signed

    def stages(self, images):
        return [images.expand(-1, self.feature_dim, -1, -1)]


def setting(student=(3, 4, 4), teacher=(4, 2, 2), signed=False, **settings):
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 1, 2, 0])
    context = LossContext(3, 4, labels, 3, generator, (student,), (teacher,), Teacher(teacher[0], signed))
    outputs = [
        Output(torch.zeros(4, 3), torch.zeros(4, shape[0]), (torch.randn(4, *shape, generator=generator),))
        for shape in (student, teacher)
    ]
    batch = Batch(torch.zeros(4), labels, torch.arange(4), torch.ones(4))
    return build_loss("simkd", context, **settings), *outputs, batch


@pytest.mark.formula("simkd")
@pytest.mark.parametrize("signed", [False, True])
def test_the_loss_is_the_squared_error_behind_the_projector(signed):
    loss, student, teacher, batch = setting(signed=signed)
    actual = loss(student, teacher, batch)
    twin, _, _, _ = setting(signed=signed)
    twin = twin.double()
    assert isinstance(list(twin.projector)[-1], nn.BatchNorm2d if signed else nn.ReLU)
    expected = []
    map_ = student.maps[0].double()
    pooled = torch.stack([map_[:, :, i : i + 2, j : j + 2].mean((2, 3)) for i in (0, 2) for j in (0, 2)], 2)
    projected = twin.projector(pooled.view(4, 3, 2, 2))
    for mine, theirs in zip(projected, teacher.maps[0].double(), strict=True):
        errors = [(a - b) ** 2 for a, b in zip(mine.flatten(), theirs.flatten(), strict=True)]
        expected.append(sum(errors) / len(errors))
    torch.testing.assert_close(actual.double(), torch.stack(expected), rtol=1e-5, atol=1e-6)
    actual.mean().backward()
    torch.stack(expected).mean().backward()
    for a, e in zip(loss.projector.parameters(), twin.projector.parameters(), strict=True):
        torch.testing.assert_close(a.grad.double(), e.grad, rtol=1e-4, atol=1e-6)
    assert loss.logits.shape == (4, 3)
    assert not loss.logits.requires_grad


def test_the_teacher_is_no_part_of_its_state_and_the_factor_sets_the_width():
    loss, *_ = setting(factor=4)
    assert {name.split(".")[0] for name in loss.state_dict()} == {"projector"}
    assert loss.projector[0].out_channels == 1
    with pytest.raises(ValueError, match="simkd: factor must be from 1 to 4; got 5"):
        setting(factor=5)


def objective(teacher_name):
    sizes = {"num_classes": 3, "image_size": 32}
    student, teacher = build("resnet8", **sizes), build(teacher_name, **sizes).eval()
    shapes, labels = (student.map_shapes(), teacher.map_shapes()), torch.tensor([0, 1, 2])
    dims = student.feature_dim, teacher.feature_dim
    context = LossContext(*dims, labels, 3, torch.Generator().manual_seed(0), *shapes, teacher)
    return Objective({"simkd": {"weight": 1.0}}, context)


@pytest.mark.parametrize("name", ["resnet8", "wrn_10_1", "vgg8", "mobilenetv2_half", "torchvision:resnet18"])
def test_teachers_that_classify_only_by_their_last_map_are_accepted(name):
    assert "simkd" in objective(name).losses


@pytest.mark.parametrize("name", ["torchvision:mobilenet_v3_small", "torchvision:vgg11_bn"])
def test_other_teachers_are_refused_in_one_line(name):
    with pytest.raises(ConfigError, match=r"^objective\.simkd: the teacher's logits are not .*; choose a teacher .*$"):
        objective(name)


def test_the_channels_of_a_teachers_view_are_shown_to_it():
    torch.manual_seed(0)
    student, teacher = (build("resnet8", num_classes=3, in_channels=n, image_size=8).eval() for n in (2, 1))
    teacher.register_forward_pre_hook(lambda module, inputs: (inputs[0].mean(1, keepdim=True), *inputs[1:]))
    shapes = student.map_shapes(), teacher.map_shapes()
    SimKD(LossContext(64, 64, torch.tensor([0, 1]), 3, torch.Generator().manual_seed(0), *shapes, teacher))
