"""Grams: ``Σ xᵀ x`` of what each layer reads on the calibration samples, some layers at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from polycast.calibrating.observe import observe
from polycast.calibrating.taps import Tap, Want
from polycast.passbase import PassContext

from ._gptq import gptq
from ._grid import Quantized, Scales
from ._plan_weights import Layer

#: Bytes of the matrices that are held at a time.
HELD = 1 << 29


class Grams:
    """What the layers of ``graph`` read, which has to stay as it is; asked for in the order of ``layers``."""

    def __init__(self, graph: ir.Model, layers: Sequence[Layer], ctx: PassContext) -> None:
        self._graph, self._ctx = graph, ctx
        self._wanted = [(_inputs(layer), layer.matrix.k) for layer in layers]
        self._held: dict[str, np.ndarray | None] = {}

    def of(self, layer: Layer) -> np.ndarray | None:
        """Give the sum over the layer's nodes, [K, K] float64; None where no sample reaches it, or none is finite."""
        inputs = _inputs(layer)
        if any(name not in self._held for name in inputs):
            self._observe(inputs)
        found = [gram for name in inputs if (gram := self._held[name]) is not None]
        return np.sum(found, axis=0) if found and all(np.isfinite(gram).all() for gram in found) else None

    def quantize(self, layer: Layer, scales: Scales) -> Quantized | None:
        """Round the weight of ``layer`` for what it reads; None where ``of`` gives none."""
        gram = self.of(layer)
        return None if gram is None else gptq(layer.matrix.whole(), gram, layer.grid, scales)

    def _observe(self, first: tuple[str, ...]) -> None:
        """Observe ``first`` and what is asked for after it, as much as may be held."""
        start = next(at for at, (inputs, _) in enumerate(self._wanted) if inputs == first)
        names: dict[str, None] = {}
        size = 0
        for inputs, k in self._wanted[start:]:
            fresh = [name for name in inputs if name not in names]
            size += len(fresh) * 8 * k * k
            if names and size > HELD:
                break
            names |= dict.fromkeys(fresh)
        seen = observe(self._graph, [Tap(name, Want.GRAM) for name in names], self._ctx)
        self._held = {name: seen[name].gram if name in seen else None for name in names}


def _inputs(layer: Layer) -> tuple[str, ...]:
    """Name what the layer's nodes multiply, each once per node."""
    return tuple(node.inputs[0].name or "" for node in layer.nodes if node.inputs[0] is not None)
