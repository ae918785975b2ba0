"""Weights that are stored as integers, and widened only inside the kernel that reads them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

#: Makes an array a parameter of the function that is being built.
Keep = Callable[[np.ndarray], Any]


class Lazy(ABC):
    """A tensor that becomes an expression only for an operator that has no better way to read it."""

    @property
    @abstractmethod
    def dtype(self) -> str:
        """The dtype of the tensor."""

    @abstractmethod
    def tensor(self, bb: Any, keep: Keep) -> Any:
        """Give it as a Relax expression."""


@dataclass(frozen=True)
class Stored(Lazy):
    """``value = (codes - zero) * scale``, with one scale for all, for each index of ``axis``, or for each block of it.

    codes: gives int8 or uint8 of the shape of the value. scale: float, zero: integer or None; both are of rank 0, of
    rank 1 with ``axis``, or of the shape of the value but for ``axis``, which has ``block`` times fewer indices.
    bits: 4 or 8; codes lie in 32-bit words, the first one in the lowest bits, along the last axis, or
    along all axes but the first where there are more than two.
    """

    codes: Callable[[], np.ndarray]
    scale: np.ndarray
    zero: np.ndarray | None
    shape: tuple[int, ...]
    bits: int
    signed: bool
    axis: int | None = None
    block: int = 0

    @property
    def dtype(self) -> str:
        """The dtype of the value."""
        return self.scale.dtype.name

    @cached_property
    def transposed(self) -> Stored:
        """The same matrix, [columns, rows]."""
        assert len(self.shape) == 2
        wide = bool(self.block)
        return replace(
            self,
            codes=lambda: self.codes().T,
            scale=self.scale.T if wide else self.scale,
            zero=self.zero.T if wide and self.zero is not None else self.zero,
            shape=self.shape[::-1],
            axis=None if self.axis is None else 1 - self.axis,
        )

    def scaled(self, factor: np.ndarray, axis: int | None) -> Stored:
        """The same codes with another scale; ``factor`` has rank 0, or rank 1 along ``axis``."""
        return replace(self, scale=factor, axis=axis)

    def operands(self, keep: Keep) -> list[Any]:
        """Give what ``widened`` takes, as parameters: words, scale, and words of zeros where those differ."""
        codes = self.codes()
        rows = codes.reshape(codes.shape[0], -1) if codes.ndim > 2 else codes
        found = [keep(words(rows, self.bits)), keep(np.ascontiguousarray(self.scale))]
        if self.zero is not None and not self.same_zero:
            found.append(keep(words(self.zero, self.bits)))
        return found

    def tensor(self, bb: Any, keep: Keep) -> Any:
        """Widen it, as a kernel of its own."""
        return bb.emit_te(self.widened, *self.operands(keep), primfunc_name_hint="widen")

    def widened(self, codes: Any, scale: Any, zero: Any = None) -> Any:
        """Give the tensor expression of the value, from what ``operands`` gave."""
        from tvm import te

        return te.compute(self.shape, lambda *at: self.element(codes, scale, zero, at), name="widened", tag="injective")

    def element(self, codes: Any, scale: Any, zero: Any, at: tuple[Any, ...]) -> Any:
        """Give the value at index ``at``."""
        code = self.code(codes, self._row(at))
        where = self._group(at)
        if zero is not None:
            code = code - self.code(zero, where)
        elif self.same_zero:
            code = code - self.same_zero
        return code.astype(self.dtype) * scale(*where)

    def _row(self, at: tuple[Any, ...]) -> tuple[Any, ...]:
        """Give the row and the place in it of the value at ``at``: a filter of a convolution is one row of codes."""
        if len(at) < 3:
            return at
        place = at[1]
        for index, size in zip(at[2:], self.shape[2:], strict=True):
            place = place * size + index
        return (at[0], place)

    @cached_property
    def same_zero(self) -> int:
        """The zero that all share; 0 where they differ."""
        if self.zero is None or not self.zero.size or (self.zero != self.zero.flat[0]).any():
            return 0
        return int(self.zero.flat[0])

    def _group(self, at: tuple[Any, ...]) -> tuple[Any, ...]:
        """Give the index of the scale of the value at ``at``."""
        if self.axis is None:
            return ()
        if not self.block:
            return (at[self.axis],)
        return tuple(index // self.block if axis == self.axis else index for axis, index in enumerate(at))

    def code(self, codes: Any, at: tuple[Any, ...]) -> Any:
        """Take the code at index ``at`` out of the words that ``operands`` made."""
        from tvm import tirx

        many = 32 // self.bits
        last = at[-1] if at else tirx.const(0, "int32")
        word = codes(*at[:-1], last // many)
        shift = ((last % many) * self.bits).astype("uint32")
        code = tirx.bitwise_and(tirx.shift_right(word, shift), tirx.const(2**self.bits - 1, "uint32")).astype("int32")
        if self.signed:
            half = tirx.const(2 ** (self.bits - 1), "int32")
            code = tirx.bitwise_xor(code, half) - half
        return code


def words(codes: np.ndarray, bits: int) -> np.ndarray:
    """Lay codes in uint32 words along the last axis, the first in the lowest bits; rows are filled up with zeros."""
    rows = np.atleast_1d(np.ascontiguousarray(codes)).astype(np.int8 if codes.dtype.kind == "i" else np.uint8)
    raw = rows.view(np.uint8)
    many = 32 // bits
    if short := -raw.shape[-1] % many:
        raw = np.concatenate([raw, np.zeros((*raw.shape[:-1], short), np.uint8)], -1)
    if bits == 4:
        raw = (raw[..., 0::2] & 15 | raw[..., 1::2] << 4).astype(np.uint8)
    return np.ascontiguousarray(raw).view("<u4")
