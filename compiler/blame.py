"""Blame: hold a build to the original, and name the pass that moved it away."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from .errors import InputError, PassError, PromiseError
from .golden import AMPLIFY, Agreement, Golden, agree, own_rounding
from .model import Model
from .passbase import Numerics, PassContext
from .pipeline import Pipeline
from .reference import open_model

#: A lossy build may have this many times the noise of its own graph: where numbers are rounded as the model runs,
#: one runtime does so by row and another by tensor.
_NOISIER = 4.0


def agreement_of_graph(lowered: Model, golden: Golden, names: list[str], tolerance: float) -> Agreement:
    """Run what the target was given on the CPU: what a device that is not here will be held to."""
    with tempfile.TemporaryDirectory(prefix="polycast-") as folder:
        try:
            return agree(golden, open_model(lowered, Path(folder)), names, tolerance)
        except InputError as error:
            return Agreement(0, golden.source, 0.0, None, None, tolerance, reason=error.message)


def hold(
    model: Model, lowered: Model, pipeline: Pipeline, golden: Golden, found: Agreement, ctx: PassContext
) -> Agreement:
    """Hold a build to the original: rounding at most where no pass is lossy, and never NaN or infinity.

    Raises: PassError naming the pass after which the outputs leave the tolerance; PromiseError on NaN or infinity.
    """
    if found.within or not found.n:
        return found
    if pipeline.numerics is Numerics.LOSSY:
        if found.worst == float("inf"):
            raise PromiseError(
                f"output {found.output!r} of the build has NaN, infinity or a shape where the original does not",
                "Give --calibration, so that values out of range are seen and stay in float32",
            )
        return found
    names = [port.name for port in model.signature.outputs]
    own = own_rounding(model, golden, names)
    if own == float("inf"):
        reason = "the original itself gives NaN or infinity, or not, when only its rounding changes"
        return replace(found, n=0, worst=0.0, reason=reason)
    tolerance = max(found.tolerance, AMPLIFY * own)
    if found.worst <= tolerance:
        return replace(found, tolerance=tolerance)
    raise PassError(
        f"{_blame(model, lowered, golden, tolerance, ctx)} moves output {found.output!r} by {found.worst:.3g} of its "
        f"largest value; rounding explains {tolerance:.3g}",
        "This is a bug of ours: run again with --keep DIR to have the model after each pass, and report it",
    )


def hold_build(
    model: Model, lowered: Model, pipeline: Pipeline, golden: Golden, found: Agreement, ctx: PassContext
) -> Agreement:
    """Hold what a runtime made of ``lowered`` to the original as ``hold`` does, and a lossy build to its graph too.

    What passes lose is theirs to lose, and says nothing of a kernel that is wrong.
    Raises: PassError where the build has more noise than the same graph in plain onnxruntime, and rounding, explain.
    """
    found = hold(model, lowered, pipeline, golden, found, ctx)
    if pipeline.numerics is not Numerics.LOSSY or not found.n or found.sqnr_db is None:
        return found
    names = [port.name for port in model.signature.outputs]
    graph = agreement_of_graph(lowered, golden, names, found.tolerance)
    explained = max(_NOISIER * graph.noise, AMPLIFY * found.tolerance)
    if graph.n and found.noise > explained and found.noise > _NOISIER * own_rounding(model, golden, names):
        raise PassError(
            f"no pass, but the runtime moves output {found.output!r}: the noise is {found.noise:.2g} of the signal, "
            f"and {graph.noise:.2g} where plain onnxruntime runs the same graph",
            "This is a bug of ours: run again with --keep DIR to have the model after each pass, and report it",
        )
    return replace(found, graph=graph)


def golden_tolerance(agreement: Agreement) -> float:
    """Give what the golden outputs are held to elsewhere: rounding, or for a lossy build twice what it lost here."""
    return float(f"{max(agreement.tolerance, 2 * agreement.worst):.3g}") if agreement.n else 0.0


def _blame(model: Model, lowered: Model, golden: Golden, tolerance: float, ctx: PassContext) -> str:
    """Find the first pass after which the outputs leave the tolerance, by running the model after each."""
    names = [port.name for port in model.signature.outputs]
    stages = [model]
    for step in lowered.history[len(model.history) :]:
        stages.append(Pipeline.parse(step.what).run(stages[-1], ctx))
    for earlier, later in pairwise(stages):
        if later.digest == earlier.digest:
            continue
        with tempfile.TemporaryDirectory(prefix="polycast-") as folder:
            if not agree(golden, open_model(later, Path(folder)), names, tolerance).within:
                return later.history[-1].what
    return "no pass alone, but the runtime,"
