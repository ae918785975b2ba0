"""Builds in a real headless Chromium: the page, offline, with a lost device; and the models of the zoo."""

from __future__ import annotations

import gzip
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import polycast
from polycast.serve import served
from polycast.targets import find
from polycast.targets.webgpu import _chromium

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "digits"
VERDICT = """async () => {
  while (!globalThis.verdict) await new Promise((resolve) => setTimeout(resolve, 50));
  return globalThis.verdict;
}"""
#: What users download beside the weights, gzipped.
RUNTIME_BYTES = 30_000

SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "lm/stories260K.onnx": {"input_ids": (1, 64)},
    "superres/sr_core.onnx": {"input": (1, 1, 32, 32)},
}
SMALL = (
    "mnist/mnist.onnx", "mlperftiny/kws.onnx", "mlperftiny/ic_resnet8.onnx", "mlperftiny/vww_96.onnx",
    "imagenet/mobilenet_v1_0.25_224.onnx", *SHAPES,
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _needs_a_browser() -> None:
    answer = find("webgpu").probe()
    for each in (answer.build, answer.run):
        if not each.yes:
            pytest.skip(f"webgpu: {each.reason}")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    calibration = EXAMPLE / "digits-calibration.npz"
    out = tmp_path_factory.mktemp("digits")
    [build] = polycast.compile(EXAMPLE / "digits.onnx", "webgpu", calibration=calibration, out=out)
    return build.path


def text_of(tab: _chromium.Tab) -> str:
    return str(tab.call("() => document.body.innerText"))


def test_page_verifies_the_build_and_shows_no_time_of_a_software_adapter(digits: Path) -> None:
    with served(digits) as url:
        tab = _chromium.Tab(url)
        verdict = tab.call(VERDICT)
        text = text_of(tab)
        width = tab.call("() => document.documentElement.scrollWidth <= innerWidth")
        tab.close()
    assert verdict["verified"] and verdict["samples"] == 3
    assert width
    if verdict["software"]:
        assert "software adapter" in text and " ms" not in text


def test_page_works_offline_once_it_has_been_opened(digits: Path) -> None:
    with served(digits) as url:
        tab = _chromium.Tab(url)
        tab.call(VERDICT)
        tab.call("async () => { await navigator.serviceWorker.ready; }")
        reopen(tab, url)  # through the service worker, which keeps what it sees
        assert tab.call(VERDICT)["verified"]
    reopen(tab, url)
    assert tab.call(VERDICT)["verified"]
    tab.close()


def reopen(tab: _chromium.Tab, url: str) -> None:
    tab.browser.events.clear()
    tab.browser.ask("Page.navigate", tab.session, url=url)
    tab.browser.wait("Page.loadEventFired", tab.session)


def test_lost_device_is_replaced(digits: Path) -> None:
    session: Any = find("webgpu").open(digits)
    page = session.call.__self__
    feeds = {"image": np.load(EXAMPLE / "digits-test.npz")["image"][:2]}
    before = session.run(feeds)
    page.tab.call("async () => { window.model.device.destroy(); }")
    np.testing.assert_array_equal(session.run(feeds)[0], before[0])


def test_damaged_build_says_so_on_its_page(digits: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(digits, tmp_path / "copy")
    weights = bytearray((copy / "weights-0.bin").read_bytes())
    weights[5] ^= 1
    (copy / "weights-0.bin").write_bytes(weights)
    with served(copy) as url:
        tab = _chromium.Tab(url)
        verdict = tab.call(VERDICT)
        tab.close()
    assert verdict["code"] == "bad-file" and not verdict["verified"]


def test_ports_of_every_width(tmp_path: Path) -> None:
    """Bytes, booleans and 64-bit integers at the boundary, an output that is an input, and one that is a constant."""
    info, kind = helper.make_tensor_value_info, TensorProto
    nodes = [
        helper.make_node("Cast", ["bytes"], ["wide"], to=kind.FLOAT),
        helper.make_node("Mul", ["wide", "half"], ["scaled"]),
        helper.make_node("Greater", ["scaled", "half"], ["more"]),
        helper.make_node("Where", ["mask", "ids", "none"], ["kept"]),
        helper.make_node("Cast", ["scaled"], ["back"], to=kind.UINT8),
        helper.make_node("Identity", ["ids"], ["same"]),
        helper.make_node("Identity", ["half"], ["fixed"]),
    ]
    inputs = [info("bytes", kind.UINT8, [5]), info("mask", kind.BOOL, [5]), info("ids", kind.INT64, [5])]
    outputs = [
        info("more", kind.BOOL, [5]), info("kept", kind.INT64, [5]), info("back", kind.UINT8, [5]),
        info("same", kind.INT64, [5]), info("fixed", kind.FLOAT, [1]), info("scaled", kind.FLOAT, [5]),
    ]  # fmt: skip
    constants = [
        numpy_helper.from_array(np.array([0.5], np.float32), "half"),
        numpy_helper.from_array(np.array([-1], np.int64), "none"),
    ]
    graph = helper.make_graph(nodes, "ports", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    (tmp_path / "ports.onnx").write_bytes(model.SerializeToString())
    [build] = polycast.compile(tmp_path / "ports.onnx", "webgpu", out=tmp_path)
    feeds = {
        "bytes": np.array([0, 1, 2, 200, 255], np.uint8),
        "mask": np.array([True, False, True, True, False]),
        "ids": np.array([3, -4, 2**31 - 1, 0, -(2**31)]),
    }
    for port, found in zip(build.signature.outputs, build.run(feeds), strict=True):
        want = ReferenceEvaluator(model).run([port.name], feeds)[0]
        assert found.dtype == want.dtype
        np.testing.assert_array_equal(found, want, err_msg=port.name)


@pytest.mark.parametrize(
    ("name", "precision"),
    # This adapter has no f16, so that an fp16 build runs its float32 kernels: once is enough.
    [*itertools.product(SMALL, ["fp32", "int8-weights"]), ("mlperftiny/kws.onnx", "fp16")],
)
def test_model_of_the_zoo_gives_what_onnxruntime_gives(
    zoo: Callable[[str], Path], name: str, precision: str, tmp_path: Path
) -> None:
    source = zoo(name)
    [build] = polycast.compile(source, "webgpu", precision, out=tmp_path, shapes=SHAPES.get(name))
    assert build.agreement["n"]
    assert build.verify() == []
    if precision == "fp32":
        assert build.agreement["within_tolerance"]
    assert runtime_bytes(build.path) < RUNTIME_BYTES


def runtime_bytes(folder: Path) -> int:
    """Count what is downloaded to run the model, but for its weights: of each variant the larger one."""
    plan = json.loads((folder / "plan.json").read_text())
    kernels = [folder / variant["code"]["file"] for variant in plan["variants"]]
    size = {path: len(gzip.compress(path.read_bytes(), 9)) for path in folder.iterdir() if path.is_file()}
    return max(size[path] for path in kernels) + sum(size[folder / n] for n in ("plan.json", "runner.mjs", "files.mjs"))


@pytest.mark.parametrize("precision", ["int8-weights", "int4"])
def test_weights_stay_packed(zoo: Callable[[str], Path], precision: str, tmp_path: Path) -> None:
    source = zoo("lm/stories260K.onnx")
    shapes = {"input_ids": (1, 64)}
    plain, packed = (
        polycast.compile(source, "webgpu", each, out=tmp_path, shapes=shapes)[0] for each in ("fp32", precision)
    )
    bits = {"int8-weights": 8, "int4": 4}[precision]
    whole, small = (sum(path.stat().st_size for path in build.path.glob("weights-*.bin")) for build in (plain, packed))
    # Beside the codes: a float32 scale and a zero for each block of 32 weights, norms, and tables of angles.
    assert small < whole * (bits + 2) / 32 + 100_000
    assert packed.verify() == []


def test_minilm_runs_and_its_runtime_is_small(minilm: Path, tmp_path: Path) -> None:
    shapes = dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), (1, 16))
    [build] = polycast.compile(minilm, "webgpu", "int8-weights", out=tmp_path, shapes=shapes)
    assert runtime_bytes(build.path) < RUNTIME_BYTES
    ids = np.random.default_rng(0).integers(1000, 20000, (1, 16))
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    want = ort.InferenceSession(minilm, providers=["CPUExecutionProvider"]).run(None, feeds)[-1][0]
    found = build.run(feeds)[-1][0]
    assert want @ found / np.linalg.norm(want) / np.linalg.norm(found) > 0.99
