"""Open this build with onnxruntime. It lies in the build as session.py, and needs numpy alone beside its runtime."""

from __future__ import annotations

import ctypes
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def open_session(
    folder: Path,
    threads: int = 1,
    own_process: bool = False,
    adjust: Callable[[Any], None] = lambda options: None,
) -> Any:
    """Open the model of the build in ``folder``.

    own_process: set what holds for the whole process too. Denormals as zero is the floating-point mode of the thread
    that opens the first session, and numpy and everything else on it would then compute otherwise than it was written
    for; onnxruntime sets it with the first session or not at all. So it is for a process that does nothing else.
    adjust: called with the onnxruntime.SessionOptions before the session is opened.
    Returns: an onnxruntime.InferenceSession with the settings of the manifest.
    """
    import onnxruntime as ort

    runtime = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["runtime"]
    options = ort.SessionOptions()
    options.log_severity_level = 4  # an error is raised, and need not be logged too
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, runtime["graph_optimization_level"])
    for key, value in (runtime.get("session", {}) | (runtime.get("own_process", {}) if own_process else {})).items():
        options.add_session_config_entry(key, value)
    adjust(options)
    session = ort.InferenceSession(folder / runtime["model"], options, providers=_providers(ort, runtime))
    return RowByRow(session) if runtime.get("by_row") else session


class RowByRow:
    """A session whose model takes one row: a batch is run row by row. All else is the session's own."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, names: Any, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Run once. The inputs have as many rows each, or onnxruntime names the one that does not fit."""
        rows = len(next(iter(feeds.values())))
        if rows < 2 or len({len(array) for array in feeds.values()}) > 1:
            return list(self._session.run(names, feeds))
        parts = [
            self._session.run(names, {name: array[row : row + 1] for name, array in feeds.items()})
            for row in range(rows)
        ]
        return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]


def _providers(ort: Any, runtime: dict[str, Any]) -> list[Any]:
    """Give the providers of the manifest that this onnxruntime has, and last the CPU, which takes what they leave."""
    wanted = runtime.get("providers", {})
    if wanted and hasattr(ort, "preload_dlls"):
        ort.preload_dlls()  # CUDA's libraries lie in packages of their own, where no loader looks
    _preload(runtime.get("preload", {}))
    here = [(name, _spelt(options)) for name, options in wanted.items() if name in ort.get_available_providers()]
    return [*here, "CPUExecutionProvider"]


def _preload(libraries: dict[str, list[str]]) -> None:
    """Load libraries from the packages that hold them; what is not there, the provider itself names."""
    for package, names in libraries.items():
        found = importlib.util.find_spec(package)
        for folder in (found.submodule_search_locations or ()) if found else ():
            for name in filter(lambda name: Path(folder, name).is_file(), names):
                ctypes.CDLL(str(Path(folder, name)), mode=ctypes.RTLD_GLOBAL)


def _spelt(options: dict[str, str]) -> dict[str, str]:
    """Give the options of a provider with folders of this user, which are made."""
    spelt = {key: str(Path(value).expanduser()) if value.startswith("~") else value for key, value in options.items()}
    for key, value in options.items():
        if value.startswith("~"):
            Path(spelt[key]).mkdir(parents=True, exist_ok=True)
    return spelt
