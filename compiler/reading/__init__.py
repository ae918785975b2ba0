"""From what holds a model to a graph: ONNX files, opsets, exporters."""

if __name__ != "polycast.reading":
    raise ImportError(f"this package is polycast.reading, not {__name__}")
