from __future__ import annotations

import onnx_ir as ir
import pytest
from models import conv_net

from polycast.errors import PromiseError
from polycast.load import load
from polycast.promise import Promise
from polycast.shares import Shares, count


def test_weights_and_macs_are_counted_at_the_given_shape(tmp_path):
    model = load(conv_net(tmp_path / "m.onnx"))
    shares = count(model, {"x": (2, 3, 8, 8)})
    assert shares.weights == {"fp32": 16 * 27 + 5 * 16}
    assert shares.macs == {"fp32": 2 * 16 * 27 * 64 + 2 * 5 * 16}
    assert count(model).macs == {"fp32": 16 * 27 * 64 + 5 * 16}, "an unknown batch counts as one"


def test_counting_leaves_the_model_alone(tmp_path):
    model = load(conv_net(tmp_path / "m.onnx"))
    before = (model.digest, [str(v.shape) for n in model.graph.graph for v in n.outputs])
    count(model, {"x": (2, 3, 8, 8)})
    assert before == (model.digest, [str(v.shape) for n in model.graph.graph for v in n.outputs])


def test_a_weight_is_found_behind_casts_and_shared_weights_count_once():
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 23]>
        g (float[2, 4] x) => (float[2, 4] z)
          <float16[4, 4] w = {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1}>
        { v = Cast<to=1>(w)  y = MatMul(x, v)  z = MatMul(y, v) }"""
    )
    from polycast.model import Model, Origin

    shares = count(Model("m", model, Origin("", "")))
    assert shares.weights == {"fp16": 16}
    assert shares.macs == {"fp32": 2 * 2 * 16}, "a half-precision weight that is widened is computed in float32"


def test_a_kept_promise_is_silent_and_a_broken_one_says_asked_reached_and_why():
    asked = Promise("fp16", weights=0.9, macs=0.9)
    asked.check(Shares(), Shares({"fp16": 95, "fp32": 5}, {"fp16": 95, "fp32": 5}))
    with pytest.raises(PromiseError, match=r"asked 90% of macs in fp16, reached 50.0%") as caught:
        asked.check(Shares(), Shares({"fp16": 95, "fp32": 5}, {"fp16": 5, "fp32": 5}), iter(["conv: out of range"]))
    assert "conv: out of range" in caught.value.hint


def test_nothing_to_convert_is_an_error_not_a_success():
    with pytest.raises(PromiseError, match="nothing to make fp16"):
        Promise("fp16", 0.9, 0.9).check(Shares(), Shares())


def test_fp32_promises_that_nothing_is_narrowed():
    Promise().check(Shares({"int8": 8}), Shares({"int8": 8, "fp32": 1}))
    with pytest.raises(PromiseError, match="4 elements are now int8"):
        Promise().check(Shares({"fp32": 4}), Shares({"int8": 4}))


def test_scales_that_are_longer_than_their_weight_are_not_taken_for_it():
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 23]>
        g (float[2, 1] x) => (float[2, 4] y)
          <int8[1, 4] q = {1, 2, 3, 4}, float[4] s = {1, 1, 1, 1}, int8[4] z = {0, 0, 0, 0}>
        { w = DequantizeLinear<axis=1>(q, s, z)  y = MatMul(x, w) }"""
    )
    from polycast.model import Model, Origin

    assert count(Model("m", model, Origin("", ""))).weights == {"int8": 4}
