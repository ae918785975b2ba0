"""Models of every opset from 7 on, before and after they are brought to the current one."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnx.defs
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx.reference import ReferenceEvaluator

from polycast.errors import InputError
from polycast.model import OPSET
from polycast.reading.normal import check
from polycast.reading.opset import ADAPTERS, upgrade

# id: opset, the graph, and inputs that random numbers will not do for.
CASES: dict[str, tuple[int, str, dict[str, object]]] = {
    "batch_norm": (
        7,
        "(float[2,3,4] x, float[3] s, float[3] b, float[3] m, float[3] v) => (float[] y) "
        "{ y = BatchNormalization<epsilon=1e-3>(x, s, b, m, v) }",
        {"v": [0.5, 1.0, 2.0]},
    ),
    "clip": (7, "(float[3,4] x) => (float[] y) { y = Clip<min=-0.5, max=0.25>(x) }", {}),
    "clip_min": (7, "(float[3,4] x) => (float[] y) { y = Clip<min=-0.5>(x) }", {}),
    "clip_max": (9, "(float[3,4] x) => (float[] y) { y = Clip<max=0.5>(x) }", {}),
    "clip_unbounded": (9, "(float[3,4] x) => (float[] y) { y = Clip(x) }", {}),
    "dft": (17, "(float[1,6,4,2] x) => (float[] y) { y = DFT<axis=2>(x) }", {}),
    "dft_default_axis": (17, "(float[1,6,2] x) => (float[] y) { y = DFT(x) }", {}),
    "dft_length": (
        17,
        "(float[1,6,2] x) => (float[] y) { n = Constant<value=int64 {4}>() y = DFT<axis=1>(x, n) }",
        {},
    ),
    "dropout": (7, "(float[3,4] x) => (float[] y) { y = Dropout<ratio=0.7>(x) }", {}),
    "dropout_unused_mask": (7, "(float[3,4] x) => (float[] y) { y, mask = Dropout(x) }", {}),
    "dropout_10": (10, "(float[3,4] x) => (float[] y) { y = Dropout<ratio=0.7>(x) }", {}),
    "grid_sample_bilinear": (
        16,
        '(float[1,2,4,4] x, float[1,3,3,2] g) => (float[] y) { y = GridSample<mode="bilinear">(x, g) }',
        {},
    ),
    "grid_sample_bicubic": (
        16,
        '(float[1,2,4,4] x, float[1,3,3,2] g) => (float[] y) { y = GridSample<mode="bicubic">(x, g) }',
        {},
    ),
    "grid_sample_default": (16, "(float[1,2,4,4] x, float[1,3,3,2] g) => (float[] y) { y = GridSample(x, g) }", {}),
    "group_norm": (
        18,
        "(float[2,6,4] x, float[3] s, float[3] b) => (float[] y) { y = GroupNormalization<num_groups=3>(x, s, b) }",
        {},
    ),
    "gru": (
        7,
        "(float[4,2,3] x, float[1,15,3] w, float[1,15,5] r) => (float[] y, float[] h) "
        "{ y, h = GRU<hidden_size=5, linear_before_reset=1>(x, w, r) }",
        {},
    ),
    "lstm": (
        7,
        "(float[4,2,3] x, float[1,20,3] w, float[1,20,5] r) => (float[] y, float[] h) "
        "{ y, h, c = LSTM<hidden_size=5>(x, w, r) }",
        {},
    ),
    "hardmax": (11, "(float[2,3,4] x) => (float[] y) { y = Hardmax(x) }", {}),
    "log_softmax": (9, "(float[2,3,4] x) => (float[] y) { y = LogSoftmax<axis=1>(x) }", {}),
    "softmax": (7, "(float[2,3,4] x) => (float[] y) { y = Softmax(x) }", {}),
    "softmax_axis_0": (7, "(float[2,3,4] x) => (float[] y) { y = Softmax<axis=0>(x) }", {}),
    "softmax_last_axis": (11, "(float[2,3,4] x) => (float[] y) { y = Softmax<axis=-1>(x) }", {}),
    "softmax_rank_2": (7, "(float[3,4] x) => (float[] y) { y = Softmax(x) }", {}),
    "softmax_unknown_rank": (11, "(float[] x) => (float[] y) { y = Softmax<axis=1>(x) }", {"x": np.ones((2, 3, 4))}),
    "pad": (7, "(float[2,3] x) => (float[] y) { y = Pad<pads=[1,0,0,2], value=0.5>(x) }", {}),
    "pad_zero": (7, "(float[2,3] x) => (float[] y) { y = Pad<pads=[1,0,0,2]>(x) }", {}),
    "pad_reflect": (9, '(float[2,3] x) => (float[] y) { y = Pad<mode="reflect", pads=[0,1,0,2]>(x) }', {}),
    "reduce_sum": (7, "(float[2,3,4] x) => (float[] y) { y = ReduceSum<axes=[0,2], keepdims=0>(x) }", {}),
    "reduce_sum_all": (11, "(float[2,3,4] x) => (float[] y) { y = ReduceSum(x) }", {}),
    "resize_up": (
        10,
        "(float[1,1,3,4] x) => (float[] y) { s = Constant<value=float[4] {1.0,1.0,2.0,1.5}>() y = Resize(x, s) }",
        {},
    ),
    "resize_down": (
        10,
        "(float[1,1,5,7] x) => (float[] y) { s = Constant<value=float[4] {1.0,1.0,0.6,0.5}>() y = Resize(x, s) }",
        {},
    ),
    "resize_up_and_down": (
        10,
        "(float[1,1,5,7] x) => (float[] y) { s = Constant<value=float[4] {1.0,1.0,1.7,0.6}>() y = Resize(x, s) }",
        {},
    ),
    "resize_unknown_scales": (
        10,
        "(float[1,1,5,7] x, float[4] s) => (float[] y) { y = Resize(x, s) }",
        {"s": [1.0, 1.0, 0.6, 2.5]},
    ),
    "resize_linear": (
        10,
        "(float[1,1,5,7] x) => (float[] y) "
        '{ s = Constant<value=float[4] {1.0,1.0,1.7,0.6}>() y = Resize<mode="linear">(x, s) }',
        {},
    ),
    "roi_align": (
        10,
        "(float[1,2,8,8] x, float[1,4] r, int64[1] i) => (float[] y) "
        "{ y = RoiAlign<output_height=3, output_width=3, sampling_ratio=2>(x, r, i) }",
        {"r": [[0.6, 1.2, 5.5, 7.1]], "i": [0]},
    ),
    "scatter": (
        9,
        "(float[3,3] x, int64[2,3] i, float[2,3] u) => (float[] y) { y = Scatter<axis=0>(x, i, u) }",
        {"i": [[1, 0, 2], [0, 2, 1]]},
    ),
    "slice": (7, "(float[4,5,6] x) => (float[] y) { y = Slice<axes=[0,2], starts=[1,-3], ends=[3,1000]>(x) }", {}),
    "slice_no_axes": (9, "(float[4,5] x) => (float[] y) { y = Slice<starts=[1,0], ends=[3,-1]>(x) }", {}),
    "split": (7, "(float[2,6] x) => (float[] y, float[] z) { y, z = Split<axis=1, split=[2,4]>(x) }", {}),
    "split_equal": (13, "(float[2,6] x) => (float[] y, float[] z) { y, z = Split<axis=1>(x) }", {}),
    "squeeze": (7, "(float[1,3,1] x) => (float[] y) { y = Squeeze<axes=[0]>(x) }", {}),
    "squeeze_all": (11, "(float[1,3,1] x) => (float[] y) { y = Squeeze(x) }", {}),
    "unsqueeze": (11, "(float[3] x) => (float[] y) { y = Unsqueeze<axes=[0,-1]>(x) }", {}),
    "top_k": (9, "(float[3,6] x) => (float[] y, int64[] i) { y, i = TopK<k=2, axis=1>(x) }", {}),
    "upsample_attribute": (7, "(float[1,2,3,4] x) => (float[] y) { y = Upsample<scales=[1.0,1.0,2.0,1.5]>(x) }", {}),
    "upsample_input": (
        9,
        "(float[1,2,3,4] x) => (float[] y) "
        '{ s = Constant<value=float[4] {1.0,1.0,2.0,3.0}>() y = Upsample<mode="linear">(x, s) }',
        {},
    ),
    "subgraphs": (
        11,
        "(bool c, float[1,2,3] x) => (float[] y) { y = If(c) <"
        "then_branch = t () => (float[] a) { s = Squeeze<axes=[0]>(x) a = Softmax<axis=0>(s) }, "
        "else_branch = e () => (float[] b) { b = ReduceSum<axes=[0], keepdims=0>(x) }> }",
        {},
    ),
    "loop": (
        11,
        "(float[1,3] x) => (float[] y) { n = Constant<value=int64 {3}>() c = Constant<value=bool {1}>() "
        "y = Loop(n, c, x) <body = b (int64 i, bool k, float[1,3] v) => (bool k_out, float[1,3] w) "
        "{ k_out = Identity(k) s = Unsqueeze<axes=[0]>(v) t = Squeeze<axes=[0]>(s) w = Add(t, x) }> }",
        {},
    ),
    "custom_domain": (
        9,
        "(float[2,3] x) => (float[] y) { a = com.microsoft.FusedMatMul<transB=1>(x, x) y = Clip<max=1.5>(a) }",
        {},
    ),
}
CASES |= {
    f"{op.lower()}_{axes or 'all'}": (
        13,
        f"(float[2,3,4] x) => (float[] y) {{ a = Abs(x) y = {op}{f'<axes={axes}, keepdims=0>' if axes else ''}(a) }}",
        {},
    )
    for op in "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd "
    "ReduceSumSquare".split()
    for axes in ([], [1, -1])
}

# Changes of a schema that leave every valid node its meaning, each with the reason.
HARMLESS = {
    "a default that is the old behaviour": {
        *((op, 12) for op in ("ArgMax", "ArgMin", "GatherND")),
        *((op, 14) for op in ("GRU", "LSTM", "RNN", "Reshape")),
        *((op, 16) for op in ("ScatterElements", "ScatterND")),
        *((op, 19) for op in ("AveragePool", "Cast", "CastLike", "QuantizeLinear")),
        *(("AveragePool", 10), ("MaxPool", 8), ("MaxPool", 10), ("DepthToSpace", 11), ("TopK", 11)),
        *(("LpPool", 18), ("Resize", 18), ("Shape", 15)),
        *((op, v) for op in ("QuantizeLinear", "DequantizeLinear") for v in (13, 21, 23)),
    },
    "one more way to say it": {("Constant", 11), ("Constant", 12)},
}


def changes() -> set[tuple[str, int]]:
    """Every (op, opset) in which a node's attributes, defaults, inputs or outputs were not just widened in type."""
    found = set()
    history: dict[str, dict[int, onnx.defs.OpSchema]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "" and schema.since_version <= OPSET:
            history.setdefault(schema.name, {})[schema.since_version] = schema
    for op, schemas in history.items():
        versions = sorted(schemas)
        for old, new in itertools.pairwise(versions):
            a, b = schemas[old], schemas[new]
            facts = [{n: (x.required, x.default_value) for n, x in s.attributes.items()} for s in (a, b)]
            narrower = b.min_input > a.min_input or b.max_input < a.max_input or b.max_output < a.max_output
            if new > 7 and (facts[0] != facts[1] or narrower or b.deprecated):
                found.add((op, new))
    return found


def parse(opset: int, text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}, "com.microsoft": 1]> g {text}')


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def feeds_for(model: onnx.ModelProto, given: dict[str, object]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    feeds = {}
    for value in model.graph.input:
        kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
        feeds[value.name] = np.asarray(given.get(value.name, rng.uniform(-1, 1, shape)), kind)
    return feeds


@pytest.mark.parametrize("case", CASES)
def test_outputs_are_the_same_after_the_upgrade(case: str) -> None:
    """onnxruntime runs both, but for RoiAlign: it has no kernel for the version of opset 22."""
    opset, text, given = CASES[case]
    old = parse(opset, text)
    model = upgrade(ir.from_proto(old))
    assert model.opset_imports[""] == OPSET
    check(model)
    new = ir.to_proto(model)
    feeds = feeds_for(old, given)
    after_run = ReferenceEvaluator(new).run(None, feeds) if case == "roi_align" else run(new, feeds)
    for before, after in zip(run(old, feeds), after_run, strict=True):
        assert before.shape == after.shape
        # The kernels of two opsets may add up in another order: at most every input once.
        bound = np.finfo(np.float32).eps * max(array.size for array in feeds.values())
        np.testing.assert_allclose(after, before, rtol=bound, atol=bound)


def test_every_change_between_opsets_has_an_adapter_or_a_reason() -> None:
    assert changes() - ADAPTERS.keys() == set.union(*HARMLESS.values())


def test_every_adapter_is_exercised() -> None:
    refused = {("Scan", 9)}
    used = set()
    for opset, text, _ in CASES.values():
        model = parse(opset, text).graph
        bodies = [model, *(a.g for n in model.node for a in n.attribute if a.HasField("g"))]
        ops = {n.op_type for body in bodies for n in body.node}
        ops |= {"Resize"} if "Upsample" in ops else set()
        used |= {(op, version) for op, version in ADAPTERS if op in ops and opset < version}
    assert ADAPTERS.keys() - used == refused


def test_batch_norm_of_each_activation() -> None:
    """``spatial=0``, which onnxruntime no longer runs, against its definition."""
    model = parse(
        7,
        "(double[2,3,4] x, double[3,4] s, double[3,4] b, double[3,4] m, double[3,4] v) => (double[] y) "
        "{ y = BatchNormalization<spatial=0, epsilon=0.01>(x, s, b, m, v) }",
    )
    feeds = feeds_for(model, {"v": np.linspace(0.5, 2, 12).reshape(3, 4)})
    x, s, b, m, v = feeds.values()
    (found,) = run(ir.to_proto(upgrade(ir.from_proto(model))), feeds)
    epsilon = np.float32(0.01)  # an attribute is float32
    np.testing.assert_allclose(found, (x - m) / np.sqrt(v + epsilon) * s + b, rtol=1e3 * np.finfo(np.float64).eps)


@pytest.mark.parametrize(
    ("opset", "text", "message"),
    [
        (6, "(float[2] x) => (float[] y) { y = Relu(x) }", "opset 6: 7 and up"),
        (7, "(float[2] x) => (float[] y, float[] m) { y, m = Dropout(x) }", "its mask is read"),
        (
            9,
            "(float[2,3] x, float[3] s, float[3] b, float[3] m, float[3] v) => (float[] y) "
            "{ y, a, c, d, e = BatchNormalization(x, s, b, m, v) }",
            "training mode",
        ),
        (
            8,
            "(float[1,2,3] x, float[1,3] s) => (float[] y) { y = Scan<num_scan_inputs=1, body = "
            "b (float[3] a, float[3] c) => (float[3] d) { d = Add(a, c) }>( , s, x) }",
            "a batch axis of its own",
        ),
    ],
    ids=["opset", "dropout", "batch_norm", "scan"],
)
def test_what_no_later_opset_can_say_is_refused(opset: int, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        upgrade(ir.from_proto(parse(opset, text)))


def test_a_newer_opset_is_kept() -> None:
    model = ir.from_proto(parse(OPSET + 1, "(float[2] x) => (float[] y) { y = Relu(x) }"))
    assert upgrade(model).opset_imports[""] == OPSET + 1


def test_functions_are_inlined_whatever_their_opset() -> None:
    text = """<ir_version: 8, opset_import: ["": 17, "local": 1]>
    g (float[2,3] x) => (float[] y) { a = local.top <axis=[1]> (x) b = ReduceMean<axes=[0]>(x) y = Add(a, b) }
    <domain: "local", opset_import: ["": 18]>
    top <axis> (v) => (w) { k = Constant<value_ints: ints = @axis>() w = ReduceMax(v, k) }"""
    model = upgrade(ir.from_proto(onnx.parser.parse_model(text)))
    assert not model.functions
    assert model.opset_imports == {"": OPSET}
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    (found,) = run(ir.to_proto(model), {"x": x})
    np.testing.assert_array_equal(found, x.max(1, keepdims=True) + x.mean(0, keepdims=True))


def test_large_weights_are_not_copied() -> None:
    weight = ir.tensor(np.ones((64, 64), np.float32))
    model = ir.from_proto(
        parse(9, "(float[2,64] x, float[64,64] w) => (float[] y) { m = MatMul(x, w) y = Clip<max=1.0>(m) }")
    )
    value = model.graph.inputs.pop()
    value.const_value = weight
    model.graph.register_initializer(value)
    assert upgrade(model).graph.initializers["w"].const_value is weight
