#!/usr/bin/env python3
"""Build every zoo subject for GPUs and the browser, with no GPU at hand: what is built, how soon, how near it comes.

All targets are compiled by one command in a process of its own, whose wall time and largest resident memory (children
included) are shown, and then once more: a second run has nothing to do. A build that can run here, in a browser on a
software adapter, is compared with the original: evidence ``emulated``.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import subjects

#: Fixed shapes, where a model leaves more than its batch open.
SHAPES = {
    "magika": ["bytes=1,2048"],
    "minilm": ["input_ids=1,128", "attention_mask=1,128", "token_type_ids=1,128"],
    "silero_op15": ["input=1,576", "state=2,1,128"],
    "stories260K": ["input_ids=1,256"],
    "superres": ["input=1,1,224,224"],
}

TARGETS = ("cuda:sm_90", "rocm:gfx942", "webgpu")


@dataclass
class Row:
    """One command. again: seconds of a second one. builds: of each target its bytes, the largest deviation from the
    original, relative, and the evidence for it, or why it was not run. said: why the command was refused.
    """

    subject: str
    precision: str
    seconds: float
    peak_mb: float
    again: float = 0.0
    builds: dict[str, dict[str, Any]] = field(default_factory=dict)
    said: str = ""


def build(subject: str, targets: list[str], precision: str, model: Path, limit: float) -> Row:
    """Compile in a child process, twice."""
    shapes = [part for shape in SHAPES.get(subject, ()) for part in ("--shape", shape)]
    with tempfile.TemporaryDirectory(prefix="polycast-cross-") as out:
        compiles = [sys.executable, "-m", "polycast", "compile", str(model), "-t", ",".join(targets), "-p", precision]
        command = [sys.executable, __file__, "--child", json.dumps([*compiles, *shapes, "-o", out, "--json"])]
        started = time.perf_counter()
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
        except subprocess.TimeoutExpired:
            return Row(subject, precision, time.perf_counter() - started, 0.0, said=f"over {limit:.0f} s")
        seconds = time.perf_counter() - started
        lines = (done.stderr.strip() or "no word").splitlines()
        peak = float(lines.pop().removeprefix("peak ")) / 1024 if lines[-1].startswith("peak ") else 0.0
        if done.returncode:
            return Row(subject, precision, seconds, peak, said=" ".join(lines)[:300])
        started = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        again = time.perf_counter() - started
    builds = {found["target"]: _facts(found) for found in json.loads(done.stdout)["builds"]}
    return Row(subject, precision, seconds, peak, again, builds)


def _facts(found: dict[str, Any]) -> dict[str, Any]:
    agreement = found["agreement"]
    worst = {"worst": agreement["worst"]} if agreement["n"] else {"not_run": agreement["not_run"]}
    return {"bytes": found["bytes"], "evidence": found["evidence"], **worst}


def child(command: list[str]) -> int:
    """Run ``command`` and say what it and its children held at most, in KiB, on stderr."""
    status = subprocess.run(command).returncode
    print(f"peak {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss}", file=sys.stderr)
    return status


def main() -> int:
    """Run the benchmark, or be one of its children."""
    parser = subjects.arguments(__doc__ or "")
    parser.add_argument("-t", "--targets", nargs="+", default=list(TARGETS), metavar="T")
    parser.add_argument("-p", "--precisions", nargs="+", default=["fp32", "fp16"], metavar="P")
    parser.add_argument("--limit", type=float, default=600, help="seconds that a build may take (default: 600)")
    parser.add_argument("--json", type=Path, default=subjects.RESULTS / "cross_compile.json")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(json.loads(options.child))
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="polycast-zoo-") as folder:
        zoo = Path(folder)
        chosen = subjects.chosen(options.subjects, subjects.workspace(options.zoo, zoo))
        for subject in chosen:
            for precision in options.precisions:
                row = build(subject, options.targets, precision, zoo / subjects.FILES[subject], options.limit)
                rows.append(row)
                print(f"{subject} {precision}: {row.seconds:.0f} s {row.said}", file=sys.stderr)
                facts = {"machine": subjects.machine(), "rows": [asdict(row) for row in rows]}
                options.json.parent.mkdir(parents=True, exist_ok=True)
                options.json.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    heads = [
        "subject",
        "precision",
        "s",
        "again, s",
        "peak MB",
        *(f"{target}, kB" for target in options.targets),
        "worst",
    ]
    cells = [
        [
            row.subject, row.precision, f"{row.seconds:.0f}", f"{row.again:.1f}", f"{row.peak_mb:.0f}",
            *(f"{found['bytes'] / 1e3:,.0f}" for found in row.builds.values()),
            ", ".join(f"{each['worst']:.1e} ({each['evidence']})" for each in row.builds.values() if "worst" in each),
        ] if row.builds else [row.subject, row.precision, row.said]
        for row in rows
    ]  # fmt: skip
    print(subjects.table(heads, cells))
    return 0 if all(row.builds for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
