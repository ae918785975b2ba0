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

#: What TVM imports, and then has no kernel for: sorted, scanned or scattered along an axis.
_WITHOUT_KERNELS = frozenset({"CumSum", "NonMaxSuppression", "ScatterElements", "TopK"})


def find(node: ir.Node, table: Mapping[tuple[str, str], Convert] = OWN) -> Convert | None:
    """Give what converts ``node``: a converter of ``table``, or TVM's; None where nothing does."""
    if (own := table.get((node.domain, node.op_type))) is not None:
        return own
    if node.domain or node.op_type in _WITHOUT_KERNELS or of_tvm(node.op_type) is None:
        return None
    return Scope.by_tvm
