"""Words of codes hold what was put in, and widening them gives (code - zero) * scale."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from polycast.targets._tvm.stored import Stored, words


def taken_apart(packed: np.ndarray, bits: int, signed: bool) -> np.ndarray:
    """Read the codes of uint32 words one by one, with Python's own integers."""
    many = 32 // bits
    codes = np.empty((*packed.shape[:-1], packed.shape[-1] * many), np.int64)
    for at in np.ndindex(packed.shape):
        for i in range(many):
            code = int(packed[at]) >> (i * bits) & (2**bits - 1)
            codes[(*at[:-1], at[-1] * many + i)] = code - 2**bits if signed and code >= 2 ** (bits - 1) else code
    return codes


@given(st.sampled_from([4, 8]), st.booleans(), st.data())
def test_words_hold_every_code(bits: int, signed: bool, data: st.DataObject) -> None:
    low = -(2 ** (bits - 1)) if signed else 0
    shapes = hnp.array_shapes(min_dims=1, max_dims=3, max_side=9)
    codes = data.draw(hnp.arrays(np.int8 if signed else np.uint8, shapes, elements=st.integers(low, low + 2**bits - 1)))
    found = taken_apart(words(codes, bits), bits, signed)
    np.testing.assert_array_equal(found[..., : codes.shape[-1]], codes)
    assert not found[..., codes.shape[-1] :].any()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("block", [0, 16])
def test_widening_is_the_arithmetic_of_dequantize_linear(bits: int, signed: bool, block: int) -> None:
    tvm = pytest.importorskip("tvm")
    from tvm import te

    rng = np.random.default_rng(0)
    low = -(2 ** (bits - 1)) if signed else 0
    dtype = np.int8 if signed else np.uint8
    codes = rng.integers(low, low + 2**bits, (6, 48)).astype(dtype)
    groups = (6, 3) if block else (6,)
    scale, zero = rng.uniform(0.1, 1, groups).astype(np.float32), rng.integers(low, low + 2**bits, groups).astype(dtype)
    stored = Stored(lambda: codes, scale, zero, codes.shape, bits, signed, 1 if block else 0, block)

    arrays = stored.operands(lambda array: array)
    tensors = [te.placeholder(a.shape, a.dtype.name) for a in arrays]
    run = tvm.compile(
        te.create_prim_func([*tensors, stored.widened(*tensors)]), target=tvm.target.Target({"kind": "llvm"})
    )
    out = tvm.runtime.tensor(np.zeros(codes.shape, np.float32))
    run(*map(tvm.runtime.tensor, arrays), out)

    spread = (lambda a: np.repeat(a, block, 1)) if block else (lambda a: a[:, None])
    np.testing.assert_array_equal(
        out.numpy(), (codes.astype(np.int32) - spread(zero)).astype(np.float32) * spread(scale)
    )
