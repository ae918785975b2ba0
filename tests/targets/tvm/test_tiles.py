"""The model that tiles are chosen by: it knows when tiles have to be small, and when they have to be large."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polycast.targets._tvm.tiles import PLAIN, TENSOR, Product, Tile, choose, cycles
from polycast.targets.cuda import Cuda
from polycast.targets.rocm import Rocm

GPU = Cuda(arch="sm_90").gpu


def area(tile: Tile) -> int:
    return tile.rows * tile.columns


def test_small_product_is_spread_over_the_multiprocessors() -> None:
    product = Product(1, 128, 384, 384, 2)
    tile = choose(product, GPU, half=True)
    blocks = -(-product.rows // tile.rows) * -(-product.columns // tile.columns)
    assert tile.tensor
    assert blocks > GPU.units / 2


def test_large_product_takes_large_tiles() -> None:
    halves, floats = Product(1, 8192, 8192, 8192, 2), Product(1, 8192, 8192, 8192, 4)
    assert area(choose(halves, GPU, half=True)) >= max(map(area, TENSOR)) / 2
    assert area(choose(floats, GPU, half=False)) >= max(map(area, PLAIN)) / 2


@pytest.mark.parametrize(("rows", "columns"), [(16, 1 << 18), (1 << 18, 16)])
def test_narrow_product_is_not_padded_to_squares(rows: int, columns: int) -> None:
    tile = choose(Product(1, rows, columns, 1024, 2), GPU, half=True)
    assert (tile.rows, tile.columns)[rows > columns] <= 32


def test_float32_and_gpus_without_tensor_cores_take_plain_tiles() -> None:
    product = Product(1, 512, 512, 512, 2)
    assert choose(product, GPU, half=True).tensor
    assert not choose(product, GPU, half=False).tensor
    assert not choose(product, Rocm(arch="gfx942").gpu, half=True).tensor


sizes = st.integers(1, 3000)


@given(st.integers(1, 64), sizes, sizes, sizes, st.booleans())
def test_chosen_tile_fits_the_gpu_and_is_the_cheapest(
    batch: int, rows: int, columns: int, terms: int, half: bool
) -> None:
    product = Product(batch, rows, columns, terms, 2 if half else 4)
    tile = choose(product, GPU, half=half)
    assert tile.threads(GPU) <= GPU.threads
    assert tile.shared(product.item) <= GPU.shared
    rivals = [each for each in PLAIN if each.shared(product.item) <= GPU.shared]
    assert cycles(product, tile, GPU) <= min(cycles(product, each, GPU) for each in rivals)


@given(sizes, sizes, sizes, st.sampled_from(PLAIN + TENSOR))
def test_more_terms_never_cost_less(rows: int, columns: int, terms: int, tile: Tile) -> None:
    product, longer = (Product(1, rows, columns, k, 2) for k in (terms, 2 * terms))
    assert cycles(longer, tile, GPU) >= cycles(product, tile, GPU)
