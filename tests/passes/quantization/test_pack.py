"""Packing: every bit is used, nothing is lost, and the runtime's own operators spread it to what the kernel reads."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from polycast.passes.quantization._grid import Grid, Scales
from polycast.passes.quantization._nbits import Widening, widened
from polycast.passes.quantization._pack import Packed, pack
from polycast.passes.quantization._qdq import Names
from polycast.passes.quantization._search import rounded
from polycast.passes.quantization._spill import Spill

sizes = st.tuples(st.integers(1, 5), st.integers(1, 70), st.integers(0, 2**32 - 1))


def unpack(stored: np.ndarray, bits: int, k: int) -> np.ndarray:
    """Read codes [N, k] bit by bit, from where the module says that each lies."""
    where = {
        8: [[(0, bit) for bit in range(8)]],
        4: [[(0, bit) for bit in range(4)], [(0, bit) for bit in range(4, 8)]],
        3: [[(byte, half + bit) for bit in range(3)] for byte in range(3) for half in (0, 4)]
        + [[(byte, half + 3) for byte in range(3)] for half in (0, 4)],
        2: [[(0, first), (0, first + 1)] for first in (0, 4, 2, 6)],
    }[bits]
    groups = stored.reshape(len(stored), -1, 3 if bits == 3 else 1)
    codes = [sum((groups[..., byte] >> bit & 1) << at for at, (byte, bit) in enumerate(code)) for code in where]
    return np.stack(codes, -1).reshape(len(stored), -1)[:, :k]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@given(size=sizes)
def test_unpacking_gives_what_was_packed(bits: int, size: tuple[int, int, int]) -> None:
    n, k, seed = size
    codes = np.random.default_rng(seed).integers(0, 1 << bits, (n, k)).astype(np.uint8)
    stored = pack(codes, bits)
    np.testing.assert_array_equal(unpack(stored, bits, k), codes)
    together = {2: 4, 3: 8, 4: 2, 8: 1}[bits]
    assert stored.shape == (n, -(-k // together) * together * bits // 8)


def test_four_bits_lie_low_first() -> None:
    np.testing.assert_array_equal(pack(np.array([[1, 2, 3]], np.uint8), 4), [[0x21, 0x03]])


def kernel_layout(numbers: np.ndarray, bits: int, width: int) -> np.ndarray:
    """What MatMulNBits reads: numbers [N, count] in rows of ``width`` bytes, the first of a byte in its low bits."""
    rows = np.zeros((len(numbers), width), np.uint8)
    for column in range(numbers.shape[1]):
        if bits == 8:
            rows[:, column] = numbers[:, column]
        else:
            rows[:, column // 2] |= numbers[:, column] << (4 * (column % 2))
    return rows


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("block", [16, 32, 0])
@pytest.mark.parametrize("k", [1, 5, 16, 31, 64, 172, 300])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_onnx_operators_spread_what_is_stored(bits: int, k: int, block: int, symmetric: bool) -> None:
    grid = Grid(bits, block, symmetric)
    w = np.random.default_rng(0).standard_normal((6, k)).astype(np.float32)
    weight = rounded(w, grid, Scales.up_to(4.0, "log8"), "rtn")
    codes, scale, zero, attributes = read(Packed.of([weight]))
    read_in = block or 128
    blocks, wide = -(-k // read_in), max(bits, 4)
    assert attributes == {"K": k, "N": 6, "bits": wide, "block_size": read_in}
    assert codes.shape == (6, blocks, read_in * wide // 8)
    np.testing.assert_array_equal(codes.reshape(6, -1), kernel_layout(weight.codes, wide, codes[0].size))
    each = slice(None) if block else np.zeros(blocks, int)
    np.testing.assert_array_equal(scale, weight.scale[:, each])
    if zero is None:
        assert symmetric and bits == wide, "the kernel takes the middle of the grid where no zeros are given"
    else:
        per_byte = 8 // wide
        found = unpack(zero, wide, blocks) if per_byte == 2 else zero
        np.testing.assert_array_equal(found, weight.zero[:, each])


def read(packed: Packed) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, dict[str, int]]:
    """Run the operators that widen ``packed`` on the reference evaluator."""
    graph = ir.Graph([], [], nodes=[ir.node("Identity", [ir.val("none")])], opset_imports={"": 23}, name="g")
    to = Widening(graph, "w", Names(set()), Spill(large=False))
    values, attributes = widened(packed, to, ir.DataType.FLOAT)
    to.done()
    graph.remove(graph[-1])
    for value in values:
        if value is not None and value.is_initializer():
            node = ir.node("Identity", [value])
            graph.append(node)
            value = node.outputs[0]
        if value is not None:
            graph.outputs.append(value)
    results = iter(ReferenceEvaluator(ir.to_proto(ir.Model(graph, ir_version=11))).run(None, {}))
    codes, scale, zero = (None if value is None else next(results) for value in values)
    assert codes is not None and scale is not None
    return codes, scale, zero, attributes
