"""Weights that lie in a file are linked into the folder of a run; others are written there once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from observing import graph, normal

from polycast.calibrating._weights import store

BODY = "g (float[n, 64] x) => (float[n, 32] y) { h = MatMul(x, w) y = Add(h, b) }"
WEIGHTS = {"w": normal(64, 32), "b": normal(32)}


def in_a_file(path: Path, offset: int) -> ir.Model:
    """Put ``w`` into a file, ``offset`` bytes from its start."""
    model = graph(BODY, WEIGHTS)
    path.write_bytes(b"\0" * offset + WEIGHTS["w"].tobytes())
    w = ir.ExternalTensor(
        path.name, offset, 64 * 32 * 4, ir.DataType.FLOAT, shape=ir.Shape([64, 32]), name="w", base_dir=path.parent
    )
    model.graph.initializers["w"].const_value = w
    return model


def assert_runs(model: ir.Model, folder: Path) -> None:
    ir.save(model, folder / "model.onnx")
    session = ort.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    x = normal(3, 64, seed=1)
    eps = float(np.finfo(np.float32).eps)
    np.testing.assert_allclose(
        session.run(None, {"x": x})[0], x @ WEIGHTS["w"] + WEIGHTS["b"], rtol=0, atol=64 * eps * 16
    )


@pytest.mark.parametrize(("offset", "links"), [(4096, 2), (3, 1)], ids=["aligned", "not aligned"])
def test_a_file_is_linked_where_its_numbers_can_be_read(tmp_path: Path, offset: int, links: int) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    original = in_a_file(tmp_path / "weights.bin", offset)
    model = original.clone()
    store(model, folder)
    assert (tmp_path / "weights.bin").stat().st_nlink == links
    assert_runs(model, folder)
    assert Path(original.graph.initializers["w"].const_value.path).parent == tmp_path


def test_what_lies_in_no_file_is_written_and_shared_weights_once(tmp_path: Path) -> None:
    model = graph(BODY, WEIGHTS)
    again = ir.Value(name="again", const_value=model.graph.initializers["w"].const_value)
    model.graph.register_initializer(again)
    store(model, tmp_path)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) == WEIGHTS["w"].nbytes
    assert not isinstance(model.graph.initializers["b"].const_value, ir.ExternalTensor)  # small ones stay
    assert_runs(model, tmp_path)
