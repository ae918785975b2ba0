"""From an ONNX graph to a LiteRT program: node by node, in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from polycast.model import Model, name_of

from . import registry
from .ends import FUSED, End, end_of
from .folding import fold, infer
from .layout import plain
from .program import Held, Program, Unsupported, implied
from .registry import Converter
from .rewriting import is_op
from .tensors import Grid, Subgraph, Tensor


@dataclass(frozen=True)
class Varying:
    """Names of values that are known at each size, and differ between sizes.

    sizes: a few integers. computed: anything else, which the file has to compute.
    """

    sizes: AbstractSet[str]
    computed: AbstractSet[str]


def convert(model: Model, varying: Varying | None = None) -> tuple[Subgraph, tuple[str, ...]]:
    """Convert ``model``, whose shapes are fixed.

    varying: where it is given the shapes are those of an example, and as little as can be may depend on them.
    Returns: the program, and what cannot be written of it, sorted; where that is anything the program is not whole.
    """
    found = _Walk(model, varying)
    return found.run(), tuple(sorted(set(found.problems)))


def foreseen(model: Model) -> Mapping[str, np.ndarray]:
    """Give what is the same in every run of ``model``, whose shapes are fixed, by the name of the value."""
    found = _Walk(model, Varying(frozenset(), frozenset()))
    found.run()
    return {value.name: array for value, array in found.program.arrays.items() if value.name}


class _Walk:
    def __init__(self, model: Model, varying: Varying | None) -> None:
        self.model = model
        self.program = Program("main", varying is not None)
        self.varying = varying or Varying(frozenset(), frozenset())
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
                self._hold_straight(node)
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
        if any(value.name in self.varying.sizes | self.varying.computed for value in _follows(node.inputs[0])):
            to.refuse("which branch is taken may depend on a size")
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

    def _hold_straight(self, node: ir.Node) -> None:
        """Refuse a bound of a size, or a choice by it: the sizes tried may all lie on one side."""
        to, sizes = self.program, self.varying.sizes
        if node.op_type in ("Clip", "Max", "Min") and any(v is not None and v.name in sizes for v in node.inputs):
            to.refuse("a size has a bound here that no size tried may reach")
        compared = _follows(node.inputs[0]) if node.op_type == "Where" else []
        if any(value.name in sizes for value in compared):
            known = [array for value in compared if (array := to.array(value)) is not None]
            if not any((array < 0).all() for array in known):  # no size is -1, which is how exporters spell "as it is"
                to.refuse("which one is taken may depend on a size")

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
        if grid is None:
            ends = {value: _float_end(end) for value, end in ends.items()}
        else:
            ends = {value: end if _keeps_codes(end) else End(value) for value, end in ends.items()}
        to.begin(node, ends, converter.fuses, grid)

    def _grid(self, node: ir.Node, codes: str, ends: dict[ir.Value, End]) -> Grid | None:
        """Give the grid of the codes that ``node`` computes; None where it computes floats."""
        to = self.program
        data = [v for v in (node.inputs if codes == "any" else node.inputs[:1]) if v is not None]
        if codes == "none" or not any(map(to.has_codes, data)):
            return None
        if not all(to.has_codes(v) or to.stored(v) is not None for v in data):
            return None
        if codes == "moves":
            return to.grid_of(data[0])
        if not all(_keeps_codes(end) for end in ends.values()):
            return None
        return to.grid_of(data[0]) if codes == "same" else next(iter(ends.values())).grid


def _follows(condition: ir.Value | None) -> list[ir.Value]:
    """Give the numbers that ``condition`` is a comparison of, or several."""
    found, pending = list[ir.Value](), [condition]
    while pending:
        one = pending.pop()
        node = one.producer() if one is not None else None
        if one is not None and node is not None and one.dtype == ir.DataType.BOOL:
            pending += node.inputs
        elif one is not None:
            found.append(one)
    return found


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
