"""What many tests start from: samples that are simply there, and graphs in ONNX's own text form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from polycast.data.feeds import Sample
from polycast.model import Model, Origin

Feeds = dict[str, np.ndarray]


@dataclass
class Given:
    """Samples that are simply there."""

    feeds: Sequence[Feeds]
    source: str = "given"
    kind: str = "arrays"

    def __len__(self) -> int:
        return len(self.feeds)

    def __iter__(self) -> Iterator[Sample]:
        return (Sample(feeds, None, f"sample {number}") for number, feeds in enumerate(self.feeds))


def parsed(
    body: str, weights: Mapping[str, np.ndarray] | None = None, *, ir_version: int = 10, inferred: bool = False
) -> Model:
    """Read ``body``, a graph in ONNX's own text form; ``weights`` become its initializers.

    Nodes are named ``<op>_<number>``. inferred: whether the shapes that the text leaves open are put in.
    """
    microsoft = ', "com.microsoft" : 1' if "com.microsoft" in body else ""
    proto = onnx.parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["" : 23{microsoft}]>\n{body}')
    proto.graph.initializer.extend(numpy_helper.from_array(w, name) for name, w in (weights or {}).items())
    for number, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type}_{number}"
    proto = onnx.shape_inference.infer_shapes(proto) if inferred else proto
    return Model("given", ir.from_proto(proto), Origin("", ""))
