from __future__ import annotations

import sys
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from models import conv_net, labelled, save
from onnx import TensorProto, helper, numpy_helper

import polycast
from polycast import passes
from polycast.errors import InputError, PassError, PromiseError, RecipeError, UnsupportedError
from polycast.passbase import Numerics, Pass, PassContext
from polycast.targetbase import Answer, Probe
from polycast.targets.cpu import Cpu


def digests(folder: Path) -> dict[str, str]:
    return {p.name: sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def test_the_same_inputs_give_the_same_bytes(tmp_path):
    source = conv_net(tmp_path / "m.onnx")
    first, second = (polycast.compile(source, precision="fp32,fp16", out=tmp_path / out) for out in "ab")
    for one, other in zip(first, second, strict=True):
        assert digests(one.path) == digests(other.path)


def test_every_target_and_precision_gets_its_folder(tmp_path):
    builds = polycast.compile(conv_net(tmp_path / "m.onnx"), targets=["cpu"], precision=["fp32", "fp16"], out=tmp_path)
    assert [b.path.name for b in builds] == ["cpu-fp32", "cpu-fp16"]
    assert builds[1].promise["reached"]["weights"]["fp16"] >= 0.9
    assert builds[1].bytes < builds[0].bytes


def test_passes_and_recipes_take_the_place_of_a_precision(tmp_path):
    source = conv_net(tmp_path / "m.onnx")
    (tmp_path / "mine.toml").write_text('passes = ["clean", "fuse_conv_bn"]')
    [custom] = polycast.compile(source, passes="clean | fold", out=tmp_path)
    [mine] = polycast.compile(source, recipe=tmp_path / "mine.toml", out=tmp_path)
    assert (custom.path.name, mine.path.name) == ("cpu-custom", "cpu-mine")
    with pytest.raises(RecipeError, match="both a recipe and passes"):
        polycast.compile(source, recipe="a.toml", passes="clean", out=tmp_path)


def test_shapes_are_fixed_in_the_build(tmp_path):
    [build] = polycast.compile(conv_net(tmp_path / "m.onnx"), shapes={"x": (4, 3, 8, 8)}, out=tmp_path)
    assert build.signature.inputs[0].shape == (4, 3, 8, 8)
    with pytest.raises(InputError, match="x has shape"):
        build.run({"x": np.zeros((1, 3, 8, 8), np.float32)})


def test_users_samples_are_preferred_calibration_first(tmp_path):
    source, c, d = conv_net(tmp_path / "m.onnx"), labelled(tmp_path / "c.npz", 3), labelled(tmp_path / "d.npz", 30)
    [both] = polycast.compile(source, calibration=c, data=d, out=tmp_path)
    [data] = polycast.compile(source, data=d, out=tmp_path)
    assert [(b.agreement["samples"], b.agreement["n"]) for b in (both, data)] == [("calibration", 3), ("data", 16)]


@pytest.mark.parametrize("precision", ["fp32", "int8", "auto"])
def test_an_unknown_op_is_refused_by_name_and_nothing_is_left(precision, tmp_path):
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["a"]),
            helper.make_node("Frobnicate", ["a"], ["b"], domain="com.example"),
            helper.make_node("Twiddle", ["b"], ["y"], domain="com.example"),
        ],
        "odd",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.example", 1)], ir_version=10
    )
    onnx.save(model, tmp_path / "odd.onnx")
    np.savez(tmp_path / "rows.npz", x=np.ones((8, 4), np.float32))
    with pytest.raises(UnsupportedError, match=r"com\.example\.Frobnicate.*com\.example\.Twiddle"):
        polycast.compile(
            tmp_path / "odd.onnx", precision=precision, calibration=tmp_path / "rows.npz", out=tmp_path / "out"
        )
    assert not (tmp_path / "out").exists()


def test_an_op_without_a_kernel_for_its_types_is_refused(tmp_path):
    text = """<ir_version: 10, opset_import: ["" : 17]> g (float[2, 2] x) => (float[2, 2] y)
      <bfloat16[2, 2] w = {1, 0, 0, 1}> { a = Cast<to = 16>(x)  b = MatMul(a, w)  y = Cast<to = 1>(b) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "half.onnx")
    with pytest.raises(UnsupportedError, match="implementation for MatMul"):
        polycast.compile(tmp_path / "half.onnx", out=tmp_path / "out")


def test_text_is_refused_with_what_the_ports_are_called(tmp_path):
    text = """<ir_version: 10, opset_import: ["" : 21]> g (string[2] words, float[2] x) => (float[2] y, string[2] same)
      { same = Identity(words)  y = Relu(x) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "text.onnx")
    with pytest.raises(InputError, match=r"input words: str\[2\], output same: str\[2\]") as caught:
        polycast.compile(tmp_path / "text.onnx", out=tmp_path / "out")
    assert "extract_model" in caught.value.hint


@pytest.mark.parametrize(
    ("target", "kind"), [("cpu@litert", "float16"), ("cpu@litert", "bfloat16"), ("cpu@tvm", "bfloat16")]
)
def test_an_original_in_half_the_bytes_is_refused_with_what_to_do(target, kind, tmp_path):
    text = f"""<ir_version: 10, opset_import: ["" : 21]> g ({kind}[2, 2] x) => ({kind}[2, 2] y)
      <{kind}[2, 2] w = {{1, 0, 0, 1}}> {{ y = MatMul(x, w) }}"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "half.onnx")
    with pytest.raises(UnsupportedError, match=f"of {kind}") as caught:
        polycast.compile(tmp_path / "half.onnx", target, out=tmp_path / "out")
    assert "float32" in caught.value.hint


def test_integers_that_could_need_more_than_32_bits_are_named(tmp_path):
    text = """<ir_version: 10, opset_import: ["" : 21]> g (float[2] x) => (float[2] y)
      <int64[1] c = {100000}> { i = Cast<to = 7>(x)  m = Mul(i, c)  y = Cast<to = 1>(m) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "wide.onnx")
    [wide] = polycast.compile(tmp_path / "wide.onnx", "cpu@tvm", out=tmp_path / "out")
    assert wide.manifest["runtime"]["limits"].endswith(": i, m")
    assert wide.manifest["runtime"]["limits"] in (wide.path / "README.md").read_text(encoding="utf-8")
    [other] = polycast.compile(tmp_path / "wide.onnx", out=tmp_path / "out")
    assert "limits" not in other.manifest["runtime"]


@dataclass(frozen=True)
class Drift(Pass):
    """Multiplies by a number near one and calls that rounding."""

    numerics = Numerics.ROUNDING
    factor: float = 1.01

    def rewrite(self, graph: ir.Model, ctx: PassContext) -> int:
        relus = [n for n in graph.graph if n.op_type == "Relu" and n.name != "drifted"]
        for node in relus:
            node.name = "drifted"
            scale = ir.Value(name="factor", const_value=ir.tensor(np.float32(self.factor), name="factor"))
            graph.graph.register_initializer(scale)
            mul = ir.Node("", "Mul", [node.outputs[0], scale], name="drift")
            ir.convenience.replace_all_uses_with(node.outputs[0], mul.outputs[0])
            mul.replace_input_with(0, node.outputs[0])
            graph.graph.insert_after(node, mul)
        return len(relus)


def test_a_pass_that_moves_the_outputs_is_blamed_by_name(tmp_path, monkeypatch):
    known = {**passes.catalogue(), "drift": Drift}
    monkeypatch.setattr("polycast.pipeline.catalogue", lambda: known)
    source = conv_net(tmp_path / "m.onnx")
    with pytest.raises(PassError, match=r"drift moves output 'logits' by 0\.00\d+ of its largest value"):
        polycast.compile(source, passes="clean | fuse_conv_bn | drift | fold", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_half_precision_that_would_overflow_stays_in_float32_and_breaks_the_promise(tmp_path):
    """The activations pass 65504: with samples that is seen, without any the build says that it was not checked."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "large")],
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 64])],
        [onnx.numpy_helper.from_array(np.full((64, 64), 3e4, np.float32), "w")],
    )
    source = save(graph, tmp_path / "large.onnx")
    np.savez(tmp_path / "c.npz", x=np.ones((4, 64), np.float32))
    [unchecked] = polycast.compile(source, precision="fp16", out=tmp_path / "unchecked")
    assert any("ranges not checked" in skip["reason"] for step in unchecked.steps for skip in step["skips"])
    with pytest.raises(PromiseError, match=r"asked 90% of weights in fp16, reached 0\.0%") as caught:
        polycast.compile(source, precision="fp16", calibration=tmp_path / "c.npz", out=tmp_path / "out")
    assert "65504" in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_the_package_gives_functions_not_modules():
    import polycast.compile
    import polycast.evaluate
    import polycast.load

    assert callable(polycast.compile)
    assert callable(polycast.load)
    assert callable(polycast.evaluate)
    assert set(polycast.__all__) <= set(dir(polycast))
    for name in polycast.__all__:
        assert getattr(polycast, name).__module__.startswith("polycast")


def test_a_build_whose_own_runner_fails_is_refused(tmp_path, monkeypatch):
    """The runner in the build, not this process, has the last word."""
    source = conv_net(tmp_path / "m.onnx")
    fail = b"import sys\nsys.exit('golden sample 0, output logits: off by 1')\n"

    def write(self, model, folder):
        facts = written(self, model, folder)
        (folder / "run.py").write_bytes(fail)
        return facts

    written = Cpu.write
    monkeypatch.setattr(Cpu, "write", write)
    with pytest.raises(PromiseError, match=r"does not verify itself: .* output logits: off by 1"):
        polycast.compile(source, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_that_cannot_be_compared_with_itself_says_so(tmp_path, monkeypatch):
    """Where one unit in the last place turns the original's own outputs into NaN, nothing is accepted or blamed."""
    known = {**passes.catalogue(), "drift": Drift}
    monkeypatch.setattr("polycast.pipeline.catalogue", lambda: known)
    monkeypatch.setattr(sys.modules["polycast.blame"], "own_rounding", lambda *_: float("inf"))
    [build] = polycast.compile(conv_net(tmp_path / "m.onnx"), passes="drift", out=tmp_path / "out")
    assert "when only its rounding changes" in build.agreement["not_run"]
    assert build.manifest["golden"]["n"] == 0
    assert build.verify() == []


def test_blame_runs_each_pass_with_what_the_target_has(tmp_path, monkeypatch):
    """A pass that acts only where the target has a feature is found guilty all the same."""

    @dataclass(frozen=True)
    class Needy(Drift):
        needs = ("fp16",)

        def rewrite(self, graph: ir.Model, ctx: PassContext) -> int:
            return super().rewrite(graph, ctx) if "fp16" in ctx.features else 0

    known = {**passes.catalogue(), "needy": Needy}
    monkeypatch.setattr("polycast.pipeline.catalogue", lambda: known)
    with pytest.raises(PassError, match=r"^needy moves output"):
        polycast.compile(conv_net(tmp_path / "m.onnx"), passes="clean | needy | fold", out=tmp_path / "out")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_build_for_a_device_that_is_not_here_is_held_to_what_its_graph_gives(tmp_path, monkeypatch, precision):
    source = conv_net(tmp_path / "m.onnx")
    [here] = polycast.compile(source, precision=precision, out=tmp_path / "here")
    away = Probe(Answer(True, "a compiler"), Answer(False, "no such chip is here", "buy one"), "device")
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(Cpu, "probe", lambda _: away)
        [build] = polycast.compile(source, precision=precision, out=tmp_path / "away")
    assert build.manifest["evidence"] == "not run"
    assert build.agreement["not_run"] == "no such chip is here"
    graph = build.agreement["graph"]
    assert graph["n"] == here.agreement["n"]
    assert graph["within_tolerance"] is (precision == "fp32")
    # On the device the golden outputs are checked, and held to what the graph itself may move them by.
    golden = build.manifest["golden"]
    assert golden["n"] == here.manifest["golden"]["n"] > 0
    assert golden["tolerance"] == pytest.approx(max(graph["tolerance"], 2 * graph["worst"]), rel=1e-2)
    assert build.verify() == []
    assert "The graph that the kernels were made of" in (build.path / "README.md").read_text()
