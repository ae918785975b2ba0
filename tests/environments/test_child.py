"""A build in a process of its own: arrays cross unchanged, errors cross cleanly, a crash is said to be one."""

from __future__ import annotations

import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from models import conv_net

import polycast
from polycast.environments import loop
from polycast.environments.child import Child
from polycast.errors import InputError, ToolchainError
from polycast.model import Signature
from polycast.targetbase import CheckedSession

RUNNER = """
import os, signal
import numpy as np

class Output:
    def __init__(self, name): self.name = name

class Session:
    def get_outputs(self): return [Output("y"), Output("text")]
    def get_providers(self): return ["Tiny"]
    def run(self, names, feeds):
        print("what a runtime prints is no answer")
        x = feeds["x"]
        if x.size == 1: raise ValueError("one is too few")
        if x.size == 2: os.kill(os.getpid(), signal.SIGSEGV)
        if x.size == 3: raise SystemExit("out of patience")
        return [x * 2, np.array([str(v) for v in x], object)]

def open_session(folder, own_process):
    if not folder.is_dir(): raise SystemExit("no such build")
    return Session()
"""


@pytest.fixture
def child(tmp_path: Path):
    (tmp_path / "runner.py").write_text(RUNNER)
    child = Child(Path(sys.executable), tmp_path / "runner.py", tmp_path)
    yield child
    child.close()


KINDS = st.sampled_from(["f2", "f4", "f8", "i1", "u1", "i2", "i4", "i8", "u8", "?"])


@given(arrays_of.arrays(KINDS, arrays_of.array_shapes(min_dims=0, min_side=0)))
def test_what_is_sent_is_received(array):
    pipe = BytesIO()
    loop.send(pipe, {"word": 1}, [("a", array), ("b", np.array(["ü", ""], object))])
    pipe.seek(0)
    message = loop.receive(pipe)
    assert message is not None
    facts, found = message
    assert facts == {"word": 1}
    assert found["a"].tobytes() == array.tobytes()
    assert (found["a"].dtype, found["a"].shape) == (array.dtype, array.shape)
    assert found["b"].tolist() == ["ü", ""]


@given(st.data())
def test_a_message_that_is_cut_short_is_the_end(data):
    pipe = BytesIO()
    loop.send(pipe, {}, [("a", np.arange(5))])
    whole = pipe.getvalue()
    cut = data.draw(st.integers(0, len(whole) - 1))
    assert loop.receive(BytesIO(whole[:cut])) is None


def test_it_runs_and_runs_again(child):
    assert child.providers == ["Tiny"]
    for size in (4, 5):
        x = np.arange(size, dtype=np.float16)
        doubled, text = child.run({"x": x})
        np.testing.assert_array_equal(doubled, x * 2)
        assert doubled.dtype == np.float16
        assert text.tolist() == [str(v) for v in x]


def test_an_error_of_the_runtime_crosses_and_the_child_goes_on(child):
    with pytest.raises(InputError, match="one is too few"):
        child.run({"x": np.zeros(1)})
    assert len(child.run({"x": np.zeros(4)})) == 2


def test_a_crash_is_said_to_be_one(child):
    session = CheckedSession(child.run, Signature((), ()))
    session.signature = type("Any", (), {"check": staticmethod(lambda feeds: None)})()
    with pytest.raises(ToolchainError, match="crashed with SIGSEGV"):
        session.run({"x": np.zeros(2)})
    with pytest.raises(ToolchainError, match="crashed with SIGSEGV"):
        session.run({"x": np.zeros(4)})


def test_a_child_that_leaves_says_its_last_words(child):
    with pytest.raises(ToolchainError, match="left with status 1: out of patience"):
        child.run({"x": np.zeros(3)})


def test_a_build_that_does_not_open_is_an_error(tmp_path):
    (tmp_path / "runner.py").write_text(RUNNER)
    with pytest.raises(ToolchainError, match="left with status 1: no such build"):
        Child(Path(sys.executable), tmp_path / "runner.py", tmp_path / "none")


def test_a_real_build_gives_the_same_there(tmp_path):
    [build] = polycast.compile(conv_net(tmp_path / "m.onnx"), out=tmp_path)
    x = np.random.default_rng(0).standard_normal((3, 3, 8, 8)).astype(np.float32)
    child = Child(Path(sys.executable), build.path / "run.py", build.path)
    try:
        assert child.providers == ["CPUExecutionProvider"]
        np.testing.assert_array_equal(child.run({"x": x})[0], build.run({"x": x})[0])
        with pytest.raises(InputError, match="x"):
            child.run({"x": x.astype(np.float64)})
    finally:
        child.close()
