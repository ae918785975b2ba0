"""Every tile gives the product, run as OpenCL on the CPU and judged by numpy in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import opencl
import pytest

pytest.importorskip("tvm")

from polycast.model import Port
from polycast.targets._tvm import product_rule, tiles
from polycast.targets._tvm.lowering import Lowered
from polycast.targets._tvm.plan import static_plan


def lowered(arrays: list[np.ndarray], compute: Any, tile: tiles.Tile) -> Lowered:
    """A module of one kernel, scheduled with ``tile``."""
    from tvm import relax, te

    tensors = [te.placeholder(a.shape, a.dtype.name, f"x{i}") for i, a in enumerate(arrays)]
    function = te.create_prim_func([*tensors, compute(*tensors)]).with_attr("tirx.noalias", True)
    scheduled = product_rule.schedule(function, opencl.any_gpu(), tile, tensorize=False)
    assert scheduled is not None
    bb = relax.BlockBuilder()
    inputs = [relax.Var(f"x{i}", relax.TensorType(a.shape, a.dtype.name)) for i, a in enumerate(arrays)]
    variable = bb.add_func(scheduled.mod["main"].with_attr("tirx.is_scheduled", True), "product")
    shape = [int(d) for d in compute(*tensors).shape]
    with bb.function("main", inputs):
        with bb.dataflow():
            out = bb.emit_output(relax.call_tir(variable, inputs, relax.TensorType(shape, "float32")))
        bb.emit_func_output(out)
    ports = tuple(Port(f"x{i}", a.dtype.name, a.shape) for i, a in enumerate(arrays))
    return Lowered(bb.get(), ports, (Port("y", "float32", tuple(shape)),), {}, opencl.any_gpu())


def matmul(x: Any, w: Any) -> Any:
    """x: [M, K], w: [N, K]."""
    from tvm import te

    k = te.reduce_axis((0, x.shape[1]), "k")
    return te.compute(
        (x.shape[0], w.shape[0]), lambda i, j: te.sum(x(i, k).astype("float32") * w(j, k).astype("float32"), axis=k)
    )


def conv(x: Any, w: Any) -> Any:
    from tvm import topi

    return topi.nn.conv2d_nchw(x, w, (2, 2), (1, 1, 1, 1), (1, 1), "float32")


@pytest.mark.parametrize("tile", (*tiles.PLAIN, *tiles.TENSOR), ids=str)
def test_tile_multiplies_matrices_that_do_not_fill_it(tile: tiles.Tile) -> None:
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape).astype(np.float32) for shape in ((37, 150), (75, 150)))
    [found] = opencl.run(static_plan(lowered([x, w], matmul, tile)), opencl.any_gpu(), [x, w])
    want = x.astype(np.float64) @ w.astype(np.float64).T
    # Terms add up one after the other in float32: Higham, section 4.2.
    bound = np.abs(x).astype(np.float64) @ np.abs(w).astype(np.float64).T * 150 * np.finfo(np.float32).eps
    assert (np.abs(found - want) <= bound).all()


@pytest.mark.parametrize("tile", (tiles.PLAIN[4], tiles.PLAIN[-2], tiles.TENSOR[3], tiles.TENSOR[4]), ids=str)
def test_tile_convolves(tile: tiles.Tile) -> None:
    rng = np.random.default_rng(1)
    x, w = rng.standard_normal((2, 5, 9, 11)).astype(np.float32), rng.standard_normal((19, 5, 3, 3)).astype(np.float32)
    [found] = opencl.run(static_plan(lowered([x, w], conv, tile)), opencl.any_gpu(), [x, w])
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, ::2, ::2]
    want = np.einsum("ncyxhw,ochw->noyx", windows, w.astype(np.float64))
    bound = np.einsum("ncyxhw,ochw->noyx", np.abs(windows), np.abs(w.astype(np.float64))) * 45 * 2.0**-23
    assert (np.abs(found - want) <= bound).all()
