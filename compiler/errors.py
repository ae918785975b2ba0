"""The error tree: everything a user can do wrong, and the one thing that we can.

Every error says what happened (``message``) and, where there is one, what mends it (``hint``).
The command line prints both on stderr and leaves with ``exit_status``; no traceback reaches a user.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class PolycastError(Exception):
    """Anything that polycast refuses to do, with the reason and what mends it."""

    exit_status = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class InputError(PolycastError):
    """The model or the data cannot be read: what, where, expected, found."""


class RecipeError(PolycastError):
    """An unknown pass, parameter, precision or target; the hint holds the nearest spelling."""

    @classmethod
    def unknown(cls, kind: str, name: str, known: Iterable[str]) -> RecipeError:
        """Build the error for ``name``, which is none of ``known``."""
        choices = sorted(known)
        near = get_close_matches(name, choices, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(choices) or 'none'}"
        return cls(f"unknown {kind} {name!r}", hint)


class UnsupportedError(PolycastError):
    """The target lacks something that the model needs; every such thing is named at once."""


class PromiseError(PolycastError):
    """The build is not what the recipe promises: what was asked, what was reached, why."""


class ToolchainError(PolycastError):
    """An external tool failed: the command, its exit status, its stderr."""


class PassError(PolycastError):
    """A pass broke its contract. This is a bug of the pass, never of the user."""


class BudgetError(PolycastError):
    """The build misses a budget that the user set."""

    exit_status = 3
