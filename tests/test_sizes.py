"""Sizes: what is stored, by layer and by precision, adds up to what the file holds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from models import conv_net, labelled
from onnx import numpy_helper

import polycast
from polycast.load import load
from polycast.passbase import PassContext
from polycast.recipe import Recipe
from polycast.sizes import by_precision, facts, layers, library
from polycast.targets import find


def lowered(source: Path, precision: str) -> tuple[polycast.Model, polycast.Model]:
    model, target = load(source), find("cpu")
    return model, Recipe.of(target, precision).pipeline.run(model, PassContext(target.features))


def test_every_initializer_counts_once(tmp_path: Path) -> None:
    source = conv_net(tmp_path / "m.onnx")
    held = sum(numpy_helper.to_array(each).nbytes for each in onnx.load(source).graph.initializer)
    model = load(source)
    assert by_precision(model) == {"fp32": held}
    assert sum(sum(layer.stored.values()) for layer in layers(model)) == held
    said = facts(model, model)
    assert said["original"] == {"bytes": source.stat().st_size, "weights": {"fp32": held}}
    assert "others" not in said


def test_layers_are_called_by_what_reads_their_weights(tmp_path: Path) -> None:
    """However many nodes bring the integers into their form."""
    model, narrow = lowered(conv_net(tmp_path / "m.onnx"), "int8-weights")
    before, after = ({layer.name: layer for layer in layers(each)} for each in (model, narrow))
    assert list(before) == ["conv", "norm", "gemm"] or set(before) == {"conv", "norm", "gemm"}
    assert after["conv"].stored["int8"] == before["conv"].stored["fp32"] // 4
    assert after["gemm"].op in ("Gemm", "MatMulNBits")
    assert sum(by_precision(narrow).values()) == sum(sum(layer.stored.values()) for layer in layers(narrow))


def test_four_bits_are_called_so_whatever_holds_them(zoo) -> None:  # type: ignore[no-untyped-def]
    _, narrow = lowered(zoo("lm/stories260K.onnx"), "int4")
    products = [node for node in narrow.graph.graph if node.op_type == "MatMulNBits"]
    elements = sum(node.attributes["N"].as_int() * node.attributes["K"].as_int() for node in products)
    assert elements
    assert by_precision(narrow)["int4"] == elements // 2


def test_weights_in_a_file_beside_count_to_the_original(tmp_path: Path) -> None:
    model = onnx.load(conv_net(tmp_path / "m.onnx"))
    onnx.save(model, tmp_path / "e.onnx", save_as_external_data=True, location="e.bin", size_threshold=0)
    apart = load(tmp_path / "e.onnx")
    files = sum((tmp_path / name).stat().st_size for name in ("e.onnx", "e.bin"))
    assert facts(apart, apart)["original"]["bytes"] == files


def test_a_manifest_says_sizes_and_activations(tmp_path: Path) -> None:
    source = conv_net(tmp_path / "m.onnx")
    labelled(tmp_path / "d.npz")
    [build] = polycast.compile(source, precision="fp16", calibration=tmp_path / "d.npz", out=tmp_path / "out")
    manifest = json.loads((build.path / "manifest.json").read_text())
    weights = sum(manifest["size"]["weights"].values())
    assert 0 < weights <= build.bytes
    assert manifest["size"]["original"]["bytes"] == source.stat().st_size
    x = np.load(tmp_path / "d.npz")["x"][:1]
    assert manifest["activations"]["bytes"] > x.nbytes
    assert f"{manifest['activations']['bytes']:,} bytes of activations" in (build.path / "README.md").read_text()


def test_the_library_of_a_runtime_is_weighed_where_it_is() -> None:
    weight, said = library("onnxruntime")
    assert weight > 1 << 20
    assert said.startswith("onnxruntime ")


def test_a_library_that_is_not_here_says_so() -> None:
    assert library("onnxruntime-web") == (0, "not installed here")
    assert library("runner") == (0, "in the build")
