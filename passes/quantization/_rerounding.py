"""Rerounding: choosing, for each weight, the integer below or above it so that a layer's outputs come closest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: Sweeps over the inputs of a layer at most; each of them only ever lowers the error.
_SWEEPS = 20

#: Share of the mean of the Gram's diagonal that is added to it: what few rows do not show is not for free.
_DAMPING = 0.01


@dataclass(frozen=True)
class Layer:
    """A layer as products of rows: ``y = x @ (codes * scale).T``, for each group of channels on its own.

    x: [groups, rows, inputs], what it reads once quantized. weight: [groups, outputs, inputs], as it was.
    codes: integers, shaped like the weight. scale: [groups, outputs, 1].
    """

    x: np.ndarray
    weight: np.ndarray
    codes: np.ndarray
    scale: np.ndarray

    def error(self, codes: np.ndarray) -> float:
        """Give the squared error of the outputs against those of the float weight, over the squares of these."""
        power = float(np.square(self.x @ self.weight.swapaxes(1, 2)).sum())
        missing = self.x @ (codes * self.scale - self.weight).swapaxes(1, 2)
        return float(np.square(missing).sum()) / power if power else 0.0

    def part(self, rows: np.ndarray) -> Layer:
        """Take some of the rows."""
        return Layer(self.x[:, rows], self.weight, self.codes, self.scale)


def reround(layer: Layer, limit: int) -> np.ndarray:
    """Move codes of ``layer`` to the other neighbour of their weight while that lowers the error of its outputs.

    The error is a quadratic form in the codes, so that what one move does to it is known exactly; input by input, all
    outputs at once, each code moves where that helps, until none does.
    limit: the largest code. Returns: codes, as float64.
    """
    wanted = layer.weight / layer.scale
    low = np.clip(np.floor(wanted), -limit, limit)
    high = np.clip(np.ceil(wanted), -limit, limit)
    codes: np.ndarray = np.clip(layer.codes, low, high)
    gram = layer.x.swapaxes(1, 2) @ layer.x
    inputs = np.arange(gram.shape[1])
    gram[:, inputs, inputs] += _DAMPING * np.trace(gram, axis1=1, axis2=2)[:, None] / len(inputs)
    # slope[g, o, k]: half the derivative of the error of output o by its code k, in steps of the codes.
    slope = (codes - wanted) @ gram
    for _ in range(_SWEEPS):
        before = codes.copy()
        for k in inputs.tolist():
            now = codes[:, :, k]
            move = np.where(now > low[:, :, k], low[:, :, k], high[:, :, k]) - now
            move[2 * move * slope[:, :, k] + np.square(move) * gram[:, None, k, k] >= 0] = 0
            group, output = np.nonzero(move)
            codes[group, output, k] += move[group, output]
            slope[group, output] += move[group, output, None] * gram[group, k]
        if (codes == before).all():
            break
    return codes
