"""Real models through LiteRT: as onnxruntime runs them, on real inputs where the zoo has some, all in one delegate."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import polycast
from polycast.build import Build
from polycast.errors import InputError

Zoo = Callable[[str], Path]


def compiled(model: Path, precision: str, out: Path, shapes: dict[str, tuple[int, ...]] | None = None) -> Build:
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
    for each in interpreter.get_input_details():  # without a size, a file for every size has no parts yet
        interpreter.resize_tensor_input(each["index"], each["shape"])
    interpreter.allocate_tensors()
    return [op["op_name"] for op in interpreter._get_ops_details()].count("DELEGATE")


def voice(batch: int, length: int) -> dict[str, np.ndarray]:
    """Give seeded inputs of the voice detector."""
    rng = np.random.default_rng(length)
    noise = {"input": rng.standard_normal((batch, length)), "state": rng.standard_normal((2, batch, 128))}
    return {name: (0.1 * array).astype(np.float32) for name, array in noise.items()} | {"sr": np.array(16000)}


def test_voice_detector_with_a_recurrent_layer_and_branches(zoo: Zoo, tmp_path: Path) -> None:
    model = zoo("silero/silero_vad_16k_op15.onnx")
    build = compiled(model, "fp32", tmp_path / "fixed", {"input": (1, 576), "state": (2, 1, 128)})
    compare(build, model, voice(1, 576))
    assert delegates(build) == 1
    build = compiled(model, "fp32", tmp_path / "open")
    for batch, length in ((1, 576), (3, 300), (1, 703), (2, 576)):
        compare(build, model, voice(batch, length))
    for length in (191, 704):  # onnxruntime does not run them either
        with pytest.raises(InputError, match="failed to prepare"):
            build.run(voice(1, length))
    compare(build, model, voice(1, 300))


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
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # the scorer's
@pytest.mark.parametrize("subject", ["mnist_cnn", "kws", "ic_resnet8", "vww", "mobilenet025", "fastestdet", "superres"])
def test_convolutional_networks_on_real_rows(subject: str, scorer: ModuleType, zoo: Zoo, tmp_path: Path) -> None:
    name, _, rows = scorer.SUB[subject]
    build = compiled(zoo(name), "fp32", tmp_path)
    for feeds in islice(rows(), 2):
        compare(build, zoo(name), feeds)
    assert delegates(build) == 1


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "int8-dynamic"])
def test_language_model_of_every_length(precision: str, zoo: Zoo, tmp_path: Path) -> None:
    model = zoo("lm/stories260K.onnx")
    build = compiled(model, precision, tmp_path)
    assert delegates(build) == 1
    if precision == "fp32":
        for length in (64, 7, 1, 128):
            compare(build, model, {"input_ids": np.random.default_rng(0).integers(3, 500, (1, length))})


@pytest.mark.slow
def test_sentence_embeddings_of_every_length(minilm: Path, tmp_path: Path) -> None:
    names = ("input_ids", "attention_mask", "token_type_ids")
    build = compiled(minilm, "fp32", tmp_path)
    rng = np.random.default_rng(0)
    for rows, length in ((1, 64), (1, 7), (1, 1), (2, 128)):
        mask = np.repeat((np.arange(length) <= length // 2).astype(np.int64)[None], rows, 0)
        ids = rng.integers(1000, 30000, mask.shape)
        compare(build, minilm, dict(zip(names, (ids, mask, 0 * mask), strict=True)))
    assert delegates(build) == 1
