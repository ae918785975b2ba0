"""Passes: fusion."""

if __name__ != "polycast.passes.fusion":
    raise ImportError(f"this package is polycast.passes.fusion, not {__name__}")
