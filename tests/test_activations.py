"""Activations: what one run takes beside the weights, by hand, by property, and by a runtime's own arena."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import conv_net
from onnx import numpy_helper

from polycast.activations import ALIGNED, Span, arena, places, plan
from polycast.load import load
from polycast.passbase import PassContext
from polycast.recipe import Recipe
from polycast.targets import find


def parsed(path: Path, text: str) -> Path:
    onnx.save(onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {text}'), path)
    return path


def spans() -> st.SearchStrategy[list[Span]]:
    one = st.tuples(st.integers(1, 5000), st.integers(0, 12), st.integers(0, 5))
    return st.lists(one, max_size=24).map(
        lambda each: [Span(f"v{i}", size, first, first + more) for i, (size, first, more) in enumerate(each)]
    )


@given(spans())
def test_what_is_alive_together_lies_apart(found: list[Span]) -> None:
    placed = places(found)
    assert {span for _, span in placed} == set(found)
    for i, (start, one) in enumerate(placed):
        assert start % ALIGNED == 0
        for begin, other in placed[:i]:
            apart = start + one.size <= begin or begin + other.size <= start
            assert apart or one.last < other.first or other.last < one.first


@given(spans())
def test_a_block_is_no_smaller_than_what_is_alive_and_no_larger_than_all(found: list[Span]) -> None:
    alive = max((sum(s.size for s in found if s.first <= t <= s.last) for t in range(20)), default=0)
    assert alive <= arena(found) <= sum(-(-span.size // ALIGNED) * ALIGNED for span in found)


def test_the_tightest_gap_is_taken() -> None:
    """Of two gaps, 4096 and 1024 bytes, the value of 512 goes into the smaller."""
    walls = [Span("a", 4096, 0, 1), Span("b", 2048, 0, 9), Span("c", 1024, 0, 1), Span("d", 640, 0, 9)]
    offsets = {span.name: offset for offset, span in places([*walls, Span("e", 512, 2, 9)])}
    assert offsets == {"a": 0, "b": 4096, "c": 6144, "d": 7168, "e": 6144}


def test_a_chain_by_hand(tmp_path: Path) -> None:
    """Relu writes where Conv did, a Flatten is another view: what is alive at most is x, kept, and what Conv gives."""
    model = load(conv_net(tmp_path / "m.onnx"))
    found = plan(model, {"x": np.zeros((2, 3, 8, 8), np.float32)})
    x, conv = 2 * 3 * 8 * 8 * 4, 2 * 16 * 6 * 6 * 4
    padded = 2 * 16 * 8 * 8 * 4
    assert model.graph.graph[0].op_type == "Conv"
    assert conv < padded
    # BatchNormalization reads what Conv gives and writes beside it.
    assert (found.arena, found.least) == (x + 2 * padded, x + 2 * padded)
    assert (found.node, found.op) == ("norm", "BatchNormalization")
    assert found.alive == {"c": padded, "n": padded, "x": x}
    assert found.to_json()["shapes"] == {"x": [2, 3, 8, 8]}
    assert found.to_json()["evidence"] == "predicted"


def test_what_is_computed_from_constants_alone_is_no_activation(tmp_path: Path) -> None:
    text = """m (float[4] x) => (float[4] y) <float[4] a = {1,2,3,4}> { b = Neg(a) c = Exp(b) y = Add(x, c) }"""
    found = plan(load(parsed(tmp_path / "m.onnx", text)), {"x": np.zeros(4, np.float32)})
    assert found.alive == {"x": 16, "y": 16}


def test_integers_between_layers_are_no_floats(tmp_path: Path) -> None:
    """x → int8 → product → int8 → product → int8 → y: between the two, a byte for each of 64 entries, no float."""
    text = """m (float[1,64] x) => (float[1,64] y)
      <float s = {0.1}, int8 z = {0}> {
      q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) v = DequantizeLinear(w, s, z)
      p = MatMul(d, v) r = Relu(p)
      q2 = QuantizeLinear(r, s, z) d2 = DequantizeLinear(q2, s, z) p2 = MatMul(d2, v)
      q3 = QuantizeLinear(p2, s, z) y = DequantizeLinear(q3, s, z) }"""
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {text}')
    model.graph.initializer.append(numpy_helper.from_array(np.ones((64, 64), np.int8), "w"))
    onnx.save(model, tmp_path / "m.onnx")
    found = plan(load(tmp_path / "m.onnx"), {"x": np.zeros((1, 64), np.float32)})
    assert found.least == 256 + 64 + 256, "x, which is kept; then q3 and y"
    assert found.alive == {"x": 256, "y": 256, "q3": 64}


@pytest.mark.parametrize("inner", ["Identity", "Neg"])
def test_a_branch_counts_while_its_node_runs(tmp_path: Path, inner: str) -> None:
    text = f"""m (float[100] x, bool c) => (float[100] y) {{
      y = If (c) <then_branch = t () => (float[100] a) {{ b = Exp(x) a = Sin(b) }},
                  else_branch = e () => (float[100] d) {{ d = {inner}(x) }}> }}"""
    found = plan(load(parsed(tmp_path / "m.onnx", text)), {"x": np.zeros(100, np.float32), "c": np.array(True)})
    assert found.op == "If"
    assert found.alive == {"inside If": 448 + 400, "x": 400, "y": 400, "c": 1}


def test_shapes_that_follow_from_values_are_learnt_by_a_run(tmp_path: Path) -> None:
    text = """m (float[N] x) => (int64[1, M] y) { n = NonZero(x) k = Neg(n) y = Abs(k) }"""
    found = plan(load(parsed(tmp_path / "m.onnx", text)), {"x": np.array([0, 1, 0, 2, 3], np.float32)})
    assert found.alive == {"k": 24, "y": 24, "x": 20} or found.alive == {"k": 24, "n": 24, "x": 20}
    assert found.least == 68


def test_nothing_is_planned_for_what_does_not_run(tmp_path: Path) -> None:
    model = load(conv_net(tmp_path / "m.onnx"))
    assert plan(model, None).to_json() == {"not_planned": "there are no inputs to plan for"}
    text = """m (float[N] x) => (int64[1, M] y) { n = NonZero(x) y = Neg(n) }"""
    wrong = plan(load(parsed(tmp_path / "n.onnx", text)), {"x": np.array([["text"]])})
    assert wrong.reason == "the size of 2 values is not known before a run, n among it"


SUBJECTS = {
    "mlperftiny/kws.onnx": (1, 49, 10, 1),
    "mlperftiny/ic_resnet8.onnx": (1, 32, 32, 3),
    "mlperftiny/vww_96.onnx": (1, 96, 96, 3),
}


@pytest.mark.parametrize("subject", SUBJECTS)
def test_a_runtime_takes_what_is_planned(zoo, tmp_path: Path, subject: str) -> None:  # type: ignore[no-untyped-def]
    """LiteRT's reference kernels, which have no scratch memory, place their tensors in one block of that size."""
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    from polycast.targets import _litert

    target = find("cpu")
    model = load(zoo(subject))
    lowered = Recipe.of(target, "fp32").pipeline.run(model, PassContext(frozenset(_litert.FEATURES)))
    _litert.write(lowered, tmp_path)
    plain = interpreter.Interpreter(
        str(tmp_path / "model.tflite"), experimental_op_resolver_type=interpreter.OpResolverType.BUILTIN_REF
    )
    plain.allocate_tensors()
    taken = {each["index"] for each in plain.get_input_details()}
    taken |= {int(index) for op in plain._get_ops_details() for index in op["outputs"]}
    views = [plain.tensor(index)() for index in taken]
    held = max(v.ctypes.data + v.nbytes for v in views) - min(v.ctypes.data for v in views)
    planned = plan(lowered, {"input": np.zeros(SUBJECTS[subject], np.float32)}).arena
    assert abs(held - planned) <= ALIGNED * len(views)
