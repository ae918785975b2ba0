"""What the tests of int8_dynamic share: small models, the pass run on them, what onnxruntime makes of the result."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from polycast.data.feeds import Sample
from polycast.load import load
from polycast.model import Model, Origin
from polycast.passbase import Pass, PassContext
from polycast.passes.quantization.int8_dynamic import Int8Dynamic
from polycast.pipeline import apply
from polycast.recipe import Recipe
from polycast.targets import find

FEATURES = frozenset({"integer-matmul", "integer-matmul-to-float", "dynamic-lstm", "gather-nbits", "u8s8-exact"})
EPSILON = float(np.finfo(np.float32).eps)

Feeds = dict[str, np.ndarray]


@dataclass
class Given:
    """Calibration samples that are simply there."""

    feeds: list[Feeds]
    source: str = "given"
    kind: str = "arrays"

    def __len__(self) -> int:
        return len(self.feeds)

    def __iter__(self) -> Iterator[Sample]:
        return (Sample(feeds, None, f"sample {number}") for number, feeds in enumerate(self.feeds))


def model(body: str, weights: Mapping[str, np.ndarray]) -> Model:
    """Read ``body``, a graph in ONNX's own text form; ``weights`` become its initializers."""
    proto = onnx.parser.parse_model('<ir_version: 11, opset_import: ["" : 23]>\n' + body)
    proto.graph.initializer.extend(numpy_helper.from_array(w, name) for name, w in weights.items())
    for number, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type}_{number}"
    return Model("given", ir.from_proto(proto), Origin("", ""))


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
