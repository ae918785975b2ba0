"""Evaluate: a build's measurements beside the original's, on the same samples and the same machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, overload

from polycast.evaluating.bench import Bench, Taken, key_of
from polycast.evaluating.budget import Budget, Verdict
from polycast.evaluating.evaluation import Evaluation, Subject
from polycast.evaluating.scoring import ORIGINAL, SMALL, Difference, Scores, differ, measure, score

from .build import Build, open_build
from .load import load
from .measure import Measurement
from .metrics import Metric, find
from .model import Model
from .samples import Samples, open_samples

if TYPE_CHECKING:
    from .load import Source
    from .pipeline import Progress

__all__ = ["Evaluation", "evaluate"]

Buildlike = Build | str | Path


@overload
def evaluate(  # type: ignore[overload-overlap]  # a str is a Sequence, too
    build: Buildlike,
    *,
    against: Source,
    data: str | Path | Samples,
    metrics: Sequence[str | Metric] = (),
    max_drop: str | float | None = None,
    max_size: str | int | None = None,
    max_latency: str | float | None = None,
    seconds: float = 2.0,
    progress: Progress | None = None,
) -> Evaluation: ...
@overload
def evaluate(
    build: Sequence[Buildlike],
    *,
    against: Source,
    data: str | Path | Samples,
    metrics: Sequence[str | Metric] = (),
    max_drop: str | float | None = None,
    max_size: str | int | None = None,
    max_latency: str | float | None = None,
    seconds: float = 2.0,
    progress: Progress | None = None,
) -> list[Evaluation]: ...
def evaluate(
    build: Buildlike | Sequence[Buildlike],
    *,
    against: Source,
    data: str | Path | Samples,
    metrics: Sequence[str | Metric] = (),
    max_drop: str | float | None = None,
    max_size: str | int | None = None,
    max_latency: str | float | None = None,
    seconds: float = 2.0,
    progress: Progress | None = None,
) -> Evaluation | list[Evaluation]:
    """Evaluate one build, or several at once (then samples are read once, and latencies are taken in turns).

    against: the original: a Model, or what ``load`` takes. data: a path, or Samples; streamed.
    metrics: names (``top1``, ``sqnr`` …) or ``module:function``; the first is the one that ``max_drop`` is about.
    Without any, they are chosen by labels and outputs.
    max_drop: ``"1pp"``, ``"0.5%"`` or a number in the metric's unit. max_size: ``"2MiB"`` or bytes. max_latency: ms.
    seconds: how long latency is measured for each build.

    Returns: one Evaluation, or a list for a list; a missed budget is in ``missed`` and raises nothing.
    Raises: PolycastError when the model, the data, a metric or a budget cannot be read.
    """
    budget = Budget.parse(max_drop, max_size, max_latency)
    wanted = [find(m) if isinstance(m, str) else m for m in metrics]
    given: Sequence[Buildlike] = [build] if isinstance(build, Build | str | Path) else build
    builds = [each if isinstance(each, Build) else open_build(each) for each in given]
    model = load(against)
    samples = _samples(data, model)
    bench = Bench(model, builds, samples, progress)
    scores = score(bench.sessions, samples, wanted, progress)
    taken = bench.take(seconds)
    found = [_evaluation(bench, each, scores, taken, budget) for each in builds]
    return found[0] if given is not build else found


def _evaluation(
    bench: Bench,
    build: Build,
    scores: Scores,
    taken: Mapping[str, Taken],
    budget: Budget,
) -> Evaluation:
    """Put together what belongs to one build."""
    key = key_of(build)
    cells: dict[str, Measurement | str] = dict(scores.reasons)
    differences: dict[str, Difference] = {}
    originals = _measured(taken[ORIGINAL].cells)
    for metric in scores.metrics:
        if not metric.compares:
            before = measure(metric, scores.statistics(metric, ORIGINAL), "device")
            if isinstance(before, Measurement):
                originals[metric.name] = before
        if key in bench.refused:
            cells[metric.name] = bench.refused[key]
            continue
        after = scores.statistics(metric, key)
        cells[metric.name] = measure(metric, after, bench.sessions[key].evidence)
        if not metric.compares:
            difference = differ(metric, scores.statistics(metric, ORIGINAL), after)
            if isinstance(difference, Difference):
                differences[metric.name] = difference
    cells |= taken[key].cells
    return Evaluation(
        Subject.of(build),
        f"{bench.model.name} ({bench.model.origin.sha256[:12]})",
        bench.samples.source,
        scores.samples,
        originals,
        _measured(cells),
        differences,
        {name: cell for name, cell in cells.items() if isinstance(cell, str)},
        _verdicts(budget, scores.metrics, cells, originals, differences),
        (*_notes(scores, key, differences, budget, originals), *_untaken(taken[ORIGINAL])),
        taken[key].costs,
    )


def _measured(cells: Mapping[str, Measurement | str]) -> dict[str, Measurement]:
    return {name: cell for name, cell in cells.items() if isinstance(cell, Measurement)}


def _untaken(original: Taken) -> list[str]:
    """Say why the original lacks figures, where it does."""
    reasons = dict.fromkeys(cell for name, cell in original.cells.items() if isinstance(cell, str))
    return [f"the original was not measured: {reason}" for reason in reasons]


def _telling(metrics: Sequence[Metric]) -> Metric | None:
    """Give the metric that a drop is about: the first that the original has, or else agreement with it."""
    return next((m for m in metrics if not m.compares or m.unit == "share"), None)


def _verdicts(
    budget: Budget,
    metrics: Sequence[Metric],
    cells: Mapping[str, Measurement | str],
    originals: Mapping[str, Measurement],
    differences: Mapping[str, Difference],
) -> tuple[Verdict, ...]:
    verdicts = []
    if budget.drop is not None:
        telling = _telling(metrics)
        if telling is None:
            verdicts.append(Verdict("max_drop", budget.drop.spelling, "no metric that can drop was run", False))
        else:
            verdicts.append(_drop_verdict(budget, telling, cells, originals, differences))
    for name, limit, unit in (("size", budget.size, "bytes"), ("latency", budget.latency, "ms")):
        if limit is None:
            continue
        cell = cells[name]
        reached = f"{cell.value:,.6g} {unit}" if isinstance(cell, Measurement) else f"not run: {cell}"
        met = isinstance(cell, Measurement) and cell.value <= limit
        verdicts.append(Verdict("max_size" if name == "size" else "max_latency", f"{limit:,g} {unit}", reached, met))
    return tuple(verdicts)


def _drop_verdict(
    budget: Budget,
    metric: Metric,
    cells: Mapping[str, Measurement | str],
    originals: Mapping[str, Measurement],
    differences: Mapping[str, Difference],
) -> Verdict:
    """Hold the drop of ``metric``; of agreement, which is 1 for the original, what is missing to 1."""
    assert budget.drop is not None
    cell = cells[metric.name]
    if isinstance(cell, str) or (not metric.compares and metric.name not in differences):
        reason = cell if isinstance(cell, str) else "the original's value is not a finite number"
        return Verdict("max_drop", budget.drop.spelling, f"{metric.name} not run: {reason}", False)
    before = 1.0 if metric.compares else originals[metric.name].value
    drop = 1.0 - cell.value if metric.compares else differences[metric.name].drop
    allowed = budget.drop.allowed(before, metric.unit)
    size = f"{abs(drop) * 100:.2f} pp" if metric.unit == "share" else f"{abs(drop):.4g} {metric.unit}"
    reached = f"{metric.name} is {size} {'worse' if drop >= 0 else 'better'}"
    # 1e-12: a drop of exactly the budget meets it, whatever the subtraction left in the last bit.
    return Verdict("max_drop", budget.drop.spelling, reached, drop <= allowed + 1e-12)


def _notes(
    scores: Scores,
    key: str,
    differences: Mapping[str, Difference],
    budget: Budget,
    originals: Mapping[str, Measurement],
) -> tuple[str, ...]:
    """Say aloud what the figures alone would hide: few samples, intervals wider than the budget, NaN."""
    notes = []
    for name, whose in ((ORIGINAL, "the original"), (key, "the build")):
        if scores.nan_rows.get(name):
            notes.append(f"NaN in the outputs of {whose}: {scores.nan_rows[name]:,} of {scores.rows:,} rows")
    first = next(iter(differences.values()), None)
    if first is None:
        if scores.rows < SMALL:
            notes.append(f"small n: {scores.rows:,} samples")
        return tuple(notes)
    half = first.interval.width / 2
    spelt = f"{half * 100:.2g} pp" if first.unit == "share" else f"{half:.2g} {first.unit}"
    if first.n < SMALL:
        notes.append(f"small n: with {first.n:,} samples, a difference in {first.name} under {spelt} is noise")
    if budget.drop is not None and half > budget.drop.allowed(originals[first.name].value, first.unit):
        notes.append(f"the interval of {first.name} (±{spelt}) is wider than the budget of {budget.drop.spelling}")
    return tuple(notes)


def _samples(data: str | Path | Samples, model: Model) -> Samples:
    if not isinstance(data, str | Path):
        return data
    origin = Path(model.origin.uri)
    return open_samples(data, model.signature, beside=origin if origin.is_dir() else origin.parent)
