"""What a layer takes more in float: of a real int8 build, by the runtime's own profiler."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from models import conv_net, labelled

from polycast.compile import compile
from polycast.layer_costs import layer_costs


def test_every_layer_has_a_time_of_its_own(tmp_path: Path) -> None:
    conv_net(tmp_path / "m.onnx")
    labelled(tmp_path / "c.npz")
    floats, int8 = compile(
        tmp_path / "m.onnx", precision="fp32,int8", calibration=tmp_path / "c.npz", out=tmp_path / "out"
    )
    feeds = {"x": np.zeros((1, 3, 8, 8), np.float32)}
    names = {row["name"] for row in json.loads((int8.path / "sensitivity.json").read_text())["layers"]}
    costs = layer_costs(int8, floats, feeds)
    assert set(costs) == names
    assert len(names) == 2
    assert any(costs.values()), "an integer kernel takes another time"
    assert all(abs(more) < 0.1 for more in costs.values()), "seconds of one run of a tiny layer"
    assert layer_costs(floats, floats, feeds) == {}, "nobody said what its layers are"
