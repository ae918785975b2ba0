"""What shape inference proves of each value.

ONNX's own inference runs on a copy without weights. What the file says about the shapes of its intermediate values
fills the gaps of inference, unless any of it contradicts what is inferred: editing a model's inputs leaves it stale.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import onnx
import onnx_ir as ir

from ._edit import bodies, is_standard

#: A fixed size, the name of a symbolic one, or None.
Dim = int | str | None
Dims = tuple[Dim, ...]

#: Value -> its dtype and its shape.
Found = dict[ir.Value, tuple[ir.DataType | None, Dims | None]]

#: Names that exporters give to every unknown dimension alike.
_ANONYMOUS = {"", "?", "*", "None", "none", "unk", "unknown", "dynamic", "-1"}

#: Names that ONNX's inference makes up; they hold within one run of it.
_MADE_UP = re.compile(r"\bunk__\d+")

#: Larger constants tell inference nothing, and would be serialised.
_SMALL_BYTES = 2048


class Shapes:
    """Shapes and dtypes of the values of one model: those inferred, and those declared where inference is silent."""

    def __init__(self, inferred: Found) -> None:
        self._inferred = inferred

    def of(self, value: ir.Value | None) -> Dims | None:
        """Give the shape of ``value``; equal names are equal sizes. None: the rank is not known."""
        if value is None:
            return None
        if value.const_value is not None and value.is_initializer():
            return _dims(ir.Shape(value.const_value.shape.numpy()))
        if value in self._inferred:
            return self._inferred[value][1]
        return _dims(value.shape) if not value.is_graph_output() else None

    def fixed(self, value: ir.Value | None) -> tuple[int, ...] | None:
        """Give the shape of ``value`` where all of it is fixed."""
        dims = self.of(value)
        return None if dims is None or not all(isinstance(d, int) for d in dims) else tuple(map(int, dims))  # type: ignore[arg-type]

    def rank(self, value: ir.Value | None) -> int | None:
        """Give the rank of ``value``."""
        dims = self.of(value)
        return None if dims is None else len(dims)

    def dtype(self, value: ir.Value) -> ir.DataType | None:
        """Give the dtype of ``value``."""
        if value.const_value is not None and value.is_initializer():
            return value.const_value.dtype
        inferred = self._inferred.get(value, (None, None))[0]
        return inferred or (value.type.dtype if isinstance(value.type, ir.TensorType) else None)

    def nbytes(self, value: ir.Value) -> int | None:
        """Give the size of ``value`` in bytes, where its shape is fixed."""
        dims, dtype = self.fixed(value), self.dtype(value)
        if dims is None or dtype is None or dtype == ir.DataType.STRING:
            return None
        return math.ceil(math.prod(dims) * dtype.itemsize)

    def write(self) -> None:
        """Write what was inferred into the values that the signature does not fix; nothing known is forgotten."""
        for value, (dtype, dims) in self._inferred.items():
            if value.is_graph_output() or value.is_graph_input():
                continue
            if value.type is None and dtype is not None:
                value.type = ir.TensorType(dtype)
            if dims is not None:
                value.shape = _merged(dims, value.shape)


def infer(model: ir.Model, proved: Found | None = None) -> Shapes:
    """Infer the shapes of ``model``. What cannot be inferred is left out; never raises for that.

    proved: shapes that the caller has found to hold.
    """
    copy = model.clone()
    pairs = list(zip(_values(copy), _values(model), strict=True))
    declared = {value: _dims(value.shape) for node in copy.graph if is_standard(node) for value in node.outputs}
    _forget_shapes(copy)
    _forget_weights(copy)
    for copied, original in pairs:
        if proved and original in proved:
            _hint(copied, *proved[original])
    found = _infer(copy)
    hints = {value: hint for value, hint in declared.items() if fills(hint, found.get(value, (None, None))[1])}
    if hints and not any(_contradicts(dims, found.get(value, (None, None))[1]) for value, dims in declared.items()):
        for value, dims in hints.items():
            _hint(value, found.get(value, (None, None))[0], dims)
        found = _infer(copy) or found
    return Shapes({original: found[copied] for copied, original in pairs if copied in found})


def _infer(model: ir.Model) -> Found:
    found: Found = {}
    try:
        proto = onnx.shape_inference.infer_shapes(ir.to_proto(model), data_prop=True)
    except Exception:  # a graph that inference cannot read is still a graph
        return found
    _collect(model.graph, proto.graph, found)
    return found


def _hint(value: ir.Value, dtype: ir.DataType | None, dims: Dims | None) -> None:
    """Tell the next inference that ``value`` has this shape, beside what it has been told."""
    if value.type is None and dtype is not None:
        value.type = ir.TensorType(dtype)
    if value.type is not None and dims is not None:
        value.shape = _merged(dims, value.shape)


def fills(declared: Dims | None, inferred: Dims | None) -> bool:
    """Whether ``declared`` knows what ``inferred`` does not."""
    if declared is None or (inferred is not None and len(inferred) != len(declared)):
        return False
    return any(_lasts(d) and not _lasts(i) for d, i in zip(declared, inferred or [None] * len(declared), strict=True))


def _contradicts(declared: Dims | None, inferred: Dims | None) -> bool:
    if declared is None or inferred is None:
        return False
    return len(declared) != len(inferred) or any(
        _lasts(d) and _lasts(i) and d != i and not (isinstance(d, str) and isinstance(i, int))
        for d, i in zip(declared, inferred, strict=True)
    )


def _lasts(dim: Dim) -> bool:
    """Whether ``dim`` is known, and means the same in the next inference."""
    return isinstance(dim, int) or (dim is not None and not _MADE_UP.search(dim))


def same(a: Dims | None, b: Dims | None) -> bool:
    """Whether two shapes are provably the same."""
    return (
        a is not None
        and b is not None
        and len(a) == len(b)
        and all(x is not None and x == y for x, y in zip(a, b, strict=True))
    )


def same_for_equal_sizes(a: Dims | None, b: Dims | None) -> bool:
    """Whether two shapes of equally many elements are provably the same: one dimension may be unknown."""
    if a is None or b is None or len(a) != len(b):
        return False
    differ = [i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x is None or x != y]
    others = [x for i, x in enumerate(a) if i not in differ]
    return not differ or (len(differ) == 1 and all(isinstance(x, int) and x > 0 for x in others))


def _values(model: ir.Model) -> Iterator[ir.Value]:
    for body in bodies(model):
        yield from body.graph.inputs
        for node in body.graph:
            yield from node.outputs


def _forget_shapes(model: ir.Model) -> None:
    for body in bodies(model):
        if body.graph is not model.graph:
            for value in body.graph.inputs:
                if value.shape is not None:  # a symbol inside a loop need not mean what it means outside
                    value.shape = ir.Shape([d if isinstance(d, int) else None for d in value.shape])
        for node in body.graph:
            if is_standard(node):
                for value in node.outputs:
                    value.shape = None


def _forget_weights(model: ir.Model) -> None:
    """Turn every large constant into an input of the main graph, which its subgraphs see too."""
    for body in list(bodies(model)):
        if not isinstance(body.graph, ir.Graph):
            break  # functions come last, and hold no initializers
        for value in list(body.graph.initializers.values()):
            tensor = value.const_value
            if tensor is not None and tensor.nbytes <= _SMALL_BYTES:
                continue
            body.graph.initializers.pop(value.name or "")
            if tensor is not None:
                value.type, value.shape, value.const_value = (
                    ir.TensorType(tensor.dtype),
                    ir.Shape(tensor.shape.numpy()),
                    None,
                )
            _take_from_outside(value, model)
        for node in list(body.graph):
            attribute = node.attributes.get("value") if node.op_type == "Constant" else None
            if attribute is None or node.outputs[0].is_graph_output():
                continue
            tensor = attribute.as_tensor()
            if tensor.nbytes > _SMALL_BYTES:
                weight = ir.Value(type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy()))
                _take_from_outside(weight, model)
                node.outputs[0].replace_all_uses_with(weight)
                body.graph.remove(node)


def _take_from_outside(value: ir.Value, model: ir.Model) -> None:
    if not value.is_graph_input() and not value.is_graph_output():
        value.name = f"polycast/weight/{len(model.graph.inputs)}"
        model.graph.inputs.append(value)


def _collect(
    graph: ir.Graph,
    proto: onnx.GraphProto,
    found: Found,
) -> None:
    types = {info.name: info.type for infos in (proto.value_info, proto.input, proto.output) for info in infos}
    values = [*graph.inputs, *(value for node in graph for value in node.outputs)]
    for value in values:
        if value.name and value.name in types and types[value.name].HasField("tensor_type"):
            found[value] = _read(types[value.name].tensor_type)
    for node, node_proto in zip(graph, proto.node, strict=True):
        for attribute in node_proto.attribute:
            held = node.attributes[attribute.name]
            if held.type == ir.AttributeType.GRAPH and not held.is_ref():
                _collect(held.as_graph(), attribute.g, found)
            elif held.type == ir.AttributeType.GRAPHS and not held.is_ref():
                for inner, inner_proto in zip(held.as_graphs(), attribute.graphs, strict=True):
                    _collect(inner, inner_proto, found)


def _read(proto: onnx.TypeProto.Tensor) -> tuple[ir.DataType | None, Dims | None]:
    dims: list[Dim] = []
    for dim in proto.shape.dim:
        known = dim.dim_value if dim.HasField("dim_value") else dim.dim_param
        dims.append(_dim(known))
    return ir.DataType(proto.elem_type) if proto.elem_type else None, tuple(dims) if proto.HasField("shape") else None


def _dims(shape: ir.Shape | None) -> Dims | None:
    return None if shape is None else tuple(_dim(d if isinstance(d, int) else d.value) for d in shape)


def _dim(size: int | str | None) -> Dim:
    if isinstance(size, int):
        return size if size >= 0 else None
    return None if size in _ANONYMOUS else size


def _merged(dims: Dims, declared: ir.Shape | None) -> ir.Shape:
    old = declared if declared is not None and len(declared) == len(dims) else [None] * len(dims)
    return ir.Shape([new if _lasts(new) else o for new, o in zip(dims, old, strict=True)])
