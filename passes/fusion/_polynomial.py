"""Reading an expression as a polynomial, so that a formula is known in whatever order an exporter wrote it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import onnx_ir as ir

from ._match import epsilon, producer, scalar

_DEGREE = 4
_DEPTH = 12

Power = tuple[int, ...]


@dataclass(frozen=True)
class Polynomial:
    """Coefficients by the power of each variable: with variables x, e, ``{(1, 0): 0.5}`` is ``0.5 * x``.

    tolerance: relative error that the coefficients carry, since the graph holds them rounded.
    """

    terms: dict[Power, float]
    tolerance: float

    def is_close(self, expected: dict[Power, float]) -> bool:
        """Whether the terms are those of ``expected``, up to the rounding of the constants that they come from."""
        return self.terms.keys() == expected.keys() and all(
            self.agrees(found, expected[power]) for power, found in self.terms.items()
        )

    def agrees(self, found: float, expected: float) -> bool:
        """Whether ``found`` is ``expected`` up to the rounding of the constants."""
        return abs(found - expected) <= abs(expected) * self.tolerance


def polynomial(value: ir.Value, *variables: ir.Value) -> Polynomial | None:
    """Read ``value`` as a polynomial of ``variables`` through Add, Sub, Mul, Div and Pow.

    Returns: None where ``value`` depends on anything else, or the degree passes 4.
    """
    reader = _Reader(variables)
    terms = reader.read(value, _DEPTH)
    # Two roundings, since a coefficient is often the product of two constants; seven typed digits are float32's own.
    return Polynomial(terms, max(2 * reader.epsilon, 1e-6)) if terms is not None else None


class _Reader:
    def __init__(self, variables: tuple[ir.Value, ...]) -> None:
        count = len(variables)
        self.one: Power = (0,) * count
        self.known: dict[ir.Value, dict[Power, float] | None] = {
            v: {tuple(int(i == j) for j in range(count)): 1.0} for i, v in enumerate(variables)
        }
        self.epsilon = 0.0

    def read(self, value: ir.Value, depth: int) -> dict[Power, float] | None:
        if value not in self.known:
            self.known[value] = self._expand(value, depth)
        return self.known[value]

    def _expand(self, value: ir.Value, depth: int) -> dict[Power, float] | None:
        number = scalar(value)
        if number is not None:
            self.epsilon = max(self.epsilon, epsilon(value))
            return {self.one: number}
        node = producer(value, "Add", "Sub", "Mul", "Div", "Pow")
        if node is None or depth == 0:
            return None
        operands = [self.read(v, depth - 1) for v in node.inputs if v is not None]
        if operands[0] is None or operands[1] is None:
            return None
        return self._combine(node.op_type, operands[0], operands[1])

    def _combine(self, op: str, a: dict[Power, float], b: dict[Power, float]) -> dict[Power, float] | None:
        if op == "Add":
            return _sum(a, b)
        if op == "Sub":
            return _sum(a, _product(b, {self.one: -1.0}))
        if op == "Mul":
            return _bounded(_product(a, b))
        number = b.get(self.one) if len(b) == 1 else None
        if not number:
            return None
        if op == "Div":
            return _product(a, {self.one: 1 / number})
        return _bounded(_power(a, int(number))) if number in range(1, _DEGREE + 1) else None


def _sum(a: dict[Power, float], b: dict[Power, float]) -> dict[Power, float]:
    return {power: a.get(power, 0.0) + b.get(power, 0.0) for power in {**a, **b}}


def _product(a: dict[Power, float], b: dict[Power, float]) -> dict[Power, float]:
    terms: defaultdict[Power, float] = defaultdict(float)
    for p, x in a.items():
        for q, y in b.items():
            terms[tuple(i + j for i, j in zip(p, q, strict=True))] += x * y
    return dict(terms)


def _power(a: dict[Power, float], exponent: int) -> dict[Power, float]:
    return a if exponent == 1 else _product(a, _power(a, exponent - 1))


def _bounded(terms: dict[Power, float]) -> dict[Power, float] | None:
    return terms if max(map(sum, terms)) <= _DEGREE else None
