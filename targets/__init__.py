"""The targets: one target, one file or folder."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import cache

from polycast.errors import RecipeError
from polycast.plugins import discover
from polycast.targetbase import Probe, Target

if __name__ != "polycast.targets":
    raise ImportError(f"this package is polycast.targets, not {__name__}")


@cache
def catalogue() -> dict[str, type[Target]]:
    """Every target by name: built in, or installed under the entry point group ``polycast.targets``."""
    return discover(sys.modules[__name__], Target, "polycast.targets")  # type: ignore[type-abstract]


def others(target: Target) -> tuple[Target, ...]:
    """Give ``target`` with each other runtime that builds and runs on this very machine."""
    found = (replace(target, runtime=runtime) for runtime in target.runtimes if runtime != target.executor)
    return tuple(each for each in found if _is_here(each.probe()))


def _is_here(probe: Probe) -> bool:
    return probe.build.yes and probe.run.yes and probe.evidence == "device"


def find(spelling: str, runtime: str = "") -> Target:
    """Give the target that ``spelling`` names: ``cpu``, ``cuda:sm_90``, ``cuda:sm_90@onnxruntime``.

    runtime: what executes the builds where the spelling names none; empty for the target's own choice.
    Raises: RecipeError with the nearest spelling.
    """
    kind, at, named = spelling.partition("@")
    name, _, arch = kind.partition(":")
    known = catalogue()
    if name not in known:
        raise RecipeError.unknown("target", name, known)
    return known[name](arch=arch, runtime=named if at else runtime)
