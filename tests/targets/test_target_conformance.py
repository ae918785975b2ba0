"""Every target keeps the contract of a target. A new target is picked up by itself."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from models import dense_net
from onnx import TensorProto, helper

import polycast
from polycast.errors import PromiseError, RecipeError, UnsupportedError
from polycast.model import Model, Origin
from polycast.pipeline import Pipeline
from polycast.targetbase import Probe, Target
from polycast.targets import catalogue, find

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "digits"
KINDS = {name: kind for name, kind in catalogue().items() if kind.__module__.startswith("polycast.")}
TARGETS = {str(each): each for kind in KINDS.values() for runtime in kind.runtimes for each in [kind(runtime=runtime)]}
#: What phones get is written by the runtimes of the CPU, at every precision: one build of each that adds to it.
PHONES = ("android", "ios")
ADDS = ("android", "android@onnxruntime", "ios@onnxruntime")
#: A GPU compiler takes seconds for each: by default it is the first precision of such a target.
BUILDS = [
    pytest.param(
        (name, precision),
        id=f"{name}-{precision}",
        marks=[pytest.mark.slow] if target.name in PHONES or (str(target) != "cpu" and number) else [],
    )
    for name, target in TARGETS.items()
    for number, precision in enumerate(target.precisions)
    if target.name not in PHONES or (name in ADDS and not number)
]
#: What is built a second time: of a target whose compiler takes seconds, the ends of what it can do.
ENDS = {(name, end) for name, target in TARGETS.items() for end in (target.precisions[0], target.precisions[-1])}
TWICE = [
    build if build.values[0][0] == "cpu" else pytest.param(*build.values, id=build.id, marks=pytest.mark.slow)
    for build in BUILDS
    if build.values[0] in ENDS or build.values[0][0] == "cpu"
]
LIBRARIES = (
    "ai_edge_litert",
    "flatbuffers",
    "matplotlib",
    "onnxruntime",
    "openvino",
    "optimum",
    "PIL",
    "torch",
    "transformers",
    "tvm",
)


def each_kind() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())


def each_target() -> pytest.MarkDecorator:
    """Every target with every runtime that it has."""
    return pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())


def each_build() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("built", BUILDS, indirect=True)


# What a target says.


@each_kind()
def test_file_or_folder_has_the_name_of_the_target(kind: type[Target]) -> None:
    assert kind.__module__.removeprefix("polycast.targets.").partition(".")[0] == kind.name


@each_kind()
def test_importing_it_imports_no_runtime(kind: type[Target]) -> None:
    code = f"import sys, {kind.__module__}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not set(LIBRARIES) & set(loaded)


@each_target()
def test_probe_answers_with_reasons(target: Target) -> None:
    probe = target.probe()
    assert isinstance(probe, Probe)
    for answer in (probe.build, probe.run):
        assert answer.reason
        assert answer.yes or answer.mend, "say what mends it"


@each_kind()
def test_probe_answers_where_nothing_is_installed(kind: type[Target]) -> None:
    code = (
        f"import sys\nfor name in {LIBRARIES}: sys.modules[name] = None\n"
        f"from {kind.__module__} import {kind.__name__}\n{kind.__name__}().probe()"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"PATH": ""})
    assert child.returncode == 0, child.stderr


@each_target()
def test_every_precision_has_a_recipe_that_parses(target: Target) -> None:
    assert find(str(target)) == target
    for precision in target.precisions:
        text = target.recipe(precision)
        assert text is not None and str(Pipeline.parse(text)) == text
    assert target.recipe("no such precision") is None


@each_target()
def test_spelling_names_the_runtime_unless_it_is_the_first(target: Target) -> None:
    assert find(str(target).partition("@")[0], target.executor) == target
    assert str(target).endswith(f"@{target.executor}") is (target.executor != target.runtimes[0])
    with pytest.raises(RecipeError, match=f"unknown runtime of {target.name} 'abacus'"):
        find(target.name, "abacus")


@each_target()
def test_problems_names_every_unsupported_op_at_once(target: Target) -> None:
    x = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy"]
    nodes = [
        helper.make_node("Zeta", ["x"], ["z"], domain="unheard.of"),
        helper.make_node("Alpha", ["z"], ["y"], domain="unheard.of"),
    ]
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("unheard.of", 1)]
    proto = helper.make_model(helper.make_graph(nodes, "odd", x[:1], x[1:]), opset_imports=opsets)
    model = Model("odd", ir.from_proto(proto), Origin("odd.onnx", ""))
    problems = target.problems(model)
    assert list(problems) == sorted(problems)
    assert all(any(op in problem for problem in problems) for op in ("Alpha", "Zeta"))
    with pytest.raises(UnsupportedError, match=r"Alpha.*Zeta") as caught:
        target.check(model)
    assert "extract_model" in caught.value.hint
    assert "-t " not in caught.value.hint, "no runtime has these ops"


# What a target writes, from the example's model, or from one without convolutions where a precision takes none.


@cache
def source(target: str, precision: str) -> Path:
    """The model that is cast at ``precision``."""
    folder = Path(tempfile.mkdtemp(prefix="polycast-conformance-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    try:
        cast(folder, target, precision, EXAMPLE / "digits.onnx")
    except PromiseError:
        return dense_net(folder / "dense.onnx")
    return EXAMPLE / "digits.onnx"


def cast(out: Path, target: str, precision: str, model: Path | None = None) -> Path:
    calibration = EXAMPLE / "digits-calibration.npz"
    model = model or source(target, precision)
    [build] = polycast.compile(model, [target], precision, calibration=calibration, out=out)
    return build.path


@pytest.fixture(scope="module")
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one build; the test is skipped with the probe's reason where it cannot be built."""
    target, precision = request.param
    probe = TARGETS[target].probe()
    if not probe.build.yes:
        pytest.skip(f"{target} cannot be built here: {probe.build.reason}")
    return cast(tmp_path_factory.mktemp("builds"), target, precision)


def needs_to_run(folder: Path) -> None:
    """Skip with the probe's reason where the target of this build cannot run."""
    target = polycast.open_build(folder).target
    answer = find(target).probe().run
    if not answer.yes:
        pytest.skip(f"{target} cannot be run here: {answer.reason}")


@each_build()
def test_build_reloads(built: Path) -> None:
    build = polycast.open_build(built)
    assert build.name == built.name == f"{find(build.target).label}-{build.precision}"
    manifest = json.loads((built / "manifest.json").read_text())
    assert json.loads(json.dumps(build.signature.to_json())) == manifest["signature"]
    assert build.promise.keys() == {"asked", "reached"}
    assert 0 < build.bytes <= sum(path.stat().st_size for path in built.rglob("*"))
    assert (built / "README.md").read_text().strip()


@each_build()
def test_build_meets_its_golden(built: Path) -> None:
    needs_to_run(built)
    assert polycast.open_build(built).verify() == []


@each_build()
def test_build_gives_the_outputs_of_the_original(built: Path) -> None:
    """Rows that no pass has seen, against plain onnxruntime, inside the tolerance that the build declares."""
    needs_to_run(built)
    import onnxruntime as ort

    build = polycast.open_build(built)
    model = source(build.target, build.precision)
    original = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    [name] = [port.name for port in build.signature.inputs]
    rows = np.load(EXAMPLE / "digits-test.npz")[name][:64]
    want, found = original.run(None, {name: rows})[0], build.run({name: rows})[0]
    assert (found.dtype, found.shape) == (want.dtype, want.shape)
    tolerance = build.manifest["golden"]["tolerance"]
    np.testing.assert_allclose(found, want, rtol=0, atol=tolerance * np.abs(want).max())


TAMPERING: dict[str, Callable[[Path], object]] = {
    "flipped bit": lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "removed": lambda path: path.unlink(),
}


@pytest.mark.parametrize("tamper", TAMPERING.values(), ids=TAMPERING.keys())
@each_build()
def test_tampering_is_noticed_in_every_file(built: Path, tamper: Callable[[Path], object], tmp_path: Path) -> None:
    for path in (path for path in built.rglob("*") if path.is_file() and path.name != "manifest.json"):
        name = path.relative_to(built)
        copy = tmp_path / "copy"
        shutil.copytree(built, copy)
        tamper(copy / name)
        problems = polycast.open_build(copy).verify()
        assert any(name.as_posix() in problem for problem in problems), f"{name} was not noticed"
        shutil.rmtree(copy)


@each_build()
def test_added_file_is_noticed(built: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(built, tmp_path / "copy")
    (copy / "extra.so").write_bytes(b"")
    assert any("extra.so" in problem for problem in polycast.open_build(copy).verify())


@pytest.mark.parametrize("built", TWICE, indirect=True)
def test_two_builds_of_the_same_input_are_byte_identical(built: Path, tmp_path: Path) -> None:
    """The second one by another process with another hash seed, in another folder."""
    build = polycast.open_build(built)
    code = (
        "import polycast, sys\nmodel, target, precision, calibration, out = sys.argv[1:]\n"
        "polycast.compile(model, [target], precision, calibration=calibration, out=out)"
    )
    model, calibration = source(build.target, build.precision), EXAMPLE / "digits-calibration.npz"
    subprocess.run(
        [sys.executable, "-c", code, model, build.target, build.precision, calibration, tmp_path],
        check=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONHASHSEED": "7"},
    )
    assert contents(tmp_path / built.name) == contents(built)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


#: Runs a script with the packages of this environment, but without its .pth files, so without the editable polycast.
ALONE = """
import importlib.util, runpy, sys
script, *sys.argv = sys.argv[1:]
sys.path[:0] = [script.rpartition("/")[0]]
sys.path += PACKAGES
assert importlib.util.find_spec("polycast") is None
sys.argv.insert(0, script)
runpy.run_path(script, run_name="__main__")
"""


def run_alone(script: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    packages = list(dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]))
    code = ALONE.replace("PACKAGES", repr(packages))
    command = [sys.executable, "-I", "-S", "-B", "-c", code, script, *arguments]
    return subprocess.run(command, capture_output=True, text=True)


@each_build()
def test_build_runs_and_verifies_itself_without_polycast(built: Path, tmp_path: Path) -> None:
    if not (built / "run.py").exists():
        pytest.skip("its runner is not in Python")
    needs_to_run(built)
    build = polycast.open_build(built)
    elsewhere = shutil.copytree(built, tmp_path / "elsewhere")
    verified = run_alone(elsewhere / "run.py", "--verify")
    assert verified.returncode == 0, verified.stdout + verified.stderr

    [name] = [port.name for port in build.signature.inputs]
    rows = np.load(EXAMPLE / "digits-test.npz")[name][:4]
    np.savez(tmp_path / "x.npz", **{name: rows})
    child = run_alone(elsewhere / "run.py", "--input", tmp_path / "x.npz", "--output", tmp_path / "y.npz")
    assert child.returncode == 0, child.stderr
    found = np.load(tmp_path / "y.npz")
    for port, want in zip(build.signature.outputs, build.run({name: rows}), strict=True):
        np.testing.assert_array_equal(found[port.name], want)


@each_build()
def test_tampered_build_does_not_verify_itself(built: Path, tmp_path: Path) -> None:
    if not (built / "run.py").exists():
        pytest.skip("its runner is not in Python")
    needs_to_run(built)
    copy = shutil.copytree(built, tmp_path / "copy")
    golden = copy / "golden.npz"
    golden.write_bytes(golden.read_bytes()[:-1] + b"\0\0")
    child = run_alone(copy / "run.py", "--verify")
    assert child.returncode == 1
    assert "golden.npz" in child.stdout + child.stderr
