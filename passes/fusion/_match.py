"""What the fusions share: reading constants, walking up a graph, putting one node in the place of several.

A fusion is written from the last node of its pattern upwards: ``producer`` names the node that made a value,
``either`` tries both orders of a commutative one, ``scalar`` reads a constant, and ``substitute`` puts the fused node
where the pattern was, in whichever graph that is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from polycast.model import graphs

_NONE: Mapping[str, int | float | str] = {}


def nodes(model: ir.Model, *ops: str) -> Iterator[ir.Node]:
    """Yield every node of the default domain whose type is one of ``ops``, in every graph, in order.

    The graph may change meanwhile: a node that has been removed is not yielded.
    """
    for graph in tuple(graphs(model)):
        for node in tuple(graph):
            if node.graph is not None and is_op(node, *ops):
                yield node


def is_op(node: ir.Node, *ops: str) -> bool:
    """Whether ``node`` is of the default domain and its type one of ``ops``."""
    return node.domain == "" and node.op_type in ops


def producer(value: ir.Value | None, *ops: str) -> ir.Node | None:
    """Give the node that made ``value`` where its type is one of ``ops`` (of the default domain), else None."""
    node = value.producer() if value is not None else None
    return node if node is not None and is_op(node, *ops) else None


def consumer(value: ir.Value, *ops: str) -> ir.Node | None:
    """Give the one node that reads ``value``, where nothing else does and its type is one of ``ops``, else None."""
    if not used_once(value):
        return None
    node = next(iter(value.uses())).node
    return node if is_op(node, *ops) else None


def used_once(value: ir.Value) -> bool:
    """Whether exactly one node reads ``value``, once, and it is no graph output."""
    return len(value.uses()) == 1 and not value.is_graph_output()


def either(node: ir.Node) -> Iterator[tuple[ir.Value, ir.Value]]:
    """Yield the two operands of a commutative ``node`` in both orders."""
    a, b = node.inputs
    if a is not None and b is not None:
        yield a, b
        yield b, a


def constant(value: ir.Value | None) -> np.ndarray | None:
    """Read ``value`` where it is an initializer or made by a Constant node, else None."""
    tensor = ir.convenience.get_const_tensor(value) if value is not None and _may_be_constant(value) else None
    return tensor.numpy() if tensor is not None else None


def scalar(value: ir.Value | None) -> float | None:
    """Read ``value`` where it is a constant of one number (of any rank), else None."""
    array = constant(value) if value is not None and _size(value) in (1, None) else None
    return float(array.reshape(())) if array is not None and array.size == 1 and array.dtype.kind in "fiuV" else None


def with_scalar(node: ir.Node | None) -> tuple[ir.Value, float] | None:
    """Split a commutative ``node`` into the operand that varies and the number that the other one holds."""
    if node is not None:
        for number, other in either(node):
            found = scalar(number)
            if found is not None:
                return other, found
    return None


def epsilon(value: ir.Value) -> float:
    """Distance from 1 to the next number in the dtype of ``value``; 0 for an unknown one."""
    dtype = dtype_of(value)
    return _EPSILON.get(dtype, 0.0) if dtype is not None else 0.0


def dtype_of(value: ir.Value) -> ir.DataType | None:
    """Give the element type of ``value``, taken from its constant where it carries none itself."""
    if value.dtype is None and value.const_value is not None:
        return value.const_value.dtype
    return value.dtype


def ints(node: ir.Node, name: str, position: int) -> tuple[int, ...] | None:
    """Read integers that were an attribute in older opsets and are the input ``position`` now, such as ``axes``."""
    if name in node.attributes:
        return tuple(node.attributes[name].as_ints())
    array = constant(node.inputs[position]) if len(node.inputs) > position else None
    return tuple(int(i) for i in array.ravel()) if array is not None else None


def need_shapes(model: ir.Model, values: Iterable[ir.Value | None]) -> None:
    """Infer shapes where one of ``values`` has none."""
    if any(v is not None and (v.shape is None or v.dtype is None) for v in values):
        _infer_shapes(model)


def rank(value: ir.Value) -> int | None:
    """Give the number of axes of ``value``, or None."""
    return len(value.shape) if value.shape is not None else None


def new_constant(name: str, array: np.ndarray, before: ir.Node) -> ir.Value:
    """Make a constant in the graph of ``before``: an initializer, or a Constant node inside a function."""
    graph = before.graph
    tensor = ir.tensor(array, name=name)
    if isinstance(graph, ir.Graph):
        while name in graph.initializers:
            name += "_"
        value = ir.Value(name=name, const_value=tensor, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype))
        graph.register_initializer(value)
        return value
    assert graph is not None
    node = ir.node("Constant", [], {"value": tensor})
    node.outputs[0].name = name
    graph.insert_before(before, node)
    return node.outputs[0]


def exchange(node: ir.Node, position: int, array: np.ndarray, name: str) -> None:
    """Give ``node`` the constant ``array`` as input ``position``; other readers of the old one keep theirs.

    name: of the constant, where there was none before.
    """
    node.resize_inputs(max(len(node.inputs), position + 1))
    old = node.inputs[position]
    node.replace_input_with(position, None)
    if old is not None and old.name is not None:
        name = f"{old.name}.{name}" if old.uses() or old.is_graph_output() else old.name
        _let_go(old)
    node.replace_input_with(position, new_constant(name, array, node))


def substitute(
    outputs: Sequence[ir.Value | None],
    op: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, int | float | str] = _NONE,
    *,
    domain: str = "",
    before: ir.Node | None = None,
) -> ir.Node:
    """Put one new node in the place of those that compute ``outputs``, and remove what nothing reads any more.

    outputs: the value that each output of the new node stands for, None for one that nothing reads. The new values
    keep their names, types and shapes, so a graph output stays what it was.
    before: where the new node goes; by default to the node that made the first of ``outputs``.
    Returns: the new node.
    """
    old = [v for v in outputs if v is not None]
    last = old[0].producer()
    assert last is not None
    before = before or last
    assert before.graph is not None
    new = ir.node(op, inputs, attributes, domain=domain, num_outputs=len(outputs), name=last.name)
    before.graph.insert_before(before, new)
    for was, now in zip(outputs, new.outputs, strict=True):
        if was is None:
            now.name = ""
        else:
            take_over(was, now)
    remove_dead(*(v.producer() for v in old))
    return new


def take_over(was: ir.Value, now: ir.Value) -> None:
    """Let ``now`` stand wherever ``was`` does, under its name and with its type and shape."""
    now.type, now.shape = was.type or now.type, was.shape if was.shape is not None else now.shape
    now.metadata_props.update(was.metadata_props)
    name, was.name = was.name, None
    was.replace_all_uses_with(now, replace_graph_outputs=True)
    now.name = name


def remove_dead(*candidates: ir.Node | None) -> None:
    """Remove ``candidates`` that nothing reads, then what only they read: nodes and initializers."""
    for node in candidates:
        if node is None or node.graph is None or any(v.uses() or v.is_graph_output() for v in node.outputs):
            continue
        read = [v for v in node.inputs if v is not None]
        node.graph.remove(node, safe=True)
        for value in read:
            _let_go(value)


def _let_go(value: ir.Value) -> None:
    """Remove what makes ``value``, where nothing reads it any more."""
    maker, graph = value.producer(), value.graph
    if maker is not None:
        remove_dead(maker)
    elif isinstance(graph, ir.Graph) and value.is_initializer() and value.name is not None and _is_unread(value):
        graph.initializers.pop(value.name)


def _is_unread(value: ir.Value) -> bool:
    return not (value.uses() or value.is_graph_output() or value.is_graph_input())


def _infer_shapes(model: ir.Model) -> None:
    """Fill in the types and shapes that values lack, as far as ONNX's own inference knows; the signature stays."""
    ports = [(v, v.type, v.shape) for v in (*model.graph.inputs, *model.graph.outputs)]
    ir.passes.common.ShapeInferencePass(check_type=False, strict_mode=False)(model)
    for value, kind, shape in ports:
        value.type, value.shape = kind, shape


def _may_be_constant(value: ir.Value) -> bool:
    maker = producer(value, "Constant")
    return value.const_value is not None or (maker is not None and "sparse_value" not in maker.attributes)


def _size(value: ir.Value) -> int | None:
    return value.const_value.size if value.const_value is not None else None


_EPSILON = {
    ir.DataType.BFLOAT16: 2.0**-7,
    ir.DataType.FLOAT16: 2.0**-10,
    ir.DataType.FLOAT: 2.0**-23,
    ir.DataType.DOUBLE: 2.0**-52,
}
