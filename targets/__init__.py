"""The targets: one target, one file or folder."""

from __future__ import annotations

import sys
from functools import cache

from polycast.errors import RecipeError
from polycast.plugins import discover
from polycast.targetbase import Target

if __name__ != "polycast.targets":
    raise ImportError(f"this package is polycast.targets, not {__name__}")


@cache
def catalogue() -> dict[str, type[Target]]:
    """Every target by name: built in, or installed under the entry point group ``polycast.targets``."""
    return discover(sys.modules[__name__], Target, "polycast.targets")  # type: ignore[type-abstract]


def find(spelling: str) -> Target:
    """Give the target that ``spelling`` names, e.g. ``cpu`` or ``cuda:sm_90``.

    Raises: RecipeError with the nearest spelling.
    """
    name, _, arch = spelling.partition(":")
    known = catalogue()
    if name not in known:
        raise RecipeError.unknown("target", name, known)
    return known[name](arch=arch)
