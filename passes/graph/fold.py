"""``fold``: compute at compile time what does not depend on the inputs."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Hashable, MutableMapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from polycast.passbase import Numerics, Pass, PassContext

from ._branches import inline
from ._duplicates import RANDOM
from ._edit import Body, is_read, is_standard, make_constant, remove_unread, replace, roots, subgraphs
from ._evaluate import SLOW, SLOW_ELEMENTS, NotEvaluated, evaluate
from ._facts import Facts
from ._lengths import sizes
from ._read import array_of, tensor_of
from ._shapes import Found, fills, infer
from ._symbols import Known, Memory
from ._symbols import evaluate as evaluate_symbols
from ._targets import fix_target

#: The symbolic shapes that have been computed: elements, rank and dtype -> the value that holds them.
Seen = MutableMapping[Hashable, ir.Value]

_SHAPE_TYPES = (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL)


@dataclass(frozen=True)
class Fold(Pass):
    """Compute constants and shapes at compile time.

    Constant nodes become initializers; what depends on constants alone is computed with ONNX's reference
    implementation; shape arithmetic is followed with symbols, becomes a constant where its sizes are fixed, and in
    Reshape, Expand and Slice where a 0, a 1, a -1 or "to the end" says the same; an If with a constant condition is
    replaced by the branch that is taken. Random ops and DequantizeLinear stay.

    max_bytes: a larger result is not stored, unless the constants that it makes superfluous are larger still.
    Source: Aho, Lam, Sethi and Ullman, Compilers, 2nd edition, section 9.4; ONNX opset 23, reference implementation.
    """

    numerics = Numerics.EXACT

    max_bytes: int = 1 << 20

    def rewrite(self, graph: ir.Model, ctx: PassContext) -> int:
        """Fold until nothing is left to fold, and leave the inferred shapes in the graph."""
        sites = 0
        proved: Found = {}
        while True:
            ctx.skips.clear()  # the last sweep, which changes nothing, says what is skipped
            sweep = _Sweep(graph, ctx, self.max_bytes, proved)
            found = sweep.run()
            if not found and not sweep.learned:
                sweep.shapes.write()
                return sites
            sites += found
            proved |= sweep.learned


class _Sweep:
    """One walk over a model in the order of its nodes, with one inference of its shapes."""

    def __init__(self, model: ir.Model, ctx: PassContext, max_bytes: int, proved: Found) -> None:
        self.model = model
        self.ctx = ctx
        self.max_bytes = max_bytes
        self.shapes = infer(model, proved)
        self.proved = proved
        self.learned: Found = {}
        self.memory: Memory = {}

    def run(self) -> int:
        sites = 0
        for root in roots(self.model):
            sites += self._walk(Body(root, root.opset_imports), ChainMap())
        return sites

    def _walk(self, body: Body, seen: Seen) -> int:
        """Fold in ``body`` and under it. seen: symbolic shapes that are computed before it."""
        facts = Facts(body, self.shapes, self.ctx)
        sites = 0
        for node in list(body.graph):
            if node.graph is None:
                continue  # went with the last reader of its results
            sites += self._visit(node, facts, seen)
            if node.graph is not None:
                sites += sum(self._walk(Body(inner, body.opsets), ChainMap({}, seen)) for inner in subgraphs(node))
        return sites

    def _visit(self, node: ir.Node, facts: Facts, seen: Seen) -> int:
        """Fold what can be folded of one node. Returns: 1 or 0 sites."""
        if node.op_type == "Constant" and node.domain == "":
            return self._lift(node, facts.body)
        if node.op_type == "If" and node.domain == "":
            return self._choose(node, facts.body)
        known = evaluate_symbols(node, facts, self.memory)
        if known is not None:
            if known.fixed and self._store_shape(node, known, facts.body):
                return 1
            self.memory[node.outputs[0]] = known
            if self._reuse(node, known, seen):
                return 1
        if fix_target(node, facts, self.memory):
            return 1
        self._learn(node, facts)
        return self._compute(node, facts)

    def _learn(self, node: ir.Node, facts: Facts) -> None:
        """Keep a shape that symbols prove and inference does not, for the next sweep."""
        dims = sizes(node, facts, self.memory)
        if dims is None or not fills(dims, self.shapes.of(node.outputs[0])):
            return
        fact = (self.shapes.dtype(node.outputs[0]), dims)
        if self.proved.get(node.outputs[0]) != fact:
            self.learned[node.outputs[0]] = fact

    def _lift(self, node: ir.Node, body: Body) -> int:
        """Make an initializer of a Constant."""
        value = node.outputs[0]
        tensor = tensor_of(value)
        if tensor is None or not value.uses() or value.is_graph_output() or not body.holds_initializers:
            return 0
        make_constant(value, tensor, body)
        remove_unread([value])
        return 1

    def _choose(self, node: ir.Node, body: Body) -> int:
        condition = array_of(node.inputs[0], 1)
        return int(condition is not None and inline(node, bool(condition.item()), body, self.model))

    def _store_shape(self, node: ir.Node, known: Known, body: Body) -> bool:
        value = node.outputs[0]
        dtype = self.shapes.dtype(value) or ir.DataType.INT64
        if dtype not in _SHAPE_TYPES or not is_read(value):
            return False
        numbers = known.numbers
        assert numbers is not None
        if dtype == ir.DataType.INT32 and any(abs(n) > np.iinfo(np.int32).max for n in numbers):
            return False
        array = np.array(numbers[0] if known.scalar else numbers, dtype.numpy())
        make_constant(value, ir.Tensor(array), body)
        remove_unread([value])
        return True

    def _reuse(self, node: ir.Node, known: Known, seen: Seen) -> bool:
        """Let the readers of a symbolic shape read an earlier one that is provably equal."""
        value = node.outputs[0]
        if not known.complete or known.fixed:
            return False
        key = (known.elements, known.scalar, self.shapes.dtype(value))
        earlier = seen.get(key)
        producer = earlier.producer() if earlier is not None else None
        if earlier is None or producer is None or producer.graph is None:
            seen[key] = value
            return False
        if not is_read(value) or not replace(value, earlier):
            return False
        remove_unread([value])
        return True

    def _compute(self, node: ir.Node, facts: Facts) -> int:
        inputs = [value for value in node.inputs if value is not None]
        constants = {value.name or "": tensor_of(value) for value in inputs}
        tensors = {name: tensor for name, tensor in constants.items() if tensor is not None and name}
        if not inputs or len(tensors) < len(constants) or not any(map(is_read, node.outputs)):
            return 0
        reason = self._reason_to_keep(node, tensors)
        if not reason:
            try:
                results = evaluate(node, tensors, facts.opsets)
                reason = self._reason_to_drop(node, results, facts)
            except NotEvaluated as error:
                reason = str(error)
        if reason:
            self.ctx.skip(node, reason)
            return 0
        for value, tensor in zip(list(node.outputs), results, strict=True):
            if tensor is not None and is_read(value):
                make_constant(value, tensor, facts.body)
        remove_unread([*node.outputs])
        return 1

    def _reason_to_keep(self, node: ir.Node, tensors: dict[str, ir.TensorProtocol]) -> str:
        if not is_standard(node):
            return f"{node.domain}.{node.op_type} has no reference implementation"
        if node.op_type in RANDOM:
            return f"{node.op_type} is random"
        if node.op_type == "DequantizeLinear":
            return "the constant is quantized, and stays so"
        if subgraphs(node):
            return "it holds a graph"
        if any(tensor.dtype == ir.DataType.STRING for tensor in tensors.values()):
            return "the constant is text"
        if node.op_type in SLOW and sum(tensor.size for tensor in tensors.values()) > SLOW_ELEMENTS:
            return f"the reference implementation of {node.op_type} is too slow for constants of this size"
        sizes = [self.shapes.nbytes(value) for value in node.outputs if value.name]
        return self._reason_of_size(node, sum(size or 0 for size in sizes))

    def _reason_to_drop(self, node: ir.Node, results: list[ir.TensorProtocol | None], facts: Facts) -> str:
        for value, tensor in zip(node.outputs, results, strict=True):
            dtype = facts.shapes.dtype(value)
            if tensor is not None and dtype is not None and dtype != tensor.dtype:
                return f"the reference implementation gives {tensor.dtype.name.lower()}, not {dtype.name.lower()}"
        return self._reason_of_size(node, sum(tensor.nbytes for tensor in results if tensor is not None))

    def _reason_of_size(self, node: ir.Node, nbytes: int) -> str:
        if nbytes <= self.max_bytes:
            return ""
        freed = 0
        for value in set(node.inputs):
            tensor = tensor_of(value)
            if value is not None and tensor is not None and {user for user, _ in value.uses()} == {node}:
                freed += tensor.nbytes
        return "" if nbytes <= freed else f"result is {nbytes / 2**20:.1f} MB, over max_bytes"
