"""Environments: runtimes that cannot live beside the others, each with packages and a process of its own."""

if __name__ != "polycast.environments":
    raise ImportError(f"this package is polycast.environments, not {__name__}")
