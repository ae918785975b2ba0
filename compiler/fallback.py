"""Fallback: the nodes that a runtime leaves to the CPU, and the share of the arithmetic that they do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import PromiseError
from .model import Model, graphs, name_of
from .shares import macs_of, weighted
from .targetbase import Target

#: So many reasons go into a message.
_NODES_NAMED = 5


@dataclass(frozen=True)
class Fallback:
    """What of one model runs on the CPU, where its target is another device.

    nodes: how many, of ``of``. share: of the multiply-accumulates, 0 to 1. ops: by op type, the share that its nodes
    do. reasons: op type -> why, with the name of a node. left: every one of them by name -> why.
    """

    nodes: int
    of: int
    share: float
    ops: Mapping[str, float]
    reasons: Mapping[str, str]
    left: Mapping[str, str]

    @classmethod
    def of_model(cls, target: Target, model: Model, shapes: Mapping[str, tuple[int, ...]]) -> Fallback | None:
        """Count what ``target`` leaves of ``model`` to the CPU. shapes: input name -> shape at which MACs are counted.

        Returns: None where the target has no notion of it.
        """
        left = target.fallback(model)
        if left is None:
            return None
        nodes = [node for graph in graphs(model.graph) for node in graph]
        op_types = {name_of(node): node.op_type for node in nodes}
        macs: Counter[str] = Counter()
        for node, weight in weighted(model, shapes):
            macs[name_of(node)] += macs_of(node, weight)
        total = sum(macs.values())
        by_op: Counter[str] = Counter()
        for name in left:
            by_op[op_types[name]] += macs[name]
        ops = {op: round(count / total, 6) if total else 0.0 for op, count in sorted(by_op.items())}
        reasons = {op_types[name]: f"{name}: {reason}" for name, reason in reversed(list(left.items()))}
        share = sum(by_op.values()) / total if total else 0.0
        return cls(len(left), len(nodes), share, ops, dict(sorted(reasons.items())), dict(left))

    def to_json(self) -> dict[str, Any]:
        """Spell for a manifest."""
        return {
            "nodes": self.nodes,
            "of": self.of,
            "macs": round(self.share, 6),
            "ops": dict(self.ops),
            "reasons": dict(self.reasons),
            "left": dict(self.left),
        }

    def hold(self, most: float, target: Target) -> None:
        """Hold the share to ``most``, in percent. Raises: PromiseError naming the ops, and why each falls back."""
        if self.share * 100 > most:
            heaviest = sorted((op for op in self.ops if self.ops[op]), key=lambda op: -self.ops[op])
            spelt = ", ".join(f"{op} {self.ops[op]:.1%}" for op in heaviest)
            raise PromiseError(
                f"{target} leaves {self.share:.1%} of the MACs to the CPU, and {most:g}% are allowed: {spelt}",
                "Because: " + "; ".join(self.reasons[op] for op in heaviest[:_NODES_NAMED]),
            )


def line(fallback: Mapping[str, Any]) -> str:
    """Spell what ``to_json`` gave in one line."""
    if not fallback["nodes"]:
        return "none, by what the runtime has kernels for"
    ops = ", ".join(sorted(fallback["ops"], key=lambda op: -fallback["ops"][op]))
    return f"{fallback['nodes']} of {fallback['of']} nodes on the CPU, {fallback['macs']:.1%} of the MACs: {ops}"
