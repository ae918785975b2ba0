"""A NaN is never turned into a number by what chooses the larger or the smaller of two, judged by onnx.reference."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

pytest.importorskip("tvm")

from polycast.model import Model, Origin
from polycast.targets._tvm import cpu_arch, cpu_lowering, library

NAN = float("nan")
X = np.array([[NAN, -2, 3, 0.25], [1, NAN, -0.5, NAN]], np.float32)
Y = np.array([[1, -3, NAN, 0], [NAN, 7, 0.5, NAN]], np.float32)


@pytest.mark.parametrize(
    "node",
    [
        "z = Min(x, y)",
        "z = Min(two, x)",
        "z = Max(x, y, two)",
        "z = Relu(x)",
        "z = Clip(x, zero, two)",
        "z = Elu<alpha = 0.5>(x)",
        "z = HardSigmoid(x)",
    ],
)
def test_a_nan_stays_one(node: str) -> None:
    import tvm
    from tvm.runtime.vm import VirtualMachine

    text = f"""<ir_version: 10, opset_import: ["" : 22]> g (float[2, 4] x, float[2, 4] y) => (float[2, 4] z)
      <float two = {{2}}, float zero = {{0}}> {{ {node} }}"""
    proto = onnx.parser.parse_model(text)
    lowered = cpu_lowering.lower(Model("m", ir.from_proto(proto), Origin("m.onnx", "")), cpu_arch.this_cpu())
    machine = VirtualMachine(library.executable(lowered), tvm.cpu())
    found = machine["main"](tvm.runtime.tensor(X), tvm.runtime.tensor(Y))[0].numpy()
    [wanted] = ReferenceEvaluator(proto).run(None, {"x": X, "y": Y})
    # Of at most three roundings of numbers no larger than the largest one.
    largest = float(np.nanmax(np.abs(wanted)))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=3 * np.finfo(np.float32).eps * largest, equal_nan=True)
