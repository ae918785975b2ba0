"""Recurrent layers, step by step: as many steps as the fixed sequence is long."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .scope import Scope

#: Steps are written out one after the other, so there is a limit to what is worth it.
_MOST_STEPS = 64


def _lstm(scope: Scope) -> Sequence[Any]:
    """Write an LSTM out. x: [steps, batch, inputs]; w: [1, 4 hidden, inputs]; gates lie in the order i, o, f, c.

    Source: ONNX LSTM, opset 22; Hochreiter and Schmidhuber 1997.
    """
    from tvm import relax

    bb, op = scope.bb, relax.op
    x, w, r, bias, lengths, hidden, cell, peephole = (scope.tensor(index) for index in range(8))
    steps, batch, _ = (int(d) for d in x.ty.shape)
    for name, wanted in (("direction", "forward"), ("layout", 0), ("input_forget", 0), ("clip", None)):
        if (found := scope.attribute(name, wanted)) != wanted:
            raise ValueError(f"LSTM with {name}={found} is not supported")
    if scope.attribute("activations") not in (None, ["Sigmoid", "Tanh", "Tanh"], ("Sigmoid", "Tanh", "Tanh")):
        raise ValueError("LSTM with other activations is not supported")
    if lengths is not None or peephole is not None or steps > _MOST_STEPS:
        raise ValueError(f"LSTM with sequence_lens, peepholes or over {_MOST_STEPS} steps is not supported")
    size, dtype = int(r.ty.shape[2]), scope.dtype(0)
    w, r = (bb.emit(op.permute_dims(op.squeeze(matrix, [0]), [1, 0])) for matrix in (w, r))
    if bias is not None:
        halves = op.reshape(bias, [2, 4 * size])
        bias = bb.emit(op.sum(halves, axis=0))
    zeros = relax.const(0, dtype)
    h, c = (
        bb.emit(op.full([batch, size], zeros) if state is None else op.squeeze(state, [0])) for state in (hidden, cell)
    )
    outputs = []
    for step in range(steps):
        now = bb.emit(op.squeeze(op.strided_slice(x, [0], [step], [step + 1]), [0]))
        gates = bb.emit(op.add(op.matmul(now, w), op.matmul(h, r)))
        gates = gates if bias is None else bb.emit(op.add(gates, bias))
        i, o, f, g = (bb.emit(op.strided_slice(gates, [1], [part * size], [(part + 1) * size])) for part in range(4))
        c = bb.emit(op.add(op.multiply(op.sigmoid(f), c), op.multiply(op.sigmoid(i), op.tanh(g))))
        h = bb.emit(op.multiply(op.sigmoid(o), op.tanh(c)))
        outputs.append(bb.emit(op.reshape(h, [1, 1, batch, size])))
    whole = op.concat(outputs, 0) if len(outputs) > 1 else outputs[0]
    return [whole, op.reshape(h, [1, batch, size]), op.reshape(c, [1, batch, size])]


CONVERTERS = {("", "LSTM"): _lstm}
