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
from polycast.targets._tvm import run_tvm, weights

pytest.importorskip("tvm")

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
