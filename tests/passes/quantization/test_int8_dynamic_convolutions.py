"""int8_dynamic: convolutions of every kind stay within the steps of their grids, or are skipped with the reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dynamic import EPSILON, lowered, model, normal, ops, quantize, reasons, run, session

from polycast.model import Model

KINDS = {
    "plain": ("", (2, 3, 9, 8), (5, 3, 3, 3)),
    "strided, padded": ("strides = [2, 1], pads = [1, 0, 1, 2]", (2, 3, 9, 8), (5, 3, 3, 3)),
    "dilated": ("dilations = [2, 3]", (1, 3, 9, 8), (5, 3, 3, 2)),
    "grouped": ("group = 2", (2, 4, 9, 8), (6, 2, 3, 3)),
    "depthwise": ('group = 4, auto_pad = "SAME_UPPER"', (2, 4, 9, 8), (4, 1, 3, 3)),
    "one dimension": ("pads = [1, 1]", (2, 3, 9), (5, 3, 3)),
    "three dimensions": ("", (1, 2, 4, 5, 6), (3, 2, 2, 2, 2)),
    "one by one": ("", (2, 3, 9, 8), (5, 3, 1, 1)),
}


def convolution(attributes: str, x: tuple[int, ...], w: np.ndarray, bias: np.ndarray | None = None) -> Model:
    """Make a model of one Conv."""
    sizes = ", ".join(["n", str(x[1]), *(f"d{axis}" for axis in x[2:])])
    gives = ", ".join(["n", str(len(w)), *(f"e{axis}" for axis in x[2:])])
    operands = "x, w" + (", b" if bias is not None else "")
    attributes = f"<{attributes}>" if attributes else ""
    body = f"g (float[{sizes}] x) => (float[{gives}] y) {{ y = Conv{attributes}({operands}) }}"
    return model(body, {"w": w} | ({"b": bias} if bias is not None else {}))


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("kind", KINDS)
def test_sums_move_by_no_more_than_the_steps_explain(kind: str, bias: bool) -> None:
    attributes, size, shape = KINDS[kind]
    outer = (shape[0], *(1,) * (len(shape) - 1))
    w = normal(*shape) * np.exp(2 * normal(*outer, seed=1))
    b = normal(shape[0], seed=2) if bias else None
    x = normal(*size, seed=3) + np.float32(0.5)
    before = convolution(attributes, size, w, b)
    after = quantize(before, convolutions=True)
    assert after.history[-1].sites == 1 and ops(after)["ConvInteger"] == 1 and ops(after)["Conv"] == 0

    # The same convolution of magnitudes gives what the steps of either factor add up to.
    dw = np.abs(w).max(axis=tuple(range(1, w.ndim)), keepdims=True) / 254 * np.ones_like(w)
    dx = float(np.ptp(x)) / 255
    (plain,) = run(convolution(attributes, size, w, b), {"x": x})
    (moved_by_w,) = run(convolution(attributes, size, dw), {"x": np.abs(x) + np.float32(dx)})
    (moved_by_x,) = run(convolution(attributes, size, np.abs(w)), {"x": np.full_like(x, dx)})
    (magnitude,) = run(convolution(attributes, size, np.abs(w), None if b is None else np.abs(b)), {"x": np.abs(x)})
    room = moved_by_w + moved_by_x + (w[0].size + 3) * 2 * EPSILON * magnitude
    for optimized in (False, True):
        (y,) = run(after, {"x": x}, optimized=optimized)
        assert np.all(np.abs(y - plain) <= room) and np.any(y != plain)


def test_a_small_channel_beside_a_large_one_keeps_its_bits() -> None:
    w = normal(2, 3, 3, 3)
    w[0] *= 1e4
    x = normal(1, 3, 8, 8, seed=1)
    after = quantize(convolution("", x.shape, w), convolutions=True)
    alone = quantize(convolution("", x.shape, w[1:]), convolutions=True)
    np.testing.assert_array_equal(run(after, {"x": x})[0][:, 1:], run(alone, {"x": x})[0])


def test_convolutions_are_left_alone_unless_asked_for() -> None:
    after = quantize(convolution("", (1, 3, 8, 8), normal(2, 3, 3, 3)))
    assert after.history[-1].sites == 0
    assert list(reasons(after).values()) == ["convolutions are not asked for"]


def test_two_convolutions_share_what_they_read() -> None:
    body = """g (float[n, 3, h, w] x) => (float[n, 2, h, w] y, float[n, 2, h, w] z) {
      y = Conv(x, k)
      z = Conv(x, l)
    }"""
    after = quantize(model(body, {"k": normal(2, 3, 1, 1), "l": normal(2, 3, 1, 1, seed=1)}), convolutions=True)
    assert ops(after)["DynamicQuantizeLinear"] == 1 and after.history[-1].sites == 2


TRANSPOSE = "g (float[n, 3, h, w] x) => (float[n, 2, i, j] y) { y = ConvTranspose(x, k) }"
GIVEN = "g (float[n, 3, h, w] x, float[2, 3, 1, 1] k) => (float[n, 2, h, w] y) { y = Conv(x, k) }"
ONE = "g (float[n, 3, h, w] x) => (float[n, 2, h, w] y) { y = Conv(x, k) }"


@pytest.mark.parametrize(
    ("body", "weight", "reason"),
    [
        (TRANSPOSE, normal(3, 2, 2, 2), "ONNX has no ConvTranspose of integers"),
        (GIVEN, None, "its weight is not constant"),
        (ONE, np.full((2, 3, 1, 1), np.inf, np.float32), "its weight holds NaN or infinity"),
        (ONE.replace("float[", "float16["), normal(2, 3, 1, 1).astype(np.float16), "its weight is FLOAT16, not FLOAT"),
        (ONE.replace(" 3,", " 66312,"), np.ones((2, 66312, 1, 1), np.float32), "a sum of 66312 products"),
    ],
)
def test_what_cannot_be_int8_is_skipped(body: str, weight: np.ndarray | None, reason: str) -> None:
    after = quantize(model(body, {} if weight is None else {"k": weight}), convolutions=True)
    assert after.history[-1].sites == 0
    (found,) = reasons(after).values()
    assert reason in found


@pytest.mark.slow
def test_a_stateful_voice_detector_agrees_with_itself_in_float(zoo: Callable[[str], Path]) -> None:
    before = lowered(zoo("silero/silero_vad_16k_op15.onnx"))
    after = quantize(before, convolutions=True)
    assert after.history[-1].sites == 7 and ops(after)["DynamicQuantizeLSTM"] and not ops(after)["Conv"]
    sound = np.frombuffer(zoo("silero/test.wav").read_bytes()[44:], np.int16)[: 512 * 200].astype(np.float32) / 32768
    spoken = [voice(each, sound) for each in (before, after)]
    assert np.mean((spoken[0] > 0.5) == (spoken[1] > 0.5)) >= 0.99 and 0.1 < np.mean(spoken[0] > 0.5) < 0.9


def voice(of: Model, sound: np.ndarray) -> np.ndarray:
    """Run a voice detector on frames of 512 samples, each with the 64 before it, and its state carried on."""
    opened = session(of, optimized=True)
    state, before, found = np.zeros((2, 1, 128), np.float32), np.zeros(64, np.float32), []
    for frame in sound.reshape(-1, 512):
        feeds = {"input": np.concatenate([before, frame])[None], "state": state, "sr": np.array(16000)}
        probability, state = opened.run(None, feeds)
        before = frame[-64:]
        found.append(probability.item())
    return np.array(found)
