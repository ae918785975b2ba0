#!/usr/bin/env python3
"""Run this build with its runtime; nothing else is needed but numpy.

python run.py --input x.npz [--output y.npz]   run the model on arrays saved under the names of its inputs
python run.py --verify                         check every file's hash, and the golden outputs
python run.py --time [N]                       time N runs on the golden input
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

_WARM_UPS = 5


def threads(given: int = 0) -> int:
    """Give how many threads to run with: as many as are given, or as POLYCAST_THREADS says, or one per usable core."""
    return given or int(os.environ.get("POLYCAST_THREADS", "0")) or cores()


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


def open_session(folder: Path, own_process: bool = False, given: int = 0) -> Any:
    """Open the build in ``folder`` with the session.py beside this file. given: threads, as for ``threads``.

    own_process: whether nothing else runs in this process, so that what holds for all of it may be set too.
    """
    return _beside("session").open_session(folder, threads(given), own_process=own_process)


def _beside(name: str) -> Any:
    """Import a file of this folder, whatever else is known by its name: python -I does not look here."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).resolve().with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Opened:
    """The build in ``folder``, open in a process of its own, with what its manifest says."""

    def __init__(self, folder: Path, given: int) -> None:
        self.manifest = _manifest(folder)
        self.session = open_session(folder, own_process=True, given=given)
        providers = self.manifest["runtime"].get("providers", {})
        if missing := [name for name in providers if name not in self.session.get_providers()]:
            print(f"run.py: {', '.join(missing)} is not here: this runs on the CPU", file=sys.stderr)

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run once. onnxruntime's own session wants to be told which outputs: all."""
        is_onnxruntime = hasattr(self.session, "get_providers")
        return list(self.session.run(None, feeds) if is_onnxruntime else self.session.run(feeds))

    def seconds(self, feeds: Mapping[str, np.ndarray], count: int) -> list[float]:
        """Time ``count`` runs, each in seconds; a session that can leave out how numbers come and go does so."""
        if hasattr(self.session, "seconds"):
            return list(self.session.seconds(feeds, count))
        times = []
        for _ in range(_WARM_UPS + count):
            started = time.perf_counter()
            self.run(feeds)
            times.append(time.perf_counter() - started)
        return times[_WARM_UPS:]


def _manifest(folder: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return manifest


def main() -> int:
    """Run the command line. Returns the exit status: 0 fine, 1 wrong input or a build that does not verify."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, metavar="X.npz", help="arrays by input name, batch axis included")
    parser.add_argument("--output", type=Path, metavar="Y.npz", help="where the outputs go, by output name")
    parser.add_argument("--verify", action="store_true", help="check hashes and golden outputs")
    parser.add_argument("--time", type=int, nargs="?", const=50, metavar="N", help="time N runs on the golden input")
    parser.add_argument("--threads", type=int, default=0, help="0: one per usable core")
    options = parser.parse_args()
    folder = Path(__file__).resolve().parent
    sys.dont_write_bytecode = True
    try:
        if options.verify:
            return _verify(folder, options.threads)
        if options.time:
            return _time(folder, options.threads, options.time)
        if options.input is None:
            parser.error("give --input X.npz, or --verify")
        return _run(folder, options.threads, options.input, options.output)
    except ImportError as error:
        packages = " ".join(_manifest(folder)["runtime"]["versions"])
        print(f"run.py: the runtime cannot be imported ({error}): pip install {packages}", file=sys.stderr)
    except Exception as error:  # a runtime's own error types share no base class
        print(f"run.py: {str(error).strip() or type(error).__name__}", file=sys.stderr)
    return 1


def _verify(folder: Path, given: int) -> int:
    verify = _beside("verify").verify
    problems = verify(folder, None) or verify(folder, Opened(folder, given).run)
    print("\n".join(problems) if problems else "verified: every file's hash and every golden output")
    return 1 if problems else 0


def _time(folder: Path, given: int, count: int) -> int:
    opened = Opened(folder, given)
    with np.load(folder / "golden.npz", allow_pickle=False) as golden:
        feeds = {port["name"]: golden[f"0/input/{port['name']}"] for port in opened.manifest["signature"]["inputs"]}
    times = sorted(opened.seconds(feeds, count))
    print(json.dumps({"n": count, "median_ms": 1e3 * times[count // 2], "least_ms": 1e3 * times[0]}))
    return 0


def _run(folder: Path, given: int, source: Path, target: Path | None) -> int:
    try:
        with np.load(source, allow_pickle=False) as arrays:
            feeds = {name: arrays[name] for name in arrays.files if name != "label"}
    except Exception as error:  # what numpy and zipfile raise for a file that is none of theirs shares no base class
        print(f"run.py: cannot read {source}: {error}", file=sys.stderr)
        return 1
    opened = Opened(folder, given)
    try:
        outputs = opened.run(feeds)
    except Exception as error:  # as in main
        ports = opened.manifest["signature"]["inputs"]
        takes = ", ".join(f"{port['name']}: {port['dtype']} {port['shape']}" for port in ports)
        print(f"run.py: {error}\nThe model takes: {takes}", file=sys.stderr)
        return 1
    names = [port["name"] for port in opened.manifest["signature"]["outputs"]]
    for name, array in zip(names, map(np.asarray, outputs), strict=True):
        print(f"{name}: {array.dtype} {list(array.shape)}", np.array2string(array, threshold=40, precision=5), sep="\n")
    if target:
        with target.open("wb") as file:
            np.savez(file, **dict(zip(names, outputs, strict=True)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
