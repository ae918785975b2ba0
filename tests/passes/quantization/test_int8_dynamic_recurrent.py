"""int8_dynamic: LSTM multiplies integers, GRU and RNN store them, and both say why they do not where they do not."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from dynamic import EPSILON, FEATURES, Feeds, model, normal, ops, quantize, reasons, run

from polycast.model import Model
from polycast.passes.quantization._dynamic_weights import to_int8

INPUTS, HIDDEN, STEPS, BATCH = 12, 6, 4, 2


def recurrence(op: str, gates: int, directions: int, attributes: str = "", optional: str = "") -> tuple[Model, Feeds]:
    """Make a model of one recurrent node, and what it is fed with."""
    weights = {
        "w": normal(directions, gates * HIDDEN, INPUTS) / 4,
        "r": normal(directions, gates * HIDDEN, HIDDEN, seed=1) / 4,
        "b": normal(directions, 2 * gates * HIDDEN, seed=2),
        "p": normal(directions, 3 * HIDDEN, seed=3),
    }
    direction = "bidirectional" if directions == 2 else "forward"
    body = f"""g (float[steps, batch, {INPUTS}] x, int32[batch] lengths, float[{directions}, batch, {HIDDEN}] h,
               float[{directions}, batch, {HIDDEN}] c)
      => (float[steps, {directions}, batch, {HIDDEN}] y, float[{directions}, batch, {HIDDEN}] last_h,
          float[{directions}, batch, {HIDDEN}] last_c) {{
      y, last_h{", last_c" if op == "LSTM" else ""} =
        {op}<hidden_size = {HIDDEN}, direction = "{direction}"{attributes}>(x, w, r{optional})
      {"" if op == "LSTM" else "last_c = Identity(last_h)"}
    }}"""
    feeds = {
        "x": normal(STEPS, BATCH, INPUTS, seed=4),
        "lengths": np.array([STEPS, STEPS - 1], np.int32),
        "h": np.tanh(normal(directions, BATCH, HIDDEN, seed=5)),
        "c": normal(directions, BATCH, HIDDEN, seed=6),
    }
    used = {"w", "r"} | {name for name in "bp" if f" {name}" in optional}
    return model(body, {name: weights[name] for name in used}), feeds


def dequantized(before: Model) -> Model:
    """Give the model with its weights rounded to int8, a scale per gate and hidden unit, and back."""
    graph = before.draft()
    for name in ("w", "r"):
        value = graph.graph.initializers[name]
        assert value.const_value is not None
        codes, scale = to_int8(value.const_value.numpy(), (2,))
        value.const_value = ir.tensor(codes * scale, name=name)
    return Model("dequantized", graph, before.origin)


def exact(array: np.ndarray, step: float) -> np.ndarray:
    """Move numbers to a grid of 256 codes with a power of two for a step.

    Each row takes both ends, so that rounding leaves the numbers as they are, however many rows share a grid.
    """
    codes = np.clip(np.rint(array / step), -128, 127)
    codes[..., 0], codes[..., -1] = -128, 127
    return (codes * step).astype(np.float32)


def on_grid(array: np.ndarray) -> np.ndarray:
    """Round to what DynamicQuantizeLinear makes of it, as ONNX defines that, in float32."""
    low, high = min(array.min(), np.float32(0)), max(array.max(), np.float32(0))
    scale = np.float32(high - low) / np.float32(255)
    zero = np.clip(np.rint(-low / scale), 0, 255)
    return ((np.clip(np.rint(array / scale) + zero, 0, 255) - zero) * scale).astype(np.float32)


#: Of sums of as many products, through gates that pass on no more than what they get.
ROUNDING = (INPUTS + HIDDEN + 8) * EPSILON


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("optional", ["", ", b", ", b, lengths, h, c", ", b, lengths, h, c, p"])
def test_one_step_of_an_lstm_is_that_of_its_rounded_weights(directions: int, optional: str) -> None:
    before, feeds = recurrence("LSTM", 4, directions, optional=optional)
    after = quantize(before)
    assert after.history[-1].sites == 1 and ops(after) == {"DynamicQuantizeLSTM": 1} and not reasons(after)
    assert [node.name for node in after.graph.graph] == ["LSTM_0"]
    feeds |= {"x": exact(feeds["x"][:1], 2**-6), "h": exact(feeds["h"], 2**-7), "lengths": np.ones(BATCH, np.int32)}
    for optimized in (False, True):
        for want, found in zip(run(dequantized(before), feeds), run(after, feeds, optimized=optimized), strict=True):
            np.testing.assert_allclose(found, want, rtol=0, atol=4 * ROUNDING * np.abs(feeds["x"]).max())


def test_further_steps_of_an_lstm_round_what_it_carries_on() -> None:
    before, feeds = recurrence("LSTM", 4, 1, optional=", b, , h, c")
    feeds = {name: array[:, :1] if array.ndim > 1 else array[:1] for name, array in feeds.items()}
    x, h, c = exact(feeds["x"], 2**-6), feeds["h"], feeds["c"]
    (found, *_), stepper = run(quantize(before), feeds | {"x": x}), dequantized(before)
    for step in range(STEPS):
        want, h, c = run(stepper, feeds | {"x": x[[step]], "h": on_grid(h), "c": c})
        np.testing.assert_allclose(found[[step]], want, rtol=0, atol=4 * (step + 1) * ROUNDING * np.abs(x).max())


def test_an_lstm_keeps_the_name_of_what_it_leaves_out() -> None:
    body = f"""g (float[s, b, {INPUTS}] x) => (float[1, b, {HIDDEN}] last_h) {{
      unread, last_h = LSTM<hidden_size = {HIDDEN}>(x, w, r)
    }}"""
    weights = {"w": normal(1, 4 * HIDDEN, INPUTS), "r": normal(1, 4 * HIDDEN, HIDDEN)}
    before = model(body, weights)
    assert run(quantize(before), {"x": normal(3, 1, INPUTS)})[0].shape == (1, 1, HIDDEN)


def test_an_lstm_inside_a_branch_reads_weights_of_the_graph_around_it() -> None:
    body = f"""g (float[s, b, {INPUTS}] x, bool c) => (float[s, 1, b, {HIDDEN}] y) {{
      y = If (c) <
        then_branch = yes () => (float[s, 1, b, {HIDDEN}] a) {{ a = LSTM<hidden_size = {HIDDEN}>(x, w, r) }},
        else_branch = no () => (float[s, 1, b, {HIDDEN}] e) {{ e = LSTM<hidden_size = {HIDDEN}>(x, w, r) }}
      >
    }}"""
    weights = {"w": normal(1, 4 * HIDDEN, INPUTS), "r": normal(1, 4 * HIDDEN, HIDDEN)}
    after = quantize(model(body, weights))
    assert after.history[-1].sites == 2 and ops(after)["DynamicQuantizeLSTM"] == 2
    assert sum(v.dtype is not None and v.dtype.name == "INT8" for v in after.graph.graph.initializers.values()) == 3
    x = normal(3, 2, INPUTS, seed=1)
    branches = [run(after, {"x": x, "c": np.array(c)})[0] for c in (True, False)]
    np.testing.assert_array_equal(*branches)


WITHOUT = FEATURES - {"dynamic-lstm"}


@pytest.mark.parametrize(
    ("op", "gates", "features", "attributes", "reason"),
    [
        ("GRU", 3, FEATURES, "", "there is no GRU of integers"),
        ("GRU", 3, FEATURES, ", linear_before_reset = 1", "there is no GRU of integers"),
        ("RNN", 1, FEATURES, "", "there is no RNN of integers"),
        ("LSTM", 4, WITHOUT, "", "the target has no LSTM of integers"),
    ],
)
@pytest.mark.parametrize("directions", [1, 2])
def test_without_a_kernel_weights_are_stored_in_int8_and_that_is_said(
    op: str, gates: int, features: frozenset[str], attributes: str, reason: str, directions: int
) -> None:
    optional = ", b, lengths, h" + (", c" if op == "LSTM" else "")
    before, feeds = recurrence(op, gates, directions, attributes, optional)
    after = quantize(before, features=features)
    assert after.history[-1].sites == 1 and ops(after)[op] == 1
    assert reasons(after) == {f"{op}_0": f"{reason}: its weights are stored in int8 and multiplied in float32"}
    stored = sum(v.const_value.nbytes for v in after.graph.graph.initializers.values() if v.dtype.name == "INT8")
    assert stored * 4 == sum(before.graph.graph.initializers[name].const_value.nbytes for name in "wr")
    for want, found in zip(run(dequantized(before), feeds), run(after, feeds, optimized=True), strict=True):
        np.testing.assert_allclose(found, want, rtol=0, atol=STEPS * (INPUTS + HIDDEN) * EPSILON)


def test_layout_1_has_no_integer_kernel() -> None:
    body = f"""g (float[b, s, {INPUTS}] x) => (float[b, s, 1, {HIDDEN}] y) {{
      y = LSTM<hidden_size = {HIDDEN}, layout = 1>(x, w, r)
    }}"""
    weights = {"w": normal(1, 4 * HIDDEN, INPUTS), "r": normal(1, 4 * HIDDEN, HIDDEN)}
    after = quantize(model(body, weights))
    assert after.history[-1].sites == 1 and "no layout 1" in reasons(after)["LSTM_0"] and ops(after)["LSTM"] == 1


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_what_cannot_be_int8_is_skipped(op: str) -> None:
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    before, _ = recurrence(op, gates, 1)
    weight = before.graph.graph.initializers["r"]
    assert weight.const_value is not None
    array = weight.const_value.numpy().copy()
    array[0, 0, 0] = np.nan
    weight.const_value = ir.tensor(array, name="r")
    after = quantize(before)
    assert after.history[-1].sites == 0 and reasons(after) == {f"{op}_0": "its weight holds NaN or infinity"}
    assert quantize(recurrence(op, gates, 1)[0], recurrent=False).history[-1].sites == 0
