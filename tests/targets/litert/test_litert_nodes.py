"""ONNX's own node tests through the LiteRT writer: what it takes comes out as ONNX says, and the rest is refused."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from polycast.model import Model, Origin
from polycast.targets import _litert
from polycast.targets._litert.registry import table
from polycast.targets._litert.rewriting import DOMAIN

#: Tests of ONNX that LiteRT passes. Fewer than this: something is refused that was not.
FLOOR = 600

#: As many operators as one of ONNX becomes at most.
PARTS = 8


@pytest.fixture(scope="module")
def cases() -> list[Any]:
    """The node tests of one result or more, all of them tensors, whose operators have a converter."""
    from onnx.backend.test.case.node import collect_testcases

    known = {op for domain, op in table() if domain != DOMAIN} | {"Constant", "MatMul"}
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # the generators divide by zero on purpose
        every = [case for case in collect_testcases(None) if case.model is not None]
    taken = [case for case in every if {node.op_type for node in case.model.graph.node} <= known]
    return [case for case in taken if all(isinstance(array, np.ndarray | np.generic) for array in _arrays(case))]


def _arrays(case: Any) -> list[Any]:
    inputs, outputs = case.data_sets[0]
    return [*inputs, *outputs]


@pytest.mark.slow
def test_what_is_written_computes_what_onnx_says(
    cases: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    right, refused, wrong = 0, 0, []
    for case in cases:
        inputs, expected = case.data_sets[0]
        form = next((proto for proto in _forms(case.model, inputs) if not _litert.problems(_model(proto))), None)
        if form is None:
            refused += 1
            continue
        found = _run(form, inputs, tmp_path)
        problem = _problem(case, found, expected)
        right += not problem
        wrong += [f"{case.name}: {problem}"] if problem else []
    with capsys.disabled():
        print(f" {right} node tests right, {refused} refused ", end="")
    assert not wrong, "\n".join(wrong)
    assert right >= FLOOR


def _forms(model: onnx.ModelProto, inputs: list[Any]) -> list[onnx.ModelProto]:
    """Give the model as it is, and with all inputs but the first as constants: axes, shapes, weights."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for info, array in list(zip(model.graph.input, inputs, strict=False))[1:]:
        fixed.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), info.name))
    del fixed.graph.input[1:]
    return [model, fixed]


def _model(proto: onnx.ModelProto) -> Model:
    return Model("node", ir.from_proto(proto), Origin("node", ""))


def _run(proto: onnx.ModelProto, inputs: list[Any], folder: Path) -> list[np.ndarray]:
    from ai_edge_litert.interpreter import Interpreter

    facts = _litert.write(_model(proto), folder)
    interpreter = Interpreter(str(folder / facts["model"]), num_threads=1)
    interpreter.allocate_tensors()
    for details, array in zip(interpreter.get_input_details(), inputs, strict=False):
        interpreter.set_tensor(details["index"], np.asarray(array))
    interpreter.invoke()
    return [interpreter.get_tensor(details["index"]) for details in interpreter.get_output_details()]


def _problem(case: Any, found: list[np.ndarray], expected: list[Any]) -> str:
    """Say where results leave what ONNX expects, with the tolerance of ONNX's own runner for this case.

    That is for kernels that round once: an operator that is written as its parts rounds the largest of them each time.
    """
    for got, want in zip(found, map(np.asarray, expected), strict=True):
        if (got.dtype, got.shape) != (want.dtype, want.shape):
            return f"{got.dtype} {got.shape}, not {want.dtype} {want.shape}"
        largest = np.abs(want[np.isfinite(want)]).max(initial=0) if want.dtype.kind == "f" else 0
        atol = max(case.atol, PARTS * float(np.finfo(np.float32).eps) * float(largest))
        if not np.allclose(got.astype(float), want.astype(float), case.rtol, atol, equal_nan=True):
            return f"off by {np.abs(got.astype(float) - want.astype(float)).max():.3g}"
    return ""
