"""Multiply in int8, with activations that are quantized while the model runs."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from polycast.passbase import Numerics, Pass, PassContext

from ._dynamic_activations import Activations
from ._dynamic_choice import choose
from ._dynamic_conv import Convolutions
from ._dynamic_edit import MICROSOFT
from ._dynamic_layers import layers
from ._dynamic_products import Products
from ._dynamic_recurrent import Recurrences
from ._dynamic_weights import Weights
from ._qdq import Names
from ._select import selected

_PER = ("auto", "tensor", "token")


@dataclass(frozen=True)
class Int8Dynamic(Pass):
    """Multiply in int8, with activations that are quantized while the model runs, so that no range has to be known.

    Weights: int8, symmetric, a scale per output channel, stored once however many nodes read them. MatMul and Gemm:
    w: [..., K, N] float32, on either side. Each token, that is each row that is summed over, gets a scale of its own,
    or the whole tensor one grid, which is faster and loses more; what several of them read is quantized once. LSTM
    becomes DynamicQuantizeLSTM where the target has it. GRU and RNN have no integer kernel: their weights are stored
    in int8 and widened to float32 as the model is loaded. Conv becomes ConvInteger, on one grid for the whole batch;
    onnxruntime runs that several times slower than a float Conv.
    A site is a node whose weights are int8 afterwards. Without the feature ``u8s8-exact``, products of uint8 and int8
    may saturate in pairs, and weights that meet uint8 take 7 bits.

    What NaN and infinity become is left open, as it is in ONNX. In a token they reach the products of that token alone;
    on one grid for all, an infinity reaches every product.

    per: ``token``, ``tensor``, or ``auto``: per tensor where its error in the products on the calibration samples is at
    most ``slack`` times that of per token, and per token where there are no samples.
    recurrent, convolutions: whether LSTM, GRU and RNN, and whether Conv and ConvTranspose are looked at.
    keep, only: names, op types and globs of nodes that stay in float, or that alone are changed.
    Source: Yao et al. 2022, arXiv:2206.01861, section 4.1 (token-wise activations); ONNX DynamicQuantizeLinear,
    opset 11, QuantizeLinear with blocks, opset 21, MatMulInteger and ConvInteger, opset 10; onnxruntime's
    MatMulIntegerToFloat and DynamicQuantizeLSTM.
    """

    numerics = Numerics.LOSSY
    needs = ("integer-matmul",)

    per: str = "auto"
    slack: float = 2.0
    recurrent: bool = True
    convolutions: bool = False
    keep: tuple[str, ...] = ()
    only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.per not in _PER:
            raise ValueError(f"per is one of {', '.join(_PER)}, not {self.per!r}")
        if not self.slack >= 0:
            raise ValueError(f"slack is at least 0, not {self.slack}")

    def rewrite(self, graph: ir.Model, ctx: PassContext) -> int:
        """Quantize every node that can be; each that cannot has its reason."""
        if not set(self.needs) <= ctx.features:
            for node in self._nodes(graph, "MatMul", "Gemm"):
                ctx.skip(node, "the target has no product of integers (integer-matmul)")
            return 0
        names = Names.of(graph)
        weights = Weights(names, 127 if "u8s8-exact" in ctx.features else 63)
        activations = Activations()
        sites = self._products(
            graph, Products(names, weights, activations, "integer-matmul-to-float" in ctx.features), ctx
        )
        if self.recurrent:
            sites += self._recurrences(graph, Recurrences(names, weights, "dynamic-lstm" in ctx.features), ctx)
        sites += self._convolutions(graph, Convolutions(names, weights, activations), ctx)
        if any(node.domain == MICROSOFT for node in graph.graph.all_nodes()):
            graph.opset_imports.setdefault(MICROSOFT, 1)
        return sites

    def _products(self, graph: ir.Model, products: Products, ctx: PassContext) -> int:
        found = list(layers(self._nodes(graph, "MatMul", "Gemm"), ctx.skip))
        chosen = choose(graph, found, self.per, self.slack, ctx)
        for layer in found:
            products.rewrite(layer, chosen[layer])
        return len(found)

    def _recurrences(self, graph: ir.Model, recurrences: Recurrences, ctx: PassContext) -> int:
        sites = 0
        for node in self._nodes(graph, "LSTM", "GRU", "RNN"):
            changed, reason = recurrences.rewrite(node)
            sites += changed
            if reason:
                ctx.skip(node, reason)
        return sites

    def _convolutions(self, graph: ir.Model, convolutions: Convolutions, ctx: PassContext) -> int:
        sites = 0
        for node in self._nodes(graph, "Conv", "ConvTranspose"):
            reason = convolutions.rewrite(node) if self.convolutions else "convolutions are not asked for"
            if reason:
                ctx.skip(node, reason)
            else:
                sites += 1
        return sites

    def _nodes(self, graph: ir.Model, *ops: str) -> list[ir.Node]:
        return list(selected(graph, ops, self.only, self.keep))
