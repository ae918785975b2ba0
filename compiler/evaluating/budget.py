"""Budgets: what a build may lose, weigh and take, as a user spells it, and whether it did."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from polycast.errors import RecipeError

_SIZES = {"": 1, "b": 1} | {
    f"{letter}{suffix}": base ** (power + 1)
    for power, letter in enumerate("kmg")
    for suffix, base in (("b", 1000), ("", 1000), ("ib", 1024))
}


@dataclass(frozen=True)
class Drop:
    """How much of the telling metric may be lost; ``spelling`` is the user's.

    kind: ``points`` of a share (0.01 is 1 pp), ``relative`` to the original's value, ``absolute`` in the metric's unit.
    Points of what is no share are so many percent of the original's value: one budget then holds for any model.
    """

    amount: float
    kind: Literal["points", "relative", "absolute"]
    spelling: str

    @classmethod
    def parse(cls, text: str | float) -> Drop:
        """Read ``1pp``, ``0.5%`` or ``0.01``. Raises: RecipeError."""
        spelling = str(text).strip()
        match = re.fullmatch(r"(\d+\.?\d*(?:e-?\d+)?|\.\d+)\s*(pp|%|)", spelling)
        if not match:
            raise RecipeError(
                f"max drop {spelling!r} cannot be read",
                "Write 1pp (points of an accuracy), 0.5% (of the original's value) or 0.01 (in the metric's own unit)",
            )
        amount = float(match[1])
        if match[2] == "pp":
            return cls(amount / 100, "points", spelling)
        return cls(amount / 100, "relative", spelling) if match[2] == "%" else cls(amount, "absolute", spelling)

    def allowed(self, before: float, unit: str) -> float:
        """Give the largest drop in the metric's unit, where the original has ``before``."""
        relative = self.kind == "relative" or (self.kind == "points" and unit != "share")
        return self.amount * abs(before) if relative else self.amount


@dataclass(frozen=True)
class Budget:
    """What the user allows; None is no limit. size in bytes, latency (the median) in ms."""

    drop: Drop | None = None
    size: int | None = None
    latency: float | None = None

    @classmethod
    def parse(cls, max_drop: str | float | None, max_size: str | int | None, max_latency: str | float | None) -> Budget:
        """Read the three limits as a user spells them. Raises: RecipeError."""
        return cls(
            None if max_drop is None else Drop.parse(max_drop),
            None if max_size is None else parse_size(max_size),
            None if max_latency is None else _parse_latency(max_latency),
        )


@dataclass(frozen=True)
class Verdict:
    """Whether one limit is met. What could not be measured does not meet its limit: then ``reached`` is the reason."""

    budget: Literal["max_drop", "max_size", "max_latency"]
    allowed: str
    reached: str
    met: bool

    def __str__(self) -> str:
        return f"{self.budget.replace('_', ' ')}: {self.reached}, allowed {self.allowed}"

    def to_json(self) -> dict[str, Any]:
        """Spell for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Verdict:
        """Read what ``to_json`` wrote."""
        return cls(data["budget"], data["allowed"], data["reached"], data["met"])


def parse_size(text: str | int) -> int:
    """Read bytes: ``500KB`` is 500,000, ``2MiB`` is 2,097,152. Raises: RecipeError."""
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*([a-z]*)", str(text).strip().lower())
    if not match or match[2] not in _SIZES:
        raise RecipeError(f"max size {text!r} cannot be read", "Write bytes, 500KB, 2MiB or 1.5GB")
    return int(float(match[1]) * _SIZES[match[2]])


def _parse_latency(text: str | float) -> float:
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*(?:ms)?", str(text).strip().lower())
    if not match:
        raise RecipeError(f"max latency {text!r} cannot be read", "Write milliseconds: 5 or 0.5")
    return float(match[1])
