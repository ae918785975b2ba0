"""Evaluate: real builds of a classifier of handwritten digits, against scikit-learn's own count."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from polycast.build import Build
from polycast.compile import compile
from polycast.errors import InputError, RecipeError, ToolchainError
from polycast.evaluate import Evaluation, evaluate
from polycast.evaluating import bench, worker
from polycast.metrics import KNOWN
from polycast.rendering.tables import figure
from polycast.report import Report
from polycast.targetbase import Evidence, Session

TRAINED, SCORED = 900, 600


@dataclass(frozen=True)
class Digits:
    """A trained classifier, a coarse copy of it, their builds and predictions, and the data."""

    model: Path
    data: Path
    unlabelled: Path
    good: Build
    coarse: Build
    right: np.ndarray
    coarse_right: np.ndarray
    same: np.ndarray


def write(path: Path, weights: np.ndarray, bias: np.ndarray) -> None:
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "w", "b"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["scores"]),
        ],
        "digits",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(a.astype(np.float32), n) for a, n in ((weights, "w"), (bias, "b"))],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    folder = tmp_path_factory.mktemp("digits")
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    trained = LogisticRegression(max_iter=200).fit(x[:TRAINED], y[:TRAINED])
    x, y = x[TRAINED : TRAINED + SCORED], y[TRAINED : TRAINED + SCORED]
    weights, bias = trained.coef_.T, trained.intercept_
    coarse = np.round(weights * 1.5) / 1.5
    np.savez(folder / "data.npz", x=x, label=y)
    np.savez(folder / "unlabelled.npz", x=x)
    builds = []
    for name, w in (("model", weights), ("coarse", coarse)):
        write(folder / f"{name}.onnx", w, bias)
        builds += compile(folder / f"{name}.onnx", out=folder / name, passes="clean")
    ours, theirs = (x @ w.astype(np.float32) + bias.astype(np.float32) for w in (weights, coarse))
    right, coarse_right = ours.argmax(1) == y, theirs.argmax(1) == y
    return Digits(
        folder / "model.onnx",
        folder / "data.npz",
        folder / "unlabelled.npz",
        builds[0],
        builds[1],
        right,
        coarse_right,
        ours.argmax(1) == theirs.argmax(1),
    )


@pytest.fixture(scope="module")
def pair(digits: Digits) -> list[Evaluation]:
    return evaluate(
        [digits.good, digits.coarse.path],
        against=digits.model,
        data=digits.data,
        max_drop="1pp",
        max_size="100KB",
        max_latency=1000,
        seconds=0.2,
    )


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the footprint in one process."""
    monkeypatch.setattr("polycast.evaluating.bench.HEATS", 1)


def test_accuracy_is_the_share_of_right_answers(digits: Digits, pair: list[Evaluation]) -> None:
    good, coarse = pair
    assert good.baseline["top1"].value == pytest.approx(digits.right.mean(), abs=1e-12)
    assert coarse.measurements["top1"].value == pytest.approx(digits.coarse_right.mean(), abs=1e-12)
    assert coarse.measurements["agreement"].value == pytest.approx(digits.same.mean(), abs=1e-12)
    assert coarse.measurements["top1"].n == coarse.n == SCORED
    assert list(good.differences) == ["top1", "top5"]


def test_the_difference_is_paired(digits: Digits, pair: list[Evaluation]) -> None:
    good, coarse = (e.differences["top1"] for e in pair)
    assert good.value == 0
    assert good.interval.low < 0 < good.interval.high, "600 equal answers are no proof of equality"
    assert coarse.value == pytest.approx(digits.coarse_right.mean() - digits.right.mean(), abs=1e-12)
    assert coarse.interval.low < coarse.value < coarse.interval.high < 0
    assert coarse.interval.what == "95 % Agresti-Min, paired"


def test_every_figure_is_there_with_its_evidence(pair: list[Evaluation]) -> None:
    names = {"size", "latency", "latency_p90", "latency_p99", "throughput", "memory", "load_time"}
    for evaluation in pair:
        assert names | {"top1", "top5"} == set(evaluation.baseline)
        assert names | {"speedup", "top1", "top5", "agreement", "sqnr"} == set(evaluation.measurements)
        assert not evaluation.not_run
        assert {m.evidence for m in evaluation.measurements.values()} == {"device"}


def test_budgets(digits: Digits, pair: list[Evaluation]) -> None:
    good, coarse = pair
    assert good.missed == ()
    assert [v.budget for v in good.budgets] == ["max_drop", "max_size", "max_latency"]
    drop = (digits.right.mean() - digits.coarse_right.mean()) * 100
    assert list(map(str, coarse.missed)) == [f"max drop: top1 is {drop:.2f} pp worse, allowed 1pp"]


def test_small_n_is_said_aloud(pair: list[Evaluation]) -> None:
    half = pair[0].differences["top1"].interval.width / 2 * 100
    assert pair[0].notes == (f"small n: with 600 samples, a difference in top1 under {half:.2g} pp is noise",)
    assert pair[1].notes[1].endswith("is wider than the budget of 1pp")


def test_json_both_ways(pair: list[Evaluation]) -> None:
    for evaluation in pair:
        text = json.dumps(evaluation.to_json(), allow_nan=False)
        assert Evaluation.from_json(json.loads(text)) == evaluation
    newer = pair[0].to_json() | {"schema": 99}
    with pytest.raises(InputError, match=r"e\.json has schema 99, this polycast reads 1"):
        Evaluation.from_json(newer, "e.json")
    damaged = {key: value for key, value in pair[0].to_json().items() if key != "against"}
    with pytest.raises(InputError, match=r"e\.json is no evaluation: KeyError: 'against'"):
        Evaluation.from_json(damaged, "e.json")


@pytest.mark.usefixtures("quick")
def test_without_labels_the_original_is_the_measure(digits: Digits) -> None:
    stages: list[str] = []
    found = evaluate(
        digits.coarse,
        against=digits.model,
        data=digits.unlabelled,
        max_drop=0.001,
        seconds=0.02,
        progress=lambda stage, done, total: stages.append(stage) if done <= total else None,
    )
    assert isinstance(found, Evaluation)
    assert found.not_run == {"accuracy": "the data has no labels"}
    assert found.differences == {}
    drop = (1 - digits.same.mean()) * 100
    assert list(map(str, found.missed)) == [f"max drop: agreement is {drop:.2f} pp worse, allowed 0.001"]
    assert list(dict.fromkeys(stages)) == ["score", "time"]


class Fake:
    """A session beside a real one: its outputs go through ``change``."""

    def __init__(self, session: Session, evidence: Evidence = "device", nan: bool = False) -> None:
        self.session, self.evidence, self.nan = session, evidence, nan

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        outputs = self.session.run(feeds)
        if self.nan and feeds["x"][0, 2] > 0.5:
            outputs[0][:] = np.nan
        return outputs


@pytest.mark.usefixtures("quick")
def test_an_emulated_build_has_numbers_and_no_speed(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = digits.good.open()
    monkeypatch.setattr(Build, "open", lambda self: Fake(opened, "emulated"))
    found = evaluate(digits.good, against=digits.model, data=digits.data, max_latency=5, seconds=0.02)
    assert found.measurements["top1"].evidence == "emulated"
    assert found.baseline["top1"].evidence == "device"
    for name in ("latency", "speedup", "throughput", "memory", "load_time"):
        assert found.cell(name) == "emulated: numerics only, never speed"
    reached = "not run: emulated: numerics only, never speed"
    assert [(v.reached, v.met) for v in found.budgets] == [(reached, False)], "what is not measured meets no budget"


@pytest.mark.usefixtures("quick")
def test_a_build_that_cannot_run_here_keeps_its_size(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Build) -> Session:
        raise ToolchainError("no CUDA device")

    monkeypatch.setattr(Build, "open", refuse)
    found = evaluate(digits.good, against=digits.model, data=digits.data, seconds=0.02)
    assert set(found.measurements) == {"size"}
    assert set(found.not_run.values()) == {"no CUDA device"}
    assert {"top1", "agreement", "latency", "memory"} <= set(found.not_run)
    assert found.baseline["top1"].value == pytest.approx(digits.right.mean(), abs=1e-12)


@pytest.mark.usefixtures("quick")
def test_nan_is_said_aloud_and_counted(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = digits.good.open()
    monkeypatch.setattr(Build, "open", lambda self: Fake(opened, nan=True))
    found = evaluate(digits.good, against=digits.model, data=digits.data, seconds=0.02)
    hurt = np.load(digits.data)["x"][:, 2] > 0.5
    assert found.notes[0] == f"NaN in the outputs of the build: {hurt.sum()} of 600 rows"
    assert found.not_run["sqnr"] == f"{hurt.sum()} of 600 rows are not a number"
    assert found.measurements["top1"].value == pytest.approx((digits.right & ~hurt).mean(), abs=1e-12)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("whose", ["build", "original"])
def test_a_process_that_dies_leaves_its_reason(digits: Digits, monkeypatch: pytest.MonkeyPatch, whose: str) -> None:
    """It opens, runs once and dies where it is timed."""
    code = (
        "import sys\nfrom polycast.evaluating import worker\nread = worker._opener\n"
        "def opener(opening):\n"
        f"    if opening['kind'] == {whose!r}:\n"
        "        worker.Stopwatch.warm_up = lambda self: sys.exit('Illegal instruction')\n"
        "    return read(opening)\n"
        "worker._opener = opener\n"
    )
    monkeypatch.setattr(worker, "_CHILD", code + worker._CHILD)
    found = evaluate(digits.good, against=digits.model, data=digits.data, seconds=0.02)
    died = "the measuring process left with status 1: Illegal instruction"
    assert {"memory", "load_time"} <= set(found.measurements) & set(found.baseline)
    if whose == "build":
        assert found.not_run == dict.fromkeys(bench.SPEEDS, died)
        assert "latency" in found.baseline
    else:
        assert found.not_run == {"speedup": f"the original was not timed: {died}"}
        assert found.notes[-1] == f"the original was not measured: {died}"
        assert "latency" not in found.baseline


@pytest.fixture(scope="module")
def slower(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    """A build that does, beside the Relu of the original, what costs many times as much: Sin, and two Casts."""
    folder = tmp_path_factory.mktemp("slower")
    head = '<ir_version: 10, opset_import: ["": 20]> m (float[batch, 50000] x) => (float[batch, 50000] y) '
    for name, body in (
        ("plain", "y = Relu(x)"),
        ("costly", "a = Sin(x) b = Sin(a) c = Cast<to = 11>(b) d = Abs(c) e = Cast<to = 1>(d) y = Relu(e)"),
    ):
        onnx.save(onnx.parser.parse_model(f"{head} {{ {body} }}"), folder / f"{name}.onnx")
    np.savez(folder / "data.npz", x=np.random.default_rng(0).standard_normal((3, 50000)).astype(np.float32))
    [build] = compile(folder / "costly.onnx", out=folder, passes="clean")
    return evaluate(build, against=folder / "plain.onnx", data=folder / "data.npz", seconds=0.1)


def test_what_is_slower_says_which_ops_cost_it(slower: Evaluation) -> None:
    assert slower.measurements["speedup"].value < bench.SLOWER
    assert isinstance(slower.costs, dict)
    assert set(slower.costs) == {"Sin", "Cast", "Abs", "Relu"}
    assert list(slower.costs.values()) == sorted(slower.costs.values(), reverse=True)
    assert list(slower.costs)[:2] == ["Sin", "Cast"]
    written = json.loads(json.dumps(slower.to_json(), allow_nan=False))
    assert written["costs"] == slower.costs
    assert Evaluation.from_json(written) == slower
    for form in ("table", "md"):
        text = " ".join(Report((slower,)).render(form, width=200).split())
        sin, cast = (figure(slower.costs[op] * 1e3) for op in ("Sin", "Cast"))
        said = (
            rf"cpu-custom is [\d.,]+x slower than the original: most of it in Sin \(\+{sin} ms\), Cast \(\+{cast} ms\)"
        )
        assert re.search(said, text), text


@pytest.mark.usefixtures("quick")
def test_a_runtime_that_cannot_profile_is_named(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import time\nfrom polycast.build import Build\nfrom polycast.targetbase import CheckedSession\n"
        "def open_slowly(self, own_process):\n"
        "    def run(feeds):\n        time.sleep(0.002)\n        return []\n"
        "    return CheckedSession(run, self.signature)\n"
        "Build.open = open_slowly\n"
    )
    monkeypatch.setattr(worker, "_CHILD", code + worker._CHILD)
    found = evaluate(digits.good, against=digits.model, data=digits.data, seconds=0.02)
    assert found.costs == "the runtime gives no per-op times"
    assert re.search(
        r"x slower than the original: the runtime gives no per-op times$", Report((found,)).render("md"), re.M
    )


def test_what_is_asked_is_checked_before_anything_runs(digits: Digits) -> None:
    for asked, message in (
        ({"metrics": ["topp1"]}, "unknown metric 'topp1'"),
        ({"max_size": "huge"}, "max size 'huge' cannot be read"),
    ):
        with pytest.raises(RecipeError, match=message):
            evaluate(digits.good, against=digits.model, data=digits.data, **asked)


def test_points_of_what_is_no_share_are_percent_of_the_original(digits: Digits) -> None:
    metric = replace(KNOWN["cosine"], name="likeness", compares=False)
    found = evaluate(digits.good, against=digits.model, data=digits.data, metrics=[metric], max_drop="1pp")
    [verdict] = found.budgets
    drop = found.differences["likeness"].drop
    assert verdict.met == (drop <= 0.01 * abs(found.baseline["likeness"].value))
    assert "cos worse" in verdict.reached or "cos better" in verdict.reached


def test_another_models_build_is_refused(digits: Digits, tmp_path: Path) -> None:
    write(tmp_path / "other.onnx", np.zeros((64, 7)), np.zeros(7))
    graph = onnx.load(tmp_path / "other.onnx")
    graph.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 7
    onnx.save(graph, tmp_path / "other.onnx")
    with pytest.raises(
        InputError, match=r"cpu-custom gives \[\(1, 10\)\] for .*\[0\], the original gives \[\(1, 7\)\]"
    ):
        evaluate(digits.good, against=tmp_path / "other.onnx", data=digits.unlabelled)
