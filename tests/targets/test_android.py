"""Android builds: the files of each runtime, a library that Android's loader takes, a sample of the right versions."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import struct
import subprocess
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from models import conv_net

import polycast
from polycast import show
from polycast.auto import Auto
from polycast.candidates import Choice
from polycast.errors import RecipeError, ToolchainError
from polycast.guard import Guarded
from polycast.recipe import Recipe
from polycast.targets import _ort_format, find
from polycast.targets._tvm import NEON, linking
from polycast.targets._tvm.run_tvm import TvmSession
from polycast.targets.android import Android

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "digits" / "digits.onnx"
RUNTIMES = ("litert", "onnxruntime")
LITERT = version("ai-edge-litert")


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, polycast.Build]:
    out = tmp_path_factory.mktemp("builds")
    found = polycast.compile(EXAMPLE, ["android", "android@onnxruntime"], "fp32", out=out)
    return dict(zip(RUNTIMES, found, strict=True))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_what_ran_was_a_stand_in_and_only_the_model_is_deployed(builds, runtime):
    build = builds[runtime]
    model = {"litert": "model.tflite", "onnxruntime": "model.ort"}[runtime]
    assert build.manifest["evidence"] == "emulated"
    assert build.open().evidence == "emulated"
    assert [name for name, file in build.manifest["files"].items() if file["deployed"]] == [model]
    assert build.bytes == (build.path / model).stat().st_size
    assert (build.path / "native" / "main.cpp").is_file()
    assert "evidence: emulated" in (build.path / "README.md").read_text()


def test_what_xnnpack_takes_is_told_wherever_the_build_is(builds, capsys):
    build = builds["litert"]
    xnnpack = build.manifest["runtime"]["kernels"]["xnnpack"]
    assert 0 < xnnpack["takes"] == xnnpack["of"] - sum(xnnpack["left"].values())
    line = f"XNNPACK takes {xnnpack['takes']} of {xnnpack['of']} operators; left to LiteRT's own kernels: nothing"
    assert (
        f"Where this build was compiled, with ai-edge-litert {LITERT}, {line}."
        in (build.path / "README.md").read_text()
    )
    show.print_compiled(list(builds.values()))
    assert capsys.readouterr().out.count(f"  delegate   {line}\n") == 1
    for each in builds.values():
        show.print_shown(show.show(str(each.path), "", "", None, lambda *_: None))
    assert capsys.readouterr().out.count(f"  delegate   {line}\n") == 1


@pytest.mark.parametrize("runtime", Android.runtimes)
def test_the_sample_the_readme_and_the_manifest_name_one_version(runtime):
    sample = Android.samples[runtime]
    texts = [(Android.folder / name).read_text() for name in sample.files]
    for artifact in re.findall(r"com\.[\w.:-]+:[\d.]+", sample.dependency):
        assert f'implementation("{artifact}")' in texts[-1] and sample.files[-1] in texts[0]
    assert "golden" in texts[0].lower() or "verify" in texts[0]
    if runtime == "litert":  # of the same release as what opens every build where it is compiled
        assert sample.dependency.startswith(f'implementation("com.google.ai.edge.litert:litert:{LITERT}")')


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_sample_passes_no_output_over_and_no_build_without_one(runtime):
    """As ``verify.difference`` compares them: only how an element is read depends on its type."""
    sample, golden, _ = ((Android.folder / name).read_text() for name in Android.samples[runtime].files)
    run, *reading = sample.split("private fun ")
    assert "var within = golden.isThere\n" in run and "return within\n" in run
    assert run.count("golden.deviation(golden.output(sample, name), ") == 1
    assert not re.search(r'"[<|]\w\d"|continue', run)
    assert all("else -> throw" in each for each in reading if "when (" in each)
    assert "isThere: Boolean get() = count > 0 && outputs.isNotEmpty()" in golden
    assert 'require(wanted.type[1] in "biu")' in golden and "alike.count { !it }.toDouble() / alike.size" in golden


def test_what_is_best_is_chosen_by_the_same_files_on_this_machine(tmp_path, monkeypatch):
    """A file for LiteRT is the same on every CPU; a library or a model.ort is not, and no time here is a phone's."""
    asked = []

    def choose(auto: Auto) -> Choice:
        asked.append(str(auto.target))
        return Choice(Guarded(Recipe.of(auto.target, "fp16-weights")), {"fp32": "it is larger"})

    monkeypatch.setattr(Auto, "choose", choose)
    [build] = polycast.compile(EXAMPLE, "android", "auto", max_size="40kB", out=tmp_path)
    assert asked == ["cpu@litert"]
    assert (build.target, build.manifest["evidence"]) == ("android", "emulated")
    assert build.manifest["auto"]["chosen"] == "fp16-weights"
    assert build.manifest["auto"]["on"].startswith("cpu@litert, ")
    for target, limits in (("android@onnxruntime", {}), ("android", {"max_latency": 5})):
        with pytest.raises(RecipeError, match="cannot be measured here"):
            polycast.compile(EXAMPLE, target, "auto", out=tmp_path, **limits)


def session(path: Path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def test_the_format_of_onnxruntime_is_the_same_bytes_each_time_and_the_same_model(tmp_path):
    """onnxruntime itself writes other bytes each time; what it writes of its own accord is the judge."""
    model = conv_net(tmp_path / "m.onnx")
    given = tmp_path / "given.ort"
    settings = {"graph_optimization_level": "ORT_ENABLE_ALL"}
    seen = set()
    for _ in range(3):
        _ort_format._convert(model, given, settings)
        ordered = _ort_format.in_order(given.read_bytes())
        seen.add(hashlib.sha256(ordered).hexdigest())
    assert len(seen) == 1
    assert _ort_format.in_order(ordered) == ordered
    (tmp_path / "ordered.ort").write_bytes(ordered)
    x = np.random.default_rng(0).standard_normal((3, 3, 8, 8)).astype(np.float32)
    [want], [found] = (session(path).run(None, {"x": x}) for path in (given, tmp_path / "ordered.ort"))
    np.testing.assert_array_equal(found, want)


def test_the_operators_of_a_minimal_build_are_those_of_the_model(builds):
    lines = (builds["onnxruntime"].path / "required_operators.config").read_text().splitlines()
    listed = {(line.split(";")[0], op) for line in lines for op in re.findall(r"([A-Z]\w+)", line.split(";")[2])}
    assert ("ai.onnx", "Gemm") in listed
    assert ("com.microsoft", "FusedConv") in listed
    assert not any("/" in line for line in lines), "it names no file of this machine"


@pytest.fixture(scope="module")
def plain_object(tmp_path_factory: pytest.TempPathFactory):
    """Compile a line of C for this machine."""
    tool = shutil.which("gcc") or shutil.which("clang")
    if not tool or not linking.available(replace(NEON, system="linux-android24")).yes:
        pytest.skip("no C compiler or no LLD is here")

    def compiled(body: str) -> Path:
        folder = tmp_path_factory.mktemp("c")
        (folder / "f.c").write_text(body)
        words = [tool, "-c", "-fPIC", "-O1", "-fno-stack-protector", "-fno-builtin", "f.c", "-o", "f.o"]
        subprocess.run(words, cwd=folder, check=True)
        return folder / "f.o"

    return compiled


ANDROID_HERE = replace(NEON, arch="generic", machine="x86_64", system="linux-android24")


def test_a_library_for_android_names_its_libraries_and_fits_its_pages(plain_object, tmp_path):
    given = plain_object("float expf(float); void *memset(void *, int, long);\nfloat f(float *x) {"
                         " memset(x, 0, 4); return expf(*x); }\n")  # fmt: skip
    link = linking.linker(ANDROID_HERE)
    assert link is not None
    link(str(tmp_path / "lib.so"), [str(given)])
    elf = (tmp_path / "lib.so").read_bytes()
    assert [segment.align for segment in segments(elf) if segment.kind == LOAD] == [16384] * len(loads(elf))
    assert needed(elf) == ["libc.so", "libm.so", "libtvm_ffi.so"]
    assert b"GLIBC" not in elf


def test_what_android_does_not_have_is_named(plain_object, tmp_path):
    given = plain_object("int gnu_get_libc_version(void);\nint f(void) { return gnu_get_libc_version(); }\n")
    link = linking.linker(ANDROID_HERE)
    with pytest.raises(ToolchainError, match="undefined symbol: gnu_get_libc_version"):
        link(str(tmp_path / "lib.so"), [str(given)])


def test_32_bit_arm_is_for_the_other_runtimes():
    target = find("android:armv7@tvm")
    answer = target.probe().build
    assert not answer.yes
    assert "NDK" in answer.reason
    assert all(find("android:armv7", runtime).probe().build.yes for runtime in RUNTIMES)


@pytest.mark.parametrize("spelled", ["armv7l", "armv8l", "x86_64"])
def test_32_bit_arm_is_known_by_what_its_systems_call_it(tmp_path, monkeypatch, spelled):
    """A library is refused where it is for another machine, and then where it needs what no CPU has."""
    (tmp_path / "manifest.json").write_text('{"runtime": {"machine": "armv7a", "instructions": ["telepathy"]}}')
    monkeypatch.setattr("platform.machine", lambda: spelled)
    reason = "machine code for armv7a, and this machine is x86_64" if spelled == "x86_64" else "lacks: telepathy"
    with pytest.raises(RuntimeError, match=reason):
        TvmSession(tmp_path)


@pytest.mark.slow
def test_tvm_compiles_for_android_here_and_says_where_it_runs(tmp_path):
    pytest.importorskip("tvm")
    [build] = polycast.compile(EXAMPLE, "android@tvm", out=tmp_path)
    elf = (build.path / "lib.so").read_bytes()
    assert struct.unpack_from("<H", elf, 18)[0] == AARCH64
    assert needed(elf) == ["libc.so", "libm.so", "libtvm_ffi.so"]
    manifest = json.loads((build.path / "manifest.json").read_text())
    assert (manifest["evidence"], manifest["runtime"]["machine"]) == ("not run", "aarch64")
    assert manifest["golden"]["tolerance"] > 0
    with pytest.raises(ToolchainError, match="runs on Android alone"):
        build.open()


# The parts of an ELF file that its loader reads: 64-bit and little-endian, as both of Android's are.

AARCH64, LOAD, DYNAMIC, NEEDED, STRTAB = 183, 1, 2, 1, 5


class Segment:
    def __init__(self, elf: bytes, at: int) -> None:
        self.kind, _, self.offset, self.address, _, self.size, _, self.align = struct.unpack_from("<IIQQQQQQ", elf, at)


def segments(elf: bytes) -> list[Segment]:
    (start,), (size, count) = struct.unpack_from("<Q", elf, 32), struct.unpack_from("<HH", elf, 54)
    return [Segment(elf, start + size * i) for i in range(count)]


def loads(elf: bytes) -> list[Segment]:
    return [segment for segment in segments(elf) if segment.kind == LOAD]


def needed(elf: bytes) -> list[str]:
    """Give the libraries that the loader looks for, sorted."""
    [dynamic] = [segment for segment in segments(elf) if segment.kind == DYNAMIC]
    entries = list(struct.iter_unpack("<QQ", elf[dynamic.offset : dynamic.offset + dynamic.size]))
    [address] = [value for tag, value in entries if tag == STRTAB]
    [home] = [s for s in loads(elf) if s.address <= address < s.address + s.size]
    names = elf[address - home.address + home.offset :]
    return sorted(names[value : names.index(b"\0", value)].decode() for tag, value in entries if tag == NEEDED)
