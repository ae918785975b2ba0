"""The native runner: one C++17 file that loads a build, checks it, runs its golden and times it, without Python."""

from __future__ import annotations

from pathlib import Path

#: What executes the builds that the runner runs.
RUNTIMES = ("onnxruntime", "litert", "tvm")

_FILES = ("main.cpp", "CMakeLists.txt")


def write(folder: Path, executor: str) -> None:
    """Write the runner's source into ``folder`` as ``native/…``, with how to build it. Any of ``RUNTIMES`` executes."""
    assert executor in RUNTIMES, executor
    native = folder / "native"
    native.mkdir()
    for name in _FILES:
        (native / name).write_bytes(source(name).read_bytes())


def source(name: str = "main.cpp") -> Path:
    """Give the path of one of the runner's files."""
    return Path(__file__).parent / name
