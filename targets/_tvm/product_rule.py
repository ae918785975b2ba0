"""The schedule of a matrix product, or of a convolution as one: tiles through shared memory, on tensor cores or not.

C[s, i, j] += A[s, i, k] * B[s, j, k], where each of s, i, j, k is several axes of the kernel, fused. What makes the
factors (padding, widening of stored weights) is computed as they are fetched, and what follows the product (bias,
activation, a cast) as the sums are written. Source: the matrix products of TVM's dlight; CUTLASS's tiles of tiles.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from . import wmma
from .gpu import Gpu
from .tiles import Product, Tile, ranked

#: Halves that one thread moves at a time: 16 bytes.
_VECTOR = 8

#: Loops of up to this many steps in all are written out.
_UNROLL = 256

#: Side of the square matrices that tensor cores multiply.
_SIDE = 16

#: One step of a tensor-core tile: A to registers, A to shared memory, B to registers, B to shared memory, multiply.
#: The next step's factors are asked for before this one's are multiplied, and stored after.
_STAGE, _ORDER = (0, 0, 0, 0, 1), (0, 3, 1, 4, 2)


@dataclass(frozen=True)
class Factors:
    """What is known of a product C[s, i, j] += A[s, i, k] * B[s, j, k] before it is scheduled.

    extents: of s, i, j, k. swapped: whether the memory of C runs along i, and not along j. along: for A and for B,
    whether memory runs along k. given: for A and for B, whether it lies in memory as it is multiplied, and is not
    widened or padded on the way. half: whether both are float16.
    """

    extents: tuple[int, int, int, int]
    swapped: bool
    along: tuple[bool, bool]
    given: tuple[bool, bool]
    half: bool

    @property
    def product(self) -> Product:
        """The product as the model of the GPU sees it: neighbouring threads write neighbouring columns."""
        batch, i, j, k = self.extents
        rows, columns = (j, i) if self.swapped else (i, j)
        return Product(batch, rows, columns, k, 2 if self.half else 4)


def schedule(function: Any, gpu: Gpu, tile: Any = None, *, tensorize: bool = True) -> Any | None:
    """Schedule ``function``; None where it is no product.

    tile: instead of the one that the model of the GPU chooses. tensorize: whether the steps of a tensor-core tile
    become its instructions; without, every thread of a warp does the work of the warp, which any back end can run.
    """
    if (found := _product(function)) is None:
        return None
    sch, main, factors = found
    tile = tile if isinstance(tile, Tile) else ranked(factors.product, gpu, half=factors.half)[0]
    if tile.tensor:
        _Tensor(sch, main, factors, tile, gpu, tensorize).apply()
    else:
        _Plain(sch, main, factors, tile).apply()
    return sch


def choices(function: Any, gpu: Gpu) -> list[Tile]:
    """Give the tiles of ``function``, the cheapest by the model first; none where it is no product."""
    found = _product(function)
    return ranked(found[2].product, gpu, half=found[2].half) if found else []


def _product(function: Any) -> tuple[Any, Any, Factors] | None:
    """Find the product in ``function``. Returns: a schedule in its normal form, the block, and what is known of it."""
    from tvm import s_tir
    from tvm.s_tir.dlight.gpu import matmul

    sch = s_tir.Schedule(function)
    blocks = sch.get_child_blocks(matmul.get_root_block(sch))
    reductions = matmul.get_reduction_blocks(sch, blocks)
    if reductions is None or matmul.get_index_map(sch.get(reductions[0])) is None:
        return None
    return sch, reductions[0], _normalize(sch, reductions[0])


def _normalize(sch: Any, main: Any) -> Factors:
    """Bring the product to C[s, i, j] += A[s, i, k] * B[s, j, k], and say what it is."""
    from tvm.s_tir.dlight.gpu import matmul

    block = sch.get(main)
    terms = {axis.var for axis in block.iter_vars if axis.iter_type == axis.CommReduce}
    innermost = [set(matmul.undefined_vars(read.region[-1].min)) for read in block.reads]
    along = (bool(innermost[0]) and innermost[0] <= terms, bool(innermost[1]) and innermost[1] <= terms)
    made = {write.source.name for each in sch.get_producers(main) for write in sch.get(each).writes}
    given = tuple(
        # Terms over several axes, as a filter's are, are found by division, which is nothing to do with vectors.
        read.source.name not in made
        and not any(terms & set(matmul.undefined_vars(index.min)) for index in list(read.region)[:-1])
        for read in block.reads
    )
    half = all(str(read.source.ty.dtype.dtype) == "float16" for read in block.reads)
    operands = [sch.reindex(main, ("read", number)) for number in (0, 1)]
    result = sch.reindex(main, ("write", 0))
    block = sch.get(main)
    traits = matmul.detect_iter_traits(block)
    kinds = {axis.var: trait.kind for axis, trait in zip(block.iter_vars, traits[3], strict=True)}
    written = [kinds[index.min] for index in block.writes[0].region if kinds.get(index.min) != matmul.IterKind.kIter_T]
    whole, first, second, sums = matmul.get_index_map(block)
    sch.transform_layout(operands[0], ("write", 0), first)
    sch.transform_layout(operands[1], ("write", 0), second)
    sch.transform_layout(result, ("read", 0), sums)
    sch.transform_block_layout(main, whole)
    batch, i, j, k = (int(axis.dom.extent) for axis in sch.get(main).iter_vars)
    return Factors(
        (batch, i, j, k), bool(written) and written[-1] == matmul.IterKind.kIter_I, along, (given[0], given[1]), half
    )


@dataclass
class _Plain:
    """Every thread multiplies and adds for itself: a few rows by a few columns, from shared memory."""

    sch: Any
    main: Any
    factors: Factors
    tile: Tile

    def apply(self) -> None:
        from tvm.s_tir.dlight.gpu import matmul

        sch, main, tile, swapped = self.sch, self.main, self.tile, self.factors.swapped
        sides = (tile.columns, tile.rows) if swapped else (tile.rows, tile.columns)
        sch.pad_einsum(main, [1, *sides, tile.terms])
        batch, i, j, k = sch.get_loops(main)
        row, column = (j, i) if swapped else (i, j)
        row_block, row_thread, row_inner = sch.split(row, [None, tile.down, tile.rows // tile.down])
        column_block, column_thread, column_inner = sch.split(column, [None, tile.across, tile.columns // tile.across])
        step, term = sch.split(k, [None, tile.terms])
        sch.reorder(batch, row_block, column_block, row_thread, column_thread, step, term, row_inner, column_inner)
        sch.bind(sch.fuse(batch, row_block), "blockIdx.y")
        sch.bind(column_block, "blockIdx.x")
        sch.bind(row_thread, "threadIdx.y")
        sch.bind(column_thread, "threadIdx.x")
        sch.annotate(column_thread, "pragma_auto_unroll_max_step", _UNROLL)
        sch.annotate(column_thread, "pragma_unroll_explicit", 1)
        sums = sch.cache_write(main, 0, "local")
        sch.reverse_compute_at(sums, column_thread, preserve_unit_loops=True)
        fetched = [self._fetch(number, step) for number in (0, 1)]
        for block in fetched:
            matmul.auto_inline_producers(sch, block)
        matmul.auto_inline_consumer_chain(sch, sums)
        sch.decompose_reduction(main, step)

    def _fetch(self, number: int, step: Any) -> Any:
        """Let all threads fetch a factor's part of one step, neighbours what lies beside each other in memory."""
        sch, tile, along = self.sch, self.tile, self.factors.along[number]
        block = sch.cache_read(self.main, number, "shared")
        sch.compute_at(block, step, preserve_unit_loops=True)
        _, side, term = sch.get_loops(block)[-3:]
        if not along:
            sch.reorder(term, side)
        fused = sch.fuse(*((side, term) if along else (term, side)))
        _, row, column = sch.split(fused, [None, tile.down, tile.across])
        sch.bind(row, "threadIdx.y")
        sch.bind(column, "threadIdx.x")
        sch.transform_layout(block, ("write", 0), lambda s, i, k: (s, k, i))
        if along:  # neighbours write into different banks, and four columns still lie on a multiple of 16 bytes
            sch.storage_align(block, 0, axis=1, factor=8, offset=4)
        return block


@dataclass
class _Tensor:
    """Every warp multiplies 16 by 16 by 16 at a time, while the next step is on its way to shared memory."""

    sch: Any
    main: Any
    factors: Factors
    tile: Tile
    gpu: Gpu
    tensorize: bool

    def apply(self) -> None:
        from tvm.s_tir.dlight.gpu import matmul

        sch, tile = self.sch, self.tile
        rows, columns = self._sides
        down, across = (tile.across, tile.down) if self.factors.swapped else (tile.down, tile.across)
        sch.pad_einsum(self.main, [1, rows, columns, tile.terms])
        batch, i, j, k = sch.get_loops(self.main)
        i, i_inner = sch.split(i, [None, _SIDE])
        j, j_inner = sch.split(j, [None, _SIDE])
        k, k_inner = sch.split(k, [None, _SIDE])
        sch.reorder(i, j, k, i_inner, j_inner, k_inner)
        inner, outer = self.main, sch.blockize(i_inner)
        i_block, i_warp, i_tile = sch.split(i, [None, down, rows // down // _SIDE])
        j_block, j_warp, j_tile = sch.split(j, [None, across, columns // across // _SIDE])
        step, term = sch.split(k, [None, tile.terms // _SIDE])
        sch.reorder(i_block, j_block, i_warp, j_warp, step, term, i_tile, j_tile)
        sch.bind(batch, "blockIdx.z")
        sch.bind(i_block, "blockIdx.y")
        sch.bind(j_block, "blockIdx.x")
        warp = sch.fuse(i_warp, j_warp)
        sch.bind(warp, "threadIdx.y")
        pipelined = -(-self.factors.extents[3] // tile.terms) > 1
        if pipelined:
            sch.annotate(step, "software_pipeline_order", _ORDER)
            sch.annotate(step, "software_pipeline_stage", _STAGE)
        fetched = [self._fetch(outer, number, step, pipelined) for number in (0, 1)]
        for block in fetched:
            matmul.auto_inline_producers(sch, block)
        loaded = [self._load(outer, number, term) for number in (0, 1)]
        through = sch.cache_write(outer, 0, self._scope("shared.dyn"))
        sch.storage_align(through, 0, -2, 16, 4)
        store = sch.cache_write(outer, 0, self._scope("wmma.accumulator"))
        sch.reverse_compute_at(store, warp)
        sch.reverse_compute_at(through, warp)
        self._square(store)
        start = sch.decompose_reduction(outer, step)
        if self.tensorize:
            self._instruct(loaded, start, store, inner)
        matmul.auto_inline_consumer_chain(sch, through)
        self._write(through)

    @property
    def _sides(self) -> tuple[int, int]:
        """Rows of A and rows of B in one tile."""
        tile = self.tile
        return (tile.columns, tile.rows) if self.factors.swapped else (tile.rows, tile.columns)

    def _scope(self, scope: str) -> str:
        if self.tensorize:
            return scope
        return "local" if scope.startswith("wmma") else "shared"

    def _fetch(self, outer: Any, number: int, step: Any, pipelined: bool) -> Any:
        sch, tile, along = self.sch, self.tile, self.factors.along[number]
        block = sch.cache_read(outer, number, self._scope("shared.dyn"))
        sch.compute_at(block, step)
        side, term = sch.get_loops(block)[-2:]
        if not along:
            sch.reorder(term, side)
        fused = sch.fuse(*((side, term) if along else (term, side)))
        vector = _VECTOR if along else 1
        _, warp, lane, item = sch.split(fused, [None, tile.down * tile.across, self.gpu.warp, vector])
        sch.bind(lane, "threadIdx.x")
        sch.bind(warp, "threadIdx.y")
        _, *sides, terms = self.factors.extents
        whole = sides[number] % self._sides[number] == 0 and terms % tile.terms == 0
        if along and whole and self.factors.given[number]:  # a copy; what is widened or padded is computed one by one
            sch.vectorize(item)
        sch.storage_align(block, 0, axis=-2, factor=16, offset=8)
        if pipelined:
            sch.annotate(block, "tirx.manifest_shared_memory_local_stage", 1)
            sch.annotate(block, "double_buffer_scope", 0)
        return block

    def _load(self, outer: Any, number: int, term: Any) -> Any:
        """Bring what a warp multiplies from shared memory into its fragments."""
        block = self.sch.cache_read(outer, number, self._scope(f"wmma.matrix_{'ab'[number]}"))
        self.sch.compute_at(block, term)
        return block

    def _square(self, block: Any) -> tuple[Any, Any, Any]:
        """Walk through a fragment square by square. Returns: the loops over squares, and the outer one of a square."""
        i, j = self.sch.get_loops(block)[-2:]
        i_square, i_inner = self.sch.split(i, [None, _SIDE])
        j_square, j_inner = self.sch.split(j, [None, _SIDE])
        self.sch.reorder(i_square, j_square, i_inner, j_inner)
        return i_square, j_square, i_inner

    def _instruct(self, loaded: list[Any], start: Any, store: Any, inner: Any) -> None:
        """Put instructions in the place of loops over squares."""
        sch, intrinsics = self.sch, wmma.intrinsics()
        for block, load in zip(loaded, ("load_a", "load_b"), strict=True):
            i_square, j_square, square = self._square(block)
            sch.unroll(i_square)
            sch.unroll(j_square)
            sch.tensorize(square, intrinsics[load])
        [start_inner] = sch.get_child_blocks(start)
        sch.tensorize(sch.get_loops(start_inner)[-2], intrinsics["init"])
        sch.tensorize(sch.get_loops(store)[-2], intrinsics["store"])
        sch.tensorize(sch.get_loops(inner)[-3], intrinsics["compute"])

    def _write(self, through: Any) -> None:
        """Write the sums out of shared memory, neighbouring threads beside each other."""
        sch = self.sch
        i, j = sch.get_loops(through)[-2:]
        if self.factors.swapped:
            sch.reorder(j, i)
        fused = sch.fuse(*((j, i) if self.factors.swapped else (i, j)))
        _, lane = sch.split(fused, [None, self.gpu.warp])
        sch.bind(lane, "threadIdx.x")
