"""A pass of the tests that quantizes layers, so that what chooses layers can be tested without any of ours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from polycast.model import named
from polycast.passbase import Numerics, Pass, PassContext


@dataclass(frozen=True)
class Coarse(Pass):
    """Round the weights of every MatMul to multiples of ``step``.

    Source: a pass of the tests.
    """

    numerics = Numerics.LOSSY
    needs = ("calibration",)

    step: float = 0.25
    keep: tuple[str, ...] = ()
    only: tuple[str, ...] = ()

    def rewrite(self, graph: ir.Model, ctx: PassContext) -> int:
        sites = 0
        for node in graph.graph:
            weight = node.inputs[1] if len(node.inputs) > 1 else None
            if node.op_type != "MatMul" or weight is None or weight.const_value is None:
                continue
            if (self.only and not named(node, self.only)) or named(node, self.keep):
                continue
            old = weight.const_value.numpy()
            new = rounded(old, self.step)
            if not np.array_equal(old, new):
                weight.const_value = ir.tensor(new, name=weight.name)
                sites += 1
        return sites


def rounded(weight: np.ndarray, step: float) -> np.ndarray:
    return (np.round(weight / np.float32(step)) * np.float32(step)).astype(np.float32)
