"""A matrix times one vector, in two sums: of the few terms that a thread reads at once, then of those, scaled.

    part[n, c] = sum over a chunk c of x[k] * (code[n, k] - zero[n, c])
    y[n]       = sum over chunks     of part[n, c] * scale[n, c]

A chunk is 16 bytes of the matrix, which one instruction reads, or less where rows are of another length, and never goes
over the edge of a block, so that scale and zero are read once for all of it. Both sums are of float32. The products of
decoding are all of this kind, and take as long as it takes to read the matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np

from .stored import Stored

#: Bytes that one instruction reads at most.
VECTOR = 16

#: The names that ``matvec_rule`` knows the two sums by.
PART, WHOLE = "part", "whole"

#: Fuses with what follows it, as other products do.
FUSIBLE = {"op_pattern": 4}

#: 2**23 as a float32: its last 23 bits count in ones, so that a code put there makes a number of it with no conversion.
_MAGIC, _OFFSET = 0x4B000000, float(1 << 23)

#: Gives the tensors that are read, and an index or two, an expression.
_Element = Callable[..., Any]


@dataclass(frozen=True)
class Matrix:
    """A matrix [N, K] in chunks. reads: its tensors, as parameters or constants. shape: N, and the chunks of a row.

    units, terms: of a chunk, units that are read and terms in each. value: (tensors, n, unit of the row, term, chunk)
    -> float32 but for the scale. scale: (tensors, n, chunk) -> any float; None where there is none.
    """

    shape: tuple[int, int]
    units: int
    terms: int
    value: _Element
    scale: _Element | None = None

    @property
    def chunk(self) -> int:
        """Terms of a chunk."""
        return self.units * self.terms

    def times(self, lead: Sequence[int]) -> Callable[..., Any]:
        """Give the tensor expression of the product with x: [*lead, K], ``lead`` being ones; reads follow x."""

        def product(x: Any, *reads: Any) -> Any:
            from tvm import te

            unit, term = te.reduce_axis((0, self.units), "unit"), te.reduce_axis((0, self.terms), "term")
            chunk = te.reduce_axis((0, self.shape[1]), "chunk")
            ones = [0] * len(lead)

            def parts(n: Any, c: Any) -> Any:
                u = c * self.units + unit
                read = x(*ones, u * self.terms + term).astype("float32")
                return te.sum(read * self.value(reads, n, u, term, c), axis=[unit, term])

            def element(*at: Any) -> Any:
                found = part(at[-1], chunk)
                if self.scale is not None:
                    found = found * self.scale(reads, at[-1], chunk).astype("float32")
                return te.sum(found, axis=chunk)

            part = te.compute(self.shape, parts, name=PART)
            return te.compute((*lead, self.shape[0]), element, name=WHOLE)

        return product


def dense(weight: np.ndarray) -> Matrix:
    """Give ``weight``, [N, K] of float16 or float32."""
    rows, terms = weight.shape
    chunk = gcd(VECTOR // weight.itemsize, terms)
    return Matrix(
        (rows, terms // chunk), 1, chunk, lambda reads, n, u, term, c: reads[0](n, u * chunk + term).astype("float32")
    )


def packed(b: Stored) -> Matrix | None:
    """Give the stored matrix ``b``, [N, K], as ``b.operands`` lay it out; None where a block is of no whole words."""
    rows, terms = b.shape
    many = 32 // b.bits
    along = bool(b.block) and b.axis == 1
    if terms % many or (b.axis is not None and not along and (b.axis != 0 or b.block)):
        return None
    block = b.block if along else terms
    units = gcd(VECTOR // 4, gcd(terms, block) // many)
    if not units or block % many:
        return None

    def group(n: Any, c: Any) -> tuple[Any, ...]:
        return () if b.axis is None else (n, c * units * many // block) if along else (n,)

    def value(reads: Sequence[Any], n: Any, u: Any, term: Any, c: Any) -> Any:
        from tvm import tirx

        half = 2 ** (b.bits - 1) if b.signed else 0
        code = tirx.bitwise_and(reads[0](n, u) >> (term * b.bits).astype("uint32"), tirx.const(2**b.bits - 1, "uint32"))
        number = tirx.reinterpret("float32", tirx.bitwise_xor(code, tirx.const(_MAGIC | half, "uint32")))
        zero = tirx.const(_OFFSET + half, "float32")
        if len(reads) > 2:
            zero = zero + b.code(reads[2], group(n, c)).astype("float32")
        elif b.same_zero:
            zero = tirx.const(_OFFSET + half + b.same_zero, "float32")
        return number - zero

    return Matrix((rows, terms // (units * many)), units, many, value, lambda reads, n, c: reads[1](*group(n, c)))
