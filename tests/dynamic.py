"""What the tests of int8_dynamic share: small models, the pass run on them, what onnxruntime makes of the result."""

from __future__ import annotations

import tempfile
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from given import Feeds, Given, parsed

from polycast.load import load
from polycast.model import Model
from polycast.passbase import Pass, PassContext
from polycast.passes.quantization.int8_dynamic import Int8Dynamic
from polycast.pipeline import apply
from polycast.recipe import Recipe
from polycast.targets import find

FEATURES = frozenset({"integer-matmul", "integer-matmul-to-float", "dynamic-lstm", "gather-nbits", "u8s8-exact"})
EPSILON = float(np.finfo(np.float32).eps)

model = partial(parsed, ir_version=11)


def rewrite(one: Pass, before: Model, *samples: Feeds, features: frozenset[str] = FEATURES) -> Model:
    """Run a pass; a second run has to find nothing."""
    ctx = PassContext(features, Given(list(samples)) if samples else None)
    after = apply(one, before, ctx)
    assert apply(one, after, ctx).history[-1].sites == 0
    return after


def quantize(before: Model, *samples: Feeds, features: frozenset[str] = FEATURES, **parameters: object) -> Model:
    """Run int8_dynamic."""
    return rewrite(Int8Dynamic(**parameters), before, *samples, features=features)


def ops(after: Model) -> Counter[str]:
    """Count the operators, those of subgraphs too."""
    return Counter(node.op_type for node in after.graph.graph.all_nodes())


def reasons(after: Model) -> dict[str, str]:
    """Give why each node was skipped, by its name."""
    return {skip.node: skip.reason for skip in after.history[-1].skips}


def session(of: Model, *, optimized: bool = False) -> Any:
    """Open on onnxruntime. optimized: with its own fusions, as a build runs; else each node as it stands."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory() as folder:
        of.write(Path(folder) / "model.onnx")
        return ort.InferenceSession(Path(folder) / "model.onnx", options)


def run(of: Model, feeds: Feeds, *, optimized: bool = False) -> list[np.ndarray]:
    """Run once; see ``session``."""
    return session(of, optimized=optimized).run(None, feeds)


def lowered(path: Path) -> Model:
    """Load a model and send it through what comes before the first lossy pass."""
    target = find("cpu")
    return Recipe.of(target, "fp32").pipeline.run(load(path), PassContext(target.features))


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Draw float32 numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
