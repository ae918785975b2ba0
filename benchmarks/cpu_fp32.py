#!/usr/bin/env python3
"""Time the cpu fp32 build of every zoo subject against plain onnxruntime on the untouched model.

Plain onnxruntime: its default session options, but for the number of threads. Each runs in a process of its own, as
its user runs it, and they take turns. Both are opened anew several times, since where a session's memory happens to
lie moves its time by a few per cent.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import subjects

#: The build must not be slower than this share of plain onnxruntime's speed.
LEAST = 0.97


@dataclass
class Row:
    """Medians in ms; ``ratio`` is plain / build per opening: its median, lowest and highest."""

    subject: str
    plain_ms: float
    build_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    timings: int
    openings: int
    compile_seconds: float
    compile_peak_mb: float
    model_mb: float


def compile_here(model: str, out: str) -> None:
    """Compile and print seconds and peak memory as JSON; runs in a process of its own."""
    import polycast
    from polycast.evaluating.footprint import peak

    started = perf_counter()
    polycast.compile(model, targets=["cpu"], precision="fp32", out=out)
    seconds = perf_counter() - started
    print(json.dumps({"seconds": seconds, "peak_mb": peak() / 2**20}))


def compile_in_child(model: Path, out: Path) -> dict[str, float]:
    """Compile ``model`` in a fresh process. Returns: its seconds (without imports) and its peak memory in MiB."""
    done = subprocess.run([sys.executable, __file__, "--child", model, out], check=True, stdout=subprocess.PIPE)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def race(model: Path, build: Path, feeds: subjects.Feeds, openings: int, seconds: float) -> list[dict[str, np.ndarray]]:
    """Time both in turns. Returns: per opening the seconds per run of ``plain`` and ``build`` [rounds, timings]."""
    from polycast import open_build
    from polycast.evaluating.worker import Opening, Worker, saved
    from polycast.measure import time_in_turns

    series = []
    with saved(feeds) as given:
        signature = open_build(build).signature.to_json()
        both = {
            "plain": Opening("original", str(model), given, signature),
            "build": Opening("build", str(build), given),
        }
        for opening in range(openings):
            # Neither is always the one that is opened first.
            order = list(both) if opening % 2 == 0 else list(reversed(both))
            with Worker(both[order[0]]) as first, Worker(both[order[1]]) as second:
                times = time_in_turns(dict(zip(order, (first, second), strict=True)), seconds / openings / 2)
            broken = [reason for reason in times.values() if isinstance(reason, str)]
            if broken:
                raise SystemExit(f"{model.name}: {broken[0]}")
            series.append(times)
    return series


def measure(name: str, label: str, feeds: subjects.Feeds, zoo: Path, out: Path, options: object) -> Row:
    """Compile one subject, unless that was done, and time it."""
    model = zoo / subjects.FILES[name]
    done = out / name / "compile.json"
    if not done.exists():
        (out / name).mkdir()
        done.write_text(json.dumps(compile_in_child(model, out / name)))
    cost = json.loads(done.read_text())
    series = race(model, out / name / "cpu-fp32", feeds, options.openings, options.seconds)
    ratios = [float(np.median(pair["plain"]) / np.median(pair["build"])) for pair in series]
    plain, build = (np.concatenate([pair[which].ravel() for pair in series]) for which in ("plain", "build"))
    return Row(
        label,
        float(np.median(plain)) * 1e3,
        float(np.median(build)) * 1e3,
        float(np.median(ratios)),
        min(ratios),
        max(ratios),
        len(plain),
        options.openings,
        cost["seconds"],
        cost["peak_mb"],
        model.stat().st_size / 2**20,
    )


def main() -> int:
    """Run the benchmark. Returns: 1 where a build is slower than LEAST allows."""
    parser = subjects.arguments(__doc__)
    parser.add_argument("--seconds", type=float, default=20, help="how long to time each subject (default: 20)")
    parser.add_argument("--openings", type=int, default=5, help="how often both are opened anew (default: 5)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, default=subjects.RESULTS / "cpu_fp32.json")
    options = parser.parse_args()
    os.environ["POLYCAST_THREADS"] = str(options.threads)
    rows = []
    with tempfile.TemporaryDirectory(prefix="polycast-bench-") as scratch:
        zoo, out = Path(scratch) / "zoo", Path(scratch) / "out"
        zoo.mkdir()
        out.mkdir()
        for name in subjects.chosen(options.subjects, subjects.workspace(options.zoo, zoo)):
            shapes = [(1, 128), (8, 128)] if name == "minilm" else [(1, 128)]
            for shape in shapes:
                label = f"{name} {shape[0]}×{shape[1]}" if name in ("minilm", "stories260K") else name
                print(f"{label} …", file=sys.stderr)
                rows.append(measure(name, label, subjects.feeds(name, shape), zoo, out, options))
    print(report(rows))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    facts = {"machine": subjects.machine(), "threads": options.threads, "rows": [asdict(row) for row in rows]}
    options.json.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    slow = [row.subject for row in rows if row.ratio < LEAST]
    if slow:
        print(f"slower than ×{LEAST} of plain onnxruntime: {', '.join(slow)}", file=sys.stderr)
    return bool(slow)


def report(rows: list[Row]) -> str:
    """Spell the rows as a Markdown table."""
    head = [
        "subject",
        "plain ms",
        "build ms",
        "speed-up",
        "of openings",
        "timings",
        "compile s",
        "peak MiB",
        "model MiB",
    ]
    cells = [
        [
            row.subject,
            f"{row.plain_ms:.3f}",
            f"{row.build_ms:.3f}",
            f"×{row.ratio:.2f}",
            f"{row.ratio_low:.2f} to {row.ratio_high:.2f} of {row.openings}",
            str(row.timings),
            f"{row.compile_seconds:.1f}",
            f"{row.compile_peak_mb:.0f}",
            f"{row.model_mb:.2f}",
        ]
        for row in rows
    ]
    return subjects.table(head, cells)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        compile_here(*sys.argv[2:4])
    else:
        raise SystemExit(main())
