"""The passes: one pass, one file; folders by theme."""

from __future__ import annotations

import sys
from functools import cache

from polycast.passbase import Pass
from polycast.plugins import discover

if __name__ != "polycast.passes":
    raise ImportError(f"this package is polycast.passes, not {__name__}")


@cache
def catalogue() -> dict[str, type[Pass]]:
    """Every pass by its recipe spelling: built in, or installed under the entry point group ``polycast.passes``."""
    return discover(sys.modules[__name__], Pass, "polycast.passes")  # type: ignore[type-abstract]
