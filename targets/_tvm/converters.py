"""Which converter takes a node: one of our own, or that of TVM's ONNX importer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx_ir as ir

from . import attention, codes, powers, products, recurrent, rows
from .scope import Scope, of_tvm

#: Gives a node's outputs, as Relax expressions.
Convert = Callable[[Scope], Sequence[Any]]

OWN: dict[tuple[str, str], Convert] = {
    **attention.CONVERTERS,
    **codes.CONVERTERS,
    **powers.CONVERTERS,
    **products.CONVERTERS,
    **recurrent.CONVERTERS,
    **rows.CONVERTERS,
}


def find(node: ir.Node, table: Mapping[tuple[str, str], Convert] = OWN) -> Convert | None:
    """Give what converts ``node``: a converter of ``table``, or TVM's; None where nothing does."""
    if (own := table.get((node.domain, node.op_type))) is not None:
        return own
    return Scope.by_tvm if not node.domain and of_tvm(node.op_type) is not None else None
