"""ONNX's own node tests: what onnxruntime gets right before the default pipeline, it gets right after it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from polycast.model import Model, Origin
from polycast.passbase import Numerics
from polycast.pipeline import Pipeline
from polycast.targets.cpu import Cpu

#: onnx 1.23 has 1,884 node tests, of which onnxruntime 1.32 passes some 1,500. Fewer than this: the test has shrunk.
FLOOR = 1400


def default_pipeline() -> Pipeline:
    """Give what a compile for the CPU sends every model through."""
    return Pipeline.parse(Cpu().recipe("fp32") or "")


@pytest.fixture(scope="module")
def cases() -> list[Any]:
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # the generators divide by zero on purpose
        return [case for case in collect_testcases(None) if case.model is not None]


def test_outputs_are_those_of_the_untouched_model(cases: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    pipeline = default_pipeline()
    judged, acted, failures = 0, 0, []
    try:
        for case in cases:
            feeds = [_feeds(case.model, inputs) for inputs, _ in case.data_sets]
            before = _run(case.model, feeds)
            if before is None or not _passes(case, before):
                continue
            judged += 1
            name = case.name
            try:
                after = pipeline.run(Model(name, ir.from_proto(case.model), Origin(name, "")))
            except Exception as error:
                failures.append(f"{name}: {error}")
                continue
            if not any(step.sites for step in after.history):
                continue  # then the model is the same, which the pipeline holds every pass to
            acted += 1
            outputs = _run(ir.to_proto(after.graph), feeds)
            if outputs is None:
                failures.append(f"{name}: onnxruntime no longer runs it, after {_steps(after)}")
            elif not _agree(before, outputs, pipeline.numerics):
                failures.append(f"{name}: other outputs, after {_steps(after)}")
    finally:
        onnxruntime.set_default_logger_severity(2)
    with capsys.disabled():
        print(f" {judged} node tests, {acted} of them changed by {pipeline} ", end="")
    assert not failures, "\n".join([f"{len(failures)} of {judged}:", *failures])
    assert judged >= FLOOR
    assert acted >= FLOOR // 10


def _steps(model: Model) -> str:
    return ", ".join(f"{step.what} ({step.sites})" for step in model.history if step.sites)


def _feeds(model: onnx.ModelProto, inputs: list[Any]) -> dict[str, Any]:
    return {info.name: value for info, value in zip(model.graph.input, inputs, strict=False)}


def _run(model: onnx.ModelProto, feeds: list[dict[str, Any]]) -> list[list[Any]] | None:
    """Run on each of ``feeds``; None where onnxruntime does not."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return [session.run(None, feed) for feed in feeds]
    except Exception:  # onnxruntime's own error types share no base class
        return None


def _passes(case: Any, outputs: list[list[Any]]) -> bool:
    """Whether ``outputs`` are those that ONNX expects, with the tolerance of ONNX's own runner for this case."""
    for got, (_, expected) in zip(outputs, case.data_sets, strict=True):
        for a, b in zip(_leaves(got), _leaves(expected), strict=False):
            if a is None or b is None or a.dtype != b.dtype or a.shape != b.shape:
                return False
            if a.dtype.kind in "OSUb":
                if not np.array_equal(a.astype(str), b.astype(str)):
                    return False
            elif not np.allclose(a.astype(float), b.astype(float), case.rtol, case.atol, equal_nan=True):
                return False
    return True


def _agree(before: list[list[Any]], after: list[list[Any]], numerics: Numerics) -> bool:
    return all(_same(a, b, numerics) for a, b in zip(_leaves(before), _leaves(after), strict=True))


def _same(a: Any, b: Any, numerics: Numerics) -> bool:
    """Whether two results are bit-equal, or, where passes may round, equal up to the rounding of a long sum."""
    if a is None or b is None:
        return a is b
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.dtype.kind in "OSU":
        return bool(a.tolist() == b.tolist())
    if a.tobytes() == b.tobytes():
        return True
    if numerics is Numerics.EXACT or a.dtype.kind != "f":
        return False
    # Two orders of a sum of n terms differ by n * eps at most; the node tests sum over fewer elements than this.
    bound = 256 * np.finfo(a.dtype).eps
    return bool(np.allclose(a.astype(float), b.astype(float), bound, bound, equal_nan=True))


def _leaves(values: Any) -> Iterator[Any]:
    """Yield the arrays in sequences of sequences."""
    if isinstance(values, (list, tuple)):
        for value in values:
            yield from _leaves(value)
    else:
        yield None if values is None else np.asarray(values)
