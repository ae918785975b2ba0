"""What `polycast verify` brought back from a device, put into the evaluation of its build."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from polycast.build import Build
from polycast.measure import Measurement

from .evaluation import Evaluation

#: What the device calls each figure.
_LATENCIES = {"latency": "p50", "latency_p90": "p90", "latency_p99": "p99"}


def path_of(build: Build) -> Path:
    """Give the file beside ``build`` that holds what a device found."""
    return build.path.resolve().with_name(f"{build.name}.device.json")


def with_device(evaluation: Evaluation, build: Build) -> Evaluation:
    """Give ``evaluation`` with the figures of the device, where this very build was on one.

    A time that was measured here stands, and that of the device is told beside it.
    """
    found = _read(build)
    if found is None:
        return evaluation
    ours = dict(evaluation.measurements)
    for name, figure in _measurements(found).items():
        ours.setdefault(name, figure)
    note = _said(found)
    return replace(
        evaluation,
        measurements=ours,
        not_run={name: why for name, why in evaluation.not_run.items() if name not in ours},
        notes=evaluation.notes if note in evaluation.notes else (*evaluation.notes, note),
    )


def _read(build: Build) -> dict[str, Any] | None:
    """Read what was found; None where there is nothing, it is damaged, or it is of another build."""
    try:
        found: dict[str, Any] = json.loads(path_of(build).read_text(encoding="utf-8"))
        return found if found["manifest"] == build.stamp else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _measurements(found: Mapping[str, Any]) -> dict[str, Measurement]:
    times = found["latency_ms"] or {}
    n = int(times.get("n", 0))
    return {
        name: Measurement(name, float(times[told]), "ms", n, "lower", "device")
        for name, told in _LATENCIES.items()
        if n
    }


def _said(found: Mapping[str, Any]) -> str:
    """Say it in one line: on what, whether the golden is met, how long and how large."""
    on, runtime, golden, times = found["on"], found["runtime"], found["golden"], found["latency_ms"]
    where = ", ".join(
        [
            f"{on['system']} {on['machine']}",
            f"{on['cpus']} CPUs",
            f"{runtime['name']} {runtime['version'] or ''}".strip(),
        ]
    )
    n = f"{golden['n']:g} sample{'s' * (golden['n'] != 1)}"
    parts = [f"golden {'met' if found['ok'] else 'MISSED'} on {n}" if golden["n"] else "no golden sample"]
    if times:
        parts.append(
            f"latency {times['p50']:.3g} ms (p90 {times['p90']:.3g}, p99 {times['p99']:.3g}, n={times['n']:g})"
        )
    parts += [f"load {found['load_ms']:.3g} ms", f"peak memory {found['peak_memory_bytes'] / 2**20:.1f} MiB"]
    return f"on {found['device']} ({where}): {', '.join(parts)}"
