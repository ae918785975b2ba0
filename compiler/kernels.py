"""What runs the operators of a build, as its target counted it when it was compiled, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def delegated(runtime: Mapping[str, Any]) -> str:
    """Say what XNNPACK takes of a build and what it leaves; nothing for a build of another runtime.

    runtime: that of a manifest.
    """
    share = runtime.get("kernels", {}).get("xnnpack")
    if not share:
        return ""
    left = ", ".join(f"{count} {op}" for op, count in share["left"].items()) or "nothing"
    return f"XNNPACK takes {share['takes']} of {share['of']} operators; left to LiteRT's own kernels: {left}"
