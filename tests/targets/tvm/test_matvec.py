"""A matrix times a vector: every way of sharing it gives the product, run as OpenCL on the CPU and judged by numpy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import opencl
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("tvm")

from polycast.model import Port
from polycast.targets._tvm import Gpu, matvec, matvec_rule
from polycast.targets._tvm.lowering import Lowered
from polycast.targets._tvm.matvec_tiles import Rows, Vector, cycles, ways
from polycast.targets._tvm.plan import static_plan
from polycast.targets._tvm.stored import Stored
from polycast.targets.cuda import Cuda

RNG = np.random.default_rng(0)
GPU = Cuda(arch="sm_90").gpu


def stored(rows: int, terms: int, bits: int, block: int, signed: bool, half: bool) -> Stored:
    low, kind = (-(2 ** (bits - 1)), np.int8) if signed else (0, np.uint8)
    codes = RNG.integers(low, low + 2**bits, (rows, terms)).astype(kind)
    groups = (rows, terms // block) if block else (rows,)
    scale = RNG.uniform(0.1, 1, groups).astype(np.float16 if half else np.float32)
    zero = None if signed else RNG.integers(0, 2**bits, groups).astype(kind)
    return Stored(lambda: codes, scale, zero, (rows, terms), bits, signed, 1 if block else 0, block)


def wide(b: Stored) -> np.ndarray:
    """(code - zero) * scale in float64."""
    spread = (lambda a: np.repeat(a, b.block, 1)) if b.block else (lambda a: a[:, None])
    zero = 0 if b.zero is None else spread(b.zero.astype(np.float64))
    found: np.ndarray = (b.codes().astype(np.float64) - zero) * spread(b.scale.astype(np.float64))
    return found


@dataclass(frozen=True)
class Case:
    """One product. reads: the vector, [1, 1, K], and what the matrix is read from. wide: the matrix in float64."""

    matrix: matvec.Matrix
    reads: list[np.ndarray]
    wide: np.ndarray
    way: Rows | None = None

    @classmethod
    def of(cls, b: Stored, way: Rows | None = None) -> Case:
        matrix = matvec.packed(b)
        assert matrix is not None
        x = RNG.standard_normal((1, 1, b.shape[1])).astype(b.scale.dtype)
        return cls(matrix, [x, *b.operands(lambda array: array)], wide(b), way)

    def function(self, gpu: Gpu) -> Any:
        """The scheduled kernel, with a bias behind the product."""
        from tvm import te

        tensors = [te.placeholder(a.shape, a.dtype.name, f"x{i}") for i, a in enumerate(self.reads)]
        y = self.matrix.times((1, 1))(*tensors)
        moved = te.compute(y.shape, lambda *at: y(*at) + 1.0, name="moved")
        function = te.create_prim_func([*tensors, moved]).with_attr("tirx.noalias", True)
        scheduled = matvec_rule.schedule(function, gpu, self.way)
        assert scheduled is not None
        return scheduled.mod["main"].with_attr("tirx.is_scheduled", True)

    def hold(self, found: np.ndarray) -> None:
        """Terms add up one after the other in float32, and then a bias: Higham, section 4.2."""
        x = self.reads[0].reshape(-1).astype(np.float64)
        bound = (np.abs(self.wide) @ np.abs(x) + 1) * (x.size + 4) * np.finfo(np.float32).eps
        assert (np.abs(found.reshape(-1) - 1.0 - self.wide @ x) <= bound).all()


def hold(cases: list[Case], gpu: Gpu) -> None:
    """Run every case on PoCL, all of them in one process."""
    from tvm import relax

    bb, inputs, arrays = relax.BlockBuilder(), [], []
    kernels = [bb.add_func(case.function(gpu), f"product_{i}") for i, case in enumerate(cases)]
    for case in cases:
        inputs.append([relax.Var(f"x{len(arrays) + i}", _type(a)) for i, a in enumerate(case.reads)])
        arrays += case.reads
    flat = [variable for of_case in inputs for variable in of_case]
    with bb.function("main", flat):
        with bb.dataflow():
            results = [
                bb.emit(relax.call_tir(kernel, given, relax.TensorType([1, 1, len(case.wide)], "float32")))
                for kernel, given, case in zip(kernels, inputs, cases, strict=True)
            ]
            out = bb.emit_output(relax.Tuple(results))
        bb.emit_func_output(out)
    ports = tuple(Port(f"x{i}", a.dtype.name, a.shape) for i, a in enumerate(arrays))
    outputs = tuple(Port(f"y{i}", "float32", (1, 1, len(case.wide))) for i, case in enumerate(cases))
    found = opencl.run(static_plan(Lowered(bb.get(), ports, outputs, {}, gpu)), gpu, arrays)
    for case, y in zip(cases, found, strict=True):
        case.hold(y)


def _type(array: np.ndarray) -> Any:
    from tvm import relax

    return relax.TensorType(array.shape, array.dtype.name)


SHARED = ((Rows(16, 4, 4), 5), (Rows(32, 1, 2), 1), (Rows(64, 2, 1), 5), (Rows(11, 2, 1), 2))
KINDS = ((4, 32, True, True), (4, 16, False, False), (8, 0, True, False), (8, 128, False, True))


def test_every_way_of_sharing_gives_the_product() -> None:
    cases = [Case.of(stored(16, 32 * steps * way.lanes, 4, 32, False, False), way) for way, steps in SHARED]
    hold(cases, opencl.any_gpu())


def test_codes_of_every_kind_are_multiplied() -> None:
    hold([Case.of(stored(24, 640, *kind)) for kind in KINDS], opencl.any_gpu())


def test_numbers_are_multiplied_whatever_their_count() -> None:
    """Of 9000 numbers the vector finds no room in shared memory."""
    cases = []
    for dtype, terms in (("float32", 300), ("float16", 300), ("float16", 37), ("float32", 9000)):
        weight, x = (RNG.standard_normal(shape).astype(dtype) for shape in ((10, terms), (1, 1, terms)))
        cases.append(Case(matvec.dense(weight), [x, weight], weight.astype(np.float64)))
    hold(cases, replace(opencl.any_gpu(), shared=16 << 10))


def test_blocks_that_are_no_whole_words_have_no_chunks() -> None:
    assert matvec.packed(stored(4, 60, 4, 0, True, True)) is None
    assert matvec.packed(stored(4, 64, 4, 4, True, True)) is None


@given(st.integers(1, 5000), st.integers(1, 700), st.booleans())
def test_the_chosen_way_comes_out_even_and_is_the_cheapest(rows: int, chunks: int, codes: bool) -> None:
    vector = Vector(rows, chunks, 32 if codes else 8, 16, 2, codes)
    way = ways(vector, GPU)[0]
    assert rows % (way.each * way.groups) == 0 and chunks % way.lanes == 0
    assert way.lanes * way.groups <= GPU.threads
    assert cycles(vector, way, GPU) == min(cycles(vector, each, GPU) for each in ways(vector, GPU))


def test_few_rows_are_shared_by_more_threads_each() -> None:
    few, many = (ways(Vector(rows, 512, 32, 16, 2, True), GPU)[0] for rows in (64, 32000))
    assert few.lanes / few.each > many.lanes / many.each
