"""Rows are run one by one only where a run showed that each is computed on its own."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from models import conv_net

import polycast
from polycast.errors import InputError, UnsupportedError
from polycast.load import load
from polycast.model import Model
from polycast.seeded import seeded_feeds
from polycast.targets import find

F = np.float32
RNG = np.random.default_rng(0)
Weights = Mapping[str, np.ndarray]

#: Graphs whose rows mix, though each output has as many as each input.
MIXED: dict[str, tuple[str, Weights]] = {
    "softmax": ("(float[N,4] x) => (float[N,4] y) { y = Softmax<axis=0>(x) }", {}),
    "minus the mean": (
        "(float[N,4] x) => (float[N,4] y) { m = ReduceMean(x, a) y = Sub(x, m) }",
        {"a": np.array([0])},
    ),
    "a sum that runs": ("(int64[N,4] x) => (int64[N,4] y) { y = CumSum(x, a) }", {"a": np.array(0)}),
    # Far from each other, each row of it looks at itself alone.
    "attention": (
        """(float[T,64] x) => (float[T,64] y) {
            t = Transpose<perm=[1,0]>(x) s = MatMul(x, t) p = Softmax(s) y = MatMul(p, x)
        }""",
        {},
    ),
    "steps of a recurrence": (
        "(float[T,1,4] x) => (float[T,1,1,8] y) { y = LSTM<hidden_size=8>(x, w, r) }",
        {"w": RNG.standard_normal((1, 32, 4)).astype(F), "r": RNG.standard_normal((1, 32, 8)).astype(F)},
    ),
    "statistics of the batch": (
        "(float[N,3,4,4] x) => (float[N,3,4,4] y) { y, m, v = BatchNormalization<training_mode=1>(x, s, b, b, s) }",
        {"s": np.ones(3, F), "b": np.zeros(3, F)},
    ),
    "one scale for all": (
        "(float[N,4] x) => (float[N,4] y) { q, s, z = DynamicQuantizeLinear(x) y = DequantizeLinear(q, s, z) }",
        {},
    ),
    "class of what the mean leaves": (
        """(float[N,4] x) => (int64[N] y) {
            m = ReduceMean(x, a) c = Sub(x, m) y = ArgMax<axis=1, keepdims=0>(c)
        }""",
        {"a": np.array([0])},
    ),
    "one number a row": (
        "(int64[N] i) => (float[N] y) { f = Cast<to=1>(i) m = ReduceMean(f) y = Sub(f, m) }",
        {},
    ),
    "the longest mask": (
        """(int64[N,S] ids, int64[N,S] attention_mask) => (int64[N,S] y) {
            n = ReduceSum(attention_mask, a) l = ReduceMax<keepdims=0>(n) y = Mul(ids, l)
        }""",
        {"a": np.array([1])},
    ),
}

#: Graphs whose rows do not mix, or whose outputs have no row for each, or that take one row alone.
SINGLE: dict[str, tuple[str, Weights]] = {
    "softmax": ("(float[N,4] x) => (float[N,4] y) { y = Softmax<axis=1>(x) }", {}),
    "a name that was lost": ("(float[N,4] x) => (float[M,4] y) { y = Relu(x) }", {}),
    "booleans": ("(bool[N,4] x) => (bool[N,4] y) { y = Not(x) }", {}),
}
NO_ROWS: dict[str, tuple[str, Weights]] = {
    "each with each": (
        "(float[N,4] x) => (float[N,N] y) { t = Transpose<perm=[1,0]>(x) y = MatMul(x, t) }",
        {},
    ),
    "the whole": ("(float[N,4] x) => (float y) { y = ReduceSum<keepdims=0>(x) }", {}),
}
ONE_ROW = ("(float[N,4] x) => (float[N,4] y) { y = Reshape(x, s) }", {"s": np.array([1, 4])})


def written(path: Path, body: str, weights: Weights) -> Path:
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]>\ng {body}')
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    onnx.save(proto, path)
    return path


def loaded(folder: Path, body: str, weights: Weights) -> Model:
    return load(written(folder / "m.onnx", body, weights))


@pytest.mark.parametrize(("body", "weights"), MIXED.values(), ids=MIXED)
def test_rows_that_mix_are_not_taken_apart(body: str, weights: Weights, tmp_path: Path) -> None:
    model = loaded(tmp_path, body, weights)
    assert "its rows mix" in model.unsplit
    assert model.signature.batch in ("N", "T") and model.batch is None


@pytest.mark.parametrize(("body", "weights"), SINGLE.values(), ids=SINGLE)
def test_rows_that_do_not_mix_are(body: str, weights: Weights, tmp_path: Path) -> None:
    assert loaded(tmp_path, body, weights).batch == "N"


def test_what_cannot_be_seen_is_not_taken_for_granted(tmp_path: Path) -> None:
    for body, weights in NO_ROWS.values():
        assert "does not have a row for each" in loaded(tmp_path, body, weights).unsplit
    assert loaded(tmp_path, *ONE_ROW).unsplit == "it was not seen to run on 3 rows"
    model = loaded(tmp_path, *SINGLE["softmax"])
    by_hand = Model(model.name, model.graph, model.origin)
    assert by_hand.batch is None and "nobody saw" in by_hand.unsplit
    assert load(by_hand).batch == "N"


def test_it_is_looked_at_once_and_only_where_somebody_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[Model] = []

    def refused(model: Model, *, optimized: bool) -> None:
        looks.append(model)
        raise InputError("no")

    monkeypatch.setattr("polycast.rows.open_original", refused)
    model = load(conv_net(tmp_path / "m.onnx"))
    assert load(model, shapes={"x": (2, 3, 8, 8)}).unsplit == "" and not looks
    assert [load(model).batch, load(model, name="other").batch, model.batch] == [None] * 3
    assert len(looks) == 1


@pytest.mark.parametrize("case", ["softmax", "minus the mean"])
@pytest.mark.parametrize("target", ["cpu@tvm", "webgpu"])
def test_fixed_shapes_refuse_a_batch_whose_rows_mix(case: str, target: str, tmp_path: Path) -> None:
    pytest.importorskip("tvm")
    model = loaded(tmp_path, *MIXED[case])
    said = r"input x: float32\[N, 4\] has no fixed shape; its rows mix: .* \(--shape x=1,4\)"
    with pytest.raises(UnsupportedError, match=said):
        find(target).check(model)
    bounded = load(model, shapes={"x": ("..4", 4)})
    with pytest.raises(UnsupportedError, match=r"upto_4, 4\] has no fixed shape; its rows mix: .* \(--shape x=4,4\)"):
        find(target).check(bounded)
    find(target).check(load(model, shapes={"x": (4, 4)}))


@pytest.mark.parametrize("case", ["softmax", "minus the mean"])
@pytest.mark.parametrize("most", ["", "..4"])
def test_litert_runs_rows_that_mix_together(case: str, most: str, tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    source = written(tmp_path / "m.onnx", *MIXED[case])
    shapes = {"x": (most, 4)} if most else None
    [build] = polycast.compile(source, "cpu@litert", shapes=shapes, out=tmp_path / "out")
    x = np.random.default_rng(1).standard_normal((4, 4)).astype(F)
    [want], [found] = ort.InferenceSession(source).run(None, {"x": x}), build.run({"x": x})
    np.testing.assert_allclose(found, want, rtol=0, atol=build.manifest["golden"]["tolerance"] * np.abs(want).max())


def test_a_golden_of_two_rows_proves_that_a_runner_takes_them_apart(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    source = conv_net(tmp_path / "m.onnx")
    [build] = polycast.compile(source, "cpu@litert", out=tmp_path / "out")
    assert build.manifest["runtime"]["by_row"]
    assert build.manifest["golden"]["n"] == build.agreement["n"] == 2
    with np.load(build.path / "golden.npz") as arrays:
        assert [len(arrays[f"{i}/output/logits"]) for i in (0, 1)] == [1, 2]
    [again] = polycast.compile(source, "cpu@litert", out=tmp_path / "out")
    assert again.seconds is None, "nothing that decides has changed"


def test_threads_share_a_session(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    from polycast.targets._litert.run_litert import LiteRtSession

    class Late:
        """An interpreter that lets other threads go on before it runs."""

        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def invoke(self) -> None:
            time.sleep(1e-3)
            self.inner.invoke()

    [build] = polycast.compile(written(tmp_path / "m.onnx", *SINGLE["softmax"]), "cpu@litert", out=tmp_path / "out")
    session = LiteRtSession(build.path)
    session.interpreter = Late(session.interpreter)
    every = [{"x": row} for row in np.random.default_rng(0).standard_normal((32, 1, 4)).astype(F)]
    alone = [session.run(feeds)[0] for feeds in every]
    with ThreadPoolExecutor(4) as pool:
        np.testing.assert_array_equal([found for [found] in pool.map(session.run, every)], alone)


def test_webgpu_plans_one_row(tmp_path: Path) -> None:
    pytest.importorskip("tvm")
    facts = find("webgpu").write(load(conv_net(tmp_path / "m.onnx")), tmp_path)
    assert facts["by_row"] and json.loads((tmp_path / "plan.json").read_text())["byRow"]
    [port] = json.loads((tmp_path / "plan.json").read_text())["inputs"]
    assert port["shape"] == [1, 3, 8, 8]


def test_near_rows_are_near_and_no_two_in_turn_are_alike(tmp_path: Path) -> None:
    body = """(float[N,S] x, int64[N,S] ids, int64[N,S] attention_mask, bool[N] flags) => (float[N,S] y) {
        e = Gather(table, ids) m = Cast<to=1>(attention_mask) f = Mul(e, m) y = Add(f, x)
    }"""
    model = loaded(tmp_path, body, {"table": np.arange(3, dtype=F)})
    feeds = next(seeded_feeds(model, 0, {"N": 3, "S": 5}, near=True))
    assert {name: array.dtype.name for name, array in feeds.items()} == {
        "x": "float32", "ids": "int64", "attention_mask": "int64", "flags": "bool",
    }  # fmt: skip
    for array in feeds.values():
        assert all((one != other).any() for one, other in pairwise(array))
    assert 0 < np.abs(feeds["x"][1:] - feeds["x"][0]).max() < np.ptp(feeds["x"])
    assert feeds["ids"].min() >= 0 and feeds["ids"].max() <= 2
    np.testing.assert_array_equal(feeds["attention_mask"], [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [1, 1, 1, 0, 0]])
