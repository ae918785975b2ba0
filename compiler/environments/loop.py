"""The child's side: open a build in this environment, and answer each run until stdin ends.

This file is run by path, in an environment that has numpy and a runtime, and no polycast.
A message is a line of JSON and then the bytes of the arrays that it lists, one after the other.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np


def send(stream: BinaryIO, facts: Mapping[str, Any], arrays: Sequence[tuple[str, np.ndarray]] = ()) -> None:
    """Write one message. Strings, of whatever array, travel as fixed-width text."""
    plain = [(name, a.astype(np.str_) if a.dtype == object else a) for name, a in arrays]
    listed = [[name, array.dtype.str, list(array.shape)] for name, array in plain]
    stream.write(json.dumps({**facts, "arrays": listed}).encode() + b"\n")
    for _, array in plain:
        stream.write(array.tobytes())
    stream.flush()


def receive(stream: BinaryIO) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """Read one message; None at the end of the stream, also where it ends inside a message."""
    line = stream.readline()
    if not line.endswith(b"\n"):
        return None
    facts = json.loads(line)
    arrays = {}
    for name, dtype, shape in facts.pop("arrays"):
        kind = np.dtype(dtype)
        wanted = kind.itemsize * int(np.prod(shape, dtype=np.int64))
        data = stream.read(wanted)
        if len(data) < wanted:
            return None
        array = np.frombuffer(data, kind).reshape(shape)
        arrays[name] = array.astype(object) if kind.kind == "U" else array
    return facts, arrays


def main() -> None:
    """Open the build ``argv[2]`` with the runner ``argv[1]``, and answer."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a runtime prints is no answer
    runner, folder = map(Path, sys.argv[1:])
    spec = importlib.util.spec_from_file_location("runner", runner)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    session = module.open_session(folder, own_process=True)
    names, providers, run = _of(session, folder)
    send(answers, {"providers": providers})
    while (message := receive(sys.stdin.buffer)) is not None:
        try:
            outputs = run(message[1])
        except Exception as error:  # a runtime's own error types share no base class
            send(answers, {"error": str(error) or type(error).__name__})
        else:
            send(answers, {}, list(zip(names, map(np.asarray, outputs), strict=True)))


def _of(session: Any, folder: Path) -> tuple[list[str], list[str], Callable[[Any], Any]]:
    """Give the names of the outputs, the providers, and what runs the model: onnxruntime is asked by name."""
    if hasattr(session, "get_outputs"):
        names = [output.name for output in session.get_outputs()]
        return names, session.get_providers(), partial(session.run, names)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return [port["name"] for port in manifest["signature"]["outputs"]], [], session.run


if __name__ == "__main__":
    main()
