"""Passes: precision."""

if __name__ != "polycast.passes.precision":
    raise ImportError(f"this package is polycast.passes.precision, not {__name__}")
