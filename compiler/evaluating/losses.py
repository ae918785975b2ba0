"""Losses: how much worse builds are than the original, by the one metric that tells it best on the samples given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

from polycast.build import Build
from polycast.errors import InputError, PolycastError
from polycast.metrics import KNOWN, Metric, choose
from polycast.model import Model
from polycast.outputs import Outputs, are_embeddings, class_scores, token_ids
from polycast.reference import open_original
from polycast.samples import Sample, Samples
from polycast.targetbase import Session

from .budget import Drop
from .scoring import ORIGINAL, Scores, score

Tell = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Loss:
    """How much worse a build is: ``drop`` in the unit of ``metric``, negative where it is better, and so in words.

    before: the original's value, 1 for what compares with the original.
    """

    metric: str
    drop: float
    before: float
    unit: str
    words: str

    def within(self, allowed: Drop | None) -> bool:
        """Whether it is allowed; without a budget nothing may change that its user would see."""
        most = 0.0 if allowed is None else allowed.allowed(self.before, self.unit)
        # 1e-12: a drop of exactly the budget meets it, whatever the subtraction left in the last bit.
        return self.drop <= most + 1e-12


def losses(
    model: Model,
    builds: Mapping[str, Build],
    samples: Samples,
    metrics: Sequence[Metric] = (),
    tell: Tell | None = None,
) -> dict[str, Loss | str]:
    """Say what each of ``builds`` loses on ``samples``, or why that cannot be told.

    The first of ``metrics`` counts. Without any it is the metric for the labels. Where there are no labels it is
    perplexity for a model that predicts its own ``input_ids``; the share of rows whose largest entry changes, for rows
    of scores; the cosine with the original's for embeddings; and the relative RMS error of the outputs for all else.
    """
    found: dict[str, Loss | str] = {}
    sessions: dict[str, Session] = {ORIGINAL: open_original(model)}
    for name, build in builds.items():
        try:
            sessions[name] = build.open()
        except PolycastError as error:
            found[name] = error.message
    first = next(iter(samples))
    metric = metrics[0] if metrics else telling(sessions[ORIGINAL].run(first.feeds), first, samples.kind)
    try:
        scores = score(sessions, samples, [metric], tell)
    except InputError as error:
        if metrics:
            raise  # the metric that the user named does not fit
        return dict.fromkeys(builds, error.message)
    return found | {name: _loss(scores, metric, name) for name in sessions if name != ORIGINAL}


def telling(outputs: Outputs, sample: Sample, kind: str) -> Metric:
    """Choose the metric that tells best what is lost, from the original's outputs for one sample."""
    labelled = next((metric for metric in choose(outputs, sample, kind)[0] if not metric.compares), None)
    if labelled is not None:
        return labelled
    if _predicts_tokens(outputs, sample):
        return KNOWN["perplexity"]
    floats = [output for output in outputs if output.dtype.kind == "f"]
    if class_scores(outputs) is not None or not floats:
        return KNOWN["agreement"]
    embeds = any(output.ndim == 2 and output.size and are_embeddings(output) for output in floats)
    return KNOWN["cosine" if embeds else "sqnr"]


def _predicts_tokens(outputs: Outputs, sample: Sample) -> bool:
    """Whether an output is a row of scores for every token, and has an entry for each token that there is."""
    try:
        ids = token_ids(sample)
    except InputError:
        return False
    logits = next((o for o in outputs if o.dtype.kind == "f" and o.shape[:-1] == ids.shape), None)
    return logits is not None and ids.shape[-1] > 1 and int(ids.max()) < logits.shape[-1]


def _loss(scores: Scores, metric: Metric, name: str) -> Loss | str:
    statistics = scores.statistics(metric, name)
    value = metric.value(statistics)
    if metric.name == "sqnr":
        error = float(10 ** (-value / 20))  # 0 for an infinite ratio
        return (
            Loss("RMS error", error, 1.0, "share", f"its outputs are {error:.2%} off, root mean square")
            if isfinite(error)
            else "its outputs are not a number"
        )
    before = 1.0 if metric.compares else metric.value(scores.statistics(metric, ORIGINAL))
    if not isfinite(value) or not isfinite(before):
        return f"{metric.name} is not a finite number"
    drop = before - value if metric.better == "higher" else value - before
    if metric.name == "cosine":
        return Loss("cosine", drop, 1.0, "share", f"the cosine of its outputs with the original's is {value:.4f}")
    if metric.compares:
        words = f"it changes the largest entry of {drop:.1%} of rows" if drop > 0 else "it changes no largest entry"
        return Loss("same largest entry", drop, before, "share", words)
    size = f"{abs(drop) * 100:.2f} pp" if metric.unit == "share" else f"{abs(drop):.4g} {metric.unit}"
    words = f"{metric.name} is {size} {'worse' if drop >= 0 else 'better'}"
    return Loss(metric.name, drop, before, metric.unit, words)
