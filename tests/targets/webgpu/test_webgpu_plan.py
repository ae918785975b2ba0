"""The plan of a browser build: what it says of inputs and outputs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from given import parsed

from polycast.targets import find

pytest.importorskip("tvm", reason="apache-tvm is not installed")


def test_an_output_has_the_shape_of_the_model_where_its_buffer_was_reshaped(tmp_path: Path) -> None:
    body = "g (float[1, 6] x) => (float[2, 3] y) { h = Relu(x) y = Reshape(h, shape) }"
    find("webgpu").write(parsed(body, {"shape": np.array([2, 3])}, inferred=True), tmp_path)
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert [(port["name"], port["shape"]) for port in plan["inputs"]] == [("x", [1, 6])]
    assert [(port["name"], port["shape"]) for port in plan["outputs"]] == [("y", [2, 3])]
