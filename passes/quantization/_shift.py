"""Shifting: moving the weight of a layer, before it is rounded, so that it makes up for errors that came before it.

A layer reads ``x`` where the original reads other numbers, and what it gives is off by ``e = wanted - x wᵀ``. The
shift is the ridge regression of ``e`` on ``x``, with a penalty that what is left out of the fit chooses. It is the same
for all channels of ``x``: one in parts of their powers would let faint channels get weights that ruin their blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ._gptq import damped

#: Penalties that are tried, in parts of the mean power of the input channels.
PENALTIES = (0.01, 0.03, 0.1, 0.3)

#: The penalty where there is nothing left to judge a fit by.
UNJUDGED = 0.1


@dataclass(frozen=True)
class Fit:
    """Half of the samples. gram: ``Σ xᵀ x`` [K, K]; cross: ``Σ xᵀ e`` [K, N]; float64."""

    gram: np.ndarray
    cross: np.ndarray

    def __add__(self, other: Fit) -> Fit:
        return Fit(self.gram + other.gram, self.cross + other.cross)

    def solve(self, penalty: float) -> np.ndarray:
        """Give the shift [K, N] that lowers the squared error most, but for ``penalty`` on its own size."""
        from scipy.linalg import cho_factor, cho_solve

        solved: np.ndarray = cho_solve(cho_factor(damped(self.gram, penalty), lower=True), self.cross)
        return solved

    def gain(self, shift: np.ndarray) -> float:
        """Give by how much ``shift`` lowers the squared error on these samples."""
        return float(2 * np.vdot(shift, self.cross) - np.vdot(shift, self.gram @ shift))


def shift(fits: Sequence[Fit]) -> np.ndarray | None:
    """Give the shift [K, N] of all samples; None where there is no error, or nothing gains on samples left out.

    fits: of the samples that penalties are fitted on and, where there are any, of those that judge them.
    """
    total = sum(fits[1:], fits[0])
    if not total.cross.any():
        return None
    if len(fits) == 1:
        return total.solve(UNJUDGED)
    fitted, judge = fits
    gains = {penalty: judge.gain(fitted.solve(penalty)) for penalty in PENALTIES}
    best = max(PENALTIES, key=gains.__getitem__)
    return total.solve(best) if gains[best] > 0 else None
