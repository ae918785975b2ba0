"""Real models that are no convolutional networks, through LiteRT: as onnxruntime runs them, and all in one delegate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import polycast
from polycast.build import Build

Zoo = Callable[[str], Path]


def compiled(model: Path, precision: str, out: Path, shapes: dict[str, tuple[int, ...]]) -> Build:
    [build] = polycast.compile(model, ["cpu@litert"], precision, out=out, shapes=shapes)
    return build


def compare(build: Build, model: Path, feeds: dict[str, np.ndarray]) -> None:
    """Hold a build to 1e-4 of the largest value of what plain onnxruntime gives."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    want = ort.InferenceSession(model, options, ["CPUExecutionProvider"]).run(None, feeds)
    for found, exact in zip(build.run(feeds), want, strict=True):
        np.testing.assert_allclose(found, exact, rtol=0, atol=1e-4 * np.abs(exact).max())


def delegates(build: Build) -> int:
    """How many parts of a build XNNPACK takes: every part ends where an operator is that it does not take."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter: Any = Interpreter(str(build.path / "model.tflite"))
    interpreter.allocate_tensors()
    return [op["op_name"] for op in interpreter._get_ops_details()].count("DELEGATE")


def test_voice_detector_with_a_recurrent_layer_and_branches(zoo: Zoo, tmp_path: Path) -> None:
    model = zoo("silero/silero_vad_16k_op15.onnx")
    build = compiled(model, "fp32", tmp_path, {"input": (1, 576), "state": (2, 1, 128)})
    rng = np.random.default_rng(0)
    feeds = {
        "input": 0.1 * rng.standard_normal((1, 576)).astype(np.float32),
        "state": 0.1 * rng.standard_normal((2, 1, 128)).astype(np.float32),
        "sr": np.array(16000),
    }
    compare(build, model, feeds)
    assert delegates(build) == 1


def test_file_types_by_a_lookup_instead_of_one_hot_vectors(zoo: Zoo, tmp_path: Path) -> None:
    model = zoo("magika/model.onnx")
    rows = np.load(zoo("magika/test.npz"))
    build = compiled(model, "fp32", tmp_path, {"bytes": (1, 2048)})
    compare(build, model, {"bytes": rows["x"][:1].astype(np.int32)})
    assert delegates(build) == 1


def test_file_types_in_dynamic_int8(zoo: Zoo, tmp_path: Path) -> None:
    rows = np.load(zoo("magika/test.npz"))
    build = compiled(zoo("magika/model.onnx"), "int8-dynamic", tmp_path, {"bytes": (1, 2048)})
    assert build.promise["reached"] == {"weights": {"int8": 1.0}, "macs": {"int8": 1.0}}
    found = [int(np.argmax(build.run({"bytes": row[None].astype(np.int32)})[0])) for row in rows["x"]]
    assert np.mean(np.array(found) == rows["y"]) >= 0.98


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "int8-dynamic"])
def test_language_model(precision: str, zoo: Zoo, tmp_path: Path) -> None:
    model = zoo("lm/stories260K.onnx")
    build = compiled(model, precision, tmp_path, {"input_ids": (1, 64)})
    assert delegates(build) == 1
    if precision == "fp32":
        compare(build, model, {"input_ids": np.random.default_rng(0).integers(3, 500, (1, 64))})


@pytest.mark.slow
def test_sentence_embeddings(minilm: Path, tmp_path: Path) -> None:
    names = ("input_ids", "attention_mask", "token_type_ids")
    build = compiled(minilm, "fp32", tmp_path, dict.fromkeys(names, (1, 32)))
    rng = np.random.default_rng(0)
    mask = (np.arange(32) < 20).astype(np.int64)[None]
    compare(build, minilm, dict(zip(names, (rng.integers(1000, 30000, (1, 32)), mask, 0 * mask), strict=True)))
    assert delegates(build) == 1
