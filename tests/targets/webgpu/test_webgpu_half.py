"""Kernels of float16, on an adapter that has it: the plan of a build run by wgpu, on a software adapter of Vulkan."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import polycast

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "digits"


LAVAPIPE = [sys.executable, str(Path(__file__).resolve().parents[2] / "lavapipe.py")]


@pytest.fixture(scope="module", autouse=True)
def adapter() -> None:
    pytest.importorskip("wgpu")
    looked = subprocess.run(LAVAPIPE, capture_output=True, text=True)
    if looked.returncode:
        pytest.skip((looked.stderr.strip().splitlines() or [f"wgpu leaves with {looked.returncode}"])[-1])


def run(folder: Path, feeds: list[dict[str, np.ndarray]], scratch: Path) -> list[np.ndarray]:
    """Give the first output for each of ``feeds``."""
    given = {f"{number}/{name}": array for number, each in enumerate(feeds) for name, array in each.items()}
    np.savez(scratch / "given.npz", **given)
    subprocess.run([*LAVAPIPE, folder, scratch / "given.npz", scratch / "found.npz"], check=True)
    with np.load(scratch / "found.npz") as found:
        return [found[f"{number}/0"] for number in range(len(feeds))]


def test_example_gives_what_the_same_model_gives_in_onnxruntime(tmp_path: Path) -> None:
    [build] = polycast.compile(EXAMPLE / "digits.onnx", "webgpu", "fp16", out=tmp_path)
    rows = np.load(EXAMPLE / "digits-test.npz")["image"][:16]
    assert_near(EXAMPLE / "digits.onnx", build.path, [{"image": row[None]} for row in rows], tmp_path)


@pytest.mark.parametrize("name", ["mlperftiny/kws.onnx", "mlperftiny/ic_resnet8.onnx", "mlperftiny/vww_96.onnx"])
def test_model_of_the_zoo(zoo: Callable[[str], Path], name: str, tmp_path: Path) -> None:
    source = zoo(name)
    [build] = polycast.compile(source, "webgpu", "fp16", out=tmp_path)
    [port] = build.signature.inputs
    shape = [1, *(port.shape or ())[1:]]
    rows = np.random.default_rng(0).random((4, *shape), np.float32) * (255 if "resnet" in name else 1)
    assert_near(source, build.path, [{port.name: row} for row in rows], tmp_path)


def assert_near(source: Path, folder: Path, feeds: list[dict[str, np.ndarray]], scratch: Path) -> None:
    """Hold every output to what rounding to float16 explains."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    original = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    layers = len(json.loads((folder / "plan.json").read_text())["launches"])
    for each, found in zip(feeds, run(folder, feeds, scratch), strict=True):
        want = original.run(None, each)[0]
        # Each layer rounds its result to float16, half a step of 2**-10; the errors of layers add up.
        assert np.abs(found - want).max() <= layers * 2.0**-11 * np.abs(want).max()
