"""LSTM as DynamicQuantizeLSTM; a recurrence without an integer kernel gets its weights stored in int8."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ._dynamic_edit import MICROSOFT, Place, drop_unread
from ._dynamic_layers import sum_problem, weight_problem
from ._dynamic_weights import Stored, Weights
from ._qdq import Names
from ._slices import constant, constant_tensor, integer

#: Where the weights are, of what is read and of what is carried on: [directions, gates x hidden, inputs].
_WEIGHTS = (1, 2)


@dataclass(frozen=True)
class Recurrences:
    """Quantizes LSTM, GRU and RNN. kernel: whether the target has an LSTM of integers."""

    names: Names
    weights: Weights
    kernel: bool

    def rewrite(self, node: ir.Node) -> tuple[bool, str]:
        """Put the weights of ``node`` into int8, and let it multiply integers where there is a kernel for that.

        Returns: whether that changed ``node``, and the reason why it does not multiply integers, or "".
        """
        if reason := _why_not(node):
            return False, reason
        reason = self._why_no_kernel(node)
        if reason:
            self._store(node)
        else:
            self._replace(node)
        return True, reason

    def _why_no_kernel(self, node: ir.Node) -> str:
        if node.op_type != "LSTM":
            return f"there is no {node.op_type} of integers: its weights are stored in int8 and multiplied in float32"
        if not self.kernel:
            return "the target has no LSTM of integers: its weights are stored in int8 and multiplied in float32"
        if integer(node, "layout", 0):
            return "an LSTM of integers has no layout 1: its weights are stored in int8 and multiplied in float32"
        return ""

    def _replace(self, node: ir.Node) -> None:
        place = Place(node, self.names)
        inputs: list[ir.Value | None] = [*node.inputs, *[None] * (8 - len(node.inputs))]
        scales: list[ir.Value | None] = []
        for index in _WEIGHTS:
            stored = self._stored(node, index, kernel=True)
            inputs[index] = stored.codes
            scales += [stored.scale, stored.zero]
        attributes = [each for each in node.attributes.values() if each.name != "layout"]
        count = len(node.outputs)
        new = ir.Node(MICROSOFT, "DynamicQuantizeLSTM", [*inputs, *scales], attributes, num_outputs=count)
        outputs = place.add(new, "integers", *((ir.DataType.FLOAT, value.shape) for value in node.outputs))
        place.put_all(outputs, outputs[0])

    def _store(self, node: ir.Node) -> None:
        """Let ``node`` read ``codes * scale``, which a runtime computes once, as it loads the model."""
        place = Place(node, self.names)
        for index in _WEIGHTS:
            old, stored = node.inputs[index], self._stored(node, index, kernel=False)
            assert old is not None
            wide = place.op("Cast", [stored.codes], {"to": ir.DataType.FLOAT}, what=f"wide{index}", shape=old.shape)
            node.replace_input_with(
                index, place.op("Mul", [wide, stored.scale], what=f"weight{index}", shape=old.shape)
            )
            drop_unread(old)

    def _stored(self, node: ir.Node, index: int, *, kernel: bool) -> Stored:
        old = node.inputs[index]
        w = constant(old)
        assert old is not None and w is not None
        if kernel:
            return self.weights.store(old, w.transpose(0, 2, 1), (1,), w.shape[:2], with_zero=True)
        return self.weights.store(old, w, (2,), (*w.shape[:2], 1))


def _why_not(node: ir.Node) -> str:
    if not isinstance(node.graph, ir.Graph):
        return "it lies in a function"
    for index in _WEIGHTS:
        tensor = constant_tensor(node.inputs[index])
        if tensor is None:
            return "its weights are not constant"
        if reason := weight_problem(tensor) or sum_problem(int(tensor.shape.numpy()[-1])):
            return reason
    return ""
