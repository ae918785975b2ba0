"""Gaps: by how much the mean of each output channel moved when a layer was quantized, and how surely."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from math import sqrt

import numpy as np
import onnx_ir as ir

from polycast.calibrating.observe import observe
from polycast.calibrating.taps import Seen, Tap, Want
from polycast.passbase import PassContext
from polycast.samples import Sample, Samples

from ._pairs import Pair
from ._rounded import as_matrix

#: Parts that the samples are dealt into: how far these disagree tells how sure a mean is.
_PARTS = 4

Means = Mapping[str, np.ndarray]


class Part:
    """Every ``step``-th sample of ``whole`` from ``start`` on."""

    def __init__(self, whole: Samples, start: int, step: int) -> None:
        self.source, self.kind = f"{whole.source}[{start}::{step}]", whole.kind
        self._whole, self._start, self._step = whole, start, step

    def __len__(self) -> int:
        return len(range(self._start, len(self._whole), self._step))

    def __iter__(self) -> Iterator[Sample]:
        return islice(iter(self._whole), self._start, None, self._step)


def _parts(ctx: PassContext) -> list[PassContext]:
    """Deal the calibration samples into parts; give a context for each."""
    assert ctx.calibration is not None
    count = min(_PARTS, len(ctx.calibration))
    return [replace(ctx, calibration=Part(ctx.calibration, start, count)) for start in range(count)]


@dataclass(frozen=True)
class Survey:
    """The means of the channels of each value that a layer reads or gives: [channels] float64 by name.

    before: in the original. after: in the quantized graph. errors: by name of a layer's result in the original, the
    standard error of the difference between its two means. powers: likewise, the mean square of each channel.
    """

    before: Means
    after: Means
    errors: Means
    powers: Means

    def missing(self, pair: Pair, after: Means, *, own: bool) -> np.ndarray | None:
        """Give what the means of the layer's result, ``after``, lack: [channels]; None where they were not seen.

        own: whether what it inherits through its input is left out, going by the means of the input's channels.
        """
        if pair.before not in self.errors or pair.after not in after:
            return None
        missing = self.before[pair.before] - after[pair.after]
        x = pair.reads
        if own and x in self.before and x in after:
            missing = missing - _passed_on(pair.original, self.before[x] - after[x])
        return missing if np.isfinite(missing).all() else None


def survey(found: Sequence[Pair], model: ir.Model, original: ir.Model, ctx: PassContext) -> Survey:
    """Look at every layer of ``found`` in both graphs, on each part of the samples."""
    befores, afters = [], []
    for part in _parts(ctx):
        befores.append(observe(original, taps_of(found, original, original=True), part))
        afters.append(observe(model, taps_of(found, model), part))
    errors = {}
    for pair in found:
        both = [(_mean(b, pair.before), _mean(a, pair.after)) for b, a in zip(befores, afters, strict=True)]
        gaps = [b - a for b, a in both if b is not None and a is not None]
        if len(gaps) > 1:
            errors[pair.before] = np.std(gaps, axis=0, ddof=1) / sqrt(len(gaps))
    return Survey(_joined(befores), _joined(afters), errors, _joined(befores, squares=True))


def means(found: Sequence[Pair], model: ir.Model, ctx: PassContext) -> Means:
    """Look at every layer of ``found`` in the quantized graph, on all samples."""
    return _joined([observe(model, taps_of(found, model), ctx)])


def taps_of(found: Sequence[Pair], graph: ir.Model, *, original: bool = False) -> list[Tap]:
    """Tap what the layers read, where ``graph`` has a value of that name, and what they give."""
    names = {value.name for value in (*graph.graph.inputs, *(v for n in graph.graph.all_nodes() for v in n.outputs))}
    results = [Tap(pair.before if original else pair.after, Want.CHANNELS, pair.channels) for pair in found]
    return results + [Tap(pair.reads, Want.CHANNELS, pair.channels) for pair in found if pair.reads in names]


def _joined(looks: Sequence[Mapping[str, Seen]], *, squares: bool = False) -> Means:
    """Give the means over all looks, or the mean squares."""
    found = {}
    for name in dict.fromkeys(name for look in looks for name in look):
        seen = [(mean, look[name].elements) for look in looks if (mean := _mean(look, name, squares)) is not None]
        if seen and (total := sum(elements for _, elements in seen)):
            found[name] = np.sum([mean * (elements / total) for mean, elements in seen], axis=0)
    return found


def _mean(look: Mapping[str, Seen], name: str, squares: bool = False) -> np.ndarray | None:
    seen = look.get(name)
    if seen is None or seen.channels is None:
        return None
    return seen.channels.mean_square if squares else seen.channels.mean


def _passed_on(node: ir.Node, missing: np.ndarray) -> np.ndarray:
    """Give what the layer makes of a constant that is missing from each channel of its input, borders aside."""
    weight = as_matrix(node)
    if weight is None:
        return np.zeros(1)
    groups, inputs, *_ = weight.shape
    split = missing.reshape(groups, inputs)
    passed: np.ndarray = np.einsum("gi,gio->go", split, weight.sum(axis=3, dtype=np.float64)).reshape(-1)
    return passed * (node.attributes["alpha"].as_float() if "alpha" in node.attributes else 1.0)
