"""Layouts: transpositions of a model become names of axes, and data moves only where it has to."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from litert_files import close, exact, graph, kinds, run, written

from polycast.load import load
from polycast.passbase import PassContext
from polycast.recipe import Recipe
from polycast.targets import _litert, find
from polycast.targets._litert.layout import physical, reshaped

Zoo = Callable[[str], Path]


@st.composite
def reshapes(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """A shape, an order of its axes, and another shape of as many elements."""
    factors = draw(st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=6))

    def grouped() -> tuple[int, ...]:
        cuts = sorted(draw(st.sets(st.integers(1, len(factors) - 1)))) if len(factors) > 1 else []
        return tuple(prod(factors[a:b]) for a, b in zip([0, *cuts], [*cuts, len(factors)], strict=True))

    shape = grouped()
    return shape, tuple(draw(st.permutations(range(len(shape))))), grouped()


@given(reshapes())
def test_an_order_that_a_reshape_keeps_holds_the_very_elements(case: tuple[tuple[int, ...], ...]) -> None:
    shape, order, result = case
    kept = reshaped(shape, order, result)
    if kept is None:
        return
    value = np.arange(prod(shape)).reshape(shape)
    held = value.transpose(order).reshape(physical(result, kept))
    np.testing.assert_array_equal(held, value.reshape(result).transpose(kept))


@given(reshapes())
def test_a_reshape_is_kept_wherever_some_order_of_the_result_holds_it(case: tuple[tuple[int, ...], ...]) -> None:
    """The judge tries every order of the result."""
    from itertools import permutations

    shape, order, result = case
    value = np.arange(prod(shape)).reshape(shape)
    flat = value.transpose(order).reshape(-1)
    orders = permutations(range(len(result)))
    possible = any(np.array_equal(flat, value.reshape(result).transpose(each).reshape(-1)) for each in orders)
    assert (reshaped(shape, order, result) is not None) == possible


LAYERS = {
    "conv": "C{n} = Conv <pads = [1, 1, 1, 1]> (X{m}, w)",
    "relu": "C{n} = Relu (X{m})",
    "add": "C{n} = Add (X{m}, X0)",
    "scale": "C{n} = Mul (X{m}, s)",
    "concat": "T{n} = Concat <axis = 1> (X{m}, X0)\n C{n} = Conv <pads = [1, 1, 1, 1]> (T{n}, v)",
    "pool": "C{n} = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (X{m})",
    "split": "A{n}, B{n} = Split <axis = 1, num_outputs = 2> (X{m})\n C{n} = Concat <axis = 1> (B{n}, A{n})",
    "shuffle": (
        "P{n} = Reshape (X{m}, five)\n Q{n} = Transpose <perm = [0, 2, 1, 3, 4]> (P{n})\n C{n} = Reshape (Q{n}, four)"
    ),
    "mean": "M{n} = GlobalAveragePool (X{m})\n C{n} = Mul (X{m}, M{n})",
}


@settings(deadline=None, max_examples=12)
@given(st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, max_size=6))
def test_a_convolutional_network_is_transposed_at_its_ends_alone(layers: list[str]) -> None:
    """A channel shuffle is a transposition of its own; the rest of any such network needs but the two at its ends."""
    rng = np.random.default_rng(0)
    lines = ["X0 = Conv <pads = [1, 1, 1, 1]> (x, u)"]
    for number, layer in enumerate(layers, 1):
        lines.append(LAYERS[layer].format(n=number, m=number - 1).replace(f"C{number} =", f"X{number} ="))
    lines.append(f"y = Identity (X{len(layers)})")
    body = "\n ".join(lines)
    proto = graph(
        f"net (float[1, 3, 6, 5] x) => (float[1, 4, 6, 5] y) {{ {body} }}",
        u=rng.standard_normal((4, 3, 3, 3)).astype(np.float32) / 5,
        w=rng.standard_normal((4, 4, 3, 3)).astype(np.float32) / 6,
        v=rng.standard_normal((4, 8, 3, 3)).astype(np.float32) / 8,
        s=rng.standard_normal((4, 1, 1)).astype(np.float32),
        five=np.array([1, 2, 2, 6, 5]),
        four=np.array([1, 4, 6, 5]),
    )
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        data = written(proto, Path(folder))
    assert kinds(data).count("TRANSPOSE") <= 2 + layers.count("shuffle")
    feeds = {"x": rng.standard_normal((1, 3, 6, 5)).astype(np.float32)}
    close(run(data, feeds)[0], exact(proto, feeds)[0], terms=72 * (1 + len(layers)))


def test_weights_are_put_in_order_so_that_flattening_an_image_moves_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    proto = graph(
        """net (float[1, 1, 6, 6] x) => (float[1, 3] y) {
            c = Conv (x, w)
            f = Flatten (c)
            y = Gemm <transB = 1> (f, v, b)
        }""",
        w=rng.standard_normal((5, 1, 3, 3)).astype(np.float32),
        v=rng.standard_normal((3, 80)).astype(np.float32),
        b=rng.standard_normal(3).astype(np.float32),
    )
    data = written(proto, tmp_path)
    assert "TRANSPOSE" not in kinds(data)
    feeds = {"x": rng.standard_normal((1, 1, 6, 6)).astype(np.float32)}
    close(run(data, feeds)[0], exact(proto, feeds)[0], terms=89)


@pytest.mark.parametrize(
    ("file", "transpositions"),
    [
        ("mnist/mnist.onnx", 0),  # one channel, and a flattened end
        ("mlperftiny/kws.onnx", 0),  # comes with channels last
        ("superres/sr_core.onnx", 2),
        ("coco/FastestDet.onnx", 2 + 13),  # its ends, and its channel shuffles
    ],
)
def test_real_networks_have_no_transposition_but_their_own(
    zoo: Zoo, file: str, transpositions: int, tmp_path: Path
) -> None:
    target = find("cpu@litert")
    model = Recipe.of(target, "fp32").pipeline.run(load(zoo(file)), PassContext(target.features))
    _litert.write(model, tmp_path)
    assert kinds((tmp_path / "model.tflite").read_bytes()).count("TRANSPOSE") == transpositions


@pytest.mark.parametrize("after", ["Relu (c)", "Clip (c, zero, six)"])
def test_what_follows_a_concatenation_is_not_lost_in_it(after: str, tmp_path: Path) -> None:
    """CONCATENATION has a field for an activation, and no kernel of LiteRT applies it."""
    body = f"g (float[2, 3] x, float[2, 2] e) => (float[2, 5] y) {{ c = Concat <axis = 1> (x, e)  y = {after} }}"
    proto = graph(body, zero=np.float32(0), six=np.float32(6))
    feeds = {"x": np.arange(-3, 3, dtype=np.float32).reshape(2, 3), "e": np.float32([[-9, 9], [1, -1]])}
    np.testing.assert_array_equal(run(written(proto, tmp_path), feeds)[0], exact(proto, feeds)[0])
