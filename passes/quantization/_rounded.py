"""Rounded: what linear layers lose when their weights and inputs are rounded to 8 bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ._slices import LINEAR, constant, integer


@dataclass(frozen=True)
class Activation:
    """Rows of what a layer reads. rows: [rows, channels] float32; largest: [channels], over all that was seen."""

    rows: np.ndarray
    largest: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray, largest: np.ndarray) -> Activation:
        """Take rows as they were observed; the largest is at least that of the rows."""
        return cls(rows, np.maximum(largest, np.abs(rows).max(axis=0, initial=0.0)))

    def halves(self) -> tuple[Activation, Activation]:
        """Split into two of every other row each, with the same largest."""
        return Activation(self.rows[::2], self.largest), Activation(self.rows[1::2], self.largest)

    def rounded(self, scale: np.ndarray, *, per_row: bool) -> np.ndarray:
        """Divide the channels by ``scale``, round them to 8 bits, and multiply them by it again.

        per_row: each row has its own symmetric grid; else one asymmetric grid holds all that was seen.
        """
        x = self.rows / scale
        if per_row:
            step = np.maximum(np.abs(x).max(axis=1, keepdims=True), np.finfo(np.float32).tiny) / 127
            rounded: np.ndarray = np.round(x / step) * step * scale
            return rounded
        reach = self.largest / scale
        low = -reach[(self.rows < 0).any(axis=0)].max(initial=0.0)
        high = reach[(self.rows > 0).any(axis=0)].max(initial=0.0)
        step = max((high - low) / 255, float(np.finfo(np.float32).tiny))
        zero = np.round(-low / step)
        codes: np.ndarray = np.clip(np.round(x / step) + zero, 0, 255)
        back: np.ndarray = (codes - zero) * step * scale
        return back


def as_matrix(node: ir.Node) -> np.ndarray | None:
    """Give the weight of a linear ``node`` as [groups, inputs, outputs, taps] float32; None where it is no matrix.

    inputs and outputs are the channels of one group; taps are the positions of a kernel.
    """
    array = constant(node.inputs[1])
    if array is None or node.op_type not in LINEAR or (node.op_type in ("MatMul", "Gemm") and array.ndim != 2):
        return None
    weight, groups = array.astype(np.float32), integer(node, "group", 1)
    match node.op_type:
        case "Conv":
            split = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
            return np.ascontiguousarray(split.swapaxes(1, 2))
        case "ConvTranspose":
            return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
        case "Gemm" if integer(node, "transB", 0):
            return np.ascontiguousarray(weight.T)[None, :, :, None]
        case _:
            return weight[None, :, :, None]


def error(x: Activation, weights: Sequence[np.ndarray], scale: np.ndarray, *, per_row: bool) -> float:
    """Give the squared error of the layers' outputs over their squares, summed over the layers.

    weights: [groups, inputs, outputs, taps] each, of layers that read ``x``. They are rounded to symmetric int8 per
    output channel after their input channels are multiplied by ``scale``. The taps of a kernel count one by one.
    """
    rounded = x.rounded(scale, per_row=per_row).astype(np.float32)
    return sum(_relative_error(x.rows, rounded, weight, scale) for weight in weights)


def _relative_error(rows: np.ndarray, rounded: np.ndarray, weight: np.ndarray, scale: np.ndarray) -> float:
    groups, inputs, *_ = weight.shape
    factor = scale.astype(np.float32).reshape(groups, inputs, 1, 1)
    exact = _product(rows, weight)
    found = _product(rounded, _int8(weight * factor) / factor)
    power = float(np.square(exact, dtype=np.float64).sum())
    return float(np.square(found - exact, dtype=np.float64).sum()) / power if power else 0.0


def _product(rows: np.ndarray, weight: np.ndarray) -> np.ndarray:
    groups, inputs = weight.shape[:2]
    split = rows.reshape(len(rows), groups, inputs).swapaxes(0, 1)
    product: np.ndarray = split @ weight.reshape(groups, inputs, -1)
    return product


def _int8(weight: np.ndarray) -> np.ndarray:
    """Round [groups, inputs, outputs, taps] to symmetric int8 per output channel."""
    largest = np.abs(weight).max(axis=(1, 3), keepdims=True, initial=0.0)
    step = np.maximum(largest, np.finfo(np.float32).tiny) / 127
    rounded: np.ndarray = np.round(weight / step) * step
    return rounded
