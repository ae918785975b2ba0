"""Builds for AMD GPUs: real code objects, checked against LLVM's own tools."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest

import polycast
from polycast.errors import RecipeError, ToolchainError
from polycast.targets import find
from polycast.targets._tvm import code_object, gcn, hsaco

#: The first LLVM that knows every chip here.
KNOWS = 17

DIGITS = Path(__file__).resolve().parents[2] / "examples" / "digits" / "digits.onnx"


def needs_to_build() -> None:
    answer = find("rocm").probe().build
    if not answer.yes:
        pytest.skip(f"rocm cannot be built here: {answer.reason}")


def said(*words: str | Path) -> str:
    return subprocess.run([*map(str, words)], capture_output=True, text=True, check=True).stdout


def tool(name: str) -> str:
    """Give the path of one of LLVM's tools, of numbered ones the newest; skip without one that knows the chips."""
    numbered = sorted(Path("/usr/bin").glob(f"{name}-[0-9][0-9]"), reverse=True)
    found = next(map(str, numbered), shutil.which(name))
    if found is None or int(re.search(r"version (\d+)", said(found, "--version"))[1]) < KNOWS:  # type: ignore[index]
        pytest.skip(f"{name} of LLVM {KNOWS} or newer is not installed (apt install llvm-22)")
    return found


def embedded(library: bytes) -> bytes:
    """Give the code object inside a library: an ELF file for an AMD GPU, to the end of its section headers."""
    [start] = [
        found.start()
        for found in re.finditer(rb"\x7fELF\x02\x01\x01\x40", library)
        if struct.unpack_from("<H", library, found.start() + 18) == (224,)
    ]
    [headers] = struct.unpack_from("<Q", library, start + 40)
    size, count = struct.unpack_from("<HH", library, start + 58)
    return library[start : start + headers + size * count]


@pytest.fixture(scope="module", params=[pytest.param("gfx90a", marks=pytest.mark.slow), "gfx942", "gfx1100"], ids=str)
def build(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> polycast.Build:
    needs_to_build()
    [built] = polycast.compile(DIGITS, [f"rocm:{request.param}"], "fp32", out=tmp_path_factory.mktemp("rocm"))
    return built


@pytest.fixture(scope="module")
def code(build: polycast.Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code object of a build, as a file."""
    path = tmp_path_factory.mktemp("code") / "kernels.hsaco"
    path.write_bytes(embedded((build.path / "lib.so").read_bytes()))
    return path


def test_what_is_read_is_what_llvm_reads(build: polycast.Build, code: Path) -> None:
    arch = build.target.partition(":")[2]
    text = said(tool("llvm-readelf"), "--file-header", "--notes", "--symbols", code)
    assert re.search(rf"Flags: .*\b{arch}\b", text)
    fields = {
        "name": "name",
        "vgprs": "vgpr_count",
        "sgprs": "sgpr_count",
        "lds": "group_segment_fixed_size",
        "scratch": "private_segment_fixed_size",
        "wave": "wavefront_size",
        "threads": "max_flat_workgroup_size",
    }
    kernels = code_object.read(code.read_bytes()).kernels
    for field, name in fields.items():
        assert re.findall(rf"^ {{4}}\.{name}: +(\S+)$", text, re.M) == [str(getattr(k, field)) for k in kernels]
    assert {f"{kernel.name}.kd" for kernel in kernels} <= set(re.findall(r"(\S+\.kd)$", text, re.M))


def test_every_kernel_is_code_for_the_chip(build: polycast.Build, code: Path) -> None:
    text = said(tool("llvm-objdump"), "--disassemble", code)
    kernels = code_object.read(code.read_bytes()).kernels
    bodies = dict(re.findall(r"^[0-9a-f]+ <(\S+)>:\n(.*?)(?=^[0-9a-f]+ <|\Z)", text, re.M | re.S))
    for kernel in kernels:
        assert "s_endpgm" in bodies[kernel.name]
    assert "<unknown>" not in text


def test_figures_are_in_the_manifest(build: polycast.Build, code: Path) -> None:
    kernels = code_object.read(code.read_bytes()).kernels
    assert build.manifest["runtime"]["code"] == gcn.facts(list(kernels))
    assert build.manifest["evidence"] == "not run"


def test_nothing_of_rocm_is_left_to_find(build: polycast.Build, code: Path) -> None:
    """A code object asks for no symbol: no library of ROCm's, and nothing to compile on the device."""
    text = said(tool("llvm-readelf"), "--dyn-symbols", code)
    assert not [line for line in text.splitlines() if " UND " in line and not line.startswith("     0:")]
    assert b"amdgpu_kernel void" not in (build.path / "lib.so").read_bytes()


def test_damaged_code_object_is_refused(code: Path) -> None:
    whole = code.read_bytes()
    with pytest.raises(ValueError, match="not an ELF file for an AMD GPU"):
        code_object.read(b"\x7fELF" + bytes(60))
    with pytest.raises(ValueError, match=r"cut short|ends too soon|without metadata"):
        code_object.read(whole[: len(whole) // 2])


def test_call_of_a_library_is_named_by_the_linker(tmp_path: Path) -> None:
    needs_to_build()
    source = tmp_path / "kernel.ll"
    source.write_text(
        "declare float @__ocml_erf_f32(float)\n"
        "define amdgpu_kernel void @kernel(ptr addrspace(1) %p) {\n"
        "  %x = load float, ptr addrspace(1) %p\n  %y = call float @__ocml_erf_f32(float %x)\n"
        "  store float %y, ptr addrspace(1) %p\n  ret void\n}\n"
    )
    words = ["-mtriple=amdgcn-amd-amdhsa", "-mcpu=gfx942", "-filetype=obj", "-o", tmp_path / "kernel.o", source]
    said(tool("llc"), *words)
    with pytest.raises(ToolchainError, match="__ocml_erf_f32"):
        hsaco.link((tmp_path / "kernel.o").read_bytes())


def test_kernel_that_the_chip_cannot_hold_fails_the_compile(code: Path, build: polycast.Build) -> None:
    other = next(arch for arch in gcn.CHIPS if arch not in build.target)
    with pytest.raises(ToolchainError, match=f"kernels do not fit {other}: the code is for ELF machine"):
        hsaco.checked(code.read_bytes(), other)


def test_unknown_chip_is_named_with_its_neighbours() -> None:
    with pytest.raises(RecipeError, match="unknown architecture of rocm 'gfx940'"):
        find("rocm:gfx940")


def test_probe_says_what_mends_the_lack_of_a_linker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hsaco, "linker", lambda: None)
    answer = find("rocm").probe().build
    assert (answer.yes, answer.mend) == (False, "apt install lld")


def test_numbered_linker_is_found_where_there_is_no_other(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for number in ("9", "22", "x"):
        (tmp_path / f"ld.lld-{number}").touch()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(hsaco, "_FOLDERS", (tmp_path, tmp_path / "none"))
    assert hsaco.linker() == str(tmp_path / "ld.lld-22")


def test_build_says_that_there_is_no_device(build: polycast.Build) -> None:
    if find(build.target).probe().run.yes:
        pytest.skip("an AMD GPU is here")
    with pytest.raises(ToolchainError, match="runs on a rocm device, and there is none here"):
        build.run({"image": np.zeros((1, 1, 28, 28), np.float32)})
