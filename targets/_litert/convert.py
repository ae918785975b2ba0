"""From an ONNX graph to a LiteRT program: node by node, in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from polycast.model import Model, name_of

from . import registry
from ._attributes import integer
from .ends import FUSED, End, end_of, implied
from .folding import fold, infer
from .layout import plain
from .program import Held, Program, Unsupported
from .quantized import is_operand, is_weight
from .registry import Converter
from .rewriting import is_op
from .straight import turns
from .tensors import Grid, Subgraph, Tensor


@dataclass(frozen=True)
class Varying:
    """Names of values that are known at each size, and differ between sizes; and of some that are not known.

    sizes: a few integers. computed: anything else, which the file has to compute. cut: see ``straight.cut``.
    """

    sizes: AbstractSet[str] = frozenset()
    computed: AbstractSet[str] = frozenset()
    cut: AbstractSet[str] = frozenset()


def convert(model: Model, varying: Varying | None = None) -> tuple[Subgraph, tuple[str, ...]]:
    """Convert ``model``, whose shapes are fixed.

    varying: where it is given the shapes are those of an example, and as little as can be may depend on them.
    Returns: the program, and what cannot be written of it, sorted; where that is anything the program is not whole.
    """
    found = _Walk(model, varying)
    return found.run(), tuple(sorted(set(found.problems)))


def foreseen(model: Model) -> tuple[Mapping[str, np.ndarray], Mapping[str, tuple[int, ...]]]:
    """Give what is the same in every run of ``model``, whose shapes are fixed, and shapes, by the names of values."""
    found = _Walk(model, Varying())
    found.run()
    to = found.program
    arrays = {value.name: array for value, array in to.arrays.items() if value.name}
    return arrays, {value.name: to.shape(value) for value in to.held if value.name}


class _Walk:
    def __init__(self, model: Model, varying: Varying | None) -> None:
        self.model = model
        self.program = Program("main", varying is not None)
        self.varying = varying or Varying()
        self.problems: list[str] = []

    def run(self) -> Subgraph:
        graph, to = self.model.graph.graph, self.program
        for value in graph.inputs:
            if value.name not in graph.initializers:
                self._input(value)
        for node in graph:
            if node not in to.done:
                self._node(node)
        if not self.problems:
            try:
                self._outputs(graph.outputs)
            except Unsupported as error:
                self.problems.append(str(error))
        to.subgraph.sweep()
        return to.subgraph

    def _input(self, value: ir.Value) -> None:
        to = self.program
        try:
            tensor = Tensor(to.name(value.name or "input"), to.dtype(value), to.shape(value))
        except Unsupported as error:
            self.problems.append(str(error))
            return
        to.subgraph.inputs.append(tensor)
        to.held[value] = [Held(tensor, plain(len(tensor.shape)))]

    def _outputs(self, outputs: Sequence[ir.Value]) -> None:
        to = self.program
        for value in outputs:
            to.begin_output(value)
            if to.has_codes(value) and value.dtype != ir.DataType.FLOAT:
                to.refuse(f"the output {value.name} is codes and no numbers")
            tensor = to.read(value)
            if tensor in to.subgraph.inputs or tensor in to.subgraph.outputs or tensor.data is not None:
                tensor = to.emit("RESHAPE", [tensor, to.ints(tensor.shape)], tensor.shape, newShape=list(tensor.shape))
            to.subgraph.outputs.append(tensor)

    def _node(self, node: ir.Node) -> None:
        what = f"{node.domain or 'ai.onnx'}.{node.op_type}"
        converter = registry.find(node)
        if self._reads_what_was_refused(node):
            if converter is None and node.op_type not in ("Shape", "Size"):  # those need no kernel: they are folded
                self.problems.append(f"{what} (opset {self._opset(node)})")
            return
        try:
            if is_op(node, "If"):
                self._branch(node)
                return
            infer(node, self.program, self.model.opset)
            if fold(node, self.program, self.model.opset) and not self._computes(node):
                if reason := turns(node, self.varying.sizes, self.varying.cut, self.program.array):
                    self.program.refuse(reason)
                return
            if converter is None:
                self.problems.append(f"{what} (opset {self._opset(node)})")
                return
            self._begin(node, converter)
            converter.convert(node, self.program)
        except Unsupported as error:
            self.problems.append(f"{what} at {name_of(node)}: {error}")

    def _branch(self, node: ir.Node) -> None:
        """Go through the branch that is taken at every size."""
        to = self.program
        condition = to.array(node.inputs[0])
        if condition is None:
            to.refuse("its condition is not constant")
        taken = node.attributes["then_branch" if condition.all() else "else_branch"].as_graph()
        for each in taken:
            self._node(each)
        for value, inner in zip(node.outputs, taken.outputs, strict=True):
            value.type = inner.type
            if (array := to.array(inner)) is not None:
                to.arrays[value] = array
            elif inner in to.held:
                to.alias(value, inner)

    def _computes(self, node: ir.Node) -> bool:
        """Whether what ``node`` gives is computed in the file; then it is known no more."""
        if not any(value.name in self.varying.computed for value in node.outputs):
            return False
        for value in node.outputs:
            array = self.program.arrays.pop(value)
            self.program.shapes[value] = array.shape
            value.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
        return True

    def _is_stored_for(self, node: ir.Node, codes: str, value: ir.Value) -> bool:
        """Whether ``value`` is a constant that is stored in codes, such as kernels take where ``node`` reads it."""
        found = self.program.stored(value)
        if codes == "any":
            return is_operand(found)
        if value is node.inputs[1]:
            turned = node.op_type == "Conv" or bool(integer(node, "transB", 0))
            return is_weight(found, 0 if turned else 1)
        return found is not None and found.grid is not None

    def _opset(self, node: ir.Node) -> int | str:
        return self.model.graph.opset_imports.get(node.domain, "?")

    def _reads_what_was_refused(self, node: ir.Node) -> bool:
        to = self.program
        return any(
            v is not None and v not in to.held and to.array(v) is None and to.stored(v) is None for v in node.inputs
        )

    def _begin(self, node: ir.Node, converter: Converter) -> None:
        """Decide whether ``node`` computes on codes, and where its results end."""
        to = self.program
        ends = {value: end_of(value) for value in node.outputs}
        codes = converter.codes(node) if callable(converter.codes) else converter.codes
        grid = self._grid(node, codes, ends)
        if raw := [v for v in node.inputs if v is not None and self._is_raw(v)]:
            if not is_op(node, "QuantizeLinear", "DequantizeLinear") and (codes != "moves" or is_op(node, "Pad")):
                to.refuse(f"it takes the codes of {raw[0].name} for numbers")
            ends = {value: End(value) for value in node.outputs}
        elif grid is None:
            ends = {value: _float_end(end) for value, end in ends.items()}
        else:
            ends = {value: end if _keeps_codes(end) else End(value) for value, end in ends.items()}
        to.begin(node, ends, converter.fuses, grid)

    def _is_raw(self, value: ir.Value) -> bool:
        """Whether ``value`` is codes for ONNX too, which come from a QuantizeLinear."""
        is_float = value.dtype in (ir.DataType.FLOAT, None) and not is_op(value.producer(), "QuantizeLinear")
        return self.program.has_codes(value) and not is_float

    def _grid(self, node: ir.Node, codes: str, ends: dict[ir.Value, End]) -> Grid | None:
        """Give the grid of the codes that ``node`` computes; None where it computes floats."""
        to = self.program
        data = [v for v in (node.inputs if codes in ("any", "product") else node.inputs[:1]) if v is not None]
        if codes == "none" or not any(map(to.has_codes, data)):
            return None
        if not all(to.has_codes(v) or self._is_stored_for(node, codes, v) for v in data):
            return None
        if codes == "moves":
            return to.grid_of(data[0])
        if not all(_keeps_codes(end) for end in ends.values()):
            return None
        return to.grid_of(data[0]) if codes == "same" else next(iter(ends.values())).grid


def _keeps_codes(end: End) -> bool:
    """Whether the result goes to a grid, with an activation that can be applied to codes."""
    if end.grid is None:
        return False
    return end.activation is None or end.bounds in FUSED or implied(end, end.grid)


def _float_end(end: End) -> End:
    """Give the end of floats: an activation that operators apply, and no grid."""
    if end.activation is not None and end.bounds in FUSED:
        return End(end.value, end.activation, end.bounds)
    return End(end.activation.inputs[0] if end.activation is not None else end.value)  # type: ignore[arg-type]
