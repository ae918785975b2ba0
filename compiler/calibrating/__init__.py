"""What the calibration samples say of a model's activations: streamed, reduced inside the graph, kept."""

if __name__ != "polycast.calibrating":
    raise ImportError(f"this package is polycast.calibrating, not {__name__}")
