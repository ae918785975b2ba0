"""Devices that are reached over ssh or adb: a build is copied there, runs there, and its figures come back."""

if __name__ != "polycast.devices":
    raise ImportError(f"this package is polycast.devices, not {__name__}")
