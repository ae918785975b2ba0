"""CUDA builds hold machine code of the right architecture, tensor-core instructions, and packed weights."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from models import dense_net

import polycast
from polycast.errors import RecipeError
from polycast.targets import find
from polycast.targets._tvm import matvec, matvec_rule, nvcc, run_tvm, weights
from polycast.targets._tvm.matvec_tiles import Rows
from polycast.targets._tvm.stored import Stored

pytest.importorskip("tvm")

#: Opcodes of a read from memory, and of a read and a write of what found no register; the size of 16 bytes.
LOAD, SPILLS, BYTES_16 = 0x981, (0x983, 0x387), 6

#: ELF's number for NVIDIA's GPUs, and the low bits of the opcode of a half-precision matrix product.
NVIDIA, HMMA = 190, 0x23C


def code_objects(library: Path) -> Iterator[bytes]:
    """Yield each ELF file for an NVIDIA GPU that lies inside a library."""
    data = library.read_bytes()
    at = data.find(b"\x7fELF", 1)
    while at > 0:
        if struct.unpack_from("<H", data, at + 18)[0] == NVIDIA:
            yield data[at:]
        at = data.find(b"\x7fELF", at + 1)


def kernels(elf: bytes) -> dict[str, bytes]:
    """Give the machine code of each kernel by name."""
    (table,) = struct.unpack_from("<Q", elf, 40)
    count, names = struct.unpack_from("<HH", elf, 60)
    sections = [struct.unpack_from("<IIQQQQIIQQ", elf, table + 64 * i) for i in range(count)]
    start = sections[names][4]
    found = {}
    for name, _, _, _, offset, size, *_ in sections:
        text = elf[start + name : elf.index(b"\0", start + name)].decode()
        if text.startswith(".text."):
            found[text.removeprefix(".text.")] = elf[offset : offset + size]
    return found


def matrix_products(code: bytes) -> int:
    """Count tensor-core instructions; each instruction has 16 bytes."""
    return sum(struct.unpack_from("<H", code, at)[0] & 0xFFF == HMMA for at in range(0, len(code), 16))


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers of a size that tensor cores take, in float16."""
    folder = tmp_path_factory.mktemp("cuda")
    probe = find("cuda:sm_90").probe()
    if not probe.build.yes:
        pytest.skip(probe.build.reason)
    shapes = {"image": (64, 1, 8, 8)}
    [built] = polycast.compile(dense_net(folder / "dense.onnx"), ["cuda:sm_90"], "fp16", shapes=shapes, out=folder)
    return built.path


def test_machine_code_is_of_the_architecture_and_nothing_is_left_to_compile(build: Path) -> None:
    [elf] = code_objects(build / "lib.so")
    (flags,) = struct.unpack_from("<I", elf, 48)
    assert 90 in (flags & 0xFF, flags >> 8 & 0xFF)
    library = (build / "lib.so").read_bytes()
    assert b"__global__" not in library and b".target sm_" not in library


def test_float16_products_are_tensor_core_instructions(build: Path) -> None:
    [elf] = code_objects(build / "lib.so")
    products = {name: matrix_products(code) for name, code in kernels(elf).items() if "matmul" in name}
    assert products and all(products.values()), products


@pytest.mark.slow
def test_packed_weights_meet_a_vector_16_bytes_at_a_time_and_each_once() -> None:
    """256 rows of 2048 codes of 4 bits; a block of 128 threads takes 8 rows, and the vector by way of shared memory."""
    if not (found := nvcc.command()):
        pytest.skip("nvcc is not installed")
    rows, terms, way = 256, 2048, Rows(32, 2, 4)
    code = kernel_of(rows, terms, way)
    loads = [size for kind, size in reads(code) if kind == LOAD]
    vector = terms * 2 // (16 * 128)
    assert loads.count(BYTES_16) == vector + way.each * terms // (32 * way.lanes), found
    moved = (loads.count(BYTES_16) - vector) * 16 * 128 * rows // (way.each * way.groups)
    assert moved == rows * terms // 2
    assert not [kind for kind, _ in reads(code) if kind in SPILLS]


def kernel_of(rows: int, terms: int, way: Rows) -> bytes:
    """Give the machine code of a matrix in 4 bits times a vector."""
    import tvm
    from tvm import te

    codes, groups = np.zeros((rows, terms), np.uint8), (rows, terms // 32)
    stored = Stored(
        lambda: codes, np.ones(groups, np.float16), np.eye(*groups, dtype=np.uint8), codes.shape, 4, False, 1, 32
    )
    matrix = matvec.packed(stored)
    assert matrix is not None
    arrays = [np.zeros((1, terms), np.float16), *stored.operands(lambda array: array)]
    tensors = [te.placeholder(array.shape, array.dtype.name) for array in arrays]
    function = te.create_prim_func([*tensors, matrix.times((1,))(*tensors)]).with_attr("tirx.noalias", True)
    gpu = find("cuda:sm_90").gpu  # type: ignore[attr-defined]
    scheduled = matvec_rule.schedule(function, gpu, way)
    assert scheduled is not None
    with gpu.target():
        pending = [tvm.compile(scheduled.mod, target=gpu.target()).mod]
    while pending[0].kind != "cuda":
        pending = [*pending[1:], *pending[0].imports]
    [code] = kernels(nvcc.compile_kernels(pending[0].inspect_source("cuda"), "sm_90")).values()
    return code


def reads(code: bytes) -> list[tuple[int, int]]:
    """Give the opcode of each instruction, and what stands where a read has its size."""
    words = struct.iter_unpack("<QQ", code)
    return [(low & 0xFFF, high >> 9 & 7) for low, high in words]


def test_weights_lie_beside_the_code(build: Path) -> None:
    arrays = run_tvm.read_weights(build / "weights.safetensors")
    runtime = json.loads((build / "manifest.json").read_text())["runtime"]
    assert sorted(runtime["parameters"]) == sorted(arrays)
    assert {array.dtype.name for array in arrays.values()} == {"float16"}


def test_default_architecture_is_one_of_those_listed() -> None:
    cuda = find("cuda")
    assert cuda.gpu.arch in cuda.arches  # type: ignore[attr-defined]
    with pytest.raises(RecipeError, match="sm_90"):
        find("cuda:sm_91")


def test_weights_come_back_from_their_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "half": rng.standard_normal((3, 5)).astype(np.float16),
        "words": rng.integers(0, 2**32, (2, 7), dtype=np.uint32),
        "one": np.float32(2.5).reshape(()),
        "none": np.zeros((0, 4), np.int8),
    }
    weights.write(arrays, tmp_path / "w.safetensors")
    found = run_tvm.read_weights(tmp_path / "w.safetensors")
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
