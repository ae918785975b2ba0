from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import conv_net

from polycast import passes
from polycast.errors import PassError, RecipeError
from polycast.load import load
from polycast.model import Model
from polycast.passbase import Numerics, Pass, PassContext
from polycast.pipeline import Pipeline, apply


@dataclass(frozen=True)
class Tweak(Pass):
    """A pass for these tests: does what its parameters say."""

    numerics = Numerics.EXACT
    mode: str = "honest"
    factor: float = 1.0

    def rewrite(self, graph: ir.Model, ctx: PassContext) -> int:
        relus = [node for node in graph.graph if node.op_type == "Relu"]
        if self.mode == "skips":
            ctx.skip(relus[0], "not today")
            ctx.skip(relus[0], "not today")
            return 0
        if self.mode == "raises":
            raise ValueError("no good")
        if self.mode == "renames":
            graph.graph.outputs[0].name = "other"
        if self.mode == "breaks":
            relus[0].op_type = "NoSuchOp"
        elif relus:
            relus[0].op_type = "Sigmoid"
        return 0 if self.mode == "silent" else len(relus)


@pytest.fixture(autouse=True)
def _with_tweak(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {**passes.catalogue(), "tweak": Tweak}
    monkeypatch.setattr("polycast.pipeline.catalogue", lambda: known)


@pytest.fixture
def model(tmp_path) -> Model:
    return load(conv_net(tmp_path / "m.onnx"))


def test_text_form_round_trips():
    text = "clean | tweak(mode='a|b (c', factor=2.5) | fold(max_bytes=4096)"
    assert str(Pipeline.parse(text)) == text
    assert str(Pipeline.parse(" clean|fold ( ) ")) == "clean | fold"
    assert Pipeline.parse("") == Pipeline()


@given(st.text(), st.floats(allow_nan=False, allow_infinity=False))
def test_every_parameter_round_trips(mode: str, factor: float):
    pipeline = Pipeline((Tweak(mode, factor), Tweak()))
    known = {"tweak": Tweak}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("polycast.pipeline.catalogue", lambda: known)
        assert Pipeline.parse(str(pipeline)) == pipeline


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("claen", "unknown pass 'claen'", "Did you mean 'clean'?"),
        ("clean | ", "cannot read '' as a pass", "Write it as"),
        ("tweak(mod='x')", "unknown parameter of tweak 'mod'", "Did you mean 'mode'?"),
        ("tweak(mode=3)", "tweak: mode takes str, not 3", "Its default is 'honest'"),
        ("tweak('x')", "cannot read the parameters of tweak", "Write them as"),
        ("tweak(mode=__import__('os'))", "cannot read the parameters of tweak", "Write them as"),
    ],
)
def test_what_cannot_be_read_is_named(text: str, message: str, hint: str):
    with pytest.raises(RecipeError) as caught:
        Pipeline.parse(text)
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_a_step_is_recorded_and_the_input_stays(model: Model):
    before = model.digest
    after = Pipeline.parse("tweak").run(model)
    assert model.digest == before != after.digest
    assert [(s.what, s.sites) for s in after.history] == [("tweak", 1)]
    assert apply(Tweak(), after, PassContext()).history[-1].sites == 0


def test_skips_are_recorded_once(model: Model):
    [step] = Pipeline.parse("tweak(mode='skips')").run(model).history
    assert [str(skip) for skip in step.skips] == ["relu (Relu): not today"]


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("raises", "ValueError: no good"),
        ("silent", "changed m and reports 0 sites"),
        ("renames", "changed the signature of m"),
        ("breaks", "left an invalid graph of m: .*NoSuchOp"),
    ],
)
def test_a_pass_that_breaks_its_contract_is_named(model: Model, mode: str, message: str):
    with pytest.raises(PassError, match=f"tweak.*{message}"):
        Pipeline((Tweak(mode),)).run(model)


def test_sites_without_a_change_are_refused(model: Model):
    twice = Pipeline.parse("tweak").run(model)
    with pytest.raises(PassError, match="reports 1 sites and left"):
        Pipeline((_Claims(),)).run(twice)


@dataclass(frozen=True)
class _Claims(Pass):
    """Claims a site and does nothing."""

    numerics = Numerics.EXACT

    def rewrite(self, graph: ir.Model, ctx: PassContext) -> int:
        return 1


def test_keep_writes_the_model_after_each_pass(model: Model, tmp_path):
    Pipeline.parse("clean | tweak").run(model, keep=tmp_path / "kept")
    assert sorted(p.name for p in (tmp_path / "kept").iterdir()) == ["00-load.onnx", "01-clean.onnx", "02-tweak.onnx"]
    assert load(tmp_path / "kept" / "02-tweak.onnx").signature == model.signature


def test_numerics_is_the_loosest():
    assert Pipeline.parse("clean").numerics is Numerics.EXACT
    assert Pipeline.parse("clean | fuse_gelu").numerics is Numerics.ROUNDING
    assert Pipeline().numerics is Numerics.EXACT
