"""What a rule may look at: the shapes, the opset of the node's body, and where to say why it did not act."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from polycast.passbase import PassContext

from ._edit import Body
from ._shapes import Shapes


@dataclass(frozen=True)
class Facts:
    """The surroundings of a node."""

    body: Body
    shapes: Shapes
    ctx: PassContext

    @property
    def opsets(self) -> Mapping[str, int]:
        """Version of each domain that the body imports."""
        return self.body.opsets

    def opset(self, node: ir.Node) -> int:
        """Version of the domain of ``node``; 0 where the body does not import it."""
        domain = "" if node.domain == "ai.onnx" else node.domain
        return self.opsets.get(domain, self.opsets.get("ai.onnx", 0) if domain == "" else 0)
