"""What a refusal says could be done: whatever it names is tried here, and helps."""

from __future__ import annotations

import re
from pathlib import Path

import onnx
import pytest

import polycast
from polycast.errors import UnsupportedError
from polycast.load import load
from polycast.targets import _kernels, find

HEAD = '<ir_version: 10, opset_import: ["" : 17, "com.example" : 1]>'


def written(path: Path, text: str) -> Path:
    onnx.save(onnx.parser.parse_model(HEAD + text), path)
    return path


@pytest.fixture
def determinant(tmp_path: Path) -> Path:
    """A model with an op that onnxruntime alone has a kernel for."""
    return written(tmp_path / "det.onnx", "g (float[2, 3, 3] x) => (float[2] y) { a = Relu(x)  y = Det(a) }")


def refused(model: Path, target: str, precision: str = "fp32") -> str:
    """Give what is said to help."""
    with pytest.raises(UnsupportedError) as caught:
        polycast.compile(model, target, precision, out=model.parent / "out")
    return caught.value.hint


@pytest.mark.parametrize("target", ["cpu:aarch64@litert", "cpu@litert", "cpu@tvm", "cuda:sm_90", "webgpu"])
def test_another_runtime_of_the_same_hardware_is_named_and_takes_it(target: str, determinant: Path) -> None:
    if not find(target).probe().build.yes:
        pytest.skip(f"{target} cannot be built here: {find(target).probe().build.reason}")
    [other] = re.findall(r"-t (\S+) takes this model", refused(determinant, target))
    assert other.partition("@")[0] == target.partition("@")[0]
    [build] = polycast.compile(determinant, other, out=determinant.parent / "out")
    assert build.target == str(find(other))


def test_a_runtime_without_the_precision_is_not_named(determinant: Path) -> None:
    assert "fp16-weights" not in find("cpu").precisions
    for precision, is_named in (("fp32", True), ("fp16-weights", False), ("one of the user's", True)):
        with pytest.raises(UnsupportedError) as caught:
            find("cpu@litert").check(load(determinant), precision)
        assert ("-t cpu@onnxruntime takes this model" in caught.value.hint) is is_named


def test_a_runtime_that_cannot_be_asked_is_not_named(determinant: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_kernels, "missing", lambda model: 1 / 0)
    hint = refused(determinant, "cpu@litert")
    assert "takes this model" not in hint
    assert "extract_model" in hint


def test_a_model_that_ends_before_what_is_lacking_is_built(determinant: Path) -> None:
    assert "extract_model" in refused(determinant, "cpu@litert")
    onnx.utils.extract_model(determinant, determinant.with_name("cut.onnx"), ["x"], ["a"])
    assert polycast.compile(determinant.with_name("cut.onnx"), "cpu@litert", out=determinant.parent / "out")


def test_a_fusion_that_wrote_a_newer_op_than_the_kernels_are_can_be_left_out(tmp_path: Path) -> None:
    """onnxruntime 1.32 has RoiAlign up to opset 21; RMSNormalization came with 23."""
    model = written(
        tmp_path / "roi.onnx",
        """g (float[1, 2, 8, 8] x, float[1, 4] r, int64[1] b) => (float[1, 2, 2, 2] y)
        <float two = {2}, float tiny = {0.00001}, float[2] w = {1, 1}>
        { a = RoiAlign<output_height = 2, output_width = 2>(x, r, b)  p = Pow(a, two)
          m = ReduceMean<axes = [-1], keepdims = 1>(p)  e = Add(m, tiny)
          s = Sqrt(e)  d = Div(a, s)  y = Mul(d, w) }""",
    )
    hint = refused(model, "cpu")
    assert "has ai.onnx.RoiAlign at opset 21, and ai.onnx.RMSNormalization came later" in hint
    assert "takes this model" not in hint, "what onnxruntime cannot open, no build is compared with"
    assert "--passes without the fusion" in hint
    passes = (find("cpu").recipe("fp32") or "").replace(" | fuse_rms_norm", "")
    assert polycast.compile(model, passes=passes, out=tmp_path / "out")
