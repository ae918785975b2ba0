"""The original: the model as it came in, run by plain onnxruntime. What every build is held against."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .errors import InputError
from .model import Model, Signature
from .profiling import ProfiledSession


@dataclass
class Original(ProfiledSession):
    """An open session on the untouched model."""


def open_original(model: Model, *, optimized: bool = True) -> Original:
    """Open the file that ``model`` was loaded from, with onnxruntime's default settings.

    A model that did not come from an ONNX file is written as it was loaded, before any pass. Environment:
    ``POLYCAST_THREADS`` sets the threads, here and in builds, so that both are compared on the same number.
    optimized: False turns onnxruntime's own optimizations off: the judge of numerics.
    Raises: InputError when onnxruntime refuses the model.
    """
    path = Path(model.origin.uri)
    if path.suffix == ".onnx" and path.is_file():
        return open_file(path, model.signature, optimized=optimized)
    folder = Path(tempfile.mkdtemp(prefix="polycast-"))
    try:
        model.write(folder / "model.onnx")
        original = open_file(folder / "model.onnx", model.signature, optimized=optimized)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(original, shutil.rmtree, folder, ignore_errors=True)
    return original


#: onnxruntime puts float weights that stand between quantized nodes on a grid of its own. Here they stay as written.
_AS_WRITTEN = {"optimization.disable_specified_optimizers": "WeightBiasQuantization"}


def open_model(model: Model, folder: Path, *, optimized: bool = False) -> Original:
    """Write ``model`` as it stands into ``folder`` and open it: for looking between two passes."""
    model.write(folder / "model.onnx")
    return open_file(folder / "model.onnx", model.signature, optimized=optimized, entries=_AS_WRITTEN)


def open_file(
    path: Path, signature: Signature, *, optimized: bool = True, entries: Mapping[str, str] = MappingProxyType({})
) -> Original:
    """Open the ONNX file at ``path``, of ``signature``, with these session entries; see ``open_original``."""
    start = partial(start_session, path, optimized, entries=entries)
    try:
        session = start()
    except Exception as error:
        if not optimized:  # some ops run only once onnxruntime has fused or inlined them
            return open_file(path, signature, entries=entries)
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"onnxruntime cannot open the original model: {line}") from error
    return Original(lambda feeds: session.run(None, feeds), signature, reopen=start)


def start_session(
    path: Path,
    optimized: bool,
    adjust: Callable[[Any], None] = lambda options: None,
    *,
    entries: Mapping[str, str] = MappingProxyType({}),
) -> Any:
    """Start onnxruntime on the model at ``path``; ``adjust`` may change its options."""
    import onnxruntime as ort

    level = ort.GraphOptimizationLevel
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = int(os.environ.get("POLYCAST_THREADS", "0"))
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimized else level.ORT_DISABLE_ALL
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    adjust(options)
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
