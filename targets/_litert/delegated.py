"""What really runs the operators of a build: XNNPACK, which LiteRT hands to what it takes, or LiteRT's own kernels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .run_litert import LiteRtSession

#: Operators that multiply by a weight, and which of their inputs that is.
_WEIGHTS = {"CONV_2D": 1, "DEPTHWISE_CONV_2D": 1, "FULLY_CONNECTED": 1, "TRANSPOSE_CONV": 1}

_DELEGATE = "DELEGATE"

Details = Mapping[str, Any]


def what_runs(folder: Path) -> dict[str, Any]:
    """Count what runs the build in ``folder``.

    Returns: ``integer`` of ``of`` operators that multiply by a weight do so in integers; ``ops`` those by name;
    ``float`` the results of the others; ``xnnpack``: how many it ``takes``, ``of`` how many, and which are ``left``.
    """
    interpreter = LiteRtSession(folder).interpreter
    for each in interpreter.get_input_details():  # of a file for every size, XNNPACK takes nothing before it has one
        if -1 in each["shape_signature"]:
            interpreter.resize_tensor_input(each["index"], each["shape"])
    interpreter.allocate_tensors()
    every: Sequence[Details] = interpreter._get_ops_details()  # there is no other way to ask
    operators = [each for each in every if each["op_name"] != _DELEGATE]
    return _products(interpreter, operators) | {"xnnpack": _share(every, operators)}


def _products(interpreter: Any, operators: Sequence[Details]) -> dict[str, Any]:
    ops: Counter[str] = Counter()
    floats = []
    for each in operators:
        if (index := _WEIGHTS.get(each["op_name"])) is None:
            continue
        ops[each["op_name"]] += 1
        weight = interpreter._get_tensor_details(int(each["inputs"][index]), 0)
        if weight["dtype"].__name__ == "float32":
            result = interpreter._get_tensor_details(int(each["outputs"][0]), 0)
            floats.append(result["name"])
    of = sum(ops.values())
    return {"integer": of - len(floats), "of": of, "ops": dict(sorted(ops.items())), "float": floats}


def _share(every: Sequence[Details], operators: Sequence[Details]) -> dict[str, Any]:
    taken: set[int] = set()
    makers = {int(tensor): each for each in operators for tensor in each["outputs"]}
    for delegate in (each for each in every if each["op_name"] == _DELEGATE):
        given = {int(tensor) for tensor in delegate["inputs"]}
        pending = [int(tensor) for tensor in delegate["outputs"]]
        while pending:
            maker = makers.get(pending.pop())
            if maker is not None and maker["index"] not in taken:
                taken.add(maker["index"])
                pending += [int(tensor) for tensor in maker["inputs"] if int(tensor) not in given]
    left = Counter(each["op_name"] for each in operators if each["index"] not in taken)
    return {"takes": len(taken), "of": len(operators), "left": dict(sorted(left.items()))}
