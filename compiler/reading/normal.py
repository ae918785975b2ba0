"""The normal form of a graph: what every later stage may rely on."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import CheckerPass

from polycast.errors import InputError
from polycast.model import graphs

from .opset import upgrade

#: The first IR version that goes with opset 23.
IR_VERSION = 11


def normalise(model: ir.Model, source: str) -> ir.Model:
    """Bring ``model``, in place, to a current IR version and opset, sorted, checked, with its functions inlined.

    An initializer that is listed as an input too is a plain weight afterwards. Nodes of custom domains are kept as
    they are; whether a target knows them is for the target to say.

    Returns: ``model``.
    Raises: InputError for a graph that is not valid ONNX, naming ``source`` and what is wrong.
    """
    model.ir_version = max(model.ir_version or 0, IR_VERSION)
    for graph in graphs(model):
        if isinstance(graph, ir.Graph):
            _drop_overridable_inputs(graph)
        _sort(graph, source)
    _check_inputs_exist(model, source)
    try:
        check(model)
        upgrade(model)
        check(model)
    except InputError as error:
        raise InputError(f"{source}: {error.message}", error.hint) from error
    except Exception as error:  # the checker's own kinds, wrapped by onnx-ir
        raise InputError(f"{source} is not valid ONNX: {_one_line(error)}") from error
    return model


def check(model: ir.Model) -> None:
    """Run the ONNX checker. It wants the rank of each input and output, though ONNX does not: unknown ones get one.

    Raises: what the checker raises.
    """
    unknown = [v for v in (*model.graph.inputs, *model.graph.outputs) if v.shape is None and _is_tensor(v)]
    for value in unknown:
        value.shape = ir.Shape([])
    try:
        CheckerPass()(model)
    finally:
        for value in unknown:
            value.shape = None


def _is_tensor(value: ir.Value) -> bool:
    return value.type is None or isinstance(value.type, ir.TensorType | ir.SparseTensorType)


def _drop_overridable_inputs(graph: ir.Graph) -> None:
    signature = [value for value in graph.inputs if value.name not in graph.initializers]
    if len(signature) < len(graph.inputs):
        graph.inputs.clear()
        graph.inputs.extend(signature)


def _sort(graph: ir.Graph | ir.Function, source: str) -> None:
    try:
        graph.sort()
    except ValueError as error:
        raise InputError(f"{source}: graph {graph.name!r} has a cycle: a node needs its own output") from error


def _check_inputs_exist(model: ir.Model, source: str) -> None:
    for graph in graphs(model):
        for node in graph:
            for value in node.inputs:
                if value is not None and not (value.producer() or value.is_graph_input() or value.is_initializer()):
                    raise InputError(
                        f"{source}: node {node.name or node.outputs[0].name!r} ({node.op_type}) reads {value.name!r}, "
                        "which is no input, no initializer and no node's output"
                    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error.__cause__ or error).replace("==> Context:", "").split())
