"""A pass of one's own: MobileNetV3's activation, which exporters below opset 14 spell out, as the one op that it is.

pip install ./own_pass
polycast compile model.onnx -t cpu --passes "clean | fold | fuse_hard_swish" -o out
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_ir as ir

from polycast.model import graphs
from polycast.passbase import Numerics, Pass, PassContext

ALPHA, BETA = 1 / 6, 0.5


@dataclass(frozen=True)
class FuseHardSwish(Pass):
    """Fuse ``x * HardSigmoid(x, alpha=1/6, beta=1/2)`` into ``HardSwish(x)``.

    x: any shape, any float dtype; the result has the shape and dtype of x.
    Source: Howard et al. 2019, arXiv:1905.02244, section 5.2; ONNX HardSwish, opset 14.
    """

    numerics = Numerics.ROUNDING

    def rewrite(self, graph: ir.Model, ctx: PassContext) -> int:
        """Fuse every product of a value and its own gate; a gate with other numbers or other readers is skipped."""
        sites = 0
        for region in graphs(graph):
            for product in [node for node in region if node.op_type == "Mul" and node.domain == ""]:
                gate = _gate(product)
                if gate is None:
                    continue
                if reason := _objection(gate):
                    ctx.skip(gate, reason)
                    continue
                fused = ir.node("HardSwish", [gate.inputs[0]])
                ir.convenience.replace_nodes_and_values(
                    region, product, [product, gate], [fused], product.outputs, fused.outputs
                )
                sites += 1
        return sites


def _gate(product: ir.Node) -> ir.Node | None:
    """Give the HardSigmoid of ``product = x * HardSigmoid(x)``, in either order."""
    a, b = product.inputs
    for x, gated in ((a, b), (b, a)):
        node = gated.producer() if gated is not None else None
        if node is not None and (node.domain, node.op_type) == ("", "HardSigmoid") and node.inputs[0] is x:
            return node
    return None


def _objection(gate: ir.Node) -> str:
    """Say why this gate is none of HardSwish, or nothing."""
    for name, wanted, default in (("alpha", ALPHA, 0.2), ("beta", BETA, 0.5)):
        found = gate.attributes.get_float(name, default)
        # Exporters write 0.1666667 or the float32 next to 1/6.
        if not math.isclose(found, wanted, rel_tol=1e-6):
            return f"{name} is {found:.6g}, not {wanted:.6g}"
    if len(gate.outputs[0].uses()) > 1 or gate.outputs[0].is_graph_output():
        return "the gate is read elsewhere too"
    return ""
