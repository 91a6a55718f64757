"""Rules for which networks a loss can relate, by the shapes (C, H, W) of their maps. Imports no torch.

An entry of `kd.registry.losses.LOSSES` lists its rules. A rule is a function (name, student, teacher, settings) of the
loss's name, the shapes of all maps of both networks, and the loss's settings; it raises ConfigError, in one line, with
both shapes and what to do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from kd.runtime.messages import ConfigError

Shape = tuple[int, ...]
Shapes = Sequence[Shape]
Settings = dict[str, Any]
PairRule = Callable[[str, Shapes, Shapes, Settings], None]

ALL = slice(None)  # which of a network's maps a rule looks at: the stem's and each stage's,
STAGES = slice(1, None)  # without the stem's,
LAST = slice(-1, None)  # or only the last stage's


def same_number_of(maps: slice, at_least: int = 1) -> PairRule:
    """Return the rule that both networks have the same number of these maps, so that they pair one to one."""

    def rule(name: str, student: Shapes, teacher: Shapes, settings: Settings) -> None:
        student, teacher = student[maps], teacher[maps]
        if len(student) != len(teacher):
            raise ConfigError(
                f"{name}: {len(student)} stages of the student {listed(student)} do not pair with "
                f"{len(teacher)} of the teacher {listed(teacher)}; choose networks with equal numbers of stages"
            )
        if len(student) < at_least:
            raise ConfigError(
                f"{name}: needs at least {at_least} stages, student {listed(student)}, teacher {listed(teacher)}; "
                "choose networks that return the maps of their stages"
            )

    return rule


def equal_widths(maps: slice) -> PairRule:
    """Return the rule that these maps have equal numbers of channels in both networks."""

    def rule(name: str, student: Shapes, teacher: Shapes, settings: Settings) -> None:
        widths, teacher_widths = ([shape[0] for shape in shapes[maps]] for shapes in (student, teacher))
        if widths != teacher_widths:
            raise ConfigError(
                f"{name}: maps of {widths} channels in the student cannot be compared with {teacher_widths} in the "
                "teacher; choose networks of equal width"
            )

    return rule


def convolutions_between_stages(name: str, student: Shapes, teacher: Shapes, settings: Settings) -> None:
    """Require that a convolution brings each stage's map of the student to the size of the teacher's."""
    for pair in zip(student[STAGES], teacher[STAGES], strict=True):
        _require_connection(name, *pair)


def convolution_at_layer(name: str, student: Shapes, teacher: Shapes, settings: Settings) -> None:
    """Require a map number `layer` in both networks, and a convolution from the student's to the teacher's size."""
    layer, count = settings["layer"], min(len(student), len(teacher))
    if not 0 <= layer < count:
        raise ConfigError(
            f"{name}: no layer {layer} among {len(student)} maps of the student and {len(teacher)} of the teacher; "
            f"choose a layer from 0 to {count - 1}"
        )
    _require_connection(name, student[layer], teacher[layer])


def singular_vectors_of_stages(name: str, student: Shapes, teacher: Shapes, settings: Settings) -> None:
    """Require `k` singular vectors of each of the teacher's maps, a matrix HW x C."""
    for channels, height, width in teacher[STAGES]:
        if settings["k"] > min(channels, height * width):
            raise ConfigError(
                f"{name}: the teacher's map {(channels, height, width)} has no {settings['k']} singular vectors; "
                "choose a smaller k"
            )


def channels_left_by_factor_rate(name: str, student: Shapes, teacher: Shapes, settings: Settings) -> None:
    """Require at least one channel in the share `factor_rate` of the teacher's last map."""
    width, rate = teacher[-1][0], settings["factor_rate"]
    if width * rate < 1:
        raise ConfigError(f"{name}: factor_rate must leave at least 1 of {width} channels; got {rate!r}")


def channels_left_by_factor(name: str, student: Shapes, teacher: Shapes, settings: Settings) -> None:
    """Require at least one channel when the teacher's last map has its channels divided by `factor`."""
    width, factor = teacher[-1][0], settings["factor"]
    if not 1 <= factor <= width:
        raise ConfigError(f"{name}: factor must be from 1 to {width}; got {factor!r}")


def connectable(student: Shape, teacher: Shape) -> bool:
    """Whether `kd.losses.maps.connection` has a convolution from a map of the student to the size of the teacher's.

    The teacher's map may be twice as large in height and width, half as large, or smaller by the same number of
    positions in both.
    """
    (_, *size), (_, *teacher_size) = student, teacher
    cuts = [ours - theirs for ours, theirs in zip(size, teacher_size, strict=True)]
    twice = [2 * n for n in teacher_size] == size or [2 * n for n in size] == teacher_size
    return twice or (cuts[0] == cuts[1] and cuts[0] >= 0)


def _require_connection(name: str, student: Shape, teacher: Shape) -> None:
    if not connectable(student, teacher):
        raise ConfigError(
            f"{name}: no convolution brings the student's map {listed([student])} to the size of the teacher's "
            f"{listed([teacher])}; choose networks whose maps are of equal size, or the student's larger or half"
        )


def listed(shapes: Shapes) -> str:
    """Return shapes in words, such as "16x32x32, 32x16x16", in brackets."""
    return "[" + ", ".join("x".join(map(str, shape)) for shape in shapes) + "]"
