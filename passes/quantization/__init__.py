"""Passes: quantization."""

if __name__ != "polycast.passes.quantization":
    raise ImportError(f"this package is polycast.passes.quantization, not {__name__}")
