"""What the command line says of models, builds, passes and targets: first as data, then as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from math import prod
from pathlib import Path
from typing import Any

import click

from polycast import passes, targets
from polycast.data.feeds import listing

from . import fallback, gate, kernels
from .build import Build, open_build, spell_steps
from .model import Model, graphs, weights
from .plan import plan


def show(
    source: str, target: str, precision: str, pipeline: str | None, progress: Callable[[str, int, int], None]
) -> dict[str, Any]:
    """Describe a build from its manifest, or a model by trying the passes of a recipe on it; nothing is written."""
    if (Path(source) / "manifest.json").is_file():
        return _of_build(open_build(source))
    tried = plan(source, target, precision, pipeline, progress)
    return {
        "model": tried.model.name,
        "origin": tried.model.origin.uri,
        "opset": tried.model.opset,
        "signature": [str(port) for port in tried.model.signature.inputs],
        "gives": [str(port) for port in tried.model.signature.outputs],
        "weights": _weights(tried.model),
        "ops": {"before": _ops(tried.model), "after": _ops(tried.lowered)},
        "tried": f"{target} {precision if pipeline is None else pipeline}",
        "steps": spell_steps(tried.lowered.history),
    }


def _of_build(build: Build) -> dict[str, Any]:
    return {
        "build": build.name,
        "model": build.manifest["model"]["name"],
        "origin": build.manifest["model"]["origin"]["uri"],
        "target": build.target,
        "recipe": build.manifest["recipe"],
        "bytes": build.bytes,
        "signature": [str(port) for port in build.signature.inputs],
        "gives": [str(port) for port in build.signature.outputs],
        "promise": build.promise,
        "agreement": build.agreement,
        "evidence": build.manifest["evidence"],
        "runtime": build.manifest["runtime"],
        "steps": build.steps,
    }


def _weights(model: Model) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for tensor in {id(t): t for t in weights(model.graph)}.values():
        kind = found.setdefault(str(tensor.dtype).lower(), {"tensors": 0, "elements": 0, "bytes": 0})
        kind["tensors"] += 1
        kind["elements"] += prod(tensor.shape.numpy())
        kind["bytes"] += tensor.nbytes
    return dict(sorted(found.items()))


def _ops(model: Model) -> dict[str, int]:
    ops = Counter(
        f"{node.domain}.{node.op_type}" if node.domain else node.op_type for g in graphs(model.graph) for node in g
    )
    return dict(sorted(ops.items(), key=lambda item: (-item[1], item[0])))


def pass_table() -> list[dict[str, Any]]:
    """Every pass with its parameters and their defaults, its numerics, its needs, and its first line."""
    return [
        {
            "pass": name,
            "parameters": {f.name: f.default for f in fields(kind)},
            "numerics": kind.numerics.value,
            "needs": list(kind.needs),
            "does": (kind.__doc__ or "").strip().splitlines()[0],
        }
        for name, kind in passes.catalogue().items()
    ]


def kernels_line(build: Build) -> str:
    """Say how many of the kernels with weights run on integers, or nothing for a build that has no business to."""
    counted = build.manifest["runtime"].get("kernels")
    if not counted or not (counted["integer"] or "int" in build.precision):
        return ""
    floats = f"; float: {listing(counted['float'], 6)}" if counted["float"] else ""
    return f"{counted['integer']} of {counted['of']} with weights run on integers{floats}"


def print_compiled(builds: Sequence[Build], table: gate.Table | None = None) -> None:
    """Print what was built, a few lines each, and how near they are to each other."""
    for build in builds:
        sites = sum(step["sites"] for step in build.steps)
        skips = sum(len(step["skips"]) for step in build.steps)
        seconds = f" in {build.seconds:.1f} s" if build.seconds is not None else ", up to date"
        again = f", again since {' and '.join(build.changed)} changed" if build.changed else ""
        click.echo(f"{build.path}  {size(build.bytes)}{seconds}{again}")
        click.echo(f"  passes     {sites} sites, {skips} skipped (polycast show {build.path} says why)")
        click.echo(f"  promise    asked {_shares(build.promise['asked'])}; reached {_shares(build.promise['reached'])}")
        click.echo(f"  agreement  {agreement_line(build.agreement)}")
        if limits := build.manifest["runtime"].get("limits"):
            click.echo(f"  limits     {limits}")
        if counted := kernels_line(build):
            click.echo(f"  kernels    {counted}")
        if taken := kernels.delegated(build.manifest["runtime"]):
            click.echo(f"  delegate   {taken}")
        if left := build.manifest.get("fallback"):
            click.echo(f"  fallback   {fallback.line(left)}")
        if (planned := build.manifest.get("activations", {})) and "bytes" in planned:
            click.echo(f"  memory     activations {size(planned['bytes'])} at {planned['at']}, planned from the graph")
        for line in build.manifest.get("calibration", {}).get("lint", []):
            click.echo(f"  samples    {line}")
        if auto := build.manifest.get("auto"):
            passed_over = "".join(f"; {precision}: {reason}" for precision, reason in auto["passed_over"].items())
            on = f", measured on {auto['on']}" if "on" in auto else ""
            click.echo(f"  auto       {auto['chosen']}{on}{passed_over}")
    if table:
        click.echo(f"\n{table.text()}")


def print_verified(path: Path) -> int:
    """Verify a build and print what is wrong. Returns: the exit status."""
    build = open_build(path)
    problems = build.verify()
    for line in problems:
        click.echo(f"{path}: {line}")
    if problems:
        return 1
    probe = targets.find(build.target).probe()
    golden = build.manifest["golden"]["n"]
    ran = (
        f"{golden} golden sample(s) within tolerance" if probe.run.yes and golden else f"golden not run: {_why(build)}"
    )
    click.echo(f"{path}: verified: {len(build.manifest['files'])} files unchanged, {ran}")
    return 0


def _why(build: Build) -> str:
    probe = targets.find(build.target).probe()
    return (
        probe.run.reason
        if not probe.run.yes
        else str(build.agreement.get("not_run", "the build holds no golden sample"))
    )


def print_passes(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the table of passes."""
    for row in rows:
        parameters = ", ".join(f"{name}={default!r}" for name, default in row["parameters"].items())
        needs = f"  needs {', '.join(row['needs'])}" if row["needs"] else ""
        click.echo(f"{row['pass']}({parameters})" if parameters else row["pass"])
        click.echo(f"    {row['numerics']}{needs}")
        click.echo(f"    {row['does']}")


def print_shown(table: Mapping[str, Any]) -> None:
    """Print what ``show`` found."""
    click.echo(f"{table['model']}  ({table['origin']}" + (f", opset {table['opset']})" if "opset" in table else ")"))
    for word, key in (("takes", "signature"), ("gives", "gives")):
        for port in table[key]:
            click.echo(f"  {word}  {port}")
    for dtype, row in table.get("weights", {}).items():
        click.echo(f"  {dtype}  {row['tensors']} tensors, {row['elements']:,} elements, {size(row['bytes'])}")
    if "build" in table:
        click.echo(f"  build      {table['build']}, {size(table['bytes'])}, evidence: {table['evidence']}")
        click.echo(
            f"  promise    asked {_shares(table['promise']['asked'])}; reached {_shares(table['promise']['reached'])}"
        )
        click.echo(f"  agreement  {agreement_line(table['agreement'])}")
        if taken := kernels.delegated(table["runtime"]):
            click.echo(f"  delegate   {taken}")
    if "ops" in table:
        before, after = table["ops"]["before"], table["ops"]["after"]
        click.echo(f"\nops: {sum(before.values())} before, {sum(after.values())} after ({table['tried']})")
        for op in sorted({*before, *after}, key=lambda op: (-after.get(op, 0), -before.get(op, 0), op)):
            click.echo(f"  {op:<40}{before.get(op, 0):>6}{after.get(op, 0):>6}")
    click.echo("\npasses")
    for step in table["steps"]:
        click.echo(f"  {step['pass']:<40}{step['sites']:>6} sites")
        alike: dict[tuple[str, str], list[str]] = {}
        for skip in step["skips"]:
            alike.setdefault((skip["op"], skip["reason"]), []).append(skip["node"])
        for (op, reason), nodes in alike.items():
            click.echo(f"    skipped {len(nodes)} {op}: {reason}")
            click.echo(f"      {', '.join(nodes)}")


def size(count: int) -> str:
    """Spell a number of bytes: ``412 B``, ``1.05 MiB``."""
    value, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{count} B" if unit == "B" else f"{value:.3g} {unit}" if value < 1000 else f"{value:.0f} {unit}"


def agreement_line(agreement: Mapping[str, Any]) -> str:
    """Spell an agreement in one line."""
    if not agreement["n"]:
        graph = agreement.get("graph")
        beside = f"; the graph on the CPU: {agreement_line(graph)}" if graph and graph["n"] else ""
        return f"not run: {agreement['not_run']}{beside}"
    sqnr = "equal" if agreement["sqnr_db"] is None else f"SQNR {agreement['sqnr_db']:.1f} dB"
    top = "" if agreement["same_top1"] is None else f", same top-1 {agreement['same_top1']:.1%}"
    return (
        f"{sqnr}, worst deviation {agreement['worst']:.2g} of the largest value{top} "
        f"(n={agreement['n']} {agreement['samples']})"
    )


def _shares(shares: Mapping[str, Mapping[str, float]]) -> str:
    spelt = [
        f"{of} " + ", ".join(f"{precision} {share:.0%}" for precision, share in by.items())
        for of, by in shares.items()
        if by
    ]
    return "; ".join(spelt) or "no weights"
