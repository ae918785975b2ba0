"""Tensors that are known better than by their dtype: channels lie last, or codes stand for float numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .open_sizes import size
from .stored import Keep, Lazy

#: From channels second to channels last, and back.
LAST, SECOND = [0, 2, 3, 1], [0, 3, 1, 2]


@dataclass(frozen=True)
class Laid(Lazy):
    """A tensor of the model, as it lies in memory.

    expr: a Relax variable; last: its channels lie last, though the model has them second.
    scale, zero: its numbers are codes, which stand for ``(code - zero) * scale``; no scale: they are the tensor's.
    """

    expr: Any
    last: bool = False
    scale: float | None = None
    zero: int = 0

    @property
    def dtype(self) -> str:
        """See ``Lazy``."""
        return str(self.expr.ty.dtype.dtype) if self.scale is None else "float32"

    @property
    def shape(self) -> list[Any]:
        """The shape, as the tensor lies; a dimension that is open as TVM has it."""
        return [size(d) for d in self.expr.ty.shape]

    def tensor(self, bb: Any, keep: Keep) -> Any:
        """See ``Lazy``."""
        return self.second(bb).values(bb)

    def values(self, bb: Any) -> Any:
        """Give what the codes stand for, as they lie."""
        from tvm import relax

        if self.scale is None:
            return self.expr
        codes = relax.op.astype(self.expr, "float32")
        if self.zero:
            codes = relax.op.subtract(codes, relax.const(float(self.zero), "float32"))
        return bb.emit(relax.op.multiply(codes, relax.const(self.scale, "float32")))

    def second(self, bb: Any) -> Laid:
        """The same with channels second."""
        return replace(self, expr=moved(bb, self.expr, SECOND), last=False) if self.last else self

    def channels_last(self, bb: Any) -> Laid:
        """The same with channels last."""
        return self if self.last else replace(self, expr=moved(bb, self.expr, LAST), last=True)


@dataclass(frozen=True)
class Joined(Lazy):
    """Images side by side along their channels, for as long as nobody reads them: each is quantized on its own."""

    parts: tuple[Laid, ...]

    @property
    def dtype(self) -> str:
        """See ``Lazy``."""
        return self.parts[0].dtype

    def tensor(self, bb: Any, keep: Keep) -> Any:
        """See ``Lazy``."""
        return joined(bb, [replace(part, expr=part.values(bb), scale=None) for part in self.parts]).tensor(bb, keep)


def joined(bb: Any, parts: Sequence[Laid]) -> Laid:
    """Put images side by side as they lie: with channels last where all have them so."""
    from tvm import relax

    last = all(part.last for part in parts)
    exprs = [part.expr if last else part.second(bb).expr for part in parts]
    return replace(parts[0], expr=bb.emit(relax.op.concat(exprs, 3 if last else 1)), last=last)


@dataclass(frozen=True)
class Known(Lazy):
    """A tensor that is known beforehand."""

    array: np.ndarray

    @property
    def dtype(self) -> str:
        """See ``Lazy``."""
        return self.array.dtype.name

    def tensor(self, bb: Any, keep: Keep) -> Any:
        """See ``Lazy``."""
        from tvm import relax

        return relax.const(self.array)


def moved(bb: Any, expr: Any, order: list[int]) -> Any:
    """Transpose; where at most one of the moved axes has a size, no number moves."""
    from tvm import relax

    shape = [size(d) for d in expr.ty.shape]
    known = all(isinstance(d, int) for d in shape)
    sized = [axis for axis in order if not known or shape[axis] > 1]
    if sized == sorted(sized):
        return bb.emit(relax.op.reshape(expr, [shape[axis] for axis in order]))
    return bb.emit(relax.op.permute_dims(expr, order))
