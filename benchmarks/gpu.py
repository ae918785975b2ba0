#!/usr/bin/env python3
"""Compile for an NVIDIA GPU, hold the builds to their golden, and time them beside torch: the one command that does it.

    python benchmarks/gpu.py [SUBJECT …] [--arch sm_90] [--batch 1 …] [--out FOLDER]

Without a GPU it compiles, says what that took, and says what it could not do. With one, every build verifies itself and
is timed by its own run.py; torch runs the same module, eager and compiled, in float16; and what a copy and a product of
large matrices reach on this very GPU are the ceilings that effective bandwidth and FLOP/s are shares of.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from gpu_models import SUBJECTS, Subject

RESULTS = Path(__file__).resolve().parent / "results" / "gpu.json"
RUNS = 50


def compile_subject(subject: Subject, batch: int, arch: str, out: Path) -> dict[str, Any]:
    """Compile in this process. Returns: where the build is, seconds, bytes of weights and multiply-adds of a run."""
    import polycast
    from polycast.load import load
    from polycast.shares import count

    module, feeds = subject.make(batch)
    shapes = {name: tuple(array.shape) for name, array in feeds.items()}
    model = load(module, example_inputs=feeds, name=subject.name)
    model = load(model, shapes={port.name: shapes[port.name] for port in model.signature.inputs})
    started = time.perf_counter()
    [build] = polycast.compile(model, [f"cuda:{arch}"], subject.precision, out=out / f"{subject.name}-{batch}")
    seconds = time.perf_counter() - started
    macs = sum(count(model, shapes).macs.values())
    weights = (build.path / "weights.safetensors").stat().st_size
    state = sum(array.nbytes for name, array in feeds.items() if name[:2] in ("k_", "v_")) // 2  # float16 inside
    return {"build": str(build.path), "compile_s": seconds, "macs": macs, "bytes_read": weights + state}


def compile_in_child(subject: Subject, batch: int, arch: str, out: Path) -> dict[str, Any]:
    """Compile in a fresh process. Returns: what ``compile_subject`` does, or the reason under ``failed``."""
    words = [
        sys.executable,
        __file__,
        subject.name,
        "--arch",
        arch,
        "--batch",
        str(batch),
        "--out",
        str(out),
        "--child",
    ]
    done = subprocess.run(words, capture_output=True, text=True)
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


def time_torch(subject: Subject, batch: int) -> dict[str, float]:
    """Time the module eager and compiled, in float16 on the GPU: medians in ms."""
    import torch

    module, feeds = subject.make(batch)
    module = module.half().cuda()
    there = {name: (a.half() if a.is_floating_point() else a).cuda() for name, a in feeds.items()}
    fast = torch.compile(module, mode="reduce-overhead")
    found = {}
    with torch.inference_mode():
        for name, run in (("torch_ms", module), ("torch_compile_ms", fast)):
            found[name] = _median_ms(lambda run=run: run(**there))
    return found


def ceilings() -> dict[str, float]:
    """Measure what this GPU reaches: bytes a second of a copy, both ways counted, and float16 FLOP/s of a product."""
    import torch

    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    to = torch.empty_like(source)
    copied = 2 * source.numel() / (_median_ms(lambda: to.copy_(source)) / 1e3)
    a, b = (torch.randn(8192, 8192, dtype=torch.float16, device="cuda") for _ in "ab")
    return {"bytes_per_s": copied, "flop_per_s": 2 * 8192**3 / (_median_ms(lambda: a @ b) / 1e3)}


def _median_ms(run: Callable[[], Any]) -> float:
    import torch

    for _ in range(10):
        run()
    seconds = []
    for _ in range(RUNS):
        torch.cuda.synchronize()
        started = time.perf_counter()
        run()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return 1e3 * median(seconds)


def measure(subject: Subject, batch: int, row: dict[str, Any], reach: dict[str, float]) -> None:
    """Add to ``row`` what only a GPU can tell."""
    row |= run_build(Path(row["build"]))
    row |= time_torch(subject, batch)
    if "ms" in row:
        seconds = row["ms"] / 1e3
        row["bandwidth_share"] = row["bytes_read"] / seconds / reach["bytes_per_s"]
        row["flop_share"] = 2 * row["macs"] / seconds / reach["flop_per_s"]
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
    parser.add_argument("--arch", help="by default that of the GPU here, else sm_90")
    parser.add_argument("--batch", type=int, nargs="+")
    parser.add_argument("--out", type=Path, help="where the builds stay; by default they go")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    chosen = [s for s in SUBJECTS if not options.subjects or s.name in options.subjects]
    if options.child:
        print(json.dumps(compile_subject(chosen[0], options.batch[0], options.arch, options.out)))
        return 0
    import torch

    there = torch.cuda.is_available()
    arch = options.arch or ("sm_{}{}".format(*torch.cuda.get_device_capability()) if there else "sm_90")
    reach = ceilings() if there else {}
    rows = []
    with tempfile.TemporaryDirectory(prefix="polycast-") as folder:
        for subject in chosen:
            for batch in options.batch or subject.batches:
                print(f"{subject.name}, batch {batch}", file=sys.stderr)
                row = {"subject": subject.name, "batch": batch, "precision": subject.precision}
                row |= compile_in_child(subject, batch, arch, options.out or Path(folder))
                if there and "failed" not in row:
                    measure(subject, batch, row, reach)
                rows.append({key: value for key, value in row.items() if key != "build"})
    device = torch.cuda.get_device_name() if there else "none"
    print(table(rows))
    if there:
        RESULTS.write_text(json.dumps({"gpu": device, "ceilings": reach, "rows": rows}, indent=1) + "\n")
    else:
        print("\nnot run: torch sees no NVIDIA GPU, so no golden was run and nothing was timed; the builds were made")
    return int(any("failed" in row or row.get("golden", "met") != "met" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
