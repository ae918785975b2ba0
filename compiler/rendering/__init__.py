"""From evaluations to text: columns and tables."""

if __name__ != "polycast.rendering":
    raise ImportError(f"this package is polycast.rendering, not {__name__}")
