"""Selecting what a quantization pass may touch: what the user names, and what only measuring names."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import onnx_ir as ir

from polycast.model import graphs, named


def selected(model: ir.Model, ops: Collection[str], only: Collection[str], keep: Collection[str]) -> Iterator[ir.Node]:
    """Yield each node of ``ops`` (default domain), subgraphs included, that ``only`` names and ``keep`` does not.

    only: names, op types and globs; empty means every node. What ``keep`` names was asked for, so it is no skip.
    """
    for graph in graphs(model):
        for node in graph:
            if node.domain == "" and node.op_type in ops and (not only or named(node, only)) and not named(node, keep):
                yield node
