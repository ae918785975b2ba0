"""quantize_embeddings: rows come back as their grids have them, tables are stored once, the rest says why it stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dynamic import FEATURES, lowered, model, normal, ops, reasons, rewrite, run
from hypothesis import given, settings
from hypothesis import strategies as st

from polycast.errors import RecipeError
from polycast.model import Model
from polycast.passes.quantization.quantize_embeddings import QuantizeEmbeddings
from polycast.pipeline import Pipeline

PLAIN = FEATURES - {"gather-nbits"}
LOOKUP = "g (int64[b, n] ids) => (float[b, n, 48] y) { y = Gather(table, ids) }"


def quantize(before: Model, features: frozenset[str] = FEATURES, **parameters: object) -> Model:
    return rewrite(QuantizeEmbeddings(**parameters), before, features=features)


def table(rows: int = 100, columns: int = 48, seed: int = 0) -> np.ndarray:
    """Draw rows whose sizes differ."""
    return normal(rows, columns, seed=seed) * np.exp(normal(rows, 1, seed=seed + 1))


def nearest(w: np.ndarray, bits: int, block: int) -> np.ndarray:
    """Round each block of each row to the grid that reaches its ends: symmetric for 8 bits, with a zero point for 4."""
    width = block or w.shape[1]
    padded = np.pad(w.astype(np.float64), ((0, 0), (0, -w.shape[1] % width))).reshape(len(w), -1, width)
    low, high = np.minimum(padded.min(-1, keepdims=True), 0), np.maximum(padded.max(-1, keepdims=True), 0)
    if bits == 8:
        step, zero = np.maximum(high / 127, -low / 128), 0
    else:
        step = (high - low) / 15
        zero = np.rint(-low / step)
    rounded = (np.clip(np.rint(padded / step) + zero, -(2**7), 2**7 - 1) - zero) * step
    return rounded.reshape(len(w), -1)[:, : w.shape[1]]


@pytest.mark.parametrize("optimized", [False, True])
@pytest.mark.parametrize(
    ("features", "bits", "block"),
    [(PLAIN, 8, 0), *((FEATURES, bits, block) for bits in (8, 4) for block in (0, 16, 32))],
)
def test_rows_lose_no_more_than_rounding_to_the_nearest_does(
    features: frozenset[str], bits: int, block: int, optimized: bool
) -> None:
    w = table()
    after = quantize(model(LOOKUP, {"table": w}), features, bits=bits, block=block)
    assert after.history[-1].sites == 1 and ops(after)["GatherBlockQuantized"] == (features is FEATURES)
    ids = np.arange(-100, 100).reshape(4, 50)  # from the end too
    (y,) = run(after, {"ids": ids}, optimized=optimized)
    lost = np.square(y - w[ids]).sum(axis=-1)
    np.testing.assert_array_less(0, lost)
    np.testing.assert_array_less(lost, 1.001 * np.square(nearest(w, bits, block) - w).sum(axis=-1)[ids])
    assert run(after, {"ids": ids[:0]})[0].shape == (0, 50, 48)


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.floats(-15, 15), st.sampled_from([(8, 0), (8, 16), (4, 0), (4, 32)]))
def test_a_number_of_any_size_stays_within_its_row(seed: int, size: float, grid: tuple[int, int]) -> None:
    bits, block = grid
    w = normal(32, 34, seed=seed) * np.float32(10.0**size)
    w[3] = 0
    lookup = model(LOOKUP.replace("48", "34"), {"table": w})
    (y,) = run(quantize(lookup, bits=bits, block=block), {"ids": np.arange(32)[None]})
    assert not y[0, 3].any()
    span = np.maximum(w.max(axis=1), 0) - np.minimum(w.min(axis=1), 0)
    assert np.all(np.abs(y[0] - w).max(axis=1) <= span / (2 if bits == 4 else 16))


@pytest.mark.parametrize("columns", [1, 3, 47, 100])
def test_rows_of_any_length(columns: int) -> None:
    w = table(2000, columns)
    after = quantize(model(LOOKUP.replace("48", str(columns)), {"table": w}))
    (y,) = run(after, {"ids": np.arange(2000)[None]})
    np.testing.assert_allclose(y[0], w, rtol=0, atol=np.abs(w).max() / 127)
    odd = quantize(model(LOOKUP.replace("48", str(columns)), {"table": w}), bits=4)
    assert odd.history[-1].sites == (columns % 2 == 0)
    assert columns % 2 == 0 or "odd number of columns" in reasons(odd)["Gather_0"]


@pytest.mark.parametrize("features", [FEATURES, PLAIN], ids=["fused", "plain"])
def test_a_table_in_half_precision_gives_rows_in_half_precision(features: frozenset[str]) -> None:
    w = table().astype(np.float16)
    after = quantize(model(LOOKUP.replace("float[", "float16["), {"table": w}), features)
    (y,) = run(after, {"ids": np.arange(100)[None]})
    assert y.dtype == np.float16
    room = np.abs(w).max(axis=1, keepdims=True).astype(np.float64) * (1 / 127 + 2.0**-10)
    assert np.all(np.abs(y[0].astype(np.float64) - w) <= room)


def test_a_table_shrinks_to_a_quarter_and_an_eighth() -> None:
    w = table(1000, 384)
    before = model(LOOKUP.replace("48", "384"), {"table": w})
    assert quantize(before).weight_bytes == w.size + 1000 * 4
    assert quantize(before, bits=4, block=32).weight_bytes == w.size // 2 + 12_000 * 4 + 6_000


def test_two_lookups_of_one_table_store_it_once() -> None:
    body = """g (int64[n] i, int64[n] j) => (float[n, 48] a, float[n, 48] b) {
      a = Gather(table, i)
      b = Gather(table, j)
    }"""
    after = quantize(model(body, {"table": table()}))
    assert after.history[-1].sites == 1 and ops(after) == {"GatherBlockQuantized": 2}
    assert set(after.graph.graph.initializers) == {"table.int8", "table.scale"}
    assert {node.name for node in after.graph.graph} == {"Gather_0", "Gather_1"}
    a, b = run(after, {"i": np.arange(5), "j": np.arange(5)})
    np.testing.assert_array_equal(a, b)


def test_a_lookup_inside_a_branch_reads_the_table_around_it() -> None:
    body = """g (int64[n] i, bool c) => (float[n, 48] y) {
      y = If (c) <
        then_branch = yes () => (float[n, 48] a) { a = Gather(table, i) },
        else_branch = no () => (float[n, 48] b) { b = Gather(table, i) }
      >
    }"""
    w = table()
    after = quantize(model(body, {"table": w}))
    assert after.history[-1].sites == 1
    for condition in (True, False):
        (y,) = run(after, {"i": np.arange(100), "c": np.array(condition)})
        np.testing.assert_allclose(y, w, rtol=0, atol=np.abs(w).max() / 127)


NAN = np.where(np.eye(100, 48) > 0, np.nan, table()).astype(np.float32)


@pytest.mark.parametrize(
    ("body", "w", "parameters", "reason"),
    [
        (LOOKUP, NAN, {}, "the table holds NaN or infinity"),
        (LOOKUP, np.where(np.isnan(NAN), np.inf, NAN), {}, "the table holds NaN or infinity"),
        (LOOKUP.replace("float[", "double["), table().astype(np.float64), {}, "the table is DOUBLE"),
        (LOOKUP.replace(") =>", ", float[100, 48] table) =>"), table(), {}, "the table table is an input of the model"),
        (LOOKUP.replace("y)", "y, float[100, 48] table)").replace("[b, n, 48] y,", "[b, n, 48] y,"), table(), {},
         "the table is an output of the model"),
        (LOOKUP.replace("Gather(", "Gather<axis = 1>(").replace("[b, n, 48]", "[100, b, n]"), table(), {},
         "it does not look up rows of a matrix"),
        (LOOKUP.replace("[b, n, 48]", "[b, n]"), table().reshape(-1), {}, "it does not look up rows of a matrix"),
        (LOOKUP.replace("y = ", "e = ").replace("[b, n, 48]", "[b, n, 100]").replace("}", "t = Transpose(table) "
         "y = MatMul(e, t) }"), table(), {}, "Transpose_1 (Transpose) reads the table too"),
        (LOOKUP.replace("ids)", "ids, float[b, n, 48] x)", 1).replace("y = ", "e = ").replace("}", "y = Mul(x, e) }"),
         table(), {}, "its rows are factors of other activations"),
    ],
)  # fmt: skip
def test_what_cannot_be_stored_as_integers_says_why(
    body: str, w: np.ndarray, parameters: dict[str, object], reason: str
) -> None:
    after = quantize(model(body, {"table": w}), **parameters)
    assert after.history[-1].sites == 0
    (found,) = reasons(after).values()
    assert reason in found


@pytest.mark.parametrize("parameters", [{"bits": 4}, {"block": 32}])
def test_blocks_and_4_bits_need_the_feature(parameters: dict[str, object]) -> None:
    after = quantize(model(LOOKUP, {"table": table()}), PLAIN, **parameters)
    assert "whole rows of 8 bits only (it has no gather-nbits)" in reasons(after)["Gather_0"]


def test_rows_that_are_scaled_by_a_constant_are_still_embeddings() -> None:
    body = LOOKUP.replace("y = ", "e = ").replace("}", "y = Mul(e, root) }")
    assert quantize(model(body, {"table": table(), "root": np.float32(48**0.5)})).history[-1].sites == 1


def test_small_tables_and_tables_of_integers_are_passed_over() -> None:
    small = model(LOOKUP, {"table": table(20)})
    integers = model(LOOKUP.replace("float[", "int64["), {"table": np.ones((100, 48), np.int64)})
    for each in (small, integers):
        after = quantize(each)
        assert after.history[-1].sites == 0 and not reasons(after)


def test_keep_and_only_choose() -> None:
    before = model(LOOKUP, {"table": table()})
    assert quantize(before, keep=("Gather",)).history[-1].sites == 0
    assert quantize(before, only=("Gather_*",)).history[-1].sites == 1


def test_parameters_are_checked() -> None:
    for spelling in ("quantize_embeddings(bits=3)", "quantize_embeddings(block=48)"):
        with pytest.raises(RecipeError, match=r"(bits|block) is"):
            Pipeline.parse(spelling)


def test_the_table_of_a_small_language_model(zoo: Callable[[str], Path]) -> None:
    before = lowered(zoo("lm/stories260K.onnx"))
    after = quantize(before)
    assert after.history[-1].sites == 1 and not reasons(after)
    ids = np.arange(1, 65)[None]
    (exact,), (found,) = run(before, {"input_ids": ids}), run(after, {"input_ids": ids})
    assert np.any(found != exact) and np.mean(found.argmax(-1) == exact.argmax(-1)) > 0.9


@pytest.mark.slow
def test_words_and_positions_of_minilm(minilm: Path) -> None:
    before = lowered(minilm)
    after = quantize(before)
    assert after.history[-1].sites == 2 and not reasons(after)
    words, positions, columns = 30522, 512, 384
    assert before.weight_bytes - after.weight_bytes == (words + positions) * (columns * 3 - 4)
