"""Every pass keeps the contract of a pass, on real models. A new pass is picked up by itself."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import hashlib
import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import exports
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from polycast.data.feeds import Sample
from polycast.load import load
from polycast.model import Model, digest
from polycast.passbase import Numerics, Pass, PassContext
from polycast.passes import catalogue
from polycast.pipeline import Pipeline, apply
from polycast.seeded import seeded_feeds
from polycast.targets import catalogue as targets

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent.parent
PASSES = {name: kind for name, kind in catalogue().items() if kind.__module__.startswith("polycast.")}
FEATURES = frozenset().union(*(target().features for target in targets().values()))


def each_pass() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("kind", PASSES.values(), ids=PASSES.keys())


# What a pass declares.


@each_pass()
def test_file_has_the_name_of_the_pass(kind: type[Pass]) -> None:
    assert kind.__module__.rpartition(".")[2] == kind.name()


@each_pass()
def test_parameters_are_frozen_and_have_defaults(kind: type[Pass]) -> None:
    assert dataclasses.is_dataclass(kind) and kind.__dataclass_params__.frozen
    one = kind()
    assert one == kind() and hash(one) == hash(kind())
    assert Pipeline.parse(one.spelling) == Pipeline((one,))


@each_pass()
def test_numerics_and_needs_are_declared(kind: type[Pass]) -> None:
    assert isinstance(vars(kind)["numerics"], Numerics)
    assert set(kind.needs) <= FEATURES | {"calibration"}


@each_pass()
def test_docstring_names_its_source(kind: type[Pass]) -> None:
    text = inspect.getdoc(kind) or ""
    assert text.splitlines()[0].endswith("."), "the first line is one sentence"
    source = text.partition("Source:")[2].strip()
    assert source, "a paper and section, an ONNX operator and opset, or the peer's behaviour that it follows"


@each_pass()
def test_has_a_test_of_its_own(kind: type[Pass]) -> None:
    theme = kind.__module__.split(".")[-2]
    path = TESTS / theme / f"test_{kind.name()}.py"
    assert path.exists(), f"{path.relative_to(ROOT)} is missing"
    found = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.FunctionDef)]
    assert any(function.name.startswith("test_") for function in found)


# What a pass does, on the models that follow, cheapest first.


Feeds = dict[str, np.ndarray]


@dataclass(frozen=True)
class Subject:
    """A real model: where it is, and what to run it on where seeded inputs would leave something out."""

    name: str
    path: Callable[[], Path]
    inputs: Callable[[Path], Feeds] | None = None

    def feeds(self, model: Model) -> Feeds:
        """Give the inputs of one run: its own, or the first seeded ones that onnxruntime takes."""
        if self.inputs is not None:
            return self.inputs(self.path())
        for feeds in seeded_feeds(model):
            with contextlib.suppress(Exception):  # onnxruntime's own error types share no base class
                on_onnxruntime(whole(model.graph), feeds)
                return feeds
        raise AssertionError(f"{self.name} runs on no seeded inputs")


@pytest.fixture(scope="session")
def subjects(zoo: Callable[[str], Path], request: pytest.FixtureRequest) -> list[Subject]:
    made = (
        exports.bert_optimum,
        exports.gpt2_optimum,
        exports.vit_optimum,
        exports.llama_optimum,
        exports.bert_dynamo,
        exports.llama_dynamo,
    )
    return [
        Subject("digits", lambda: ROOT / "examples" / "digits" / "digits.onnx"),
        Subject("mnist", lambda: zoo("mnist/mnist.onnx")),
        Subject("kws", lambda: zoo("mlperftiny/kws.onnx")),
        Subject("ic_resnet8", lambda: zoo("mlperftiny/ic_resnet8.onnx")),
        Subject("stories260K", lambda: zoo("lm/stories260K.onnx")),
        *(Subject(make.__name__, make, exports.feeds_for) for make in made),
        Subject("silero", lambda: zoo("silero/silero_vad_16k_op15.onnx")),
        Subject("magika", lambda: zoo("magika/model.onnx")),
        Subject("fastestdet", lambda: zoo("coco/FastestDet.onnx")),
        Subject("superres", lambda: zoo("superres/sr_core.onnx")),
        Subject("vww", lambda: zoo("mlperftiny/vww_96.onnx")),
        Subject("mobilenet025", lambda: zoo("imagenet/mobilenet_v1_0.25_224.onnx")),
        Subject("minilm", lambda: request.getfixturevalue("minilm")),
    ]


@pytest.fixture(scope="session")
def bench(subjects: list[Subject]) -> Bench:
    return Bench(subjects)


class Bench:
    """The subjects as each pass meets them: loaded, and through the passes that come before it in a recipe."""

    def __init__(self, subjects: list[Subject]) -> None:
        self.subjects = subjects
        self.absent: dict[str, str] = {}
        self._models: dict[tuple[str, str], Model] = {}

    def __iter__(self) -> Iterator[Subject]:
        for subject in self.subjects:
            try:
                subject.path()
            except pytest.skip.Exception as reason:
                self.absent[subject.name] = str(reason)
            else:
                yield subject

    def before(self, kind: type[Pass], subject: Subject) -> Model:
        return self._through(prefix(kind), subject)

    def original(self, kind: type[Pass], subject: Subject) -> Model | None:
        """The model before the first lossy pass, which a repair compares with; None where none is lossy."""
        passes = (*prefix(kind), kind())
        lossless = tuple(takewhile(lambda each: each.numerics is not Numerics.LOSSY, passes))
        return self._through(lossless, subject) if lossless != passes else None

    def _through(self, passes: tuple[Pass, ...], subject: Subject) -> Model:
        key = (subject.name, str(Pipeline(passes)))
        if key not in self._models:
            if passes:
                before = self._through(passes[:-1], subject)
                lossless = tuple(takewhile(lambda each: each.numerics is not Numerics.LOSSY, passes))
                original = self._through(lossless, subject).graph if lossless != passes else None
                context = PassContext(FEATURES, calibration=Samples(subject.feeds(before)), original=original)
                model = apply(passes[-1], before, context)
            else:
                model = load(subject.path())
            self._models[key] = model
        return self._models[key]


def prefix(kind: type[Pass]) -> tuple[Pass, ...]:
    """Give the passes before ``kind`` in the first recipe of a target that has it; none where no recipe does."""
    for target in (make() for make in targets().values()):
        for precision in target.precisions:
            passes = Pipeline.parse(target.recipe(precision) or "").passes
            for at, each in enumerate(passes):
                if type(each) is kind:
                    return passes[:at]
    return ()


@each_pass()
def test_keeps_the_contract_and_acts_on_a_real_model(kind: type[Pass], bench: Bench) -> None:
    tried = []
    for subject in bench:
        tried.append(subject.name)
        if check_contract(kind(), bench.before(kind, subject), bench.original(kind, subject), subject):
            return
    if bench.absent:
        pytest.skip(f"no site in {', '.join(tried)}; not here: {', '.join(bench.absent)}")
    pytest.fail(f"{kind.name()} never fires: no site in {', '.join(tried)}")


#: Where the samples take a quantizing pass minutes, each time again.
LARGE = ("fastestdet", "mobilenet025", "minilm", "superres", "vww")


@pytest.mark.slow
@each_pass()
def test_keeps_the_contract_on_every_real_model(kind: type[Pass], bench: Bench) -> None:
    for subject in bench:
        if kind.__module__.split(".")[-2] == "quantization" and subject.name in LARGE:
            continue
        check_contract(kind(), bench.before(kind, subject), bench.original(kind, subject), subject)


def check_contract(one: Pass, model: Model, original: Model | None, subject: Subject) -> int:
    """Run ``one`` on a draft of ``model``, twice, and hold it to what a pass promises. Returns its sites."""
    feeds = subject.feeds(model)
    context = PassContext(FEATURES, calibration=Samples(feeds), original=original.graph if original else None)
    bytes_before, digest_before = fingerprint(model.graph), digest(model.graph)
    draft = model.draft()
    sites = one.rewrite(draft, context)
    assert fingerprint(model.graph) == bytes_before, "the input was changed"
    assert (sites == 0) == (digest(draft) == digest_before), f"{sites} sites"
    if sites:
        assert outline(draft) == outline(model.graph), "the signature changed"
        assert all(skip.node and skip.op and skip.reason for skip in context.skips)
        before, after = whole(model.graph), whole(draft)
        onnx.checker.check_model(after, full_check=True)
        hold_to_numerics(one.numerics, before, after, feeds)
        assert one.rewrite(draft, context.afresh()) == 0, "a second run found more"
    return sites


@dataclass
class Samples:
    """A small calibration set: what a model runs on, and the same with noise on floats and other indices first."""

    feeds: Feeds
    source: str = "conformance"
    kind: str = "arrays"

    def __len__(self) -> int:
        return 8

    def __iter__(self) -> Iterator[Sample]:
        for number in range(len(self)):
            rng = np.random.default_rng(number)
            feeds = {name: self._vary(array, number, rng) for name, array in self.feeds.items()}
            yield Sample(feeds, None, f"{self.source} {number}")

    @staticmethod
    def _vary(array: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
        if array.dtype.kind != "f":
            return np.roll(array, number, -1) if array.ndim else array
        spread = array.std() if array.size else 0.0
        return (array + rng.normal(0, 1, array.shape) * (spread * (number > 0))).astype(array.dtype)


def whole(graph: ir.Model) -> onnx.ModelProto:
    """Give ``graph`` with its weights inside."""
    copy = graph.clone()
    for part in (copy.graph, *copy.graph.subgraphs()):
        for value in part.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor):
                value.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)
    return ir.to_proto(copy)


def fingerprint(graph: ir.Model) -> str:
    """Hash every byte of ``graph``: nothing is remembered between two calls."""
    proto = whole(graph)
    drop_tensor_names(proto.graph)
    return hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()


def drop_tensor_names(graph: onnx.GraphProto) -> None:
    """Clear what onnx-ir fills in when it first reads a constant: the name of the tensor inside the attribute."""
    for node in graph.node:
        for attribute in node.attribute:
            attribute.t.ClearField("name")
            for inner in (attribute.g, *attribute.graphs):
                drop_tensor_names(inner)


def outline(graph: ir.Model) -> list[tuple[str | None, ir.DataType | None, int | None]]:
    """Name, dtype and rank of every input and output, in order."""
    ports = [v for v in graph.graph.inputs if v.name not in graph.graph.initializers] + list(graph.graph.outputs)
    return [(port.name, port.dtype, None if port.shape is None else len(port.shape)) for port in ports]


def hold_to_numerics(numerics: Numerics, before: onnx.ModelProto, after: onnx.ModelProto, feeds: Feeds) -> None:
    """EXACT: bit-equal on the reference evaluator. ROUNDING: within ``rounding``. LOSSY: same dtype, shape, finite.

    A model that the reference evaluator itself cannot run is judged by onnxruntime, whose kernels may round otherwise.
    """
    run = on_reference if numerics is Numerics.EXACT else on_onnxruntime
    try:
        wanted = run(before, feeds)
    except Exception:  # the reference evaluator fails in as many ways as it has ops
        run, numerics = on_onnxruntime, Numerics.ROUNDING
        wanted = run(before, feeds)
    for want, found in zip(wanted, run(after, feeds), strict=True):
        assert (found.dtype, found.shape) == (want.dtype, want.shape)
        if numerics is Numerics.LOSSY:
            assert np.isfinite(found).all() or not np.isfinite(want).all()
        elif numerics is Numerics.EXACT or want.dtype.kind != "f":
            np.testing.assert_array_equal(found, want)
        else:
            np.testing.assert_allclose(found, want, rtol=0, atol=rounding(before, want.dtype) * np.abs(want).max())


def on_reference(model: onnx.ModelProto, feeds: Feeds) -> list[np.ndarray]:
    with np.errstate(all="ignore"):  # a row of -inf is no fault of ours
        return ReferenceEvaluator(model).run(None, feeds)


def on_onnxruntime(model: onnx.ModelProto, feeds: Feeds) -> list[np.ndarray]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def rounding(model: onnx.ModelProto, dtype: np.dtype) -> float:
    """How far two orders of the same operations may lie apart, as a share of the largest output.

    A sum of n terms is off by sqrt(n) roundings with overwhelming probability (Higham and Mary 2019, SIAM J. Sci.
    Comput. 41(5)); n is the longest sum over a weight, and every node on the way to the outputs adds its own.
    """
    dims = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    sums = {"Conv": lambda w: w[1:], "Gemm": lambda w: [max(w)], "MatMul": lambda w: w[-2:-1]}
    longest = max(
        (
            math.prod(sums[n.op_type](dims[n.input[1]]))
            for n in model.graph.node
            if n.op_type in sums and n.input[1] in dims
        ),
        default=1,
    )
    return float(np.finfo(dtype).eps) * math.sqrt(longest) * depth(model.graph)


def depth(graph: onnx.GraphProto) -> int:
    """Count the nodes on the longest way through ``graph``."""
    level: dict[str, int] = {}
    for node in graph.node:
        here = 1 + max((level.get(name, 0) for name in node.input), default=0)
        level.update(dict.fromkeys(node.output, here))
    return max(level.values(), default=1)
