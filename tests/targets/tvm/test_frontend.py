"""Ops that we import ourselves, run through TVM's own CPU code and judged by ONNX's reference evaluator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from polycast.model import Model, Origin
from polycast.targets._tvm import frontend, lowering

tvm = pytest.importorskip("tvm")


def model_of(
    nodes: Sequence[Any], feeds: Mapping[str, np.ndarray], outputs: Sequence[str], **weights: np.ndarray
) -> Any:
    def port(name: str, array: np.ndarray) -> Any:
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)

    inputs = [port(name, array) for name, array in feeds.items()]
    results = [onnx.ValueInfoProto(name=name) for name in outputs]  # their types are inferred
    constants = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", inputs, results, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)


def both(proto: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    """What we compute and what the reference evaluator does, output by output."""
    typed = onnx.shape_inference.infer_shapes(proto)
    want = ReferenceEvaluator(proto).run(None, dict(feeds))
    imported = frontend.load(Model("g", ir.from_proto(typed), Origin("g.onnx", "")))
    module, constants = lowering.detach(lowering.fuse(imported.module), len(imported.weights))
    machine = tvm.relax.VirtualMachine(tvm.compile(module, target=tvm.target.Target({"kind": "llvm"})), tvm.cpu())
    given = [feeds[port.name].astype(port.dtype) for port in imported.inputs]
    arrays = map(tvm.runtime.tensor, [*given, *(imported.weights | constants).values()])
    found = [tensor.numpy() for tensor in machine["main"](*arrays)]
    return list(zip(found, want, strict=True))


def hold(proto: onnx.ModelProto, feeds: Mapping[str, np.ndarray], terms: int = 1) -> None:
    """terms: how many are added up; float32 errs by at most that many units of the largest sum."""
    for found, want in both(proto, feeds):
        assert found.shape == want.shape
        limit = terms * np.finfo(np.float32).eps * max(1.0, np.abs(want).max()) if want.dtype.kind == "f" else 0
        assert np.abs(found.astype(np.float64) - want).max() <= limit


RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return np.asarray(RNG.standard_normal(shape), np.float32)


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"])
def test_conv_pads_as_auto_pad_says(auto_pad: str) -> None:
    feeds = {"x": normal(1, 3, 7, 8)}
    node = helper.make_node("Conv", ["x", "w"], ["y"], auto_pad=auto_pad, strides=[2, 3], kernel_shape=[3, 2])
    hold(model_of([node], feeds, ["y"], w=normal(4, 3, 3, 2)), feeds, terms=18)


def test_a_shape_is_cast() -> None:
    """It stays a shape where it becomes integers: a Reshape wants one."""
    feeds = {"x": normal(2, 6), "z": normal(3, 4)}
    nodes = [
        helper.make_node("Shape", ["z"], ["s"]),
        helper.make_node("Cast", ["s"], ["i"], to=onnx.TensorProto.INT64),
        helper.make_node("Reshape", ["x", "i"], ["y"]),
        helper.make_node("Cast", ["s"], ["f"], to=onnx.TensorProto.FLOAT),
    ]
    hold(model_of(nodes, feeds, ["y", "f"]), feeds)


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_scales_and_adds(transposed: int) -> None:
    feeds = {"x": normal(3, 5)}
    node = helper.make_node("Gemm", ["x", "w", "c"], ["y"], alpha=0.5, beta=2.0, transB=transposed)
    hold(model_of([node], feeds, ["y"], w=normal(*((4, 5) if transposed else (5, 4))), c=normal(4)), feeds, terms=6)


def test_gather_takes_negative_indices_in_64_bits() -> None:
    feeds = {"i": np.array([[0, -1], [3, -4]], np.int64)}
    node = helper.make_node("Gather", ["w", "i"], ["y"], axis=0)
    hold(model_of([node], feeds, ["y"], w=normal(4, 6)), feeds)


@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
def test_positions_stay_integers(op: str) -> None:
    """Among numbers of which some are equal: the first or the last."""
    feeds = {"x": np.round(normal(3, 9, 2))}
    nodes = [
        helper.make_node(op, ["x"], ["a"], axis=1, keepdims=0),
        helper.make_node("Cast", ["a"], ["f"], to=TensorProto.FLOAT),
        helper.make_node(op, ["x"], ["z"], axis=-1, select_last_index=1),
    ]
    hold(model_of(nodes, feeds, ["a", "f", "z"]), feeds)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_hardmax_marks_the_first_of_the_largest(axis: int) -> None:
    feeds = {"x": np.round(normal(3, 4, 5))}
    hold(model_of([helper.make_node("Hardmax", ["x"], ["y"], axis=axis)], feeds, ["y"]), feeds)


@pytest.mark.parametrize("axis", [0, -1])
def test_one_hot_counts_from_the_end_and_knows_no_index_beyond(axis: int) -> None:
    feeds = {"i": np.array([[0, -1, 2], [5, -5, 4]], np.int64)}
    node = helper.make_node("OneHot", ["i", "depth", "values"], ["y"], axis=axis)
    hold(model_of([node], feeds, ["y"], depth=np.array(5, np.int64), values=np.array([-2, 3])), feeds)


def test_what_is_imported_and_has_no_kernel_is_named() -> None:
    feeds = {"x": normal(1, 1, 4, 4)}
    nodes = [
        helper.make_node("MaxPool", ["x"], ["p", "i"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("MaxUnpool", ["p", "i"], ["u"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("TopK", ["x", "k"], ["t", "at"]),
    ]
    proto = onnx.shape_inference.infer_shapes(model_of(nodes, feeds, ["u", "t"], k=np.array([2], np.int64)))
    found = frontend.problems(Model("g", ir.from_proto(proto), Origin("g.onnx", "")))
    assert found[0] == "ai.onnx.MaxPool at pool: nothing gives i"
    assert found[-1] == "ai.onnx.TopK (opset 23)"


def test_slice_to_the_largest_integer_means_to_the_end() -> None:
    feeds = {"x": normal(5, 3)}
    node = helper.make_node("Slice", ["x", "start", "end"], ["y"])
    far = np.array([np.iinfo(np.int64).max], np.int64)
    hold(model_of([node], feeds, ["y"], start=np.array([2], np.int64), end=far), feeds)


@pytest.mark.parametrize("steps", [1, 3])
def test_lstm_is_written_out_step_by_step(steps: int) -> None:
    feeds = {"x": normal(steps, 2, 4), "h": normal(1, 2, 3), "c": normal(1, 2, 3)}
    node = helper.make_node("LSTM", ["x", "w", "r", "b", "", "h", "c"], ["y", "yh", "yc"], hidden_size=3)
    weights = {"w": normal(1, 12, 4), "r": normal(1, 12, 3), "b": normal(1, 24)}
    hold(model_of([node], feeds, ["y", "yh", "yc"], **weights), feeds, terms=10 * steps)


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("flat", [False, True])
def test_attention_of_fewer_key_heads_with_a_mask(causal: int, flat: bool) -> None:
    shapes = [(1, 5, 24), (1, 5, 12), (1, 5, 12)] if flat else [(1, 4, 5, 6), (1, 2, 5, 6), (1, 2, 5, 6)]
    feeds = dict(zip("qkv", (normal(*shape) for shape in shapes), strict=True))
    heads = {"q_num_heads": 4, "kv_num_heads": 2} if flat else {}
    node = helper.make_node("Attention", ["q", "k", "v", "m"], ["y"], is_causal=causal, **heads)
    hold(model_of([node], feeds, ["y"], m=normal(5, 5)), feeds, terms=64)


def test_blocked_4_bit_weights_stay_packed_beside_the_code() -> None:
    feeds = {"x": normal(2, 64)}
    codes = RNG.integers(-8, 8, (64, 24)).astype(np.int8)
    packed = helper.make_tensor("q", TensorProto.INT4, codes.shape, codes.flatten().tolist())
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s"], ["w"], axis=0, block_size=32),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    proto = model_of(nodes, feeds, ["y"], s=np.abs(normal(2, 24)))
    proto.graph.initializer.append(packed)
    hold(proto, feeds, terms=64 * 8)
    imported = frontend.load(Model("g", ir.from_proto(onnx.shape_inference.infer_shapes(proto)), Origin("g.onnx", "")))
    assert sum(array.nbytes for array in imported.weights.values()) == 64 * 24 // 2 + 2 * 24 * 4


def test_every_problem_is_named_at_once() -> None:
    feeds = {"x": normal(2, 3)}
    nodes = [
        helper.make_node("Det", ["x"], ["d"]),
        helper.make_node("Zeta", ["x"], ["z"], domain="odd"),
        helper.make_node("Relu", ["z"], ["y"]),
        helper.make_node("Alpha", ["y"], ["a"], domain="odd"),
    ]
    proto = model_of(nodes, feeds, ["d", "a"])
    proto.opset_import.append(helper.make_opsetid("odd", 1))
    found = frontend.problems(Model("g", ir.from_proto(proto), Origin("g.onnx", "")))
    assert found == ("ai.onnx.Det (opset 23)", "odd.Alpha (opset 1)", "odd.Zeta (opset 1)")


def test_what_no_kernel_could_hold_is_a_problem() -> None:
    feeds = {"i": np.array([1, 2]), "x": normal(2, 3)}
    nodes = [
        helper.make_node("Mul", ["i", "big"], ["j"], name="scale"),
        helper.make_node("Slice", ["x", "to", "to"], ["none"], name="cut"),
        helper.make_node("Slice", ["x", "to", "big"], ["all"]),
    ]
    weights = {"big": np.array([10**10]), "to": np.array([1])}
    proto = onnx.shape_inference.infer_shapes(model_of(nodes, feeds, ["j", "none", "all"], **weights), data_prop=True)
    found = frontend.problems(Model("g", ir.from_proto(proto), Origin("g.onnx", "")))
    assert found == (
        "ai.onnx.Mul at scale: integers that do not fit 32 bits",
        "ai.onnx.Slice at cut: a tensor of no elements",
    )


def test_a_number_stays_one_beside_a_constant() -> None:
    feeds = {"x": normal()}
    hold(model_of([helper.make_node("Add", ["x", "c"], ["y"])], feeds, ["y"], c=normal()), feeds)


@pytest.mark.parametrize("exponent", [2.0, 3.0, 4.0])
def test_a_whole_power_of_a_negative_number_calls_no_library(exponent: float) -> None:
    feeds = {"x": normal(3, 5)}
    proto = model_of([helper.make_node("Pow", ["x", "e"], ["y"])], feeds, ["y"], e=np.float32(exponent))
    hold(proto, feeds, terms=4)
    typed = onnx.shape_inference.infer_shapes(proto)
    imported = frontend.load(Model("g", ir.from_proto(typed), Origin("g.onnx", "")))
    assert "power" not in imported.module.script()


def test_dimension_that_is_not_fixed_says_what_fixes_it() -> None:
    proto = model_of([helper.make_node("Relu", ["x"], ["y"])], {"x": normal(2, 3)}, ["y"])
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "length"
    [problem] = frontend.problems(Model("g", ir.from_proto(proto), Origin("g.onnx", "")))
    assert "--shape x=2,N" in problem
