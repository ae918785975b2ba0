"""What the tests of the quantization repairs share: graphs as text, samples, runs, and rounding written out."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from given import Feeds, Given, parsed

from polycast.model import Model
from polycast.passbase import Pass, PassContext
from polycast.pipeline import Pipeline

FEATURES = frozenset({"qdq", "u8s8-exact"})


model = partial(parsed, inferred=True)


def through(before: Model, *passes: Pass, samples: Sequence[Feeds] = ()) -> Model:
    """Send ``before`` through ``passes`` as a recipe does."""
    return Pipeline(passes).run(before, PassContext(FEATURES, calibration=Given(samples) if samples else None))


def reasons(after: Model) -> dict[str, str]:
    """Why each node was skipped by the last pass, by its name."""
    return {skip.node: skip.reason for skip in after.history[-1].skips}


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Draw float32 numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def node(after: Model, name: str) -> ir.Node:
    """Give the node of this name."""
    return next(n for n in after.graph.graph if n.name == name)


def weight(of: Model, name: str, index: int = 1) -> np.ndarray:
    """Give the constant input of a node."""
    value = node(of, name).inputs[index]
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    assert tensor is not None
    return tensor.numpy()


def run(of: Model, samples: Sequence[Feeds], *more: str) -> list[list[np.ndarray]]:
    """Run onnxruntime without optimizations; ``more`` names values that are given beside the outputs."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    proto = ir.to_proto(ir.external_data.load_to_model(of.graph.clone()))
    proto.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in more)
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [session.run(None, feeds) for feeds in samples]


def decibels(wanted: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> float:
    """Signal-to-noise ratio of ``found``."""
    signal = sum(float(np.square(w, dtype=np.float64).sum()) for w in wanted)
    noise = sum(float(np.square(w.astype(np.float64) - f).sum()) for w, f in zip(wanted, found, strict=True))
    return 10 * np.log10(signal / noise)


def round_to_int8(array: np.ndarray, axis: int | None = None) -> np.ndarray:
    """Round to symmetric int8, one scale for all or one for each index of ``axis``."""
    others = tuple(a for a in range(array.ndim) if a != axis) if axis is not None else None
    step = np.maximum(np.abs(array).max(axis=others, keepdims=True), np.finfo(np.float32).tiny) / 127
    return (np.round(array / step) * step).astype(array.dtype)


def zoo_samples(evals: Path, subject: str) -> list[Feeds]:
    """Calibration rows of the zoo's own scorer."""
    pytest.importorskip("PIL")
    return scorer(evals).SUB[subject][2]()


def scorer(evals: Path) -> ModuleType:
    """Import the zoo's scorer from where it lies."""
    if "zoo_evals" not in sys.modules:
        spec = importlib.util.spec_from_file_location("zoo_evals", evals)
        assert spec is not None and spec.loader is not None
        sys.modules["zoo_evals"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules["zoo_evals"]
