"""Numbers that depend on the sizes of inputs: found out in the file, before it runs.

LiteRT computes what follows from shapes alone when it allocates its tensors, if no other operators are in between than
those that are used here; what reads it then has a fixed shape, and XNNPACK takes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .tensors import Operator, Tensor

#: A number in each of the programs that are compared.
Numbers = tuple[int, ...]

_OUT_TYPES = {"int32": 2, "int64": 4}


@dataclass(frozen=True)
class _Affine:
    """``factor * size + rest``, of the size of one axis of a tensor."""

    tensor: Tensor
    axis: int
    factor: int
    rest: int


class Sizes:
    """The sizes that differ between programs, and operators that make numbers of them.

    operators: those that were made and are not yet in the program.
    """

    def __init__(self) -> None:
        self.operators: list[Operator] = []
        self._axes: dict[Numbers, tuple[Tensor, int]] = {}
        self._made: dict[tuple[object, ...], Tensor] = {}

    def note(self, tensors: Sequence[Tensor]) -> None:
        """Let the sizes of one tensor, as the programs have it, be known from here on."""
        for axis, sizes in enumerate(zip(*(tensor.shape for tensor in tensors), strict=True)):
            if len(set(sizes)) > 1:
                self._axes.setdefault(sizes, (tensors[0], axis))

    def write(self, arrays: Sequence[np.ndarray], name: str) -> Tensor | None:
        """Give a tensor that is the first of ``arrays`` at the sizes of the first program, and so on.

        Returns: None where they are no integers, or do not follow from one size each.
        """
        first = arrays[0]
        if first.dtype.name not in _OUT_TYPES or len({each.shape for each in arrays}) > 1:
            return None
        columns = [tuple(map(int, each)) for each in zip(*(array.reshape(-1) for array in arrays), strict=True)]
        found = {column: self._affine(column) for column in columns if len(set(column)) > 1}
        if None in found.values():
            return None
        if not first.shape:
            return self._number(found[columns[0]], first.dtype.name)  # type: ignore[arg-type]
        parts = [self._part(found.get(column), column[0], first.dtype.name, name) for column in columns]
        whole = parts[0] if len(parts) == 1 else self._emit("CONCATENATION", parts, first.reshape(-1), axis=0)
        if first.ndim == 1:
            return whole
        target = Tensor(f"{name}.axes", "int32", (first.ndim,), np.array(first.shape, np.int32))
        return self._emit("RESHAPE", [whole, target], first, newShape=list(first.shape))

    def hold(self, tensor: Tensor, axis: int) -> None:
        """Have the file allocate nothing where ``axis`` of ``tensor`` has another size.

        As many numbers as the axis is long are given a shape of its length, which fails for any other.
        """
        size = tensor.shape[axis]
        numbers = Tensor(f"size.{size}", "int32", (size,), np.zeros(size, np.int32))
        now = self._entry(self._shape(tensor, "int32"), axis, scalar=False)
        self._emit("RESHAPE", [numbers, now], np.zeros(size, np.int32))

    def _affine(self, numbers: Numbers) -> _Affine | None:
        if numbers in self._axes:
            return _Affine(*self._axes[numbers], 1, 0)
        for sizes, (tensor, axis) in self._axes.items():
            by, of = numbers[1] - numbers[0], sizes[1] - sizes[0]
            factor = by // of if of and by % of == 0 else 0
            rest = numbers[0] - factor * sizes[0]
            if factor and all(factor * size + rest == number for size, number in zip(sizes, numbers, strict=True)):
                return _Affine(tensor, axis, factor, rest)
        return None

    def _part(self, affine: _Affine | None, number: int, dtype: str, name: str) -> Tensor:
        """Give a vector of one number."""
        if affine is None:
            return Tensor(f"{name}.{number}", dtype, (1,), np.array([number], dtype))
        return self._entry(*self._shape_of(affine, dtype), scalar=False)

    def _number(self, affine: _Affine, dtype: str) -> Tensor:
        return self._entry(*self._shape_of(affine, dtype), scalar=True)

    def _shape_of(self, affine: _Affine, dtype: str) -> tuple[Tensor, int]:
        """Give a shape with the number in it, and where: a sum is that of a range that has as many entries."""
        if (affine.factor, affine.rest) == (1, 0):
            return self._shape(affine.tensor, dtype), affine.axis
        size = self._entry(self._shape(affine.tensor, "int32"), affine.axis, scalar=True)
        value = affine.tensor.shape[affine.axis] * abs(affine.factor)
        if abs(affine.factor) != 1:
            size = self._emit("MUL", [size, _scalar(abs(affine.factor))], np.array(value, np.int32))
        ends = [_scalar(-affine.rest), size] if affine.factor > 0 else [size, _scalar(affine.rest)]
        count = affine.factor * affine.tensor.shape[affine.axis] + affine.rest
        counted = self._emit("RANGE", [*ends, _scalar(1)], np.zeros(count, np.int32))
        return self._shape(counted, dtype), 0

    def _shape(self, tensor: Tensor, dtype: str) -> Tensor:
        return self._emit("SHAPE", [tensor], np.array(tensor.shape, dtype), outType=_OUT_TYPES[dtype])

    def _entry(self, shape: Tensor, axis: int, scalar: bool) -> Tensor:
        """Give one entry of a shape, by itself or as a vector of one."""
        ends = [Tensor(f"at.{at}", "int32", (1,), np.array([at], np.int32)) for at in (axis, axis + 1, 1)]
        result = np.zeros(() if scalar else (1,), shape.dtype)
        return self._emit("STRIDED_SLICE", [shape, *ends], result, shrinkAxisMask=int(scalar))

    def _emit(self, kind: str, inputs: Sequence[Tensor], like: np.ndarray, **options: object) -> Tensor:
        """Emit an operator whose result has the shape and dtype of ``like``; the same one for the same inputs."""
        ids = tuple(id(each) if each.data is None else (each.dtype, each.data.tobytes()) for each in inputs)
        key = (kind, like.dtype.name, *ids, *sorted(options.items(), key=str))
        if key not in self._made:
            self._made[key] = Tensor(f"size.{len(self._made)}", like.dtype.name, like.shape)
            self.operators.append(Operator(kind, list(inputs), [self._made[key]], options))
        return self._made[key]


def _scalar(number: int) -> Tensor:
    return Tensor(f"number.{number}", "int32", (), np.array(number, np.int32))
