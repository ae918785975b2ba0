"""Codes stay codes on their way through what only moves them; judged by onnxruntime as the graph is written."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("tvm")

from polycast.model import Model, Origin
from polycast.targets._tvm import cpu_arch, cpu_lowering, library

#: How images are shuffled: halves of the channels taken in turns, as ShuffleNet does, with a step of codes between all.
SHUFFLE = [
    ("Concat", ["a", "b"], {"axis": 1}),
    ("Reshape", ["1_d", "halves"], {}),
    ("Transpose", ["2_d"], {"perm": [0, 2, 1, 3, 4]}),
    ("Reshape", ["3_d", "whole"], {}),
    ("MaxPool", ["4_d"], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ("AveragePool", ["5_d"], {"kernel_shape": [2, 2]}),
]


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_a_code_is_rounded_half_to_even_and_kept_in_range(dtype: type) -> None:
    """Both sides of every half, far outside, and no number: each what onnxruntime gives."""
    import tvm
    from tvm.runtime.vm import VirtualMachine

    cpu, step, zero = cpu_arch.this_cpu(), np.float32(0.5), dtype(117)
    halves = (np.arange(-300, 300, dtype=np.float32) + np.float32(0.5)) * step
    near = [np.nextafter(halves, np.float32(sign * np.inf)) for sign in (-1, 1)]
    odd = np.array([np.nan, np.inf, -np.inf, 3e38, -3e38, 2.0**22, -(2.0**22), 0.0, -0.0], np.float32)
    given = np.concatenate([halves, *near, odd])
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, given.shape)
    y = helper.make_tensor_value_info("y", helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), given.shape)
    kept = [numpy_helper.from_array(np.asarray(array), name) for name, array in (("s", step), ("z", zero))]
    graph = helper.make_graph([helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"])], "codes", [x], [y], kept)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    lowered = cpu_lowering.lower(Model("m", ir.from_proto(proto), Origin("m.onnx", "")), cpu)
    [found] = VirtualMachine(library.executable(lowered), tvm.cpu())["main"](tvm.runtime.tensor(given))
    [wanted] = ort.InferenceSession(proto.SerializeToString()).run(None, {"x": given})
    np.testing.assert_array_equal(found.numpy(), wanted)


def test_what_moves_codes_moves_bytes() -> None:
    import tvm
    from tvm import relax
    from tvm.runtime.vm import VirtualMachine

    arrays = {
        "s": np.float32(0.01), "z": np.uint8(3), "t": np.float32(0.02), "halves": np.array([1, 2, 12, 8, 8]),
        "whole": np.array([1, 24, 8, 8]), "low": np.float32(-0.2), "high": np.float32(1.5),
    }  # fmt: skip
    nodes = [helper.make_node("Clip", ["x", "low", "high"], ["clipped"]), helper.make_node("Neg", ["x"], ["negated"])]
    for name, step, each in (("clipped", "s", "a"), ("negated", "t", "b")):
        nodes.append(helper.make_node("QuantizeLinear", [name, step, "z"], [f"{each}_q"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{each}_q", step, "z"], [each]))
    for number, (op, given, attributes) in enumerate(SHUFFLE, 1):
        nodes.append(helper.make_node(op, given, [str(number)], **attributes))
        if number < len(SHUFFLE):
            nodes.append(helper.make_node("QuantizeLinear", [str(number), "s", "z"], [f"{number}_q"]))
            nodes.append(helper.make_node("DequantizeLinear", [f"{number}_q", "s", "z"], [f"{number}_d"]))
    nodes.append(helper.make_node("QuantizeLinear", [str(len(SHUFFLE)), "t", "z"], ["y"]))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 12, 8, 8])
    y = helper.make_tensor_value_info("y", TensorProto.UINT8, [1, 24, 3, 3])
    kept = [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "shuffle", [x], [y], kept)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)

    lowered = cpu_lowering.lower(Model("m", ir.from_proto(proto), Origin("m.onnx", "")), cpu_arch.this_cpu())
    moved: dict[str, str] = {}

    def look(each: object) -> None:
        if isinstance(each, relax.Call) and getattr(each.op, "name", "") == "relax.call_tir":
            moved[each.args[0].name_hint] = str(each.ty.dtype.dtype)

    relax.analysis.post_order_visit(lowered.module["main"].body, look)
    moved = {
        name: dtype for name, dtype in moved.items() if any(op in name for op in ("concat", "reshape", "transpose"))
    }
    assert moved
    assert set(moved.values()) == {"uint8"}

    given = np.random.default_rng(2).uniform(-1, 2, (1, 12, 8, 8)).astype(np.float32)
    [found] = VirtualMachine(library.executable(lowered), tvm.cpu())["main"](tvm.runtime.tensor(given))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    [wanted] = ort.InferenceSession(proto.SerializeToString(), options).run(None, {"x": given})
    off = np.abs(found.numpy().astype(int) - wanted)
    assert off.max() <= 1  # a mean of four codes lies between two codes of twice the step every fourth time
    assert (off > 0).mean() < 0.25


@pytest.mark.parametrize(
    ("ports", "kind", "attributes", "operands", "scale"),
    [
        ("float[2,4] x", "int8", "<output_dtype=3>", "s", np.float32(0.5)),
        ("float[2,4] x", "int16", "<output_dtype=5>", "s", np.float32(0.5)),
        ("float[2,4] x", "int8", "<output_dtype=3, axis=1>", "s", np.float32([0.5, 1, 0.25, 2])),
        ("float[2,4] x, int8 z", "int8", "", "s, z", np.float32(0.5)),
    ],
    ids=["int8", "int16", "int8 by channel", "a zero point that is given"],
)
def test_codes_are_of_the_dtype_and_the_zero_point_that_a_node_has(
    ports: str, kind: str, attributes: str, operands: str, scale: object
) -> None:
    import tvm
    from tvm.runtime.vm import VirtualMachine

    axis = "<axis=1>" if "axis" in attributes else ""
    proto = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 21]>
        g ({ports}) => (float[2,4] y, {kind}[2,4] q) {{
            q = QuantizeLinear{attributes}(x, {operands})
            y = DequantizeLinear{axis}(q, {operands})
        }}"""
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.asarray(scale), "s"))
    feeds = {"x": np.float32([[-3, -1, 0.25, 70], [-60, 1.3, 2, 5]])}
    feeds |= {"z": np.array(-100, np.int8)} if "z" in operands else {}
    lowered = cpu_lowering.lower(Model("m", ir.from_proto(proto), Origin("m.onnx", "")), cpu_arch.this_cpu())
    run = VirtualMachine(library.executable(lowered), tvm.cpu())["main"]
    found = run(*map(tvm.runtime.tensor, feeds.values()))
    for got, want in zip(found, ort.InferenceSession(proto.SerializeToString()).run(None, feeds), strict=True):
        assert str(got.numpy().dtype) == want.dtype.name
        np.testing.assert_array_equal(got.numpy(), want)
