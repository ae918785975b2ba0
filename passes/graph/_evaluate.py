"""Evaluating one node on constants, with ONNX's reference implementation."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir

#: The reference implementation walks through these in Python, element by element.
SLOW = {
    *("AveragePool", "Conv", "ConvInteger", "ConvTranspose", "DeformConv", "GridSample", "GRU", "LSTM", "LpPool"),
    *("MaxPool", "NonMaxSuppression", "QLinearConv", "Resize", "RNN", "RoiAlign", "Upsample"),
}

#: A slow op is evaluated up to here.
SLOW_ELEMENTS = 1 << 14

#: A result of at most this size is copied, so that it does not hold on to the larger one that it is a view of.
_COPIED_BYTES = 1 << 20


class NotEvaluated(Exception):
    """The reference implementation gives no such tensor; the message is the reason."""


def evaluate(
    node: ir.Node,
    constants: Mapping[str, ir.TensorProtocol],
    opsets: Mapping[str, int],
) -> list[ir.TensorProtocol | None]:
    """Compute the outputs of ``node`` from its constant inputs, by name; an output that is left out is None.

    A large result that the reference implementation gives as a view stays one, so that a mapped weight stays mapped.
    Raises: NotEvaluated.
    """
    from onnx.reference import ReferenceEvaluator

    graph = onnx.GraphProto(name="constant", node=[ir.to_proto(node)])
    for name, tensor in constants.items():
        info = onnx.helper.make_tensor_value_info(name, int(tensor.dtype), list(tensor.shape.numpy()))
        graph.input.append(info)
    names = [output.name for output in node.outputs if output.name]
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            session = ReferenceEvaluator(graph, opsets=dict(opsets))
            results = session.run(None, {name: tensor.numpy() for name, tensor in constants.items()})
    except Exception as error:  # whatever the implementation of the op raises
        raise NotEvaluated(f"the reference implementation fails: {_first_line(error)}") from error
    tensors = iter([_tensor(result) for result in results])
    return [next(tensors) if output.name else None for output in node.outputs]


def _tensor(result: object) -> ir.TensorProtocol:
    if isinstance(result, np.generic):
        result = np.asarray(result)
    if not isinstance(result, np.ndarray):
        raise NotEvaluated(f"the result is a {type(result).__name__}, not a tensor")
    if result.dtype.kind in "OSUT":
        raise NotEvaluated("the result is text")
    if result.nbytes <= _COPIED_BYTES:
        result = result.copy(order="C")
    return ir.Tensor(result, dtype=ir.DataType.from_numpy(result.dtype))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
