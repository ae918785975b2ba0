"""fuse_rotary and fuse_attention on what the exporters really write: every layer is fused, and gives the same."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import exports
import numpy as np
import onnxruntime as ort
import pytest

from polycast.load import load
from polycast.model import Model
from polycast.passbase import PassContext
from polycast.pipeline import Pipeline, apply

FUSIONS = "fuse_rotary | fuse_attention"
TIDY = f"clean | fold | clean | {FUSIONS}"

EXPORTS: dict[str, Callable[[], Path]] = {
    "bert optimum": exports.bert_optimum,
    "bert optimum eager": lambda: exports.bert_optimum("eager"),
    "bert dynamo": exports.bert_dynamo,
    "vit optimum": exports.vit_optimum,
    "vit optimum eager": lambda: exports.vit_optimum("eager"),
    "vit dynamo": exports.vit_dynamo,
    "gpt2 optimum": exports.gpt2_optimum,
    "gpt2 optimum eager": lambda: exports.gpt2_optimum("eager"),
    "gpt2 optimum past": lambda: exports.gpt2_optimum(past=True),
    "gpt2 optimum eager past": lambda: exports.gpt2_optimum("eager", past=True),
    "gpt2 dynamo": exports.gpt2_dynamo,
    "llama optimum": exports.llama_optimum,
    "llama optimum eager": lambda: exports.llama_optimum("eager"),
    "llama optimum past": lambda: exports.llama_optimum(past=True),
    "llama optimum eager past": lambda: exports.llama_optimum("eager", past=True),
    "llama dynamo": exports.llama_dynamo,
}
SLOW_EXPORTS: dict[str, Callable[[], Path]] = {
    "bert dynamo eager": lambda: exports.bert_dynamo("eager"),
    "bert dynamo opset 23": lambda: exports.dynamo("bert", opset=23),
    "gpt2 dynamo eager": lambda: exports.gpt2_dynamo("eager"),
    "llama dynamo eager": lambda: exports.llama_dynamo("eager"),
}


def every_export() -> pytest.MarkDecorator:
    slow = [pytest.param(name, marks=pytest.mark.slow) for name in SLOW_EXPORTS]
    return pytest.mark.parametrize("name", [*EXPORTS, *slow])


@every_export()
def test_every_layer_is_fused(name: str, tmp_path: Path) -> None:
    path = (EXPORTS | SLOW_EXPORTS)[name]()
    model = load(path)
    fused = Pipeline.parse(TIDY).run(model)
    assert not [str(skip) for step in fused.history for skip in step.skips if step.what in FUSIONS.split(" | ")]
    count = _count(fused)
    assert count["Attention"] == exports.LAYERS and count["Softmax"] == 0
    assert count["RotaryEmbedding"] == (2 * exports.LAYERS if "llama" in name else 0)
    for node in fused.graph.graph:
        if node.op_type == "Attention":
            assert node.attributes["q_num_heads"].as_int() == exports.HEADS
            assert node.attributes["kv_num_heads"].as_int() == (exports.KV_HEADS if "llama" in name else exports.HEADS)
            assert (len(node.inputs) == 6) == ("past" in name)
    assert fused.signature == model.signature
    _finds_no_more(fused)
    # One token on its own, a batch that is padded on the left (rows are then masked as a whole), and a longer one.
    for batch, sequence in ((1, 1), (2, 7), (3, 12)):
        _gives_the_same(path, fused, exports.feeds_for(path, batch, sequence), tmp_path)


@pytest.mark.parametrize("name", [n for n in EXPORTS if n not in ("gpt2 optimum eager", "gpt2 optimum eager past")])
def test_the_graph_need_not_be_tidy(name: str, tmp_path: Path) -> None:
    """Without constants folded, all are found but the scale that eager GPT-2 computes from the size of a tensor."""
    path = EXPORTS[name]()
    fused = Pipeline.parse(FUSIONS).run(load(path))
    assert _count(fused)["Attention"] == exports.LAYERS
    _finds_no_more(fused)
    _gives_the_same(path, fused, exports.feeds_for(path), tmp_path)


def test_an_empty_cache(tmp_path: Path) -> None:
    path = exports.llama_optimum(past=True)
    fused = Pipeline.parse(TIDY).run(load(path))
    _gives_the_same(path, fused, exports.feeds_for(path, past=0), tmp_path)


def test_minilm(minilm: Path, tmp_path: Path) -> None:
    fused = Pipeline.parse(FUSIONS).run(load(minilm))
    assert [step.sites for step in fused.history] == [0, 6]
    rng = np.random.default_rng(0)
    mask = np.ones((2, 16), np.int64)
    mask[1, 9:] = 0
    feeds = {"input_ids": rng.integers(1000, 20000, (2, 16)), "attention_mask": mask, "token_type_ids": 0 * mask}
    _gives_the_same(minilm, fused, feeds, tmp_path, hidden=1536, layers=6)
    _finds_no_more(fused)


def test_stories(zoo: Callable[[str], Path], tmp_path: Path) -> None:
    path = zoo("lm/stories260K.onnx")
    fused = Pipeline.parse(FUSIONS).run(load(path))
    assert [step.sites for step in fused.history] == [10, 5]
    grouped = [n.attributes["kv_num_heads"].as_int() for n in fused.graph.graph if n.op_type == "Attention"]
    assert grouped == [4] * 5
    assert not _count(fused)["Transpose"]
    feeds = {"input_ids": np.random.default_rng(0).integers(0, 512, (2, 40))}
    _gives_the_same(path, fused, feeds, tmp_path, hidden=172, layers=5)
    _finds_no_more(fused)


def _count(model: Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.graph.all_nodes())


def _finds_no_more(fused: Model) -> None:
    for one in Pipeline.parse(FUSIONS).passes:
        assert apply(one, fused, PassContext()).history[-1].sites == 0


def _gives_the_same(
    path: Path,
    fused: Model,
    feeds: dict[str, np.ndarray],
    folder: Path,
    hidden: int = 4 * exports.HIDDEN,
    layers: int = exports.LAYERS,
) -> None:
    """Hold outputs to rounding: each layer has about 40 operations, sums of at most ``hidden`` terms among them."""
    fused.write(folder / "fused.onnx")
    tolerance = float(np.finfo(np.float32).eps) * math.sqrt(hidden) * 40 * layers
    for want, got in zip(_run(path, feeds), _run(folder / "fused.onnx", feeds), strict=True):
        assert (got.dtype, got.shape) == (want.dtype, want.shape)
        np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * max(float(np.abs(want).max()), 1e-30))


def _run(path: Path, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, feeds)
