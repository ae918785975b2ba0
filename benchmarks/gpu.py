#!/usr/bin/env python3
"""Compile for an NVIDIA GPU, hold the builds to their golden, and time them beside torch: the one command that does it.

    python benchmarks/gpu.py [SUBJECT …] [--target cuda:sm_90] [--batch 1 …] [--out FOLDER]

Without a GPU it compiles, says what that took, and says what it could not do. With one, every build verifies itself and
is timed by its own run.py; torch runs the same module, eager and compiled, in float16; and what a copy and a product of
large matrices reach on this very GPU are the ceilings that effective bandwidth and FLOP/s are shares of. What fails is
named in its row, and the others go on. ``--device cpu`` with a target for the CPU tries the whole of it without a GPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from gpu_models import SUBJECTS, Subject

RESULTS = Path(__file__).resolve().parent / "results" / "gpu.json"
RUNS = 50


#: Bytes of a number as the recipes store it; 4 bits have a float16 scale and a 4-bit zero for every 32.
STORED = {"fp32": 4.0, "fp16": 2.0, "int4": 0.5 + 2 / 32 + 0.5 / 32}


def compile_subject(subject: Subject, batch: int, target: str, out: Path) -> dict[str, Any]:
    """Compile in this process. Returns: where the build is, seconds, bytes that a run reads, and its multiply-adds."""
    import polycast
    from polycast.load import load
    from polycast.shares import count

    module, feeds = subject.make(batch)
    shapes = {name: tuple(array.shape) for name, array in feeds.items()}
    model = load(module, example_inputs=feeds, name=subject.name)
    model = load(model, shapes={port.name: shapes[port.name] for port in model.signature.inputs})
    tables = looked_up(module)
    del module
    started = time.perf_counter()
    [build] = polycast.compile(model, [target], subject.precision, out=out / f"{subject.name}-{batch}")
    seconds = time.perf_counter() - started
    return {
        "build": str(build.path),
        "compile_s": seconds,
        "macs": sum(count(model, shapes).macs.values()),
        "bytes_read": bytes_read(build.path, tables * STORED[subject.precision]),
    }


def looked_up(module: Any) -> int:
    """Count the numbers of a module in tables, of which a run reads a few rows."""
    import torch

    return sum(each.weight.numel() for each in module.modules() if isinstance(each, torch.nn.Embedding))


def bytes_read(build: Path, tables: float) -> int:
    """Count what a run has to read at least: every input, and every weight but those in tables."""
    inside = json.loads((build / "manifest.json").read_text(encoding="utf-8"))["runtime"]["inside"].values()
    inputs = sum(np.dtype(port["dtype"]).itemsize * prod(port["shape"]) for port in inside)
    weights = build / "weights.safetensors"
    stored = weights.stat().st_size if weights.exists() else 0  # for a CPU they lie in the library
    return max(0, round(stored - tables)) + inputs


def compile_in_child(subject: Subject, batch: int, target: str, out: Path) -> dict[str, Any]:
    """Compile in a fresh process. Returns: what ``compile_subject`` does, or the reason under ``failed``."""
    named = ["--target", target, "--batch", str(batch), "--out", str(out)]
    done = subprocess.run([sys.executable, __file__, subject.name, *named, "--child"], capture_output=True, text=True)
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]}
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def run_build(folder: Path) -> dict[str, Any]:
    """Let the build verify itself and time itself, as its user does."""
    runner = folder / "run.py"
    verified = subprocess.run([sys.executable, runner, "--verify"], capture_output=True, text=True)
    if verified.returncode:
        said = (verified.stdout + verified.stderr).strip().splitlines()
        return {"golden": said[-1] if said else "failed"}
    timed = subprocess.run([sys.executable, runner, "--time", str(RUNS)], capture_output=True, text=True, check=True)
    return {"golden": "met", "ms": json.loads(timed.stdout.splitlines()[-1])["median_ms"]}


def time_torch(subject: Subject, batch: int, device: str) -> dict[str, float]:
    """Time the module eager and compiled, in float16: medians in ms."""
    import torch

    torch._dynamo.reset()
    module, feeds = subject.make(batch)
    module = module.half().to(device)
    there = {name: (a.half() if a.is_floating_point() else a).to(device) for name, a in feeds.items()}
    fast = torch.compile(module, mode="reduce-overhead")
    found = {}
    with torch.inference_mode():
        for name, run in (("torch_ms", module), ("torch_compile_ms", fast)):
            found[name] = _median_ms(lambda run=run: run(**there), device)
    return found


def ceilings(device: str, size: int = 8192) -> dict[str, float]:
    """Measure what this GPU reaches: bytes a second of a copy, both ways counted, and float16 FLOP/s of a product."""
    import torch

    source = torch.empty(16 * size * size, dtype=torch.uint8, device=device)
    to = torch.empty_like(source)
    copied = 2 * source.numel() / (_median_ms(lambda: to.copy_(source), device) / 1e3)
    a, b = (torch.randn(size, size, dtype=torch.float16, device=device) for _ in "ab")
    return {"bytes_per_s": copied, "flop_per_s": 2 * size**3 / (_median_ms(lambda: a @ b, device) / 1e3)}


def _median_ms(run: Callable[[], Any], device: str) -> float:
    import torch

    wait = torch.cuda.synchronize if device == "cuda" else int
    for _ in range(10):
        run()
    seconds = []
    for _ in range(RUNS):
        wait()
        started = time.perf_counter()
        run()
        wait()
        seconds.append(time.perf_counter() - started)
    return 1e3 * median(seconds)


def measure(subject: Subject, batch: int, row: dict[str, Any], reach: dict[str, float], device: str) -> None:
    """Add to ``row`` what only a GPU can tell; what goes wrong is one row's."""
    import torch

    steps: tuple[Callable[[], dict[str, Any]], ...] = (
        partial(run_build, Path(row["build"])),
        partial(time_torch, subject, batch, device),
    )
    for step in steps:
        try:
            row |= step()
        except Exception as error:  # the peers raise what they like, and the other rows are worth having
            lines = str(error).strip().splitlines() or [""]
            row["failed"] = f"{type(error).__name__}: {lines[0]}"
    if device == "cuda":
        torch.cuda.empty_cache()
    if "ms" in row:
        seconds = row["ms"] / 1e3
        row["bandwidth_share"] = row["bytes_read"] / seconds / reach["bytes_per_s"]
        row["flop_share"] = 2 * row["macs"] / seconds / reach["flop_per_s"]
        if "torch_compile_ms" in row:
            row["beside_torch_compile"] = row["torch_compile_ms"] / row["ms"]


def table(rows: list[dict[str, Any]]) -> str:
    """Draw the rows in Markdown; what was not measured is a dash."""
    columns = {
        "subject": "subject", "batch": "batch", "precision": "precision", "compile_s": "compile s", "golden": "golden",
        "ms": "ms", "torch_ms": "torch ms", "torch_compile_ms": "torch.compile ms", "beside_torch_compile": "×",
        "bandwidth_share": "of bandwidth", "flop_share": "of FLOP/s", "failed": "not done",
    }  # fmt: skip

    def cell(value: Any) -> str:
        return "–" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)

    lines = ["| " + " | ".join(columns.values()) + " |", "|" + "---|" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(cell(row.get(key)) for key in columns) + " |" for row in rows])


def main() -> int:
    """Run the command line. Returns the exit status: 1 where a build failed or did not meet its golden."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help=", ".join(s.name for s in SUBJECTS))
    parser.add_argument("--target", help="by default that of the GPU here, else cuda:sm_90")
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), help="what torch runs on; by default a GPU, if one is here"
    )
    parser.add_argument("--batch", type=int, nargs="+")
    parser.add_argument("--out", type=Path, help="where the builds stay; by default they go")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    chosen = [s for s in SUBJECTS if not options.subjects or s.name in options.subjects]
    if not chosen:
        parser.error(f"no subject is called {' or '.join(options.subjects)}")
    if options.child:
        print(json.dumps(compile_subject(chosen[0], options.batch[0], options.target, options.out)))
        return 0
    device, target = here(options.device, options.target)
    reach = ceilings(device) if device else {}
    rows = []
    with tempfile.TemporaryDirectory(prefix="polycast-") as folder:
        for subject in chosen:
            for batch in options.batch or subject.batches:
                print(f"{subject.name}, batch {batch}", file=sys.stderr)
                row = {"subject": subject.name, "batch": batch, "precision": subject.precision}
                row |= compile_in_child(subject, batch, target, options.out or Path(folder))
                if device and "failed" not in row:
                    measure(subject, batch, row, reach, device)
                rows.append({key: value for key, value in row.items() if key != "build"})
                if device == "cuda":
                    keep(rows, reach)
    print(table(rows))
    if not device:
        print("\nnot run: torch sees no NVIDIA GPU, so no golden was run and nothing was timed; the builds were made")
    return int(any("failed" in row or row.get("golden", "met") != "met" for row in rows))


def here(device: str | None, target: str | None) -> tuple[str, str]:
    """Give what torch runs on, or nothing where there is no GPU, and what is compiled for."""
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "")
    found = "sm_{}{}".format(*torch.cuda.get_device_capability()) if device == "cuda" else "sm_90"
    return device, target or f"cuda:{found}"


def keep(rows: list[dict[str, Any]], reach: dict[str, float]) -> None:
    """Write what is known so far, so that an interruption loses one row."""
    import torch

    found = {"gpu": torch.cuda.get_device_name(), "ceilings": reach, "rows": rows}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
