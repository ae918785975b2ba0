#!/usr/bin/env python3
"""Run this build with onnxruntime; nothing else is needed but numpy.

python run.py --input x.npz [--output y.npz]   run the model on arrays saved under the names of its inputs
python run.py --verify                         check every file's hash, and the golden outputs
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def cores() -> int:
    """Count the cores that this process may use: physical ones in its affinity, within its container quota."""
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    physical = set()
    for cpu in usable:
        try:
            siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text()
        except OSError:
            siblings = str(cpu)
        physical.add(siblings.strip())
    count = len(physical)
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            count = min(count, -(-int(quota) // int(period)))
    except (OSError, ValueError):
        pass
    return max(1, count)


def open_session(
    folder: Path,
    threads: int = 0,
    own_process: bool = False,
    adjust: Callable[[Any], None] = lambda options: None,
) -> Any:
    """Open the model of the build in ``folder``; 0 threads means one per usable core.

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
    options.intra_op_num_threads = threads or int(os.environ.get("POLYCAST_THREADS", "0")) or cores()
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


def _warn(folder: Path, session: Any) -> None:
    """Say so where the device that the build is for is not used."""
    wanted = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["runtime"].get("providers", {})
    if missing := [name for name in wanted if name not in session.get_providers()]:
        print(f"run.py: {', '.join(missing)} is not here: this runs on the CPU", file=sys.stderr)


def main() -> int:
    """Run the command line. Returns the exit status: 0 fine, 1 wrong input or a build that does not verify."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, metavar="X.npz", help="arrays by input name, batch axis included")
    parser.add_argument("--output", type=Path, metavar="Y.npz", help="where the outputs go, by output name")
    parser.add_argument("--verify", action="store_true", help="check hashes and golden outputs")
    parser.add_argument("--threads", type=int, default=0, help="0: one per usable core")
    options = parser.parse_args()
    folder = Path(__file__).resolve().parent
    if options.verify:
        sys.path.insert(0, str(folder))  # python -I leaves it out
        sys.dont_write_bytecode = True
        from verify import verify  # type: ignore[import-not-found]  # lies beside this file in a build

        session = open_session(folder, options.threads, own_process=True)
        _warn(folder, session)
        problems = verify(folder, lambda feeds: session.run(None, feeds))
        print("\n".join(problems) if problems else "verified: every file's hash and every golden output")
        return 1 if problems else 0
    if options.input is None:
        parser.error("give --input X.npz, or --verify")
    try:
        with np.load(options.input, allow_pickle=False) as arrays:
            feeds = {name: arrays[name] for name in arrays.files if name != "label"}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        print(f"run.py: cannot read {options.input}: {error}", file=sys.stderr)
        return 1
    session = open_session(folder, options.threads, own_process=True)
    _warn(folder, session)
    names = [output.name for output in session.get_outputs()]
    try:
        outputs = session.run(names, feeds)
    except Exception as error:  # onnxruntime raises its own types for a wrong name, dtype or shape
        print(f"run.py: {error}", file=sys.stderr)
        print(
            "The model takes: " + ", ".join(f"{i.name}: {i.type} {i.shape}" for i in session.get_inputs()),
            file=sys.stderr,
        )
        return 1
    for name, array in zip(names, outputs, strict=True):
        print(
            f"{name}: {array.dtype} {list(array.shape)}",
            np.array2string(np.asarray(array), threshold=40, precision=5),
            sep="\n",
        )
    if options.output:
        with options.output.open("wb") as file:
            np.savez(file, **dict(zip(names, outputs, strict=True)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
