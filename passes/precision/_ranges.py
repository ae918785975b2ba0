"""Ranges: the largest magnitude of each activation on the user's samples."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from polycast.errors import InputError
from polycast.model import Model, Origin

if TYPE_CHECKING:
    from polycast.samples import Samples


@dataclass(frozen=True)
class Peak:
    """The largest finite |x| of a tensor over all samples, and the name of the sample that reached it."""

    value: float
    sample: str


def peaks(model: ir.Model, values: Sequence[ir.Value], samples: Samples) -> list[Peak] | str:
    """Run ``samples`` through ``model`` and give the peak of each of ``values``, float32 tensors of its main graph.

    Each peak is reduced inside the graph, so that memory stays that of one run. Infinities do not count: float16
    has them too. Gives the reason instead where onnxruntime cannot run the model at all.
    Raises: InputError naming the sample that cannot be run.
    """
    import onnxruntime as ort

    with tempfile.TemporaryDirectory(prefix="polycast-") as folder:
        path = Path(folder) / "ranges.onnx"
        Model("ranges", _instrumented(model, values), Origin("", "")).write(path)
        options = ort.SessionOptions()
        options.log_severity_level = 4
        try:
            session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own error types share no base class
            return f"onnxruntime cannot run the model: {_first_line(error)}"
    largest = np.full(len(values), -1.0)
    where = np.full(len(values), "", dtype=object)
    for sample in samples:
        try:
            found = np.array(session.run(None, sample.feeds), np.float64)
        except Exception as error:
            raise InputError(f"{sample.name}: onnxruntime cannot run the model on it: {_first_line(error)}") from error
        larger = found > largest
        largest[larger], where[larger] = found[larger], sample.name
    return [Peak(max(value, 0.0), sample) for value, sample in zip(largest.tolist(), where.tolist(), strict=True)]


def _instrumented(model: ir.Model, values: Sequence[ir.Value]) -> ir.Model:
    """Copy ``model`` into one whose outputs are the peaks of ``values``, a scalar each."""
    names = [value.name for value in values]
    model = model.clone()
    graph = model.graph
    by_name = {value.name: value for value in graph.inputs} | {v.name: v for node in graph for v in node.outputs}
    limit = _scalar("polycast.limit", np.finfo(np.float32).max)
    zero = _scalar("polycast.zero", np.float32(0))
    for constant in (limit, zero):
        graph.register_initializer(constant)
    graph.outputs.clear()
    for name in names:
        size = ir.node("Abs", [by_name[name]])
        is_finite = ir.node("LessOrEqual", [size.outputs[0], limit])
        finite = ir.node("Where", [is_finite.outputs[0], size.outputs[0], zero])
        peak = ir.node("ReduceMax", [finite.outputs[0]], {"keepdims": 0})
        graph.extend([size, is_finite, finite, peak])
        peak.outputs[0].type, peak.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(())
        graph.outputs.append(peak.outputs[0])
    return model


def _scalar(name: str, number: np.floating) -> ir.Value:
    tensor = ir.tensor(np.asarray(number, np.float32), name=name)
    return ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(()), const_value=tensor)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
