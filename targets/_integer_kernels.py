"""Counting what really runs on integers: the graph as onnxruntime rewrites it when a session opens."""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from polycast.model import graphs, name_of
from polycast.shares import weight_of

from . import _run_onnxruntime as runner

#: Kernels of onnxruntime that multiply integers.
INTEGER = {
    "ConvInteger", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat",
    "QAttention", "QGemm", "QLinearConv", "QLinearMatMul",
}  # fmt: skip

#: Kernels of onnxruntime that multiply floats, under the names that its fusions give them.
FLOAT = {"Conv", "ConvTranspose", "FusedConv", "FusedGemm", "FusedMatMul", "GRU", "Gemm", "LSTM", "MatMul", "RNN"}

#: Where weights are read in four or eight bits; whether the products are of integers is the accuracy level's to say.
_PACKED = {"MatMulNBits"}

#: Weights of this many bytes and more are written beside the rewritten graph, which one message could not hold.
_LARGE = 1024


def integer_kernels(folder: Path) -> dict[str, Any]:
    """Count the kernels of the build in ``folder`` that multiply by a weight, and those that do it in integers.

    Returns: ``of`` how many there are, ``integer`` how many of them run on integer kernels, ``ops`` both by kernel
    name, and ``float`` the names of the nodes that multiply floats.
    """
    with tempfile.TemporaryDirectory(prefix="polycast-") as scratch:
        rewritten = Path(scratch) / "rewritten.onnx"

        def write_it(options: Any) -> None:
            options.optimized_model_filepath = str(rewritten)
            options.add_session_config_entry(
                "session.optimized_model_external_initializers_file_name", rewritten.name + ".data"
            )
            options.add_session_config_entry(
                "session.optimized_model_external_initializers_min_size_in_bytes", str(_LARGE)
            )

        runner.open_session(folder, adjust=write_it)
        logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # it warns of domains that only onnxruntime knows
        return _tally(ir.load(rewritten))


def _tally(model: ir.Model) -> dict[str, Any]:
    ops: Counter[str] = Counter()
    floats, integers = [], 0
    for node in (node for graph in graphs(model) for node in graph):
        kind = node.op_type
        if kind in INTEGER or (kind in _PACKED and _level(node.attributes) == 4):
            integers += 1
        elif kind in _PACKED or (kind in FLOAT and _has_weight(node)):
            floats.append(name_of(node))
        else:
            continue
        ops[kind] += 1
    return {"integer": integers, "of": integers + len(floats), "ops": dict(sorted(ops.items())), "float": floats}


def _level(attributes: Mapping[str, ir.Attr]) -> int:
    return attributes["accuracy_level"].as_int() if "accuracy_level" in attributes else 0


def _has_weight(node: ir.Node) -> bool:
    if weight_of(node) is not None:
        return True
    return any(value is not None and ir.convenience.get_const_tensor(value) is not None for value in node.inputs[1:3])
