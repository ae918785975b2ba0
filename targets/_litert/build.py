"""What a build for LiteRT holds: one .tflite file, and a runner."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from polycast.errors import UnsupportedError
from polycast.model import Model
from polycast.targetbase import cut, widen

from .. import _runner
from . import flatbuffer, metadata, older, run_litert
from .open_dims import convert_any

#: What the file is called.
FILE = "model.tflite"


def problems(model: Model, *, for_ios: bool = False) -> tuple[str, ...]:
    """Name every op of ``model`` that cannot be written; for iOS, too, what its runtime is too old for."""
    program, lacking = convert_any(model, model.batch)
    return older.lacking(program) if for_ios and not lacking else lacking


def write(model: Model, folder: Path) -> Mapping[str, Any]:
    """Write model.tflite and what runs it. Returns: the runtime facts for the manifest."""
    symbol = model.batch
    program, lacking = convert_any(model, symbol)
    if lacking:
        raise UnsupportedError(
            f"LiteRT lacks what this model needs: {', '.join(lacking)}", widen(lacking) or cut(lacking)
        )
    signature = model.signature
    names = [port.name for port in signature.inputs], [port.name for port in signature.outputs]
    content = flatbuffer.write(program, names, metadata.of(model, program))
    if len(content) > flatbuffer.LARGEST:
        hint = "-p int8-weights stores weights in a quarter of the bytes of float32, -p int4 in an eighth"
        raise UnsupportedError("a .tflite file holds 2 GiB at most, and this model is larger", hint)
    (folder / FILE).write_bytes(content)
    _runner.write(folder, run_litert)
    return {
        "name": "litert",
        "versions": {"ai-edge-litert": version("ai-edge-litert")},
        "model": FILE,
        "by_row": symbol is not None,
        "needs": "pip install numpy ai-edge-litert",
        "how_to_run": ["python run.py --input x.npz", "python run.py --verify"],
    }
