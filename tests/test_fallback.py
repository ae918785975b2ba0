"""Fallback: the share of the multiply-accumulates on the CPU, counted by hand, and the limit that a user sets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from models import conv_net, labelled

import polycast
from polycast.cli import main
from polycast.errors import PromiseError
from polycast.fallback import Fallback, line
from polycast.load import load
from polycast.targets.cpu import Cpu

#: Of ``conv_net`` on one row: 16 channels of 3×3×3 at 8×8 positions, and 16×5 of the product.
CONV, GEMM = 16 * 27 * 64, 80
SHAPES = {"x": (1, 3, 8, 8)}


class Leaving(Cpu):
    """A target that leaves some nodes to the CPU."""

    def fallback(self, model):
        return {"gemm": "no such kernel", "relu": "too small"}


def test_a_target_without_the_notion_has_none(tmp_path):
    assert Fallback.of_model(Cpu(), load(conv_net(tmp_path / "m.onnx")), SHAPES) is None


def test_macs_are_counted_by_node(tmp_path):
    found = Fallback.of_model(Leaving(), load(conv_net(tmp_path / "m.onnx")), SHAPES)
    assert found is not None
    assert (found.nodes, found.of) == (2, 6)
    assert found.share == pytest.approx(GEMM / (CONV + GEMM))
    assert found.ops == {"Gemm": pytest.approx(GEMM / (CONV + GEMM), abs=1e-6), "Relu": 0}
    assert found.reasons == {"Gemm": "gemm: no such kernel", "Relu": "relu: too small"}


def test_the_limit_is_in_percent_and_names_ops_and_reasons(tmp_path):
    found = Fallback.of_model(Leaving(), load(conv_net(tmp_path / "m.onnx")), SHAPES)
    assert found is not None
    percent = 100 * GEMM / (CONV + GEMM)
    found.hold(percent * 1.01, Cpu())
    with pytest.raises(
        PromiseError, match=r"leaves 0\.3% of the MACs to the CPU, and 0\.1% are allowed: Gemm 0\.3%"
    ) as e:
        found.hold(0.1, Cpu())
    assert e.value.hint == "Because: gemm: no such kernel"


def test_what_falls_back_is_in_the_manifest_and_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Cpu, "fallback", Leaving.fallback)
    monkeypatch.chdir(tmp_path)
    conv_net(Path("m.onnx"))
    assert main(["compile", "m.onnx", "--passes", "clean", "-o", "out"]) == 0
    assert "fallback   2 of 6 nodes on the CPU, 0.3% of the MACs: Gemm, Relu" in capsys.readouterr().out
    readme = Path("out/cpu-custom/README.md").read_text()
    assert "4 of 6 nodes run where the build is for, and 0.3% of the MACs do not." in readme
    assert "| `gemm` | no such kernel |\n| `relu` | too small |\n" in readme
    manifest = json.loads(Path("out/cpu-custom/manifest.json").read_text())
    assert manifest["fallback"]["nodes"] == 2
    assert main(["compile", "m.onnx", "--passes", "clean", "-o", "no", "--max-cpu-share", "0.1"]) == 1
    assert "cpu leaves 0.3% of the MACs to the CPU" in capsys.readouterr().err
    assert not Path("no").exists()
    labelled(Path("test.npz"))
    assert main(["sweep", "m.onnx", "-p", "fp32", "--data", "test.npz", "-o", "no", "--max-cpu-share", "0.1"]) == 1
    assert "nothing was built: cpu-fp32: cpu leaves" in capsys.readouterr().err


def test_a_target_without_the_notion_keeps_every_limit(tmp_path):
    [build] = polycast.compile(conv_net(tmp_path / "m.onnx"), out=tmp_path, max_cpu_share=0)
    assert "fallback" not in build.manifest


def test_none_is_said_too():
    assert line({"nodes": 0}) == "none, by what the runtime has kernels for"
