"""What observing says of a tensor is what numpy says of all that the samples make of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from observing import Feeds, Given, computed, graph, normal

from polycast.calibrating.instrument import FEWEST_ELEMENTS, MOST_ELEMENTS, elements_of
from polycast.calibrating.observe import observe
from polycast.calibrating.taps import ROWS_KEPT, Seen, Tap, Want
from polycast.errors import InputError
from polycast.load import load
from polycast.passbase import PassContext

EVERYTHING = Want.RANGE | Want.HISTOGRAM | Want.CHANNELS | Want.GRAM | Want.ROWS
EPS = float(np.finfo(np.float32).eps)

MLP = """g (float[n, 8] x) => (float[n, 4] y) {
  h = MatMul(x, w)
  r = Relu(h)
  y = Softmax(r)
}"""
WEIGHTS = {"w": normal(8, 4)}


def given(*shapes: tuple[int, ...], name: str = "x") -> Given:
    return Given([{name: normal(*shape, seed=seed)} for seed, shape in enumerate(shapes)])


def see(model: ir.Model, samples: Given, *taps: Tap) -> dict[str, Seen]:
    return observe(model, taps, PassContext(calibration=samples))


def rows_of(arrays: list[np.ndarray], axis: int) -> np.ndarray:
    """Stack tensors as [rows, channels], in float64."""
    return np.concatenate([np.moveaxis(a, axis, -1).reshape(-1, a.shape[axis]) for a in arrays]).astype(np.float64)


def assert_seen(seen: Seen, arrays: list[np.ndarray], axis: int) -> None:
    """Hold everything that was seen against ``arrays``, one for each sample."""
    rows = rows_of(arrays, axis)
    assert (seen.samples, seen.elements, seen.not_finite) == (len(arrays), rows.size, 0)
    # The runtime multiplies in another order than the judge: one rounding for each of at most 8 products.
    close = {"rtol": 8 * EPS, "atol": 8 * EPS * np.abs(rows).max()}
    np.testing.assert_allclose([seen.low, seen.high], [rows.min(), rows.max()], **close)
    np.testing.assert_allclose(seen.average_low, np.mean([a.min() for a in arrays]), **close)
    np.testing.assert_allclose(seen.average_high, np.mean([a.max() for a in arrays]), **close)
    assert seen.channels is not None
    assert seen.gram is not None
    assert seen.rows is not None
    assert seen.histogram is not None
    np.testing.assert_allclose(seen.channels.largest, np.abs(rows).max(0), **close)
    np.testing.assert_allclose(seen.channels.mean, rows.mean(0), **close)
    np.testing.assert_allclose(seen.channels.mean_square, (rows**2).mean(0), rtol=8 * EPS, atol=close["atol"] ** 2)
    gram = rows.T @ rows
    np.testing.assert_allclose(seen.gram, gram, rtol=0, atol=2 * len(rows) * close["atol"] * np.abs(rows).max())
    np.testing.assert_allclose(np.sort(seen.rows, 0), np.sort(rows, 0), **close)
    assert seen.histogram.total == rows.size


@pytest.mark.parametrize("tapped", ["x", "h"])
def test_rows_of_different_lengths(tapped: str) -> None:
    model, samples = graph(MLP, WEIGHTS), given((1, 8), (5, 8), (30, 8), (2, 8))
    seen = see(model, samples, Tap(tapped, EVERYTHING))
    assert_seen(seen[tapped], computed(model, tapped, samples), -1)


@pytest.mark.parametrize(("shape", "axis"), [((3, 4, 5, 5), 1), ((3, 4, 5), -1), ((6,), 0), ((2, 7, 3), 0)])
def test_channels_on_any_axis(shape: tuple[int, ...], axis: int) -> None:
    dims = ", ".join(f"d{number}" for number in range(len(shape)))
    model = graph(f"g (float[{dims}] x) => (float[{dims}] y) {{ y = Neg(x) }}")
    samples = given(shape, shape)
    assert_seen(see(model, samples, Tap("y", EVERYTHING, axis))["y"], [-s["x"] for s in samples.feeds], axis)


@pytest.mark.parametrize("rows", [3, 40])
def test_a_gram_is_made_inside_the_graph_or_from_its_rows(rows: int) -> None:
    """With fewer rows than channels the rows cost less than their product; both add up the same."""
    samples = given(*[(rows, 16)] * 9)
    model = graph("g (float[n, 16] x) => (float[n, 16] y) { y = Neg(x) }")
    stacked = rows_of([s["x"] for s in samples.feeds], -1)
    found = see(model, samples, Tap("y", Want.GRAM))["y"].gram
    np.testing.assert_allclose(found, stacked.T @ stacked, rtol=0, atol=EPS * (stacked**2).sum())


def test_a_constant_can_be_tapped() -> None:
    seen = see(graph(MLP, WEIGHTS), given((1, 8), (1, 8)), Tap("w", Want.CHANNELS))["w"]
    assert seen.channels is not None
    np.testing.assert_array_equal(seen.channels.largest, np.abs(WEIGHTS["w"]).max(0))


@pytest.mark.parametrize("op", ["Relu", "Sigmoid", "Softmax"])
def test_a_range_begins_at_zero_behind_what_gives_nothing_below(op: str) -> None:
    model = graph(f"g (float[n, 8] x) => (float[n, 8] y) {{ y = {op}(x) }}")
    seen = see(model, given((4, 8)), Tap("y", Want.RANGE))["y"]
    assert (seen.low, seen.average_low) == (0, 0)
    assert seen.high > 0


def test_a_trained_model_shows_what_it_computes(zoo: Callable[[str], Path], tmp_path: Path) -> None:
    model = load(zoo("mlperftiny/ic_resnet8.onnx")).graph
    values = [value for node in model.graph for value in node.outputs if value.dtype == ir.DataType.FLOAT]
    samples = Given([{"input": 255 * np.random.default_rng(s).random((1, 32, 32, 3), np.float32)} for s in range(3)])
    seen = see(model, samples, *(Tap(str(value.name), Want.CHANNELS, 1) for value in values))
    shown = model.clone()
    shown.graph.outputs[:] = [value for node in shown.graph for value in node.outputs if value.name in seen]
    ir.save(shown, tmp_path / "shown.onnx", external_data="weights")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(tmp_path / "shown.onnx", options, providers=["CPUExecutionProvider"])
    names = [str(value.name) for value in values]
    runs = [session.run(names, sample) for sample in samples.feeds]
    for name, *arrays in zip(names, *runs, strict=True):
        rows = rows_of(arrays, 1)
        found = seen[name]
        # Fused or not, a sum of at most 3 x 3 x 64 products is rounded that often, in each of a dozen layers.
        close = 12 * 576 * EPS * np.abs(rows).max()
        assert found.high == pytest.approx(rows.max(), abs=close)
        assert found.low == pytest.approx(rows.min(), abs=close) or found.low == 0 <= rows.min()
        assert found.channels is not None
        np.testing.assert_allclose(found.channels.mean, rows.mean(0), rtol=0, atol=close)


# What is not finite.


def test_nan_and_infinities_do_not_count_and_are_counted() -> None:
    samples = given((4, 8), (4, 8), (4, 8))
    samples.feeds[0]["x"][0, 0] = np.inf
    samples.feeds[1]["x"][:] = np.nan
    samples.feeds[2]["x"][1, 2:4] = [-np.inf, np.nan]
    model = graph("g (float[n, 8] x) => (float[n, 8] y) { y = Identity(x) }")
    seen = see(model, samples, Tap("y", EVERYTHING))["y"]
    finite = np.concatenate([s["x"][np.isfinite(s["x"])] for s in samples.feeds])
    assert seen.not_finite == 96 - finite.size
    assert (seen.low, seen.high) == (finite.min(), finite.max())
    assert seen.histogram is not None
    assert seen.histogram.total == finite.size
    zeroed = rows_of([np.where(np.isfinite(s["x"]), s["x"], 0) for s in samples.feeds], -1)
    assert seen.channels is not None
    np.testing.assert_array_equal(seen.channels.largest, np.abs(zeroed).max(0))
    np.testing.assert_allclose(seen.gram, zeroed.T @ zeroed, rtol=0, atol=12 * EPS * (zeroed**2).sum())


def test_a_sum_that_overflows_is_no_infinity() -> None:
    model = graph("g (float[n] x) => (float[n] y) { y = Identity(x) }")
    huge = np.full(4, 3e38, np.float32)
    seen = see(model, Given([{"x": huge}, {"x": -huge}]), Tap("y", Want.RANGE))["y"]
    assert (seen.low, seen.high, seen.not_finite) == (-huge[0], huge[0], 0)


def test_an_empty_tensor_has_no_range() -> None:
    model = graph("g (float[n, 8] x) => (float[n, 8] y) { y = Neg(x) }")
    none = {"x": np.zeros((0, 8), np.float32)}
    seen = see(model, Given([none, {"x": np.ones((1, 8), np.float32)}, none]), Tap("y", EVERYTHING))["y"]
    assert (seen.samples, seen.elements, seen.low, seen.high, seen.average_high) == (3, 8, -1, -1, -1)
    seen = see(model, Given([none]), Tap("y", EVERYTHING))["y"]
    assert (seen.samples, seen.elements, seen.low, seen.high) == (1, 0, 0, 0)


def test_float16_is_reduced_in_float32() -> None:
    model = graph("g (float16[n, 4] x) => (float16[n, 4] y) { y = Neg(x) }")
    x = np.full((64, 4), 300, np.float16)  # 64 squares of it are more than float16 holds
    seen = see(model, Given([{"x": x}]), Tap("y", Want.CHANNELS | Want.GRAM))["y"]
    assert seen.channels is not None
    assert seen.gram is not None
    assert seen.channels.mean_square.tolist() == [90_000] * 4
    assert (seen.gram == 64 * 90_000).all()
    assert seen.not_finite == 0


# What lies inside another graph.

BRANCHES = """g (bool c, bool d, float[n, 8] x) => (float[n, 8] y) {
  h = Neg(x)
  y = If (c) <
    then_branch = yes () => (float[n, 8] a) { inner = Exp(h) a = Neg(inner) },
    else_branch = no () => (float[n, 8] b) {
      b = If (d) <
        then_branch = deep () => (float[n, 8] e) { deepest = Abs(h) e = Neg(deepest) },
        else_branch = other () => (float[n, 8] f) { f = Relu(h) }
      >
    }
  >
}"""


def branching(*ways: tuple[bool, bool]) -> Given:
    return Given([{"c": np.array(c), "d": np.array(d), "x": normal(3, 8, seed=s)} for s, (c, d) in enumerate(ways)])


def test_a_branch_sees_the_samples_that_take_it() -> None:
    samples = branching((False, False), (True, False), (False, True), (True, True), (False, True))
    names = ("h", "inner", "deepest")
    seen = see(graph(BRANCHES), samples, *(Tap(name, EVERYTHING) for name in names))
    x = [sample["x"] for sample in samples.feeds]
    assert_seen(seen["h"], [-each for each in x], -1)
    assert_seen(seen["inner"], [np.exp(-x[1]), np.exp(-x[3])], -1)
    assert_seen(seen["deepest"], [np.abs(x[2]), np.abs(x[4])], -1)


def test_a_branch_that_no_sample_takes_is_left_out() -> None:
    seen = see(graph(BRANCHES), branching((False, False)), Tap("inner", Want.RANGE), Tap("h", Want.RANGE))
    assert set(seen) == {"h"}


def test_what_a_loop_makes_is_left_out() -> None:
    model = graph("""g (int64 n, bool c, float[4] x) => (float[4] y) {
      y = Loop (n, c, x) <body = turn (int64 i, bool go, float[4] a) => (bool on, float[4] b) {
        on = Identity(go)
        within = Neg(a)
        b = Add(within, a)
      }>
    }""")
    feeds: Feeds = {"n": np.array(2), "c": np.array(True), "x": np.ones(4, np.float32)}
    seen = see(model, Given([feeds]), Tap("within", Want.RANGE), Tap("y", Want.RANGE))
    assert set(seen) == {"y"}


# What is asked for wrongly, and what goes wrong.


def test_a_value_that_is_not_there_or_no_float_is_refused() -> None:
    model = graph("g (int64[n] i, float[8] x) => (float[n] y) { y = Gather(x, i) }")
    samples = Given([{"i": np.arange(3), "x": normal(8)}])
    with pytest.raises(ValueError, match="no value 'z'"):
        see(model, samples, Tap("z", Want.RANGE))
    with pytest.raises(ValueError, match="'i' is INT64"):
        see(model, samples, Tap("i", Want.RANGE))


def test_two_taps_on_one_value_are_one() -> None:
    model, samples = graph(MLP, WEIGHTS), given((4, 8))
    seen = see(model, samples, Tap("h", Want.RANGE, 0), Tap("h", Want.GRAM, 1), Tap("h", Want.HISTOGRAM))["h"]
    assert seen.gram is not None
    assert seen.gram.shape == (4, 4)
    assert seen.histogram is not None
    with pytest.raises(ValueError, match="two taps on 'h' see the channels on axis 0 and on axis 1"):
        see(model, samples, Tap("h", Want.GRAM, 0), Tap("h", Want.ROWS, 1))


def test_channels_that_are_not_as_many_in_every_sample_are_none() -> None:
    model = graph("g (float[n, m] x) => (float[n, m] y) { y = Neg(x) }")
    samples = given((2, 3), (2, 4), (2, 3))
    seen = see(model, samples, Tap("y", EVERYTHING))["y"]
    assert (seen.channels, seen.gram, seen.rows) == (None, None, None)
    assert seen.samples == 3
    assert seen.low == -max(s["x"].max() for s in samples.feeds)


def test_the_sample_that_cannot_be_run_is_named() -> None:
    samples = given((2, 8), (2, 9))
    with pytest.raises(InputError, match="sample 1: onnxruntime cannot run the model on it"):
        see(graph(MLP, WEIGHTS), samples, Tap("h", Want.RANGE))


def test_no_more_samples_are_run_than_asked_for() -> None:
    samples = given(*[(2, 8)] * 9)
    ctx = PassContext(calibration=samples)
    seen = observe(graph(MLP, WEIGHTS), [Tap("h", Want.RANGE)], ctx, samples=4)["h"]
    assert seen.samples == 4
    assert samples.asked == 1 + 4  # the first one shows the shapes beforehand


def test_the_graph_is_left_as_it_was() -> None:
    model = graph(MLP, WEIGHTS)
    before = ir.to_proto(model).SerializeToString()
    see(model, given((2, 8)), Tap("h", EVERYTHING))
    assert ir.to_proto(model).SerializeToString() == before


def test_progress_is_told() -> None:
    told: list[tuple[str, int, int]] = []
    ctx = PassContext(calibration=given((2, 8), (2, 8)), progress=lambda *what: told.append(what))
    observe(graph(MLP, WEIGHTS), [Tap("h", Want.RANGE)], ctx)
    assert [(done, total) for _, done, total in told] == [(0, 2), (1, 2), (2, 2)]
    assert all(stage.startswith("calibrate, at most ") and stage.endswith(" MiB") for stage, _, _ in told)


# What is taken of much.


def test_a_histogram_takes_an_even_choice_of_a_large_tensor() -> None:
    """Every channel holds its own number: each is met about as often as any other, whatever their count."""
    width, samples = 96, 40
    x = np.broadcast_to(np.arange(width, dtype=np.float32), (4000, width))
    model = graph(f"g (float[n, {width}] x) => (float[n, {width}] y) {{ y = Identity(x) }}")
    seen = see(model, Given([{"x": x}] * samples), Tap("y", Want.HISTOGRAM))["y"]
    assert seen.histogram is not None
    assert FEWEST_ELEMENTS / 2 * samples < seen.histogram.total <= 2 * MOST_ELEMENTS * samples
    met = seen.histogram.counts[seen.histogram.counts > 0]
    assert len(met) == width
    mean = seen.histogram.total / width
    assert np.abs(met - mean).max() < 6 * math.sqrt(mean)  # six standard deviations of a count by chance


def test_the_more_samples_the_fewer_elements_of_each() -> None:
    wanted = [elements_of(samples) for samples in (1, 10, 100, 1000, 10**6)]
    assert wanted == sorted(wanted, reverse=True)
    assert (wanted[0], wanted[-1]) == (MOST_ELEMENTS, FEWEST_ELEMENTS)


def test_rows_are_an_even_choice_of_all_samples() -> None:
    """Row ``i`` of sample ``s`` holds (s, i): no sample and no part of one is preferred, and no row comes twice."""
    count, rows = 100, 64
    feeds: list[Feeds] = [
        {"x": np.stack([np.full(rows, s), np.arange(rows)], 1).astype(np.float32)} for s in range(count)
    ]
    model = graph("g (float[n, 2] x) => (float[n, 2] y) { y = Identity(x) }")
    one, other = (see(model, Given(feeds), Tap("y", Want.ROWS))["y"].rows for _ in range(2))
    assert one is not None
    np.testing.assert_array_equal(one, other)
    assert one.shape == (ROWS_KEPT, 2)
    assert len(np.unique(one, axis=0)) == ROWS_KEPT
    assert len(np.unique(one[:, 0])) == count
    # The mean of uniform numbers is off by less than four standard errors.
    for column, size in enumerate((count, rows)):
        error = size / math.sqrt(12 * ROWS_KEPT)
        assert abs(one[:, column].mean() - (size - 1) / 2) < 4 * error
