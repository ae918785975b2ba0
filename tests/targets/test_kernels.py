from __future__ import annotations

import numpy as np
import onnx
import pytest
from models import conv_net, save
from onnx import TensorProto, helper

import polycast
from polycast.load import load
from polycast.targets import _kernels


def roi_align(path, *extra: onnx.NodeProto):
    nodes = [helper.make_node("RoiAlign", ["x", "r", "b"], ["a"], output_height=2, output_width=2), *extra]
    graph = helper.make_graph(
        nodes,
        "roi",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 8, 8]),
            helper.make_tensor_value_info("r", TensorProto.FLOAT, [1, 4]),
            helper.make_tensor_value_info("b", TensorProto.INT64, [1]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, 2, 2])],
    )
    return save(graph, path, opset=21)


def test_an_op_without_a_kernel_at_this_opset_runs_at_an_older_one(tmp_path):
    """onnxruntime 1.32 has RoiAlign up to opset 21; opset 22 only admits more types."""
    source = roi_align(tmp_path / "roi.onnx", helper.make_node("Relu", ["a"], ["y"]))
    [build] = polycast.compile(source, out=tmp_path)
    assert build.agreement["n"] == 1
    assert build.agreement["within_tolerance"]
    assert onnx.load(build.path / "model.onnx").opset_import[0].version == 21


def test_an_older_opset_is_not_declared_where_another_op_needs_the_newer(tmp_path):
    source = roi_align(tmp_path / "roi.onnx", helper.make_node("Relu", ["a"], ["y"]))
    model = load(source)
    graph = model.draft()
    [relu] = [node for node in graph.graph if node.op_type == "Relu"]
    relu.op_type = "RMSNormalization"  # which came with opset 23
    model = polycast.Model(model.name, graph, model.origin)
    assert _kernels.runnable_opset(model) == 23
    assert _kernels.missing(model) == ("ai.onnx.RoiAlign (opset 23, 1 node)",)


def test_a_model_that_runs_keeps_its_opset(tmp_path):
    model = load(conv_net(tmp_path / "m.onnx"))
    assert _kernels.runnable_opset(model) == model.opset == 23
    assert _kernels.missing(model) == ()


def test_a_constant_node_needs_no_kernel(tmp_path):
    two = onnx.numpy_helper.from_array(np.float32([2, 2]))
    nodes = [helper.make_node("Constant", [], ["c"], value=two), helper.make_node("Add", ["x", "c"], ["y"])]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy"]
    [build] = polycast.compile(
        save(helper.make_graph(nodes, "c", ports[:1], ports[1:]), tmp_path / "c.onnx"), passes="", out=tmp_path
    )
    np.testing.assert_array_equal(build.run({"x": np.float32([1, 2])})[0], [3, 4])


@pytest.mark.parametrize("op", ["Gelu", "HardSwish", "MeanVarianceNormalization", "LayerNormalization"])
def test_ops_that_onnx_defines_by_others_are_not_missing(tmp_path, op):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 3, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, 3, 4])
    scale = [onnx.numpy_helper.from_array(np.ones(4, np.float32), "scale")]
    inputs = ["x", "scale"] if op == "LayerNormalization" else ["x"]
    graph = helper.make_graph([helper.make_node(op, inputs, ["y"])], "one", [x], [y], scale)
    model = load(save(graph, tmp_path / "one.onnx", opset=21))
    assert _kernels.missing(model) == ()
    assert polycast.compile(model, out=tmp_path)[0].agreement["n"] == 1
