"""Which nodes onnxruntime-web leaves to WebAssembly, by the table of what it says itself."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.parser
import pytest
from models import conv_net

import polycast
from polycast.errors import PromiseError
from polycast.load import load
from polycast.targets import find
from polycast.targets.webgpu import _web_kernels
from polycast.targets.webgpu._web_kernels import declared, fallback


def parsed(path: Path, text: str, opset: int = 23) -> polycast.Model:
    head = f'<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]>'
    onnx.save(onnx.parser.parse_model(f"{head} {text}"), path)
    return load(path)


def test_an_op_that_the_provider_lacks_and_a_type_that_it_lacks(tmp_path: Path) -> None:
    model = parsed(
        tmp_path / "m.onnx",
        """m (float[4] x, int64[4] i) => (float[4] y, int64[4] j) {
          a = Relu(x) [round] y = Round(a) [negated] j = Neg(i) }""",
    )
    assert fallback(model) == {
        "round": "the WebGPU provider has no Round",
        "negated": "the WebGPU provider has no Neg of int64",
    }


def test_a_model_is_declared_at_the_opset_that_leaves_least(tmp_path: Path) -> None:
    """There is a MaxPool of opset 12, which serves up to 21, and none of 22."""
    text = "m (float[1,3,8,8] x) => (float[1,3,4,4] y) { [pool] y = MaxPool <kernel_shape=[2,2], strides=[2,2]> (x) }"
    model = parsed(tmp_path / "m.onnx", text)
    assert "pool" in _web_kernels._left(model)
    assert declared(model).opset < 22
    assert fallback(model) == {}


def test_what_is_computed_when_a_session_opens_is_no_fallback(tmp_path: Path) -> None:
    model = parsed(
        tmp_path / "m.onnx", "m (float[4] x) => (float[4] y) <float[4] w = {1,2,3,4}> { v = Round(w) y = Add(x, v) }"
    )
    assert fallback(model) == {}


def test_an_if_counts_by_what_is_inside(tmp_path: Path) -> None:
    text = """m (float[4] x, bool c) => (float[4] y) {
      [choose] y = If (c) <then_branch = t () => (float[4] a) { [inner] a = Round(x) },
                           else_branch = e () => (float[4] b) { b = Relu(x) }> }"""
    assert set(fallback(parsed(tmp_path / "m.onnx", text))) == {"inner"}


def test_ops_of_microsoft_are_taken_by_their_width(tmp_path: Path) -> None:
    text = """m (float[1,32] x, uint8[8,1,16] w, float[8] s) => (float[1,8] y) {
      y = com.microsoft.MatMulNBits <K=32, N=8, bits=4, block_size=32> (x, w, s)
      z = com.microsoft.NoSuchOp (x) }"""
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]> {text}')
    onnx.save(model, tmp_path / "m.onnx")
    assert list(fallback(load(tmp_path / "m.onnx")).values()) == ["the WebGPU provider has no com.microsoft.NoSuchOp"]


def test_a_share_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = conv_net(tmp_path / "m.onnx")
    target = "webgpu@onnxruntime-web"
    [build] = polycast.compile(source, target, max_cpu_share=0.0, out=tmp_path / "out")
    assert build.manifest["fallback"]["nodes"] == 0
    table = {op: kinds for op, kinds in _web_kernels._table().items() if op != "Conv"}
    monkeypatch.setattr(_web_kernels, "_table", lambda: table)
    with pytest.raises(PromiseError, match=r"leaves 99\.\d% of the MACs to the CPU, and 50% are allowed: Conv"):
        polycast.compile(source, target, max_cpu_share=50.0, out=tmp_path / "out")


def test_own_kernels_leave_nothing_and_know_no_fallback(tmp_path: Path) -> None:
    assert find("webgpu").fallback(load(conv_net(tmp_path / "m.onnx"))) is None
