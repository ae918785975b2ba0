"""Guard: the few layers that a lossy recipe leaves in float, because that buys more accuracy than it costs speed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .assignment import Limit, assign
from .model import Model
from .passbase import PassContext
from .pipeline import Pipeline
from .recipe import Recipe
from .sensitivity import Layer, Sensitivity, Sweep, selects, sensitivity
from .statistics import Array

#: Noise of the whole build under which nothing is bought: 40 dB is what rounding the outputs themselves to 8 bits
#: leaves. Of class scores only their order is seen, and 30 dB is an error of three hundredths.
QUIET, QUIET_SCORES = 1e-4, 1e-3
#: A layer is bought where its share of the noise is at least PRICE times its share of the multiply-accumulates, and
#: ENTRY beside it: every border between float and integers is paid for at each run.
PRICE, ENTRY = 5.0, 0.02
#: Above this noise, an error of a tenth of the signal, accuracy is at stake, and a layer may cost more.
LOUD, LOUD_PRICE, LOUD_ENTRY = 1e-2, 1.0, 0.005
#: A layer that alone adds this noise, an error of a third of the signal, ruins the model, and is left out whatever
#: share of the model it is.
RUINOUS = 1e-1
#: What is left of the promise, as a share, when as much is bought as may be.
MARGIN = 0.005
#: What is bought has to take away this share of the noise when it is tried, or it is given back.
LEAST_GAIN = 0.1


@dataclass(frozen=True)
class Guarded:
    """A recipe whose text spells what it keeps; what of that the sensitivity added, and why; and the sensitivity.

    before, after: noise over signal of the outputs, without and with what was added.
    is_mix: what one of its passes keeps another quantizes, so that its promise is about all layers.
    """

    recipe: Recipe
    kept: Mapping[str, str] = field(default_factory=dict)
    sensitivity: Sensitivity | None = None
    before: float | None = None
    after: float | None = None
    is_mix: bool = False

    @property
    def left_out(self) -> tuple[str, ...]:
        """What the promise is not about: the names, op types and globs that stay in float."""
        return () if self.is_mix else self.recipe.pipeline.kept

    def to_json(self) -> dict[str, Any]:
        """Spell for a manifest: signal over noise of the outputs in dB, with and without what is kept."""
        return {"kept": dict(self.kept), "sqnr_db": {"all": decibels(self.before), "kept": decibels(self.after)}}


def decibels(noise: float | None) -> float | None:
    """Give signal over noise in dB, of noise over signal; None where there is none."""
    return round(-10 * math.log10(noise), 2) if noise else None


@dataclass(frozen=True)
class Parts:
    """A pipeline cut in three: what makes the float model, what quantizes its layers, and what comes after."""

    start: Pipeline
    way: Pipeline
    rest: Pipeline

    @property
    def bare(self) -> Pipeline:
        """The way without what mends it afterwards, which may take long and tells the layers apart no better."""
        passes = self.way.passes
        first = next(i for i, each in enumerate(passes) if selects(each))
        return Pipeline((*passes[:first], *(each for each in passes[first:] if selects(each))))


def cut(pipeline: Pipeline, floats: Pipeline) -> Parts | None:
    """Cut ``pipeline`` after the last pass that it shares with ``floats``, the recipe that stays in float, and after
    the last that quantizes layers; None where none does."""
    passes = pipeline.passes
    at = [i for i, each in enumerate(passes) if selects(each)]
    if not at:
        return None
    first = at[0]
    while first > 0 and passes[first - 1] not in floats.passes:
        first -= 1
    end = at[-1] + 1
    return Parts(Pipeline(passes[:first]), Pipeline(passes[first:end]), Pipeline(passes[end:]))


def keeping(pipeline: Pipeline, nodes: tuple[str, ...]) -> Pipeline:
    """Give ``pipeline`` with ``nodes`` kept in float by every pass that quantizes layers."""

    def keep(each: Any) -> Any:
        return replace(each, keep=tuple(dict.fromkeys((*each.keep, *nodes))))

    return Pipeline(tuple(keep(each) if selects(each) else each for each in pipeline.passes))


def guard(model: Model, recipe: Recipe, floats: Recipe, ctx: PassContext) -> Guarded:
    """Choose what ``recipe`` leaves in float, by what each layer loses on the calibration samples.

    At most what the promise leaves over is spent, of multiply-accumulates and of weights alike, where it takes away
    most noise; beside it, what ruins the model alone is left out by name. What was chosen is tried as a whole, and
    given back where it does not help. A recipe stays as it is where there are no samples, where no pass of it takes
    ranges from them, or where next to nothing is lost.
    floats: the recipe of the same target that stays in float.
    """
    parts = cut(recipe.pipeline, floats.pipeline)
    if parts is None or ctx.calibration is None or not any("calibration" in each.needs for each in parts.way.passes):
        return Guarded(recipe)
    lowered = parts.start.run(model, ctx)
    found = sensitivity(lowered, {recipe.name: parts.bare}, ctx, ctx.calibration)
    [before] = found.whole
    as_it_is = Guarded(recipe, {}, found, before, before)
    scores = any(value is not None for row in found.kl for value in row)
    if before is None or before <= (QUIET_SCORES if scores else QUIET):
        return as_it_is
    chosen = spend(found, recipe.name, 1 - recipe.promise.macs, 1 - recipe.promise.weights)
    if not chosen:
        return as_it_is
    kept = {node: why for layer, why in chosen.items() for node in layer.nodes}
    after = Sweep(lowered, ctx, ctx.calibration).noise(keeping(parts.bare, tuple(kept)))
    if after is None or after > (1 - LEAST_GAIN) * before:
        return as_it_is
    return Guarded(replace(recipe, pipeline=keeping(recipe.pipeline, tuple(kept))), kept, found, before, after)


def spend(found: Sensitivity, way: str, macs: float, weights: float) -> dict[Layer, str]:
    """Choose the layers to keep in float. macs, weights: the shares of both that may be left over.

    Returns: the layers, each with the reason.
    """
    noise = found.column(way)
    acts = np.isfinite(noise)
    share = np.where(acts, noise, 0.0) / max(float(np.nansum(noise)), np.finfo(float).tiny)
    of_macs, of_weights = (_shares([getattr(layer, what) for layer in found.layers]) for what in ("macs", "weights"))
    ruinous = acts & (np.nan_to_num(noise) >= RUINOUS)
    floats = ~acts & ~ruinous  # what the passes leave in float anyway has its part in what may be left over
    loud = (found.whole[list(found.ways).index(way)] or 0.0) > LOUD
    price, entry = (LOUD_PRICE, LOUD_ENTRY) if loud else (PRICE, ENTRY)
    goal = np.stack([share, price * of_macs + entry], 1)
    goal[ruinous | ~acts] = (np.inf, 0.0)
    free = ruinous | ~acts
    limits = [
        Limit(
            np.stack([0 * spent, np.where(free, 0.0, spent)], 1), max(0.0, most - MARGIN - float(spent[floats].sum()))
        )
        for spent, most in ((of_macs, macs), (of_weights, weights))
    ]
    choice = assign(goal, limits) or [0] * len(found.layers)
    return {
        layer: _why(float(share[i]), float(of_macs[i]), bool(ruinous[i]))
        for i, (layer, kept) in enumerate(zip(found.layers, choice, strict=True))
        if kept and acts[i]
    }


def _shares(counts: list[int]) -> Array:
    return np.array(counts, dtype=np.float64) / max(1, sum(counts))


def _why(noise: float, macs: float, ruinous: bool) -> str:
    alone = ", which alone ruins the outputs" if ruinous else ""
    return f"{noise:.0%} of the noise for {macs:.1%} of the multiply-accumulates{alone}"
