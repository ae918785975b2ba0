"""Op times: each kernel that runs is charged to the layer that it runs for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from given import parsed

import polycast
from polycast.evaluating.worker import saved
from polycast.op_times import charge, layer_times, owners
from polycast.sensitivity import Layer, layers

BODY = """g (float[n, 4] x) => (float[n, 4] y) {
  first = Neg(x)
  a = MatMul(first, wa)
  r = Relu(a)
  b = MatMul(r, wb)
  y = Softmax(b)
}"""
KNOWN = ("Neg_0", "MatMul_1", "Relu_2", "MatMul_3", "Softmax_4")
W = np.eye(4, dtype=np.float32)


def quantized() -> tuple[ir.Graph, list[Layer]]:
    """The same with nodes that a pass would have put in: on weights, and on the way into a layer."""
    model = parsed(
        """g (float[n, 4] x) => (float[n, 4] y) {
      first = Neg(x)
      wa = DequantizeLinear(qa, s)
      a = MatMul(first, wa)
      r = Relu(a)
      q = QuantizeLinear(r, s)
      d = DequantizeLinear(q, s)
      b = MatMul(d, wb)
      y = Softmax(b)
    }""",
        {"qa": np.eye(4, dtype=np.uint8), "wb": W, "s": np.float32(1)},
    )
    names = ["Neg_0", "wa.dequantize", "MatMul_1", "Relu_2", "r.quantize", "r.dequantize", "MatMul_3", "Softmax_4"]
    for node, name in zip(model.graph.graph, names, strict=True):
        node.name = name
    return model.graph.graph, layers(parsed(BODY, {"wa": W, "wb": W}))


def test_what_was_put_in_belongs_to_the_layer_that_it_feeds() -> None:
    owner = owners(*quantized(), KNOWN)
    first, second = ("MatMul_1",) * 4, ("MatMul_3",) * 4
    assert tuple(owner[name] for name in ("Neg_0", "wa.dequantize", "MatMul_1", "Relu_2")) == first
    assert tuple(owner[name] for name in ("r.quantize", "r.dequantize", "MatMul_3", "Softmax_4")) == second
    assert owner["r"] == "MatMul_1"
    assert owner["y"] == "MatMul_3"


@pytest.mark.parametrize(
    ("kernel", "layer"),
    [
        ("MatMul_3", "two"),
        ("r_nchwc", "one"),
        ("MatMul_1_token_17", "one"),
        ("MatMul_3/duplicated", "two"),
        ("MatMul_3_and_something", "two"),
        ("ReorderOutput", "two"),
    ],
)
def test_kernels_are_known_by_what_their_names_begin_with(kernel: str, layer: str) -> None:
    owner = {"MatMul_1": "one", "r": "one", "MatMul_3": "two", "b": "two"}
    sums = charge({"MatMul_3": 1.0} | {kernel: 2.0 if kernel != "MatMul_3" else 1.0}, owner)
    assert sums.get(layer, 0.0) >= 1.0
    assert sum(sums.values()) == (1.0 if kernel == "MatMul_3" else 3.0)


def test_the_times_of_a_build_are_those_of_its_layers(zoo: Callable[[str], Path], tmp_path: Path) -> None:
    """Convolutions with ten times the arithmetic take longer, and none takes no time."""
    path = zoo("mlperftiny/ic_resnet8.onnx")
    [build] = polycast.compile(path, out=tmp_path)
    model = polycast.load(path)
    lowered = polycast.Pipeline.parse(build.manifest["recipe"]["pipeline"]).run(model)
    found = layers(lowered, {"input": (1, 32, 32, 3)})
    with saved({"input": np.zeros((1, 32, 32, 3), np.float32)}) as feeds:
        times = layer_times(build, found, {node.name for node in lowered.graph.graph}, feeds)
    assert times is not None
    assert (times > 0).all()
    macs = np.array([layer.macs for layer in found])
    assert times[macs == macs.max()].min() > times[macs < macs.max() / 10].min()
