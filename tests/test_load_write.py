"""Writing what was loaded: the same model, little memory, and nothing half-written."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from polycast import model as model_module
from polycast.errors import InputError
from polycast.load import load

WEIGHT = np.random.default_rng(0).standard_normal((128, 256)).astype(np.float32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """One MatMul with a weight of 128 KiB."""
    text = '<ir_version: 8, opset_import: ["": 17]> g (float[1,128] x, float[128,256] w) => (float[1,256] y) '
    proto = onnx.parser.parse_model(text + "{ y = MatMul(x, w) }")
    del proto.graph.input[1]
    proto.graph.initializer.append(onnx.numpy_helper.from_array(WEIGHT, "w"))
    onnx.save(proto, tmp_path / "source.onnx")
    return tmp_path / "source.onnx"


@pytest.mark.parametrize("inline", [True, False])
def test_the_same_model_and_the_same_bytes(path: Path, monkeypatch: pytest.MonkeyPatch, inline: bool) -> None:
    monkeypatch.setattr(model_module, "INLINE_BYTES", 1 << 30 if inline else 0)
    model = load(path)
    view = model.graph.graph.initializers["w"].const_value.numpy()[1:]  # as a pass may hold one
    out = path.with_name("out.onnx")
    model.write(out)
    first = [file.read_bytes() for file in sorted(path.parent.glob("out.*"))]
    model.write(out)
    assert [file.read_bytes() for file in sorted(path.parent.glob("out.*"))] == first
    assert len(first) == (1 if inline else 2)
    assert load(out).digest == model.digest
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(onnx.load(out).graph.initializer[0]), WEIGHT)
    np.testing.assert_array_equal(view, WEIGHT[1:])


def test_the_file_that_the_weights_are_read_from_is_not_overwritten(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(InputError, match="weights are read from it"):
        load(path).write(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("inline", [True, False])
def test_a_full_disk_leaves_nothing_behind(path: Path, monkeypatch: pytest.MonkeyPatch, inline: bool) -> None:
    """A limit on the size of files stands for the disk: the kernel refuses the write half-way in the same manner."""
    monkeypatch.setattr(model_module, "INLINE_BYTES", 1 << 30 if inline else 0)
    model = load(path)
    before = sorted(path.parent.iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (WEIGHT.nbytes // 2, hard))
    try:
        with pytest.raises(InputError, match=r"cannot write .*out.onnx: File too large"):
            model.write(path.with_name("out.onnx"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(path.parent.iterdir()) == before


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_full_device(path: Path) -> None:
    with pytest.raises(InputError, match="cannot write /dev/full: No space left on device"):
        load(path).write(Path("/dev/full"))
    assert os.path.exists("/dev/full")


def test_a_folder_that_is_not_there(path: Path) -> None:
    with pytest.raises(InputError, match="No such file or directory"):
        load(path).write(path.parent / "none" / "m.onnx")


CHILD = """
import json, resource, sys
from pathlib import Path
from polycast.load import load
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
model = load(sys.argv[1])
loaded = peak()
model.write(Path(sys.argv[2]))
print(json.dumps({"load": loaded - before, "write": peak() - before}))
"""


@pytest.mark.slow
def test_a_2_gb_model_takes_little_memory(tmp_path: Path) -> None:
    n, count = 8192, 8
    values = [onnx.helper.make_tensor_value_info(f"x{i}", 1, ["b", n]) for i in (0, count)]
    nodes = [onnx.helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"x{i + 1}"]) for i in range(count)]
    proto = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", values[:1], values[1:]), ir_version=8)
    size = 4 * n * n
    for i in range(count):
        weight = proto.graph.initializer.add(name=f"w{i}", dims=[n, n], data_type=1, data_location=1)
        for key, value in {"location": "big.data", "offset": i * size, "length": size}.items():
            weight.external_data.add(key=key, value=str(value))
    (tmp_path / "big.onnx").write_bytes(proto.SerializeToString())
    with (tmp_path / "big.data").open("wb") as data:
        data.truncate(count * size)
    paths = [tmp_path / "big.onnx", tmp_path / "out.onnx"]
    done = subprocess.run([sys.executable, "-c", CHILD, *paths], check=True, capture_output=True, text=True)
    peak = json.loads(done.stdout)
    assert (tmp_path / "out.onnx.data").stat().st_size == count * size
    assert peak["load"] < 0.05 * count * size
    assert peak["write"] < 0.1 * count * size
