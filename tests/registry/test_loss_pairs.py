"""Pairs of networks that a loss cannot relate are refused without torch, as the loss itself would."""

import itertools

import pytest
import torch

from kd.batch import Batch, LossContext, Output
from kd.losses.objective import build_loss
from kd.registry.loss_pairs import ALL, same_number_of
from kd.registry.losses import LOSSES, require_pair
from kd.registry.models import map_shapes

CRDS_PAIRS = [  # the 13 pairs of Tian et al., ICLR 2020, tables 1 and 2
    *(("wrn_40_2", "wrn_16_2"), ("wrn_40_2", "wrn_40_1"), ("resnet56", "resnet20"), ("resnet110", "resnet20")),
    *(("resnet110", "resnet32"), ("resnet32x4", "resnet8x4"), ("vgg13", "vgg8"), ("vgg13", "mobilenetv2_half")),
    *(("resnet50", "mobilenetv2_half"), ("resnet50", "vgg8"), ("resnet32x4", "shufflenetv1")),
    *(("resnet32x4", "shufflenetv2"), ("wrn_40_2", "shufflenetv1")),
]
SAME_WIDTHS = [CRDS_PAIRS[number] for number in (0, 2, 3, 4, 5, 6)]


def fault(loss, teacher, student, size=32, **settings):
    try:
        require_pair(loss, map_shapes(student, size), map_shapes(teacher, size), **settings)
    except ValueError as error:
        return str(error)
    return None


def test_the_published_tables_can_be_made():
    """Only FSP has gaps there, at pairs of different widths; KD-SVD has no row."""
    for loss, (teacher, student) in itertools.product(LOSSES, CRDS_PAIRS):
        found = fault(loss, teacher, student)
        possible = loss not in ("fsp", "kdsvd") or (teacher, student) in SAME_WIDTHS
        assert (found is None) == possible, (loss, teacher, student, found)


@pytest.mark.parametrize("loss", sorted(set(LOSSES) - {"ce", "simkd"}))
@pytest.mark.parametrize(
    ("teacher", "student"),
    [("wrn_40_2", "wrn_40_1"), ("resnet32x4", "vgg8"), ("resnet20", "shufflenetv1"), ("shufflenetv1", "resnet20")],
)
def test_a_loss_refuses_what_validation_refuses(loss, teacher, student):
    """Built as a run builds it and asked once, on maps of the shapes in question (reduced to 8x8 images)."""
    size = 8
    student_maps, teacher_maps = map_shapes(student, size), map_shapes(teacher, size)
    labels = torch.arange(4) % 2
    widths = student_maps[-1][0], teacher_maps[-1][0]
    context = LossContext(*widths, labels, 2, torch.Generator().manual_seed(0), student_maps, teacher_maps)

    def output(maps, seed):
        g = torch.Generator().manual_seed(seed)
        drawn = tuple(torch.rand(4, *shape, generator=g) for shape in maps)
        return Output(torch.randn(4, 2, generator=g), drawn[-1].mean((2, 3)), drawn, drawn)

    batch = Batch(torch.zeros(4, 3, size, size), labels, torch.arange(4), torch.ones(4))
    refused = None
    try:
        build_loss(loss, context)(output(student_maps, 0), output(teacher_maps, 1), batch)
    except ValueError as error:
        refused = str(error)
    assert refused == fault(loss, teacher, student, size)


def test_different_numbers_of_stages_are_refused_with_both_shapes():
    student, teacher = ((4, 3, 2),), ((8, 3, 2), (16, 1, 1))
    with pytest.raises(
        ValueError, match=r"^mine: 1 stages of the student \[4x3x2\] .* 2 of the teacher \[8x3x2, 16x1x1\]; .*$"
    ):
        same_number_of(ALL)("mine", student, teacher, {})
    with pytest.raises(ValueError, match=r"^mine: needs at least 1 stages, student \[\], teacher \[\]; .*$"):
        same_number_of(ALL)("mine", (), (), {})
    with pytest.raises(ValueError, match=r"^mine: needs at least 2 stages, student \[4x3x2\]"):
        same_number_of(ALL, at_least=2)("mine", student, student, {})
    same_number_of(ALL, at_least=2)("mine", teacher, teacher, {})


def test_a_refusal_names_the_loss_the_shapes_and_a_way_out():
    assert fault("fsp", "wrn_40_2", "wrn_40_1") == (
        "fsp: maps of [16, 16, 32, 64] channels in the student cannot be compared with [16, 32, 64, 128] in the "
        "teacher; choose networks of equal width"
    )
    assert fault("at", "resnet50", "wrn_16_1").startswith("at: 3 stages of the student [16x32x32, 32x16x16, 64x8x8] do")
    assert fault("fitnet", "wrn_40_2", "wrn_16_2", layer=4).endswith("choose a layer from 0 to 3")
