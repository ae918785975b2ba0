from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from models import conv_net, save
from onnx import TensorProto, helper

from polycast.golden import KEPT, agree, make_golden, own_rounding, rounding_tolerance
from polycast.load import load
from polycast.reference import open_original
from polycast.seeded import seeded_feeds
from polycast.verify import difference


class Scaled:
    """A session whose outputs are off by a factor."""

    evidence = "device"

    def __init__(self, inner, factor: float) -> None:
        self.inner, self.factor = inner, factor

    def run(self, feeds):
        return [output * np.float32(self.factor) for output in self.inner.run(feeds)]


def test_seeded_inputs_are_the_same_each_time_and_run(tmp_path):
    model = load(conv_net(tmp_path / "m.onnx"))
    first, second = make_golden(model, None, ""), make_golden(model, None, "")
    assert first.source == "seeded"
    np.testing.assert_array_equal(first.feeds[0]["x"], second.feeds[0]["x"])
    assert first.shapes == {"x": (1, 3, 8, 8)}


def test_agreement_measures_what_it_says(tmp_path):
    model = load(conv_net(tmp_path / "m.onnx"))
    golden = make_golden(model, None, "")
    original = open_original(model, optimized=False)
    tolerance = rounding_tolerance(model)
    same = agree(golden, original, ["logits"], tolerance)
    assert (same.worst, same.sqnr_db, same.same_top1, same.within) == (0.0, None, 1.0, True)
    off = agree(golden, Scaled(original, 1.01), ["logits"], tolerance)
    assert off.worst == pytest.approx(0.01, rel=1e-3)
    assert off.sqnr_db == pytest.approx(40, abs=0.01), "an error of 1 % is 40 dB down"
    assert not off.within
    nan = agree(golden, Scaled(original, float("nan")), ["logits"], tolerance)
    assert not nan.within
    assert nan.worst == float("inf")


def test_the_tolerance_grows_with_terms_and_depth(tmp_path):
    model = load(conv_net(tmp_path / "m.onnx"))
    eps = float(np.finfo(np.float32).eps)
    depth = 1 + len({"Conv", "BatchNormalization", "GlobalAveragePool", "Gemm"})
    assert rounding_tolerance(model) == pytest.approx(eps * np.sqrt(27) * depth)


def test_a_threshold_amplifies_rounding_and_that_is_measured(tmp_path):
    sharp = helper.make_graph(
        [
            helper.make_node("Mul", ["x", "big"], ["y"]),
            helper.make_node("Sin", ["y"], ["z"]),
        ],
        "sharp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 64])],
        [onnx.numpy_helper.from_array(np.float32(1e6), "big")],
    )
    model = load(save(sharp, tmp_path / "sharp.onnx"))
    assert own_rounding(model, make_golden(model, None, ""), ["z"]) > 1e3 * rounding_tolerance(model)


def test_token_ids_stay_within_their_table_and_symbols_agree(tmp_path):
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "input_ids"], ["e"]),
            helper.make_node("Cast", ["attention_mask"], ["m"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["m", "two"], ["u"]),
            helper.make_node("Mul", ["e", "u"], ["y"]),
        ],
        "ids",
        [
            helper.make_tensor_value_info(n, TensorProto.INT64, ["batch", "seq"])
            for n in ("input_ids", "attention_mask")
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "seq", 4])],
        [
            onnx.numpy_helper.from_array(np.ones((7, 4), np.float32), "table"),
            onnx.numpy_helper.from_array(np.array([2]), "two"),
        ],
    )
    model = load(save(graph, tmp_path / "ids.onnx"))
    feeds = next(seeded_feeds(model))
    assert feeds["input_ids"].shape == feeds["attention_mask"].shape == (1, 16)
    assert feeds["input_ids"].max() == 6
    assert (feeds["attention_mask"] == 1).all()
    assert make_golden(model, None, "").source == "seeded"


def test_a_model_that_refuses_every_seeded_input_says_why(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        "odd",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [7, 13])],
        [onnx.numpy_helper.from_array(np.array([7, 13]), "shape")],
    )
    golden = make_golden(load(save(graph, tmp_path / "odd.onnx")), None, "")
    assert golden.source == "none"
    assert "the model does not run on these inputs" in golden.reason


def test_golden_is_written_with_the_same_bytes(tmp_path):
    golden = make_golden(load(conv_net(tmp_path / "m.onnx")), None, "")
    assert [golden.write(tmp_path / f"{i}.npz", ["logits"]) for i in "ab"] == [2, 2]
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert KEPT >= 2
    with np.load(tmp_path / "a.npz") as arrays:
        assert sorted(arrays.files) == [f"{i}/{name}" for i in (0, 1) for name in ("input/x", "output/logits")]


@pytest.mark.parametrize(
    ("want", "found", "gap"),
    [
        (np.float32([1, 2]), np.float32([1, 2.5]), 0.25),
        (np.float32([0, 0]), np.float32([0, 0.5]), 0.5),
        (np.float32([np.inf, 1]), np.float32([np.inf, 1]), 0.0),
        (np.float32([np.nan, 1]), np.float32([np.nan, 1]), 0.0),
        (np.float32([1, 1]), np.float32([np.nan, 1]), float("inf")),
        (np.float32([1, 1]), np.float32([1]), float("inf")),
        (np.float32([1]), np.float64([1]), float("inf")),
        (np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5]), 0.25),
        (np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32), 0.0),
    ],
)
def test_difference(want, found, gap):
    assert difference(want, found) in (gap, pytest.approx(gap)) or (np.isnan(gap) and np.isnan(difference(want, found)))


def test_an_export_is_run_on_what_its_framework_ran_on(tmp_path):
    """It is what the export is known to run on, where a seeded guess may fit no size."""
    model = replace(load(conv_net(tmp_path / "m.onnx")), example={"x": np.ones((2, 3, 8, 8), np.float32)})
    golden = make_golden(model, None, "")
    assert (golden.source, golden.shapes) == ("example", {"x": (2, 3, 8, 8)})


def test_a_symbol_has_one_size_wherever_it_stands(tmp_path):
    ports = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["steps", "width"])]
    ports += [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "steps"])]
    nodes = [helper.make_node("MatMul", ["y", "x"], ["z"])]
    outputs = [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", "width"])]
    model = load(save(helper.make_graph(nodes, "two", ports, outputs), tmp_path / "two.onnx"))
    for feeds in seeded_feeds(model):
        assert feeds["x"].shape[0] == feeds["y"].shape[1]


def test_a_mask_over_a_cache_is_as_long_as_both(tmp_path):
    kinds = {"ids": (TensorProto.INT64, ["batch", 2]), "attention_mask": (TensorProto.FLOAT, ["batch", "total"])}
    kinds["past.k"] = (TensorProto.FLOAT, ["batch", "past_length"])
    ports = [helper.make_tensor_value_info(name, *kind) for name, kind in kinds.items()]
    nodes = [
        helper.make_node("Cast", ["ids"], ["new"], to=TensorProto.FLOAT),
        helper.make_node("Concat", ["past.k", "new"], ["k"], axis=1),
        helper.make_node("Add", ["k", "attention_mask"], ["y"]),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "total"])]
    model = load(save(helper.make_graph(nodes, "cached", ports, outputs), tmp_path / "m.onnx"))
    feeds = next(seeded_feeds(model))
    assert feeds["attention_mask"].shape[1] == feeds["past.k"].shape[1] + 2
    assert make_golden(model, None, "").shapes["attention_mask"] == feeds["attention_mask"].shape


def test_what_is_compared_with_numbers_is_seeded_with_such(tmp_path):
    """A one-hot product looks up one of 257 rows, as a Gather does; two of them only would be no sample at all."""
    text = """<ir_version: 8, opset_import: ["" : 17]> m (int32[1,64] ids) => (float[1,64,257] y) {
      three = Constant <value_ints = [1, 64, 1]> () column = Reshape(ids, three)
      wide = Constant <value_ints = [1, 64, 257]> () spread = Expand(column, wide)
      hot = Equal(spread, numbers) y = Cast <to = 1> (hot) }"""
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.arange(257, dtype=np.int32), "numbers"))
    onnx.save(proto, tmp_path / "m.onnx")
    ids = next(seeded_feeds(load(tmp_path / "m.onnx")))["ids"]
    assert ids.min() >= 0
    assert 100 < ids.max() < 257
