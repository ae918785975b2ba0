"""A pass of the tests that quantizes layers, so that what chooses layers can be tested without any of ours."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from polycast.data.feeds import Sample
from polycast.model import Model, Origin, named
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


@dataclass
class Given:
    """Samples that are simply there."""

    feeds: list[dict[str, np.ndarray]]
    source: str = "given"
    kind: str = "arrays"

    def __len__(self) -> int:
        return len(self.feeds)

    def __iter__(self) -> Iterator[Sample]:
        return (Sample(feeds, None, f"sample {number}") for number, feeds in enumerate(self.feeds))


def parsed(body: str, weights: dict[str, np.ndarray]) -> Model:
    """Read a graph in ONNX's own text form; nodes are named ``<op>_<number>``."""
    proto = onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 23]>\n' + body)
    proto.graph.initializer.extend(numpy_helper.from_array(w, name) for name, w in weights.items())
    for number, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type}_{number}"
    return Model("given", ir.from_proto(proto), Origin("", ""))
