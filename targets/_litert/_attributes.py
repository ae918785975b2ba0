"""Reading the attributes of a node."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir


def integer(node: ir.Node, name: str, default: int) -> int:
    """Give an int attribute, or ``default``."""
    return node.attributes[name].as_int() if name in node.attributes else default


def integers(node: ir.Node, name: str, default: Sequence[int]) -> tuple[int, ...]:
    """Give an attribute that is a list of ints, or ``default``."""
    return tuple(node.attributes[name].as_ints() if name in node.attributes else default)


def number(node: ir.Node, name: str, default: float) -> float:
    """Give a float attribute, or ``default``."""
    return node.attributes[name].as_float() if name in node.attributes else default


def text(node: ir.Node, name: str, default: str) -> str:
    """Give a string attribute, or ``default``."""
    return node.attributes[name].as_string() if name in node.attributes else default


def operand(node: ir.Node, index: int) -> ir.Value | None:
    """Give an input, or None where the node has none there."""
    return node.inputs[index] if index < len(node.inputs) else None
