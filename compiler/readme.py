"""The page that lies in every build: what it is, how to run it, how to check it on the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import kernels


def readme(name: str, manifest: Mapping[str, Any]) -> str:
    """Write the README of a build from its manifest."""
    runtime, agreement = manifest["runtime"], manifest["agreement"]
    origin = manifest["model"]["origin"]["uri"]
    lines = [
        f"# {manifest['model']['name']}: {name}",
        "",
        f"A build of `{origin}` for {manifest['target']}, recipe `{manifest['recipe']['name']}`.",
        "",
        "## Run it",
        "",
        *(f"    {line}" for line in [runtime["needs"], *runtime["how_to_run"]] if line),
        "",
        "| | name | dtype | shape |",
        "|---|---|---|---|",
    ]
    for kind in ("inputs", "outputs"):
        for port in manifest["signature"][kind]:
            shape = "any" if port["shape"] is None else " × ".join(map(str, port["shape"])) or "scalar"
            lines.append(f"| {kind[:-1]} | `{port['name']}` | {port['dtype']} | {shape} |")
    if "bytes" in (planned := manifest.get("activations", {})):
        lines += ["", "## What it takes", "", _takes(planned, manifest)]
    if "fallback" in manifest:
        lines += ["", "## What is left to the CPU", "", *_left(manifest["fallback"])]
    if taken := kernels.delegated(runtime):
        lines += ["", "## What runs it", "", f"Where this build was compiled, with {_versions(runtime)}, {taken}."]
    if "limits" in runtime:
        lines += ["", "## What it cannot do", "", f"{runtime['limits']}."]
    lines += ["", "## What it is", "", "| pass | sites | skipped |", "|---|---|---|"]
    lines += [f"| `{s['pass']}` | {s['sites']} | {len(s['skips'])} |" for s in manifest["steps"]]
    lines += [
        "",
        "The reason of every skip is in `manifest.json`, under `steps`.",
        "",
        "## How near it is to the original",
        "",
    ]
    if agreement["n"]:
        lines.append(_beside_the_original(agreement))
        if manifest["evidence"] == "emulated":
            lines += ["", "That was on a stand-in for the device (evidence: emulated): numbers, and no times."]
    else:
        lines.append(f"Not run: {agreement['not_run']}.")
        graph = agreement.get("graph")
        if graph and graph["n"]:
            lines += ["", f"The graph that the kernels were made of, on the CPU: {_beside_the_original(graph)}"]
    checks = (line for line in runtime["how_to_run"] if "verify" in line or "checks" in line)
    by = f"`{line.partition('   #')[0]}`" if (line := next(checks, "")) else "its page"
    lines += ["", f"`golden.npz` holds inputs and reference outputs; {by} checks them on the device.", ""]
    return "\n".join(lines)


def _versions(runtime: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in runtime["versions"].items())


def _left(fallback: Mapping[str, Any]) -> list[str]:
    of, taken = fallback["of"], fallback["of"] - fallback["nodes"]
    lines = [f"{taken} of {of} nodes run where the build is for, and {fallback['macs']:.1%} of the MACs do not."]
    if rows := [f"| `{name}` | {why} |" for name, why in fallback["left"].items()]:
        lines += ["", "| left | why |", "|---|---|", *rows]
    return lines


def _takes(planned: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    stored = sum(manifest["size"]["weights"].values())
    given = ", ".join(f"`{name}` {' × '.join(map(str, dims)) or 'scalar'}" for name, dims in planned["shapes"].items())
    return (
        f"Weights of {stored:,} bytes, and for {given} at most {planned['bytes']:,} bytes of activations, inputs and "
        f"outputs among them, at `{planned['at']}` ({planned['op']}): planned from the graph, beside what the runtime "
        "takes for itself."
    )


def _beside_the_original(agreement: Mapping[str, Any]) -> str:
    sqnr = "equal" if agreement["sqnr_db"] is None else f"SQNR {agreement['sqnr_db']:.1f} dB"
    return (
        f"On {agreement['n']} {agreement['samples']} sample(s), against onnxruntime on the untouched model, "
        f"its optimizations off: {sqnr}, largest deviation {agreement['worst']:.2g} of the largest value."
    )
