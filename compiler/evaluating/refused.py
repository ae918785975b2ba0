"""Refused: a build that was asked for and is not there, with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from polycast.errors import InputError, PolycastError


@dataclass(frozen=True)
class Refused:
    """A build that was asked for, ``name`` as its folder would be called, and why it is not there.

    against: the original, as evaluations spell it. kind: which error of ours it was, by its class name.
    """

    name: str
    target: str
    precision: str
    against: str
    kind: str
    reason: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.name} was refused: {self.reason}"

    @classmethod
    def because(cls, error: PolycastError, name: str, target: str, precision: str, against: str) -> Refused:
        """Give the build that ``error`` stopped."""
        return cls(name, target, precision, against, type(error).__name__, error.message, error.hint)

    def to_json(self) -> dict[str, Any]:
        """Spell for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str = "refusal") -> Refused:
        """Read what ``to_json`` wrote. Raises: InputError where something is missing."""
        try:
            return cls(**data)
        except TypeError as error:
            raise InputError(f"{where} is no refused build: {error}") from error
