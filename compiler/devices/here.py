"""Check, run and time a build with the Python of a device: ``python3 here.py BUILD RUNS``.

This file is copied to the device and run by path, where there is numpy and a runtime, and no polycast. It prints what
the native runner prints: one JSON object.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

_WARM_UPS = 5


def examine(folder: Path, runs: int) -> dict[str, Any]:
    """Give what was found of the build in ``folder``, or ``error``."""
    sys.path.insert(0, str(folder))
    checks, runner = importlib.import_module("verify"), importlib.import_module("run")
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    if changed := checks.check_files(folder, manifest["files"]):
        return {"error": "; ".join(changed)}
    started = time.perf_counter()
    session = runner.open_session(folder, own_process=True)
    loading = 1e3 * (time.perf_counter() - started)
    names = [port["name"] for port in manifest["signature"]["outputs"]]
    run = (lambda feeds: session.run(names, feeds)) if hasattr(session, "get_providers") else session.run
    golden, samples = manifest["golden"], _samples(folder, manifest)
    worst, problems = dict.fromkeys(names, 0.0), []
    for number, (feeds, wanted) in enumerate(samples):
        for name, want, found in zip(names, wanted, run(feeds), strict=True):
            off = checks.difference(want, np.asarray(found))
            worst[name] = max(worst[name], off)
            if not off <= golden["tolerance"]:
                problems.append(
                    f"golden sample {number}, output {name}: off by {off:.3g} of the largest value, "
                    f"tolerance {golden['tolerance']:.3g}"
                )
    runtime = manifest["runtime"]
    return {
        "ok": not problems,
        "runtime": {"name": runtime["name"], "version": _version(runtime["name"])},
        "golden": {
            "n": len(samples),
            "tolerance": golden["tolerance"],
            "outputs": [{"name": name, "worst": off if math.isfinite(off) else None} for name, off in worst.items()],
            "problems": problems,
        },
        "latency_ms": _latency(run, _one(samples[0][0], runtime), runs) if samples and runs else None,
        "load_ms": loading,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "on": {"system": platform.system(), "machine": platform.machine(), "cpus": os.cpu_count()},
    }


def _samples(folder: Path, manifest: dict[str, Any]) -> list[tuple[dict[str, np.ndarray], list[np.ndarray]]]:
    inputs, outputs = ([port["name"] for port in manifest["signature"][kind]] for kind in ("inputs", "outputs"))
    with np.load(folder / "golden.npz", allow_pickle=False) as arrays:
        return [
            (
                {name: arrays[f"{i}/input/{name}"] for name in inputs},
                [arrays[f"{i}/output/{name}"] for name in outputs],
            )
            for i in range(manifest["golden"]["n"])
        ]


def _one(feeds: dict[str, np.ndarray], runtime: dict[str, Any]) -> dict[str, np.ndarray]:
    """Give what is timed: one row, where the model is made for one."""
    return {name: array[:1] for name, array in feeds.items()} if runtime.get("by_row") else feeds


def _latency(run: Callable[[Any], Any], feeds: dict[str, np.ndarray], runs: int) -> dict[str, float]:
    times = []
    for _ in range(_WARM_UPS + runs):
        started = time.perf_counter()
        run(feeds)
        times.append(1e3 * (time.perf_counter() - started))
    kept = sorted(times[_WARM_UPS:])
    shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
    return {"n": runs, "min": kept[0]} | {name: kept[math.ceil(share * runs) - 1] for name, share in shares.items()}


def _version(name: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version({"litert": "ai-edge-litert", "tvm": "apache-tvm"}.get(name, name))
    except PackageNotFoundError:
        return None


def main() -> int:
    """Print what was found. Returns: the exit status: 0 fine, 1 an error or a golden that is missed."""
    try:
        found = examine(Path(sys.argv[1]), int(sys.argv[2]))
    except Exception as error:  # a runtime's own error types share no base class
        found = {"error": (str(error).strip().splitlines() or [type(error).__name__])[0]}
    print(json.dumps(found))
    return 0 if found.get("ok") else 1


if __name__ == "__main__":
    sys.exit(main())
