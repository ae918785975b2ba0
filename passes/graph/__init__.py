"""Passes: graph."""

if __name__ != "polycast.passes.graph":
    raise ImportError(f"this package is polycast.passes.graph, not {__name__}")
