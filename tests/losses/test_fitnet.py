"""FitNet against loops written from its equation."""

import pytest
import torch
from slow import batch_of, build, conv_loop, norm_loop, outputs, rectify, require_equal, scatter, transposed_loop

from kd.losses.fitnet import FitNet

STEM = (2, 4, 4)


def regressed_loop(loss, student_map, student_size, teacher_size):
    p = dict(loss.named_parameters())
    weight, bias = p["regressor.0.weight"], p["regressor.0.bias"]
    if student_size == 2 * teacher_size:
        x = conv_loop(student_map, weight, bias, stride=2, padding=1)
    elif 2 * student_size == teacher_size:
        x = transposed_loop(student_map, weight, bias, stride=2, padding=1)
    else:
        x = conv_loop(student_map, weight, bias)
    return rectify(norm_loop(x, p["regressor.1.weight"], p["regressor.1.bias"]))


@pytest.mark.formula("fitnet")
@pytest.mark.parametrize(
    ("student_size", "teacher_size", "kernel"), [(2, 2, 1), (4, 2, 3), (2, 4, 4), (4, 3, 2), (4, 1, 4)]
)
def test_equals_the_equation_at_every_relation_of_sizes(student_size, teacher_size, kernel):
    shapes = (STEM, STEM, (2, student_size, student_size)), (STEM, STEM, (3, teacher_size, teacher_size))
    loss = scatter(build(FitNet, *shapes))
    student, teacher = outputs(*shapes)
    assert loss.regressor[0].kernel_size == (kernel, kernel)
    regressed = regressed_loop(loss, student.maps[2], student_size, teacher_size)
    expected = []
    for s, t in zip(regressed, teacher.maps[2], strict=True):
        squares = [
            (s[c, i, j] - t[c, i, j]) ** 2 for c in range(3) for i in range(teacher_size) for j in range(teacher_size)
        ]
        expected.append(sum(squares) / len(squares))
    require_equal(loss(student, teacher, batch_of(3)), torch.stack(expected), student, loss)


@pytest.mark.parametrize("layer", [0, 1])
def test_layer_chooses_the_map(layer):
    shapes = ((2, 4, 4), (3, 2, 2)), ((4, 4, 4), (5, 2, 2))
    loss = build(FitNet, *shapes, layer=layer).double()
    student, teacher = outputs(*shapes)
    regressed = torch.relu(loss.regressor(student.maps[layer])).detach()
    maps = tuple(regressed if index == layer else map_ for index, map_ in enumerate(teacher.maps))
    value = loss(student, teacher._replace(maps=maps), batch_of(3))  # the teacher says what the student regresses
    torch.testing.assert_close(value, torch.zeros_like(value), rtol=0, atol=0)
    assert loss(student, teacher, batch_of(3)).min() > 0.1


@pytest.mark.parametrize(("layer", "maps"), [(2, 2), (0, 0)])
def test_a_layer_that_is_not_there_is_refused(layer, maps):
    shapes = ((2, 4, 4),) * maps, ((2, 4, 4),) * 3
    with pytest.raises(
        ValueError, match=rf"^fitnet: no layer {layer} among {maps} maps of the student and 3.*; choose"
    ):
        build(FitNet, *shapes, layer=layer)
    with pytest.raises(ValueError, match=r"^fitnet: layer must be at least 0; got -1$"):
        build(FitNet, *shapes, layer=-1)


@pytest.mark.parametrize(
    ("student", "teacher"), [((2, 1, 1), (3, 4, 4)), ((2, 3, 3), (3, 4, 4)), ((2, 4, 3), (3, 4, 2))]
)
def test_sizes_that_no_convolution_relates_are_refused(student, teacher):
    words = ["x".join(map(str, shape)) for shape in (student, teacher)]
    with pytest.raises(ValueError, match=rf"^fitnet: .*{words[0]}.*{words[1]}.*; choose"):
        build(FitNet, (student,), (teacher,), layer=0)
