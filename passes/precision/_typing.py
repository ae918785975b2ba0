"""Types as the operators themselves declare them: which inputs and outputs of a node can be float16 together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16

#: Type variables that stay float32 in an operator that is otherwise float16, which their declaration allows.
_STAYS = {
    ("Resize", "T2"),  # roi: coordinates
    ("LayerNormalization", "U"),  # mean and deviation are of the type that stash_type names
}


@dataclass(frozen=True)
class Slot:
    """One input or output as its operator declares it. ``variable``: what its type is called there."""

    name: str
    variable: str
    variadic: bool


@dataclass(frozen=True)
class Declaration:
    """The inputs and outputs that an operator declares, and the types that each of its type variables allows."""

    inputs: tuple[Slot, ...]
    outputs: tuple[Slot, ...]
    allowed: Mapping[str, frozenset[str]]

    def slot(self, slots: tuple[Slot, ...], index: int) -> Slot | None:
        """Give the slot of the ``index``-th actual; the last one stands for all that follow where it is variadic."""
        if index < len(slots):
            return slots[index]
        return slots[-1] if slots and slots[-1].variadic else None

    def allows(self, variable: str, dtype: str) -> bool:
        """Whether ``variable`` may be ``tensor(dtype)``; one that is no variable is the one type it spells."""
        return f"tensor({dtype})" in self.allowed.get(variable, {variable})


@dataclass(frozen=True)
class Floats:
    """The float32 inputs (index, value, slot) and outputs of one node that are float16 once the node is.

    stuck: a declared type that is float32 here and cannot be float16, or "".
    """

    inputs: tuple[tuple[int, ir.Value, Slot], ...]
    outputs: tuple[ir.Value, ...]
    stuck: str


def floats(node: ir.Node, declared: Declaration) -> Floats:
    """Sort out what of ``node`` is float32 and may become float16; a fixed float32 input (scales) stays what it is."""
    inputs, outputs, stuck = [], [], ""
    for index, value in enumerate(node.inputs):
        slot = declared.slot(declared.inputs, index)
        if value is None or value.dtype != FLOAT or slot is None or slot.variable not in declared.allowed:
            continue
        if (node.op_type, slot.variable) in _STAYS:
            continue
        inputs.append((index, value, slot))
        if not declared.allows(slot.variable, "float16"):
            stuck = slot.variable
    for index, value in enumerate(node.outputs):
        slot = declared.slot(declared.outputs, index)
        if value.dtype != FLOAT or slot is None or (node.op_type, slot.variable) in _STAYS:
            continue
        outputs.append(value)
        if not declared.allows(slot.variable, "float16"):
            stuck = slot.variable
    return Floats(tuple(inputs), tuple(outputs), stuck)


def declaration(node: ir.Node, opsets: Mapping[str, int]) -> Declaration | None:
    """Give what the operator of ``node`` declares in ONNX, or in onnxruntime for its own; None for any other."""
    return _declaration(node.op_type, node.domain, opsets.get(node.domain, 1))


@cache
def _declaration(op: str, domain: str, opset: int) -> Declaration | None:
    if domain.startswith("com.microsoft"):
        return _onnxruntime_declarations().get((domain, op))
    try:
        schema = onnx.defs.get_schema(op, opset, domain)
    except onnx.defs.SchemaError:
        return None
    variadic = onnx.defs.OpSchema.FormalParameterOption.Variadic
    return Declaration(
        tuple(Slot(p.name, p.type_str, p.option == variadic) for p in schema.inputs),
        tuple(Slot(p.name, p.type_str, p.option == variadic) for p in schema.outputs),
        {c.type_param_str: frozenset(c.allowed_type_strs) for c in schema.type_constraints},
    )


@cache
def _onnxruntime_declarations() -> Mapping[tuple[str, str], Declaration]:
    """Read the schemas of onnxruntime's own domains, which onnx does not know."""
    from onnxruntime.capi import _pybind_state as state

    return {
        (schema.domain, schema.name): Declaration(
            tuple(Slot(p.name, p.typeStr, "Variadic" in str(p.option)) for p in schema.inputs),
            tuple(Slot(p.name, p.typeStr, "Variadic" in str(p.option)) for p in schema.outputs),
            {c.type_param_str: frozenset(c.allowed_type_strs) for c in schema.type_constraints},
        )
        for schema in state.get_all_operator_schema()
        if schema.domain.startswith("com.microsoft")
    }


def infer_types(model: ir.Model) -> None:
    """Give every value of ``model`` its dtype, as far as that follows from the operators."""
    if all(value.dtype is not None for value in _results(model)):
        return
    ShapeInferencePass()(model)
    for node in model.graph:
        declared = declaration(node, model.graph.opset_imports)
        if declared is None:
            continue
        known = {
            slot.variable: value.dtype
            for index, value in enumerate(node.inputs)
            if value is not None and (slot := declared.slot(declared.inputs, index)) is not None
        }
        for index, value in enumerate(node.outputs):
            slot = declared.slot(declared.outputs, index)
            dtype = None if slot is None else known.get(slot.variable)
            if value.dtype is None and dtype is not None:
                value.type = ir.TensorType(dtype)


def _results(model: ir.Model) -> Iterator[ir.Value]:
    return (value for node in model.graph for value in node.outputs)
