"""What tests of calibrating share: samples that are simply there, and models in ONNX's own text form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from polycast.data.feeds import Sample

Feeds = dict[str, np.ndarray]


@dataclass
class Given:
    """Samples that are simply there; ``asked`` counts how many were taken."""

    feeds: list[Feeds]
    source: str = "given"
    kind: str = "arrays"
    asked: int = field(default=0, compare=False)

    def __len__(self) -> int:
        return len(self.feeds)

    def __iter__(self) -> Iterator[Sample]:
        for number, feeds in enumerate(self.feeds):
            self.asked += 1
            yield Sample(feeds, None, f"sample {number}")


def graph(body: str, weights: Mapping[str, np.ndarray] | None = None) -> ir.Model:
    """Read ``body``, a graph in ONNX's own text form, with the shapes that it leaves open inferred."""
    proto = onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 23]>\n' + body)
    proto.graph.initializer.extend(numpy_helper.from_array(w, name) for name, w in (weights or {}).items())
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def computed(model: ir.Model, name: str, samples: Given) -> list[np.ndarray]:
    """Give the value ``name`` of the main graph for each sample, by ONNX's reference evaluator."""
    proto = ir.to_proto(model)
    proto.graph.output.append(onnx.ValueInfoProto(name=name))
    evaluator = ReferenceEvaluator(proto)
    return [evaluator.run([name], feeds)[0] for feeds in samples.feeds]


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Draw float32 numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
