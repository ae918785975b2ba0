"""Functions that are computed as polynomials on a CPU, judged in float64 at every scale that they bend at."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

pytest.importorskip("tvm")

from scipy.special import erf, softmax

from polycast.model import Model, Origin
from polycast.targets._tvm import cpu_arch, cpu_lowering, library

EPS = float(np.finfo(np.float32).eps)
X = np.concatenate([np.linspace(-12, 12, 4000), np.geomspace(1e-30, 1, 96)]).astype(np.float32).reshape(16, 256)


def run(op: str, x: np.ndarray) -> np.ndarray:
    import tvm
    from tvm.runtime.vm import VirtualMachine

    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, x.shape) for name in "xy"]
    graph = helper.make_graph([helper.make_node(op, ["x"], ["y"])], "one", ports[:1], ports[1:])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    lowered = cpu_lowering.lower(Model("m", ir.from_proto(proto), Origin("m.onnx", "")), cpu_arch.this_cpu())
    machine = VirtualMachine(library.executable(lowered), tvm.cpu())
    return machine["main"](tvm.runtime.tensor(x))[0].numpy()


def test_erf_is_off_by_less_than_its_polynomials_round() -> None:
    terms = 7 + 5  # of numerator and denominator
    assert np.abs(run("Erf", X) - erf(X.astype(np.float64))).max() <= terms * EPS


def test_gelu_is_off_by_no_more_than_its_erf() -> None:
    wide = X.astype(np.float64)
    wanted = 0.5 * wide * (1 + erf(wide / np.sqrt(2)))
    assert (np.abs(run("Gelu", X) - wanted) <= (7 + 5 + 2) * EPS * np.abs(wide)).all()


@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_softmax_is_off_by_what_its_sum_rounds(scale: float) -> None:
    x = (X * scale).astype(np.float32)
    wanted = softmax(x.astype(np.float64), axis=-1)
    found = run("Softmax", x)
    assert np.abs(found - wanted).max() <= x.shape[-1] * EPS * wanted.max()
    assert np.abs(found.sum(-1) - 1).max() <= x.shape[-1] * EPS
