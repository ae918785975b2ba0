"""Sequential GPTQ: each weight is rounded for what its layer reads once the layers before it are rounded.

A stage is a run of layers of which none reads what another gives. For each, the calibration samples run through the
original and through a copy whose weights are rounded so far, side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from polycast.calibrating.observe import observe
from polycast.calibrating.taps import Seen, Tap, Want
from polycast.errors import InputError
from polycast.passbase import PassContext

from ._beside import Beside, Sight
from ._gptq import DAMPING, best_damping, gptq, scales_for
from ._grid import Quantized, Scales
from ._halves import halved
from ._plan_weights import Layer
from ._shift import Fit, shift
from ._stages import Planned, Reading, stages


class Sequential:
    """Rounds the weights of ``layers`` of ``graph``, which are asked for in their order, for the samples of ``ctx``.

    What half of the samples are fitted by is judged on the other half; then all are fitted.
    Source: GPTQ, Frantar et al. 2023, arXiv:2210.17323. Targets that make up for what was rounded before follow GPTAQ,
    Li et al. 2025, arXiv:2504.02692; here they are found by ridge regression, and take in the residual stream.
    """

    def __init__(self, graph: ir.Model, layers: Sequence[Layer], ctx: PassContext) -> None:
        self._halves = halved(replace(ctx, cache=None, progress=None))
        layers = [layer for layer in layers if layer.form != "float"]
        self._stages = stages(graph, layers)
        self._beside = Beside.of(graph, [node for layer in layers for node in layer.nodes])
        self._readings: dict[int, tuple[Reading, ...]] = {}
        self._names: dict[Reading, str] = {}
        self._seen: list[dict[str, Seen]] = []

    def quantize(self, layer: Layer, scales: Scales) -> Quantized | None:
        """Round the weight of ``layer``; None where no sample reaches it."""
        if id(layer) not in self._readings:
            self._observe(next(stage for stage in self._stages if any(each.layer is layer for each in stage)))
        w = layer.matrix.whole()
        fits = [fit for seen in self._seen if (fit := self._fit(layer, w, seen)) is not None]
        if not fits:
            return None
        found = _rounded(w, fits, layer, scales)
        for node in layer.nodes:
            self._beside.exchange(node, layer.matrix, found.values())
        return found

    def _observe(self, stage: Sequence[Planned]) -> None:
        """Observe what the layers of ``stage`` read."""
        self._readings = {id(each.layer): each.readings for each in stage}
        try:
            self._look()
        except InputError:  # a sum may have more rows than what is read, where shapes do not tell
            self._readings = {
                number: tuple(Reading(each.x, each.k, each.beside) for each in readings)
                for number, readings in self._readings.items()
            }
            self._look()

    def _look(self) -> None:
        self._seen.clear()
        sight = Sight(self._beside)
        wanted = dict.fromkeys(reading for readings in self._readings.values() for reading in readings)
        self._names = {reading: _show(sight, reading) for reading in wanted}
        model = sight.only_joined() if all(reading.beside for reading in wanted) else sight.model
        taps = [Tap(name, Want.GRAM) for name in self._names.values()]
        self._seen += (observe(model, taps, half) for half in self._halves)

    def _fit(self, layer: Layer, w: np.ndarray, seen: dict[str, Seen]) -> Fit | None:
        """Give what these samples say of ``layer``, summed over its nodes."""
        fits = []
        for reading in self._readings[id(layer)]:
            name = self._names[reading]
            gram = seen[name].gram if name in seen else None
            if gram is not None and np.isfinite(gram).all():
                fits.append(_fit(reading, w, gram))
        return sum(fits[1:], fits[0]) if fits else None


def _show(sight: Sight, reading: Reading) -> str:
    """Name a value whose columns are what the copy's node reads and, beside that, what the original has more."""
    if not reading.beside:
        return reading.x
    if reading.wanted:
        more = sight.total([sight.difference(name, reading.n) for name in reading.wanted])
    else:
        more = sight.difference(reading.x, reading.k)
    return sight.joined([sight.rows(reading.x, reading.k), more])


def _fit(reading: Reading, w: np.ndarray, gram: np.ndarray) -> Fit:
    k = reading.k
    more = gram[:k, k:]
    if not reading.beside:
        cross = np.zeros((k, len(w)))
    elif reading.wanted:
        cross = more / reading.gain
    else:
        cross = more @ w.T
    return Fit(np.array(gram[:k, :k]), cross)


def _rounded(w: np.ndarray, fits: Sequence[Fit], layer: Layer, scales: Scales) -> Quantized:
    """Shift ``w: [N, K]`` and round it."""
    moved = shift(fits)
    target = w if moved is None else (w + moved.T).astype(np.float32)
    scales = scales_for(target, layer.grid, scales.stored, scales.dtype)
    if len(fits) == 1:
        return gptq(target, fits[0].gram, layer.grid, scales, DAMPING)
    first, second = (fit.gram for fit in fits)
    damping = best_damping(target, first, second, layer.grid, scales)
    return gptq(target, first + second, layer.grid, scales, damping)
