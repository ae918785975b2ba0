"""From an ONNX graph to a LiteRT program: node by node, in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

import numpy as np
import onnx_ir as ir

from polycast.model import Model, name_of

from . import registry
from .ends import FUSED, End, end_of
from .folding import fold, infer
from .layout import plain
from .program import Held, Program, Unsupported, implied
from .registry import Converter
from .tensors import Grid, Subgraph, Tensor


def convert(model: Model, computed: AbstractSet[str] | None = None) -> tuple[Subgraph, tuple[str, ...]]:
    """Convert ``model``, whose shapes are fixed.

    computed: names of values that follow from shapes, and are to be computed in the file all the same; where it is not
    None the shapes are those of an example, and as little as can be may depend on them.
    Returns: the program, and what cannot be written of it, sorted; where that is anything the program is not whole.
    """
    found = _Walk(model, computed)
    return found.run(), tuple(sorted(set(found.problems)))


def foreseen(model: Model) -> Mapping[str, np.ndarray]:
    """Give what is the same in every run of ``model``, whose shapes are fixed, by the name of the value."""
    found = _Walk(model, frozenset())
    found.run()
    return {value.name: array for value, array in found.program.arrays.items() if value.name}


class _Walk:
    def __init__(self, model: Model, computed: AbstractSet[str] | None) -> None:
        self.model = model
        self.program = Program("main", computed is not None)
        self.computed = computed or frozenset()
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
            if converter is None:
                self.problems.append(f"{what} (opset {self._opset(node)})")
            return
        try:
            infer(node, self.program, self.model.opset)
            if fold(node, self.program, self.model.opset) and not self._computes(node):
                return
            if converter is None:
                self.problems.append(f"{what} (opset {self._opset(node)})")
                return
            self._begin(node, converter)
            converter.convert(node, self.program)
        except Unsupported as error:
            self.problems.append(f"{what} at {name_of(node)}: {error}")

    def _computes(self, node: ir.Node) -> bool:
        """Whether what ``node`` gives is computed in the file; then it is known no more."""
        if not any(value.name in self.computed for value in node.outputs):
            return False
        for value in node.outputs:
            array = self.program.arrays.pop(value)
            self.program.shapes[value] = array.shape
            value.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
        return True

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
