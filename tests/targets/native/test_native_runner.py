"""The native runner: three runtimes, the rule of verify.py, and nothing but an error from a build that is damaged."""

from __future__ import annotations

import hashlib
import io
import json
import random
import shutil
import struct
import subprocess
import zipfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import native
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, parser, save

import polycast
from polycast.targets import find
from polycast.targets._native import write
from polycast.verify import check_manifest, sealed

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "digits"
RUNTIMES = ("onnxruntime", "litert", "tvm")


@pytest.fixture(scope="session")
def runner(request: pytest.FixtureRequest) -> Path:
    """Compiled with both sanitizers: whatever it does wrong in any test ends it."""
    return native.compiled(request.config, "g++", *native.SANITIZERS)


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Give the build of the example for a runtime."""
    made: dict[str, Path] = {}

    def build(runtime: str) -> Path:
        target = find("cpu", runtime)
        if not target.probe().build.yes or not target.probe().run.yes:
            pytest.skip(f"{target} is not here")
        if runtime not in made:
            calibration = EXAMPLE / "digits-calibration.npz"
            out = tmp_path_factory.mktemp(runtime)
            [one] = polycast.compile(EXAMPLE / "digits.onnx", [str(target)], calibration=calibration, out=out)
            made[runtime] = one.path
        return made[runtime]

    return build


@pytest.mark.parametrize("runtime", [*RUNTIMES[:2], pytest.param("tvm", marks=pytest.mark.slow)])
def test_it_meets_the_golden_and_says_what_it_found(runner, builds, runtime):
    said = native.run(runner, builds(runtime), *native.libraries(), "--runs", "7")
    assert (said.status, said.found["ok"]) == (0, True), said
    manifest = json.loads((builds(runtime) / "manifest.json").read_text())
    assert said.found["runtime"]["name"] == runtime
    if runtime == "litert":
        assert said.found["runtime"]["version"] == version("ai-edge-litert")
    assert said.found["build"]["digest"] == manifest["model"]["digest"]
    golden = said.found["golden"]
    assert (golden["n"], golden["problems"]) == (manifest["golden"]["n"], [])
    assert [output["name"] for output in golden["outputs"]] == ["logits"]
    assert golden["outputs"][0]["worst"] <= golden["tolerance"] == manifest["golden"]["tolerance"]
    times = said.found["latency_ms"]
    assert times["n"] == 7
    assert 0 < times["min"] <= times["p50"] <= times["p90"] <= times["p99"]
    assert said.found["peak_memory_bytes"] > 1 << 20


# The rule. A model that gives back what it is given is held to reference outputs that are off by a known amount.

DTYPES = ("float32", "float64", "float16", "int64", "uint8", "int8", "bool", "int32")


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build whose outputs are its inputs, one of each dtype, of shape [2, 3]."""
    folder = tmp_path_factory.mktemp("identities")
    kinds = {name: helper.np_dtype_to_tensor_dtype(np.dtype(name)) for name in DTYPES}
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name in DTYPES]
    ins = [helper.make_tensor_value_info(name, kind, [2, 3]) for name, kind in kinds.items()]
    outs = [helper.make_tensor_value_info(f"{name}_out", kind, [2, 3]) for name, kind in kinds.items()]
    loose = helper.make_tensor_value_info("loose", TensorProto.FLOAT, [2, 3])
    nodes.append(helper.make_node("Neg", ["float32"], ["loose"]))
    graph = helper.make_graph(nodes, "identities", ins, [*outs, loose])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)]), folder / "identities.onnx")
    [build] = polycast.compile(folder / "identities.onnx", out=folder)
    return build.path


def arrays() -> dict[str, np.ndarray]:
    """What goes in: numbers that every dtype has, and in float64 what only floats have."""
    values = np.array([[0, 1, 2], [3, 4, 5]])
    given = {name: values.astype(name) for name in DTYPES}
    given["float64"] = np.array([[0, np.nan, -np.inf], [3, -4, 5.0]])
    return given


def regolden(build: Path, golden: bytes, copy: Path, **facts: Any) -> Path:
    """Copy ``build`` with another golden.npz, which its manifest vouches for."""
    shutil.copytree(build, copy)
    (copy / "golden.npz").write_bytes(golden)
    manifest = json.loads((copy / "manifest.json").read_text())
    entry = manifest["files"]["golden.npz"]
    entry |= {"sha256": hashlib.sha256(golden).hexdigest(), "bytes": len(golden)}
    manifest["golden"] |= {"n": 1, **facts}
    del manifest["seal"]
    (copy / "manifest.json").write_text(sealed(manifest))
    return copy


def npz(given: dict[str, np.ndarray], wanted: dict[str, np.ndarray], save: Callable[..., None] = np.savez) -> bytes:
    file = io.BytesIO()
    inputs = {f"0/input/{name}": array for name, array in given.items()}
    save(file, **inputs, **{f"0/output/{name}": array for name, array in wanted.items()})
    return file.getvalue()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_differences_are_those_of_the_rule(runner, identities, tmp_path, save):
    given = arrays()
    wanted = {f"{name}_out": array.copy() for name, array in given.items()} | {"loose": -given["float32"]}
    wanted["float32_out"] = np.asfortranarray(given["float32"] + np.float32(0.5))
    wanted["float16_out"][1, 2] += np.float16(1)
    wanted["int64_out"][0, 0] = -1
    wanted["bool_out"][0] = [True, False, False]
    build = regolden(identities, npz(given, wanted, save), tmp_path / "build", tolerance=0.05)
    said = native.run(runner, build, *native.libraries(), "--runs", "0")
    worst = {output["name"]: output["worst"] for output in said.found["golden"]["outputs"]}
    expected = dict.fromkeys(wanted, 0.0) | {
        "float32_out": 0.5 / 5.5,  # the largest value of the reference, not of what was found
        "float16_out": 1 / 6,
        "int64_out": 1 / 6,
        "bool_out": 3 / 6,
    }
    assert worst == pytest.approx(expected, rel=1e-5)  # six digits are printed
    assert said.status == 1 and said.found["ok"] is False
    assert len(said.found["golden"]["problems"]) == 4
    assert "golden sample 0, output int64_out: off by 0.167 of the largest value, tolerance 0.05" in said.errors
    assert said.found["latency_ms"] is None
    assert native.run(runner, build, *native.libraries(), "--runs", "1", "--no-golden").status == 0


INFINITE = {
    "a NaN where a number was": ("float64_out", lambda a: a.__setitem__((1, 1), np.nan)),
    "a number where NaN was": ("float64_out", lambda a: a.__setitem__((0, 1), 1)),
    "the other infinity": ("float64_out", lambda a: a.__setitem__((0, 2), np.inf)),
}


@pytest.mark.parametrize(("name", "change"), INFINITE.values(), ids=INFINITE.keys())
def test_what_no_tolerance_allows(runner, identities, tmp_path, name, change):
    given = arrays()
    wanted = {f"{name}_out": array.copy() for name, array in given.items()} | {"loose": -given["float32"]}
    change(wanted[name])
    build = regolden(identities, npz(given, wanted), tmp_path / "build", tolerance=1e9)
    said = native.run(runner, build, *native.libraries(), "--runs", "0")
    assert said.status == 1
    assert [problem.partition(":")[0] for problem in said.found["golden"]["problems"]] == [
        f"golden sample 0, output {name}"
    ]


@pytest.mark.parametrize("runtime", [*RUNTIMES[:2], pytest.param("tvm", marks=pytest.mark.slow)])
def test_a_batch_that_the_build_was_not_made_for_goes_row_by_row(runner, builds, tmp_path, runtime):
    import onnxruntime as ort

    rows = np.load(EXAMPLE / "digits-test.npz")["image"][:3]
    [want] = ort.InferenceSession(EXAMPLE / "digits.onnx", providers=["CPUExecutionProvider"]).run(
        None, {"image": rows}
    )
    build = regolden(builds(runtime), npz({"image": rows}, {"logits": want}), tmp_path / "build")
    assert native.run(runner, build, *native.libraries(), "--runs", "2").found["ok"] is True


# Damage. The libraries are not named: a build that passed its checks would fail for want of one.


def damage(copy: Path) -> dict[str, Callable[[Path], object]]:
    return {
        "cut short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
        "a bit flipped": lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
        "missing": lambda path: path.unlink(),
        "a link": lambda path: path.rename(copy.parent / "moved") and path.symlink_to(copy.parent / "moved"),
    }


def refused(runner: Path, build: Path) -> str:
    said = native.run(runner, build)
    assert said.status == 1 and said.found.keys() == {"error"}
    assert said.found["error"] in said.errors
    return said.found["error"]


def test_a_file_that_is_not_the_manifests_is_named_and_nothing_is_loaded(runner, builds, tmp_path):
    build, copy = builds("onnxruntime"), tmp_path / "copy"
    for name in [path.name for path in build.iterdir() if path.name != "manifest.json"]:
        for what, change in damage(copy).items():
            shutil.copytree(build, copy)
            change(copy / name)
            assert refused(runner, copy).startswith(f"{name}: "), what
            shutil.rmtree(copy)
    shutil.copytree(build, copy)
    (copy / "more").mkdir()
    (copy / "more" / "lib.so").touch()
    assert refused(runner, copy) == "more/lib.so: not in the manifest"


def edited(build: Path, copy: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    shutil.copytree(build, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    edit(manifest)
    del manifest["seal"]
    (copy / "manifest.json").write_text(sealed(manifest))
    return copy


TVM = {"name": "tvm", "device": "cpu"}

EDITS = {
    "schema 3; this runner reads schema 2": lambda m: m.update(schema=3),
    "schema 0; this runner": lambda m: m.update(schema=0),
    "lacks files": lambda m: m.pop("files"),
    "sub/../../x: a path that leaves the build": lambda m: m["files"].update({"sub/../../x": {}}),
    "/etc/hostname: a path that leaves the build": lambda m: m["files"].update({"/etc/hostname": {}}),
    "is what would be run, and not in the manifest": lambda m: m["runtime"].update(model="../model.onnx"),
    "not for abacus": lambda m: m["runtime"].update(name="abacus"),
    "machine code for riscv, and this machine is": lambda m: m["runtime"].update(TVM, machine="riscv"),
    "instructions that this CPU lacks: magic": lambda m: m["runtime"].update(TVM, instructions=["magic"]),
    "this runner has no cuda device": lambda m: m["runtime"].update(TVM, device="cuda"),
    "knows no dtype complex64": lambda m: m["signature"]["inputs"][0].update(dtype="complex64"),
    "n is negative": lambda m: m["golden"].update(n=-1),
    "n is no whole number": lambda m: m["golden"].update(n=0.5),
    "golden.npz lacks 3/input/image": lambda m: m["golden"].update(n=10**9),
    "golden is not an object": lambda m: m.update(golden=[]),
}


def test_sizes_that_the_file_leaves_open_change_from_run_to_run(runner, tmp_path):
    """What is added follows from the length, and is cut from a table as the file runs."""
    if not find("cpu", "litert").probe().run.yes:
        pytest.skip("LiteRT is not here")
    rng = np.random.default_rng(0)
    proto = parser.parse_model("""<ir_version: 10, opset_import: ["": 21]>
        places (float[1, s, 8] x) => (float[1, s, 8] y) {
            sizes = Shape <start = 1, end = 2> (x)
            rows = Slice (table, zero, sizes, zero)
            z = Add (x, rows)
            y = MatMul (z, weight)
        }""")
    weights = {"table": rng.standard_normal((100, 8)), "weight": rng.standard_normal((8, 8))}
    arrays = {name: array.astype(np.float32) for name, array in weights.items()} | {"zero": np.array([0])}
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    save(proto, tmp_path / "places.onnx")
    (tmp_path / "samples").mkdir()
    for number, length in enumerate((64, 7, 90)):
        x = rng.standard_normal((1, length, 8)).astype(np.float32)
        np.savez(tmp_path / "samples" / f"{number}.npz", x=x)
    [build] = polycast.compile(tmp_path / "places.onnx", "cpu@litert", calibration=tmp_path / "samples", out=tmp_path)
    said = native.run(runner, build.path, *native.libraries(), "--runs", "1")
    assert (said.status, said.found["golden"]["n"], said.found["golden"]["problems"]) == (0, 3, []), said


@pytest.mark.parametrize(("said", "edit"), EDITS.items(), ids=EDITS.keys())
def test_a_manifest_that_says_something_else(runner, builds, tmp_path, said, edit):
    build = edited(builds("onnxruntime"), tmp_path / "copy", edit)
    found = native.run(runner, build, *native.libraries())
    assert found.status == 1
    assert said in found.found["error"]


JSON = {
    "it ends too early": "{",
    "something follows the end": "{} {}",
    "is there twice": '{"a": 1, "a": 2}',
    "nested too deeply": "[" * 100000,
    "a control character": '{"a\n": 1}',
    "half a character": r'{"\udc00": 1}',
    "an unknown escape": r'{"\x": 1}',
    "too large": "1e999",
    "expected a value": "[01]",
    "expected true": "[trve]",
    "expected , or ]": "[1 2]",
}


@pytest.mark.parametrize(("said", "text"), JSON.items(), ids=JSON.keys())
def test_a_manifest_that_is_no_json(runner, tmp_path, said, text):
    (tmp_path / "manifest.json").write_text(text)
    assert said in refused(runner, tmp_path)


@pytest.mark.parametrize(
    ("said", "arguments"),
    {
        "which build?": [],
        "unknown option --fast": ["x", "--fast"],
        "--runs needs a value": ["x", "--runs"],
        "--threads takes a whole number, not '-1'": ["x", "--threads", "-1"],
    }.items(),
)
def test_wrong_usage_is_status_2(runner, said, arguments):
    answer = native.said_by([runner, *arguments])
    assert answer.status == 2
    assert said in answer.errors and "usage: polycast_run" in answer.errors


def test_a_provider_that_it_has_not_is_said(runner, builds, tmp_path):
    build = edited(
        builds("onnxruntime"),
        tmp_path / "copy",
        lambda m: m["runtime"].update(providers={"CoreMLExecutionProvider": {}}),
    )
    said = native.run(runner, build, *native.libraries(), "--runs", "0")
    assert (said.status, said.found["runtime"]["left_out"]) == (0, ["CoreMLExecutionProvider"])
    assert "CoreMLExecutionProvider is not here: this runs on the CPU" in said.errors


def test_no_build_and_no_library_are_said(runner, builds, tmp_path):
    assert "no build" in refused(runner, tmp_path)
    assert "--lib" in refused(runner, builds("onnxruntime"))


def mutants(data: bytes, count: int, seed: int) -> list[bytes]:
    """Cut ``data`` short, or flip some of its bits, at seeded places."""
    rng = random.Random(seed)
    found = []
    for number in range(count):
        changed = bytearray(data)
        if number % 4 == 0:
            del changed[rng.randrange(len(data)) :]
        for _ in range(rng.choice((1, 1, 2, 8)) if number % 4 else 0):
            changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        found.append(bytes(changed))
    return found


@pytest.mark.slow
def test_a_manifest_that_is_damaged_anywhere_is_an_error(runner, builds, tmp_path):
    build = shutil.copytree(builds("litert"), tmp_path / "copy")
    whole = (build / "manifest.json").read_bytes()
    for mutant in mutants(whole, 80, seed=1):
        (build / "manifest.json").write_bytes(mutant)
        said = native.run(runner, build, *native.libraries(), "--runs", "0")
        assert said.status == 1 and "error" in said.found
        assert check_manifest(build) if loads(mutant) else True


def loads(text: bytes) -> bool:
    """Whether ``text`` is a manifest that Python reads."""
    try:
        return "schema" in json.loads(text)
    except ValueError:
        return False


@pytest.mark.slow
def test_a_golden_that_is_damaged_and_vouched_for_is_an_error_or_is_run(runner, builds, tmp_path):
    """The hash does not help here: the reader itself has to bear what it reads."""
    whole = (builds("litert") / "golden.npz").read_bytes()
    for number, mutant in enumerate(mutants(whole, 80, seed=2)):
        build = regolden(builds("litert"), mutant, tmp_path / str(number), n=3)
        said = native.run(runner, build, *native.libraries(), "--runs", "0")
        assert said.status in (0, 1)
        shutil.rmtree(build)


def test_an_entry_cannot_ask_for_more_memory_than_there_is(runner, builds, tmp_path):
    whole = bytearray(
        npz(
            {"image": np.zeros((1, 1, 8, 8), np.float32)},
            {"logits": np.zeros((1, 10), np.float32)},
            np.savez_compressed,
        )
    )
    central = whole.index(b"PK\x01\x02")
    struct.pack_into("<I", whole, central + 24, 0xFFFFFFF0)
    build = regolden(builds("onnxruntime"), bytes(whole), tmp_path / "build")
    assert "larger than it can be" in native.run(runner, build, *native.libraries()).found["error"]


def test_every_form_of_deflate_is_read(runner, builds, tmp_path):
    """Stored, fixed and dynamic blocks, with long copies: zlib's levels and strategies make each."""
    import zlib

    rows = np.tile(np.arange(64, dtype=np.float32).reshape(1, 1, 8, 8), (40, 1, 1, 1))
    rows[5:20] = np.random.default_rng(0).standard_normal((15, 1, 8, 8))
    given = npz({"image": rows}, {"logits": np.zeros((40, 10), np.float32)})
    for level, strategy in (
        (0, zlib.Z_DEFAULT_STRATEGY),
        (9, zlib.Z_DEFAULT_STRATEGY),
        (6, zlib.Z_FIXED),
        (6, zlib.Z_RLE),
    ):
        build = regolden(
            builds("onnxruntime"), packed(given, level, strategy), tmp_path / f"{level}-{strategy}", tolerance=2.0
        )
        said = native.run(runner, build, *native.libraries(), "--runs", "0")
        assert "error" not in said.found, said
        worst = [output["worst"] for output in said.found["golden"]["outputs"]]
        assert worst == pytest.approx([largest(rows)], rel=1e-4)


def largest(rows: np.ndarray) -> float:
    """The largest output of the original: its difference from zeros."""
    import onnxruntime as ort

    session = ort.InferenceSession(EXAMPLE / "digits.onnx", providers=["CPUExecutionProvider"])
    return float(np.abs(session.run(None, {"image": rows})[0]).max())


def packed(whole: bytes, level: int, strategy: int) -> bytes:
    """Pack the entries of a zip again. zipfile itself has no say in the strategy."""
    import zlib

    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(whole)) as before, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as after:
        for name in before.namelist():
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(
                    zipfile, "_get_compressor", lambda *_: zlib.compressobj(level, zlib.DEFLATED, -15, 9, strategy)
                )
                after.writestr(name, before.read(name))
    return out.getvalue()


@pytest.mark.slow
def test_what_a_build_carries_is_made_by_cmake_and_clang(tmp_path, builds):
    if not shutil.which("cmake") or not shutil.which("clang++"):
        pytest.skip("no cmake and clang++ are here")
    write(tmp_path, "onnxruntime")
    flags = ["-DCMAKE_CXX_COMPILER=clang++", "-DCMAKE_CXX_FLAGS=-Werror", "-DCMAKE_BUILD_TYPE=Debug"]
    for words in (["-S", tmp_path / "native", "-B", tmp_path / "made", *flags], ["--build", tmp_path / "made"]):
        done = subprocess.run(["cmake", *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert native.run(tmp_path / "made" / "polycast_run", builds("tvm"), *native.libraries()).found["ok"] is True
