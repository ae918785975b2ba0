"""Metrics: how good outputs are, by label or beside the original's outputs.

A metric turns the outputs of one sample into a few numbers per row and forgets the outputs; the value, its interval and
paired differences all come from those numbers. That is what lets an evaluation stream.
"""

from __future__ import annotations

import importlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from .errors import InputError, RecipeError
from .outputs import (
    Outputs,
    are_probabilities,
    class_scores,
    common_rows,
    cosine,
    describe,
    error_of,
    float_pairs,
    labels,
    log_of_probabilities,
    log_softmax,
    position_scores,
    similarity,
    slices,
    token_ids,
)
from .statistics import Array, spearman

if TYPE_CHECKING:
    from .samples import Sample

Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Metric(ABC):
    """One figure of merit. ``unit`` is ``share`` for what is shown in percent.

    compares: it scores against the original's outputs, which then is perfect.
    """

    name: str
    unit: str
    better: Better
    compares: bool = False

    @abstractmethod
    def per_sample(self, outputs: Outputs, sample: Sample, reference: Outputs) -> Array:
        """Give sufficient statistics, [rows, k], of the outputs of one sample; reference: the original's outputs.

        Raises: InputError where outputs or label do not have the shape that the metric is about.
        """

    def reduce(self, statistics: Array, counts: Array) -> Array:
        """Reduce statistics [n, k] to values [r], one per row of counts [r, n]: how often each row of them is there."""
        with np.errstate(invalid="ignore"):  # an infinite statistic that is there 0 times
            return self.finish(counts @ statistics)

    def finish(self, sums: Array) -> Array:
        """Give the values [r] of summed statistics [r, k]: here the first column per unit of the second."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return sums[:, 0] / sums[:, 1]

    def value(self, statistics: Array) -> float:
        """Reduce statistics [n, k] with every row there once."""
        return float(self.reduce(statistics, np.ones((1, len(statistics))))[0])


@dataclass(frozen=True)
class TopK(Metric):
    """Share of rows whose label is among the ``k`` highest class scores; a row with NaN is a miss.

    Scores are the first float output [rows, classes], axes of size 1 aside; without one, an integer output [rows] is
    taken as the class itself, where k is 1.
    """

    k: int = 1

    def per_sample(self, outputs: Outputs, sample: Sample, reference: Outputs) -> Array:
        label = labels(sample, self.name)
        scores = class_scores(outputs)
        if scores is None:
            hits = _predicted(outputs, label, self.name) == label
            return _with_weight(hits)
        if len(scores) != len(label):
            raise InputError(f"{sample.name}: {len(label)} labels for {len(scores)} rows of scores")
        classes = scores.shape[1]
        if label.min() < 0 or label.max() >= classes:
            wrong = label.max() if label.max() >= classes else label.min()
            raise InputError(
                f"{sample.name}: label {wrong} where the model has {classes} classes, 0 to {classes - 1}",
                "Labels that count from 1, or another class list? Shift them to the index of the class in the output",
            )
        rows = np.arange(len(label))
        # Ties are counted against the label only by index, as argmax does.
        own = scores[rows, label][:, None]
        above = (scores > own).sum(1) + ((scores == own) & (np.arange(classes) < label[:, None])).sum(1)
        return _with_weight((above < self.k) & ~np.isnan(scores).any(1))


@dataclass(frozen=True)
class Agreement(Metric):
    """Share of positions where the highest score is the original's; without scores, of equal discrete elements."""

    def per_sample(self, outputs: Outputs, sample: Sample, reference: Outputs) -> Array:
        scores = position_scores(reference)
        if scores is not None:
            ours = outputs[scores.index].reshape(scores.values.shape)
            same = (ours.argmax(-1) == scores.values.argmax(-1)) & ~np.isnan(ours).any(-1)
        else:
            index = next((i for i, o in enumerate(reference) if o.dtype.kind in "iubOUS"), None)
            if index is None:
                raise InputError(f"{self.name} needs class scores or a discrete output; found {describe(reference)}")
            same = np.asarray(outputs[index] == reference[index])
            same = same.reshape(len(same), -1) if same.ndim else same.reshape(1, 1)
        return np.stack([same.sum(1), np.full(len(same), same.shape[1])], 1).astype(np.float64)


@dataclass(frozen=True)
class Sqnr(Metric):
    """Signal to quantization noise in dB, 10 log10(sum ref^2 / sum (out - ref)^2), of the worst float output.

    Infinite where every output is equal to the bit.
    """

    def per_sample(self, outputs: Outputs, sample: Sample, reference: Outputs) -> Array:
        rows = common_rows(reference)
        columns = []
        for ours, theirs in float_pairs(outputs, reference, rows, self.name):
            signal = np.where(np.isfinite(theirs), theirs, 0.0)
            columns += [(signal * signal).sum(1), (error_of(ours, theirs) ** 2).sum(1)]
        return np.stack(columns, 1)

    def finish(self, sums: Array) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = sums[:, 0::2] / sums[:, 1::2]
            ratios = np.where(sums[:, 1::2] == 0, np.inf, ratios)
            return 10 * np.log10(ratios.min(1))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Cosine(Metric):
    """Mean over rows of the cosine between a float output and the original's, of the worst output."""

    def per_sample(self, outputs: Outputs, sample: Sample, reference: Outputs) -> Array:
        rows = common_rows(reference)
        worst = [cosine(a, b) for a, b in float_pairs(outputs, reference, rows, self.name)]
        return _with_weight(np.min(worst, axis=0))


@dataclass(frozen=True)
class MaxAbs(Metric):
    """Largest absolute difference from the original, over every element of every float output."""

    def per_sample(self, outputs: Outputs, sample: Sample, reference: Outputs) -> Array:
        rows = common_rows(reference)
        pairs = float_pairs(outputs, reference, rows, self.name)
        largest: Array = np.max([np.abs(error_of(a, b)).max(1) for a, b in pairs], axis=0)
        return largest[:, None]

    def reduce(self, statistics: Array, counts: Array) -> Array:
        return np.where(counts > 0, statistics[:, 0], -np.inf).max(1)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Divergence(Metric):
    """Kullback-Leibler divergence in nats, original from build, mean over positions.

    Scores [rows, classes] or [rows, length, classes]: probabilities where the original's sum to 1, else logits.
    """

    def per_sample(self, outputs: Outputs, sample: Sample, reference: Outputs) -> Array:
        scores = position_scores(reference)
        if scores is None:
            raise InputError(f"{self.name} needs scores [rows, classes]; found {describe(reference)}")
        to_log = log_of_probabilities if are_probabilities(scores.values) else log_softmax
        ours = outputs[scores.index].reshape(scores.values.shape)
        total = np.zeros(len(ours))
        for row, (p, q) in enumerate(zip(scores.values, ours, strict=True)):
            for at in slices(p):
                log_p, log_q = to_log(p[at]), to_log(q[at])
                total[row] += (np.exp(log_p) * (log_p - log_q)).sum()
        return np.stack([total, np.full(len(ours), float(scores.values.shape[1]))], 1)


@dataclass(frozen=True)
class Perplexity(Metric):
    """exp of the mean negative log-likelihood of the next token, every token with the same weight.

    Logits [rows, length, vocabulary] against ``input_ids`` [rows, length]; where ``attention_mask`` is 0, none counts.
    """

    def per_sample(self, outputs: Outputs, sample: Sample, reference: Outputs) -> Array:
        ids = token_ids(sample)
        logits = next((o for o in outputs if o.dtype.kind == "f" and o.shape[:-1] == ids.shape), None)
        if logits is None:
            raise InputError(
                f"{self.name} needs logits [{', '.join(map(str, ids.shape))}, vocabulary]; found {describe(outputs)}"
            )
        if ids.max() >= logits.shape[-1]:
            raise InputError(f"{sample.name}: token {ids.max()} where the vocabulary has {logits.shape[-1]}")
        counted = np.asarray(sample.feeds.get("attention_mask", np.ones_like(ids)))[:, 1:] > 0
        lost = np.zeros(len(ids))
        for row, scores in enumerate(logits[:, :-1]):
            for at in slices(scores):
                following = ids[row, 1:][at]
                chosen = log_softmax(scores[at])[np.arange(len(following)), following]
                lost[row] -= (chosen * counted[row][at]).sum()
        return np.stack([lost, counted.sum(1).astype(np.float64)], 1)

    def finish(self, sums: Array) -> Array:
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            return np.exp(sums[:, 0] / sums[:, 1])


@dataclass(frozen=True)
class Spearman(Metric):
    """Rank correlation of labels with one value per label, or with the cosine of two embedding rows per label."""

    def per_sample(self, outputs: Outputs, sample: Sample, reference: Outputs) -> Array:
        label = labels(sample, self.name, "iuf")
        scores = similarity(outputs, len(label))
        if scores is None:
            raise InputError(
                f"{self.name} needs one value per label, or two embeddings [{2 * len(label)}, width] for "
                f"{len(label)} labels; found {describe(outputs)}"
            )
        return np.stack([scores, label.astype(np.float64)], 1)

    def reduce(self, statistics: Array, counts: Array) -> Array:
        if np.isnan(statistics).any():
            return np.full(len(counts), np.nan)
        return spearman(statistics[:, 0], statistics[:, 1], counts)


@dataclass(frozen=True)
class Custom(Metric):
    """Mean over samples of ``function(outputs: list[np.ndarray], label, feeds) -> float``.

    Attributes of the function say how to read it: ``better`` ("higher" unless it is "lower") and ``unit`` ("score").
    """

    function: Callable[..., float] = float

    def per_sample(self, outputs: Outputs, sample: Sample, reference: Outputs) -> Array:
        try:
            value = float(self.function(list(outputs), sample.label, sample.feeds))
        except Exception as error:
            raise InputError(f"metric {self.name} fails on {sample.name}: {type(error).__name__}: {error}") from error
        return _with_weight(np.array([value]))


KNOWN: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        TopK("top1", "share", "higher"),
        TopK("top5", "share", "higher", k=5),
        Perplexity("perplexity", "ppl", "lower"),
        Spearman("spearman", "rho", "higher"),
        Agreement("agreement", "share", "higher", compares=True),
        Sqnr("sqnr", "dB", "higher", compares=True),
        Cosine("cosine", "cos", "higher", compares=True),
        MaxAbs("max_abs", "abs", "lower", compares=True),
        Divergence("kl", "nat", "lower", compares=True),
    )
}


def find(name: str) -> Metric:
    """Give the metric called ``name``, or made of a Python callable ``module:function``.

    Raises: RecipeError with the nearest spelling, or saying why the callable cannot be imported.
    """
    if name in KNOWN:
        return KNOWN[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise RecipeError.unknown("metric", name, [*KNOWN, "module:function"])
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        function = getattr(importlib.import_module(module), attribute)
    except Exception as error:
        raise RecipeError(f"metric {name!r} cannot be imported: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(here)
    if not callable(function):
        raise RecipeError(f"metric {name!r} is no function", "function(outputs, label, feeds) -> float")
    better: Better = "lower" if getattr(function, "better", "higher") == "lower" else "higher"
    return Custom(name, str(getattr(function, "unit", "score")), better, function=function)


def choose(outputs: Outputs, sample: Sample, kind: str = "arrays") -> tuple[tuple[Metric, ...], dict[str, str]]:
    """Choose what to score by default, from the first sample and the original's outputs for it.

    Returns: the metrics, the telling one first, and for each kind of metric that does not apply its reason.
    """
    telling, reasons = _telling(outputs, sample, kind)
    beside = [KNOWN["sqnr"]] if any(o.dtype.kind == "f" for o in outputs) else []
    classes = class_scores(outputs) is not None and "spearman" not in telling
    if classes or "perplexity" in telling or not beside:
        beside.insert(0, KNOWN["agreement"])
    else:
        reasons["agreement"] = f"no class scores in {describe(outputs)}"
    return (*(KNOWN[name] for name in telling), *beside), reasons


def _telling(outputs: Outputs, sample: Sample, kind: str) -> tuple[tuple[str, ...], dict[str, str]]:
    label = sample.label
    if kind == "text":
        if any(o.dtype.kind == "f" and o.ndim == 3 for o in outputs):
            return ("perplexity",), {}
        return (), {"accuracy": f"no logits [rows, length, vocabulary] in {describe(outputs)}"}
    if label is None:
        return (), {"accuracy": "the data has no labels"}
    label = np.atleast_1d(label)
    scores = class_scores(outputs)
    if label.dtype.kind in "iu" and label.size == len(label):
        if scores is not None and len(scores) == len(label):
            return ("top1", "top5") if scores.shape[1] >= 10 else ("top1",), {}
        if any(o.dtype.kind in "iu" and o.size == label.size for o in outputs):
            return ("top1",), {}
    if label.dtype.kind in "iuf" and label.size == len(label) and similarity(outputs, len(label)) is not None:
        return ("spearman",), {}
    shape = ", ".join(map(str, label.shape))
    return (), {
        "accuracy": f"no metric fits labels {label.dtype}[{shape}] and {describe(outputs)}: name a module:function"
    }


def _predicted(outputs: Outputs, label: NDArray[Any], metric: str) -> NDArray[Any]:
    for output in outputs:
        if metric == "top1" and output.dtype.kind in "iu" and output.size == label.size:
            return output.reshape(-1)
    raise InputError(f"{metric} needs class scores [{len(label)}, classes]; found {describe(outputs)}")


def _with_weight(values: NDArray[Any]) -> Array:
    return np.stack([values.astype(np.float64), np.ones(len(values))], 1)
