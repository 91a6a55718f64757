"""Which networks a loss can relate, by the shapes (C, H, W) of their maps. Imports no torch: validation asks, too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kd.runtime.messages import ConfigError

Shape = tuple[int, ...]
Shapes = Sequence[Shape]


def require(name: str, student: Shapes, teacher: Shapes, **settings: Any) -> None:
    """Refuse networks, by the shapes of all their maps, that the loss of this name cannot relate with these settings.

    Raises:
        ConfigError: in one line: what is impossible, with both shapes, and what to do.
    """
    if name in ("at", "nst", "vid", "reviewkd", "kdsvd", "ab"):
        as_many_stages(name, student[1:], teacher[1:], at_least=2 if name == "kdsvd" else 1)
    if name in ("sp", "ft", "simkd"):
        as_many_stages(name, student[-1:], teacher[-1:])
    if name == "fsp":
        as_many_stages(name, student, teacher, at_least=2)
        _equal_widths(name, student, teacher)
    if name == "kdsvd":
        _equal_widths(name, student[1:], teacher[1:])
        k = settings.get("k", 1)
        for shape in teacher[1:]:
            if k > min(shape[0], shape[1] * shape[2]):
                raise ConfigError(f"kdsvd: the teacher's map {shape} has no {k} singular vectors; choose a smaller k")
    if name == "ft" and teacher[-1][0] * (rate := settings.get("factor_rate", 1)) < 1:
        raise ConfigError(f"ft: factor_rate must leave at least 1 of {teacher[-1][0]} channels; got {rate!r}")
    if name == "simkd" and not 1 <= (factor := settings.get("factor", 1)) <= teacher[-1][0]:
        raise ConfigError(f"simkd: factor must be from 1 to {teacher[-1][0]}; got {factor!r}")
    if name == "ab":
        for pair in zip(student[1:], teacher[1:], strict=True):
            connection(name, *pair)
    if name == "fitnet":
        layer = settings.get("layer", 2)
        count = min(len(student), len(teacher))
        if not 0 <= layer < count:
            raise ConfigError(
                f"fitnet: no layer {layer} among {len(student)} maps of the student and {len(teacher)} of the teacher; "
                f"choose a layer from 0 to {count - 1}"
            )
        connection(name, student[layer], teacher[layer])


def as_many_stages(name: str, student: Shapes, teacher: Shapes, at_least: int = 1) -> None:
    """Refuse maps that cannot be paired one to one."""
    if len(student) != len(teacher):
        raise ConfigError(
            f"{name}: {len(student)} stages of the student {listed(student)} do not pair with "
            f"{len(teacher)} of the teacher {listed(teacher)}; choose networks with as many stages"
        )
    if len(student) < at_least:
        raise ConfigError(
            f"{name}: needs at least {at_least} stages, student {listed(student)}, teacher {listed(teacher)}; "
            "choose networks that give the maps of their stages"
        )


def connection(name: str, student: Shape, teacher: Shape) -> dict[str, Any]:
    """How a convolution brings the student's map to the teacher's size: its settings.

    3x3 of stride 2 where the student's map is twice as large, transposed 4x4 of stride 2 where it is half as large,
    and otherwise unpadded with a kernel of 1 + the difference of the sizes, so 1x1 for equal ones.
    """
    (_, *size), (_, *teacher_size) = student, teacher
    cut = size[0] - teacher_size[0]
    if size == [2 * n for n in teacher_size]:
        return {"kernel_size": 3, "stride": 2, "padding": 1}
    if teacher_size == [2 * n for n in size]:
        return {"kernel_size": 4, "stride": 2, "padding": 1, "transposed": True}
    if cut >= 0 and size[1] - teacher_size[1] == cut:
        return {"kernel_size": 1 + cut}
    raise ConfigError(
        f"{name}: no convolution brings the student's map {listed([student])} to the size of the teacher's "
        f"{listed([teacher])}; choose networks whose maps are of equal size, or the student's larger or half"
    )


def _equal_widths(name: str, student: Shapes, teacher: Shapes) -> None:
    widths, teacher_widths = [shape[0] for shape in student], [shape[0] for shape in teacher]
    if widths != teacher_widths:
        raise ConfigError(
            f"{name}: maps of {widths} channels in the student cannot be compared with {teacher_widths} in the "
            "teacher; choose networks of equal width"
        )


def listed(shapes: Shapes) -> str:
    """Shapes in words, such as "16x32x32, 32x16x16", in brackets."""
    return "[" + ", ".join("x".join(map(str, shape)) for shape in shapes) + "]"
