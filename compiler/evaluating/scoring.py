"""Scoring: stream the samples once through the original and every build, and keep per-row statistics alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite, isinf
from typing import TYPE_CHECKING, Any

import numpy as np

from polycast.errors import InputError
from polycast.measure import Measurement, interval_from
from polycast.metrics import Metric, choose
from polycast.outputs import Outputs, common_rows
from polycast.statistics import Array, Interval, bootstrap, paired_shares, wilson
from polycast.targetbase import Evidence, Session

if TYPE_CHECKING:
    from polycast.samples import Samples

#: Below this many samples a difference is called what it mostly is.
SMALL = 1000
ORIGINAL = "original"


@dataclass(frozen=True)
class Difference:
    """A build's value minus the original's on the same samples, with its paired 95 % interval."""

    name: str
    value: float
    unit: str
    n: int
    better: str
    interval: Interval

    @property
    def drop(self) -> float:
        """How much worse the build is, in ``unit``; negative where it is better."""
        return -self.value if self.better == "higher" else self.value

    def to_json(self) -> dict[str, Any]:
        """Spell for JSON."""
        interval = {"low": self.interval.low, "high": self.interval.high, "what": self.interval.what}
        return {"value": self.value, "unit": self.unit, "n": self.n, "better": self.better, "interval": interval}

    @classmethod
    def from_json(cls, name: str, data: Mapping[str, Any]) -> Difference:
        """Read what ``to_json`` wrote."""
        interval = interval_from(data["interval"])
        assert interval is not None
        return cls(name, data["value"], data["unit"], data["n"], data["better"], interval)


@dataclass
class Scores:
    """Statistics [rows, k] by metric and session, of everything that was run; outputs are gone.

    reasons: what was not scored, and why. nan_rows: by session, rows with NaN in an output.
    """

    metrics: tuple[Metric, ...] = ()
    reasons: dict[str, str] = field(default_factory=dict)
    samples: int = 0
    rows: int = 0
    nan_rows: dict[str, int] = field(default_factory=dict)
    _pieces: dict[tuple[str, str], list[Array]] = field(default_factory=dict)

    def statistics(self, metric: Metric, session: str) -> Array:
        """Give the statistics [rows, k] of one metric for one session."""
        return np.concatenate(self._pieces[metric.name, session])

    def add(self, metric: Metric, session: str, statistics: Array) -> None:
        """Take in the statistics of one sample."""
        self._pieces.setdefault((metric.name, session), []).append(statistics)


def score(
    sessions: Mapping[str, Session],
    samples: Samples,
    metrics: Sequence[Metric] = (),
    progress: Callable[[str, int, int], None] | None = None,
) -> Scores:
    """Run every sample through every session; the first is the original. Without ``metrics``, sensible ones are chosen.

    Raises: InputError where the data is empty or a metric does not fit it.
    """
    original, *builds = sessions
    scores = Scores(tuple(metrics), nan_rows=dict.fromkeys(sessions, 0))
    total = len(samples)
    for sample in samples:
        reference = sessions[original].run(sample.feeds)
        if not scores.samples and not metrics:
            scores.metrics, scores.reasons = choose(reference, sample, samples.kind)
        outputs = {original: reference, **{name: sessions[name].run(sample.feeds) for name in builds}}
        for name, given in outputs.items():
            _check(given, reference, name, sample.name)
            scores.nan_rows[name] += _nan_rows(given)
            for metric in scores.metrics:
                if not (metric.compares and name == original):
                    scores.add(metric, name, metric.per_sample(given, sample, reference))
        scores.samples += 1
        scores.rows += common_rows(reference)
        if progress:
            progress("score", scores.samples, total)
    if not scores.samples:
        raise InputError(f"{samples.source} holds no samples")
    return scores


def measure(metric: Metric, statistics: Array, evidence: Evidence) -> Measurement | str:
    """Reduce statistics [n, k] to a measurement with its interval, or say why there is none."""
    n, value = len(statistics), metric.value(statistics)
    if not isfinite(value):
        if isinf(value) and value > 0 and metric.name == "sqnr":
            return Measurement(
                metric.name, value, metric.unit, n, metric.better, evidence, note="equal to the original, bit for bit"
            )
        nan = int(np.isnan(statistics).any(1).sum())
        return f"{nan} of {n} rows are not a number" if nan else "not a finite number"
    hits = _hits(metric, statistics)
    if hits is not None:
        spread = wilson(int(hits.sum()), n)
    else:
        spread = bootstrap(lambda counts: metric.reduce(statistics, counts), n)
    return Measurement(metric.name, value, metric.unit, n, metric.better, evidence, spread)


def differ(metric: Metric, before: Array, after: Array) -> Difference | str:
    """Give the paired difference between two sessions' statistics [n, k], or say why there is none."""
    value = metric.value(after) - metric.value(before)
    if not isfinite(value):
        return "one of the two values is not a finite number"
    was, now = _hits(metric, before), _hits(metric, after)
    if was is not None and now is not None:
        interval = paired_shares(was, now)
    else:
        interval = bootstrap(
            lambda counts: metric.reduce(after, counts) - metric.reduce(before, counts),
            len(before),
            "95 % bootstrap, paired",
        )
    return Difference(metric.name, value, metric.unit, len(before), metric.better, interval)


def _hits(metric: Metric, statistics: Array) -> Any:
    """Give hit or miss per row, or None where the metric is no share or a row is more than one position."""
    if metric.unit == "share" and statistics.shape[1] == 2 and (statistics[:, 1] == 1).all():
        hits = statistics[:, 0]
        if np.isin(hits, (0, 1)).all():
            return hits == 1
    return None


def _check(outputs: Outputs, reference: Outputs, name: str, sample: str) -> None:
    """Raises: InputError where a build's outputs do not have the shapes of the original's."""
    ours, theirs = [o.shape for o in outputs], [o.shape for o in reference]
    if ours != theirs:
        raise InputError(f"{name} gives {ours} for {sample}, the original gives {theirs}")


def _nan_rows(outputs: Outputs) -> int:
    """Count the rows, of those that all outputs share, with NaN in a float output."""
    rows = common_rows(outputs)
    hurt = np.zeros(rows, bool)
    for output in outputs:
        if output.dtype.kind == "f" and output.size:
            hurt |= np.isnan(output.reshape(rows, -1)).any(1)
    return int(hurt.sum())
