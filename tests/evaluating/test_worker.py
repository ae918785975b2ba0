"""Workers: real models in processes of their own, what they answer, and how they end."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

import polycast
from polycast.build import Build
from polycast.errors import ToolchainError
from polycast.evaluating import worker as workers
from polycast.evaluating.worker import Opening, Worker, saved

#: Half of what float32 holds without denormals: a multiplication by one half makes a denormal of it.
TINY = np.float32(np.finfo(np.float32).tiny)


@pytest.fixture(scope="module")
def halving(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """A build that halves x: [4]."""
    folder = tmp_path_factory.mktemp("halving")
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy"]
    half = onnx.numpy_helper.from_array(np.float32(0.5), "half")
    graph = helper.make_graph([helper.make_node("Mul", ["x", "half"], ["y"])], "halving", ports[:1], ports[1:], [half])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), folder / "m.onnx")
    [build] = polycast.compile(folder / "m.onnx", out=folder, passes="clean")
    return build


@pytest.fixture
def opening(halving: Build) -> Iterator[Opening]:
    with saved({"x": np.full(4, TINY)}) as feeds:
        yield Opening("build", str(halving.path), feeds)


def test_it_times_and_profiles_what_it_opens(opening: Opening) -> None:
    with Worker(opening) as worker:
        assert worker.evidence == "device"
        assert worker.warm_up() > 0
        times = worker.time(7)
        assert len(times) == 7 and min(times) > 0
        by_op = worker.profile()
    assert by_op is not None
    assert set(by_op) == {"Mul"}
    assert 0 <= by_op["Mul"] < 1


def test_memory_and_load_time_are_the_models(zoo: Callable[[str], Path]) -> None:
    ballast = np.ones(200 << 20, np.uint8)  # resident here, and none of the worker's business
    found = []
    for model, name, shape in (
        (zoo("mnist/mnist.onnx"), "Input3", (1, 1, 28, 28)),
        (zoo("imagenet/mobilenet_v1_0.25_224.onnx"), "input", (1, 224, 224, 3)),
    ):
        signature = polycast.load(model).signature.to_json()
        with (
            saved({name: np.zeros(shape, np.float32)}) as feeds,
            Worker(Opening("original", str(model), feeds, signature)) as worker,
        ):
            found.append(worker.footprint)
    assert ballast[-1] == 1
    small, large = found
    assert 0 < small.memory < 100 << 20
    assert small.load_seconds > 0
    assert large.memory > model.stat().st_size, "the weights have to be somewhere"


def test_denormals_are_zero_in_a_process_of_its_own_and_nowhere_else(
    halving: Build, opening: Opening, tmp_path: Path
) -> None:
    x = np.full(4, TINY)
    [want] = ReferenceEvaluator(str(halving.path / "model.onnx")).run(None, {"x": x})
    assert (want == TINY / 2).all() and (want > 0).all()
    [found] = halving.run({"x": x})
    np.testing.assert_array_equal(found, want)
    assert TINY / np.float32(2) > 0, "the arithmetic of this process is as it was"

    np.savez(tmp_path / "x.npz", x=x)
    command = [sys.executable, "-W", "error", "run.py", "--input", tmp_path / "x.npz", "--output", tmp_path / "y.npz"]
    done = subprocess.run(command, cwd=halving.path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not np.load(tmp_path / "y.npz")["y"].any(), "its runner flushes them"
    code = (
        "import sys, numpy, polycast\nbuild = polycast.open_build(sys.argv[1])\n"
        "session = build.open(own_process=sys.argv[2] == 'own')\n"
        "print(bool(session.run({'x': numpy.full(4, numpy.float32(2) ** -126)})[0].any()))"
    )
    for whose, there in (("own", "False"), ("shared", "True")):
        done = subprocess.run([sys.executable, "-c", code, halving.path, whose], capture_output=True, text=True)
        assert done.stdout.strip() == there, done.stderr


def test_the_setting_is_declared_in_the_manifest(halving: Build) -> None:
    runtime = json.loads((halving.path / "manifest.json").read_text())["runtime"]
    assert runtime["own_process"] == {"session.set_denormal_as_zero": "1"}
    assert "session.set_denormal_as_zero" not in runtime["session"]


def test_what_cannot_be_opened_says_why(opening: Opening, tmp_path: Path) -> None:
    with pytest.raises(ToolchainError, match=r"left with status 1: .* is no build: cannot read manifest\.json"):
        Worker(Opening("build", str(tmp_path), opening.feeds))


#: Answers the opening, and reads one question.
OPENS = """
import sys
sys.stdin.readline()
print('{"evidence": "device", "memory": 1, "load_seconds": 1}', flush=True)
sys.stdin.readline()
"""


def test_a_worker_that_dies_says_its_last_line(opening: Opening, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_CHILD", f"{OPENS}\nsys.exit('Illegal instruction')")
    with Worker(opening) as worker, pytest.raises(ToolchainError, match="left with status 1: Illegal instruction"):
        worker.time(1)


def test_a_worker_that_hangs_is_ended(opening: Opening, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_CHILD", f"{OPENS}\nimport time\ntime.sleep(600)")
    worker = Worker(opening)
    monkeypatch.setattr(workers, "PATIENCE", 0.2)
    with worker, pytest.raises(ToolchainError, match=r"gave no answer in 0\.2 s"):
        worker.time(1)
    assert worker._process.returncode is not None


def test_what_a_runtime_prints_is_no_answer(opening: Opening, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "from polycast.build import Build\nopen_quietly = Build.open\n"
        "def open_aloud(self, **how):\n    print('{}', flush=True)\n    return open_quietly(self, **how)\n"
        "Build.open = open_aloud\n"
    )
    monkeypatch.setattr(workers, "_CHILD", code + workers._CHILD)
    with Worker(opening) as worker:
        assert len(worker.time(2)) == 2


def test_strings_reach_the_worker(tmp_path: Path) -> None:
    ports = [helper.make_tensor_value_info(name, TensorProto.STRING, [2]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "strings", ports[:1], ports[1:])
    path = tmp_path / "strings.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    signature = polycast.load(path).signature.to_json()
    with (
        saved({"x": np.array(["ä", "b"], dtype=object)}) as feeds,
        Worker(Opening("original", str(path), feeds, signature)) as worker,
    ):
        assert worker.time(1)


def test_it_opens_as_its_user_does(halving: Build, opening: Opening, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYCAST_THREADS", "1")
    signature = polycast.load(halving.path / "model.onnx").signature.to_json()
    threads = {}
    code = (
        "import onnxruntime, sys\nstart = onnxruntime.InferenceSession\n"
        "def tell(path, options, **rest):\n"
        "    print('threads', options.intra_op_num_threads, file=sys.stderr, flush=True)\n"
        "    return start(path, options, **rest)\n"
        "onnxruntime.InferenceSession = tell\n"
    )
    monkeypatch.setattr(workers, "_CHILD", code + workers._CHILD)
    original = Opening("original", str(halving.path / "model.onnx"), opening.feeds, signature)
    for each in (opening, original):
        with Worker(each) as worker:
            worker._stderr.seek(0)
            threads[each.kind] = worker._stderr.read().split()
    assert threads == {"build": ["threads", "1"], "original": ["threads", "1"]}


def test_a_profile_counts_a_subgraph_once(tmp_path: Path) -> None:
    """A Loop that adds spends its time in Add; its own time is what is left."""
    text = (
        '<ir_version: 10, opset_import: ["": 20]> loop (float[100000] x, int64 n) => (float[100000] y) {'
        "y = Loop <body = body (int64 i, bool go, float[100000] a) => (bool on, float[100000] b) {"
        "on = Identity(go) b = Add(a, a) }> (n, , x) }"
    )
    path = tmp_path / "loop.onnx"
    onnx.save(onnx.parser.parse_model(text), path)
    feeds = {"x": np.zeros(100_000, np.float32), "n": np.array(50)}
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert session.run(None, feeds)[0].shape == (100_000,)
    with (
        saved(feeds) as given,
        Worker(Opening("original", str(path), given, polycast.load(path).signature.to_json())) as worker,
    ):
        by_op = worker.profile()
    assert by_op is not None
    assert 0 < by_op["Loop"] < by_op["Add"]
