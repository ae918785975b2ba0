"""Small models that several tests share, written with onnx.parser or onnx.helper."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def conv_net(path: Path, seed: int = 0) -> Path:
    """Write conv → BatchNormalization → relu → pool → gemm; takes x: [batch, 3, 8, 8], gives logits: [batch, 5]."""
    rng = np.random.default_rng(seed)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32) / 4, name)

    variance = numpy_helper.from_array(rng.uniform(0.5, 2, 16).astype(np.float32), "variance")
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "scale", "bias", "mean", "variance"], ["n"], "norm"),
        helper.make_node("Relu", ["n"], ["r"], "relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["g"], "pool"),
        helper.make_node("Flatten", ["g"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "v", "b"], ["logits"], "gemm", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "conv_net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 5])],
        [
            weight("w", 16, 3, 3, 3),
            weight("scale", 16),
            weight("bias", 16),
            weight("mean", 16),
            variance,
            weight("v", 5, 16),
            weight("b", 5),
        ],
    )
    return save(graph, path)


def dense_net(path: Path, seed: int = 0) -> Path:
    """Write flatten → gemm → relu → gemm; takes image: [batch, 1, 8, 8], gives logits: [batch, 10]."""
    rng = np.random.default_rng(seed)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32) / 4, name)

    nodes = [
        helper.make_node("Flatten", ["image"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "v", "b"], ["h"], "hidden", transB=1),
        helper.make_node("Relu", ["h"], ["r"], "relu"),
        helper.make_node("Gemm", ["r", "w", "c"], ["logits"], "head", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "dense_net",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        [weight("v", 96, 64), weight("b", 96), weight("w", 10, 96), weight("c", 10)],
    )
    return save(graph, path)


def save(graph: onnx.GraphProto, path: Path, opset: int = 17) -> Path:
    """Check and write a model of the default domain."""
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def labelled(path: Path, n: int = 20, seed: int = 1) -> Path:
    """Write samples for ``conv_net`` with random labels."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 3, 8, 8)).astype(np.float32)
    np.savez(path, x=x, label=rng.integers(0, 5, n))
    return path
