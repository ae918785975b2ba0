"""The table of converters: which function writes which ONNX operator."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import onnx_ir as ir

    from .program import Program

Convert = Callable[["ir.Node", "Program"], None]

#: What an operator does on int8 codes: nothing; computes, and may give codes of any grid; the same, of one operand by a
#: weight, with a bias; computes, and gives codes of the grid that it reads; gives some of the codes that it reads, so
#: that it never has to leave them.
Codes = Literal["none", "any", "product", "same", "moves"]


@dataclass(frozen=True)
class Converter:
    """How one ONNX operator is written.

    fuses: whether its LiteRT operator applies an activation to its own result. codes: see ``Codes``.
    """

    convert: Convert
    fuses: bool = False
    codes: Codes | Callable[[ir.Node], Codes] = "none"


_TABLE: dict[tuple[str, str], Converter] = {}


def converts(
    *ops: str, domain: str = "", fuses: bool = False, codes: Codes | Callable[[ir.Node], Codes] = "none"
) -> Callable[[Convert], Convert]:
    """Enter the decorated function into the table, for each of ``ops``."""

    def enter(convert: Convert) -> Convert:
        for op in ops:
            _TABLE[domain, op] = Converter(convert, fuses, codes)
        return convert

    return enter


def find(node: ir.Node) -> Converter | None:
    """Give the converter of ``node``, or None."""
    return table().get((node.domain, node.op_type))


@cache
def table() -> dict[tuple[str, str], Converter]:
    """The whole table; whatever ``ops_*.py`` there is in this folder is part of it."""
    package = __name__.rpartition(".")[0]
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        if module.name.startswith("ops_"):
            importlib.import_module(f"{package}.{module.name}")
    return _TABLE
