"""From what holds samples to feeds: arrays, images, text."""

if __name__ != "polycast.data":
    raise ImportError(f"this package is polycast.data, not {__name__}")
