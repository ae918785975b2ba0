"""Weights in int8, symmetric, one scale for each output channel; a weight that several nodes read is stored once."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from ._dynamic_zero import MIDDLE, TINY
from ._qdq import Names


def to_int8(w: np.ndarray, axes: tuple[int, ...], top: int = 127) -> tuple[np.ndarray, np.ndarray]:
    """Round ``w`` to codes -top..top, one scale for what lies along ``axes``.

    Returns: codes int8, and scale float32 with size 1 on ``axes``, above 0; ``w`` is about ``codes * scale``.
    """
    largest = np.abs(w).max(axis=axes, keepdims=True).astype(np.float64)
    scale = np.maximum(largest / top, TINY).astype(np.float32)
    codes = np.clip(np.rint(w / scale.astype(np.float64)), -top, top).astype(np.int8)
    return codes, scale


@dataclass(frozen=True)
class Stored:
    """A weight in 8 bits: codes, scale, and the zero point where the operator wants one."""

    codes: ir.Value
    scale: ir.Value
    zero: ir.Value | None = None


@dataclass
class Weights:
    """Puts weights into the graphs that the float ones lie in, each one once.

    top: the largest code of a weight that multiplies uint8; 63 where pairs of products are added in 16 bits.
    """

    names: Names
    top: int = 127
    _made: dict[ir.Value, list[Stored]] = field(default_factory=dict)

    def store(
        self,
        old: ir.Value,
        w: np.ndarray,
        axes: tuple[int, ...],
        shape: tuple[int, ...],
        *,
        unsigned: bool = False,
        with_zero: bool = False,
    ) -> Stored:
        """Quantize ``w``, which is made of the constant ``old``, with one scale for what lies along ``axes``.

        shape: what the scale is stored as. unsigned: uint8 with the zero point MIDDLE, for a weight on the left.
        with_zero: a zero point for each scale, all of them 0.
        """
        graph = old.graph
        assert isinstance(graph, ir.Graph)
        codes, scale = to_int8(w, axes, 127 if unsigned else self.top)
        if unsigned:
            codes = (codes.astype(np.int16) + MIDDLE).astype(np.uint8)
        scale = scale.reshape(shape)
        made = self._made.setdefault(old, [])
        for known in made:
            if _holds(known.codes, codes) and _holds(known.scale, scale):
                return known
        zero = np.array(MIDDLE, np.uint8) if unsigned else np.zeros(shape, np.int8) if with_zero else None
        made.append(
            Stored(
                self.names.constant(graph, f"{old.name}.int8", codes),
                self.names.constant(graph, f"{old.name}.scale", scale),
                self.names.small(graph, f"{old.name}.zero", zero) if zero is not None else None,
            )
        )
        return made[-1]


def _holds(value: ir.Value, array: np.ndarray) -> bool:
    assert value.const_value is not None
    found = value.const_value.numpy()
    return found.dtype == array.dtype and np.array_equal(found, array)
