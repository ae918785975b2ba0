"""Panels: accuracy against size and against latency, the two plots of a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from statistics import median

from polycast.evaluating.budget import Drop
from polycast.evaluating.evaluation import Evaluation
from polycast.measure import Measurement

from .advice import change_text, size_text, telling
from .pareto import Axis, Point, plot
from .tables import byte_unit, figure

#: A build that loses this many times what half of them lose would flatten the others: it is drawn at the edge.
FAR = 6.0


def panels(evaluations: Sequence[Evaluation]) -> str:
    """Draw both plots, or say why there is none."""
    name = telling(evaluations)
    scored = [e for e in evaluations if name and name in e.measurements]
    if name is None or not scored:
        return '<section class="plots"><p class="among">No plot: no metric was run of any build.</p></section>'
    view = _View.of(name, scored)
    unit, each = byte_unit([e.measurements["size"].value for e in scored if "size" in e.measurements])
    most = view.allowed("max_size")
    size = Axis(f"size on disk, {unit}", "{:.4g}".format, most and most / each)
    figures = view.figure("size", size, view.sizes(each))
    original = view.baseline.get("latency")
    longest = view.allowed("max_latency")
    title = f"latency, × the original’s {figure(original.value)} ms" if original else "latency"
    latency = Axis(title, "×{:.3g}".format, longest / original.value if longest and original else None)
    figures += view.figure("latency", latency, view.latencies())
    bars = "the change against the original, paired" if any(name in e.differences for e in scored) else "the value"
    spread = next((m.spread.what for e in scored if (m := e.measurements.get("speedup")) and m.spread), "")
    level = f" Level bars: {escape(spread)}." if spread else ""
    keys = [("best", "no build beats it in both"), ("other", "another does"), ("original", "original")]
    keys += [("missed", "misses a budget")] * any(e.missed for e in scored)
    keys += [("limit", "budget")] * any(e.budgets for e in scored)
    legend = "".join(f'<li class="{kind}">{says}</li>' for kind, says in keys)
    return (
        f'<section class="plots"><h2>What accuracy costs</h2><div class="pair">{figures}</div>'
        f'<ul class="legend" aria-label="Legend">{legend}</ul>'
        f'<p class="hint">Left and up is better. Upright bars: 95 % intervals of {bars}.{level}</p></section>'
    )


@dataclass(frozen=True)
class _View:
    """The evaluations that have the telling metric ``name``, and the original's figures."""

    name: str
    scored: Sequence[Evaluation]
    baseline: Mapping[str, Measurement]
    unit: str
    falls: bool

    @classmethod
    def of(cls, name: str, scored: Sequence[Evaluation]) -> _View:
        one = scored[0].measurements[name]
        baseline = next((e.baseline for e in scored if e.baseline), {})
        return cls(name, scored, baseline, one.unit, one.better == "lower")

    @property
    def before(self) -> float | None:
        """The original's value; a metric that compares with it has 1."""
        if self.name in self.baseline:
            return self.baseline[self.name].value
        return 1.0 if self.unit == "share" else None

    def figure(self, short: str, across: Axis, points: list[Point]) -> str:
        """Draw one plot, or say why no build is on it."""
        head = f"{self.name}{' %' if self.unit == 'share' else ''} against {short}"
        without = len(self.scored) - sum(not point.original for point in points)
        if without == len(self.scored):
            reason = next((e.not_run[short] for e in self.scored if short in e.not_run), "it was not asked for")
            return f'<figure><h3>{escape(head)}</h3><p class="among">No build is here: {escape(reason)}.</p></figure>'
        up = Axis(self.name, self.spell, self.least(), self.falls, self.floor())
        drawn = plot(points, across, up, head)
        lacking = f"<figcaption>{without} not measured here</figcaption>" if without else ""
        return f"<figure><h3>{escape(head)}</h3>{drawn}{lacking}</figure>"

    def original(self, cost: Measurement | None, each: float, spelt: str) -> list[Point]:
        """Give the point of the original, where it was measured; ``each`` is the unit of its cost."""
        if self.before is None or cost is None:
            return []
        says = f"{self.name} {self.spell(self.before)}, {spelt}"
        return [Point("original", "original", cost.value / each, self.before, says, original=True)]

    def sizes(self, each: float) -> list[Point]:
        """Give a point for the original and for each build, in units of ``each`` bytes."""
        before = self.baseline.get("size")
        return [
            *self.original(before, each, size_text(before.value) if before else ""),
            *(
                self.point(e, size.value / each, None, size_text(size.value))
                for e in self.scored
                if (size := e.measurements.get("size"))
            ),
        ]

    def latencies(self) -> list[Point]:
        """Give a point for the original and for each build that was timed, as a share of the original's time."""
        before = self.baseline.get("latency")
        points = self.original(before, before.value, f"{figure(before.value)} ms") if before else []
        for evaluation in self.scored:
            speedup, latency = evaluation.measurements.get("speedup"), evaluation.measurements.get("latency")
            if speedup and latency:
                ends = (1 / speedup.spread.high, 1 / speedup.spread.low) if speedup.spread else None
                says = f"{figure(latency.value)} ms, ×{figure(speedup.value)} as fast"
                points.append(self.point(evaluation, 1 / speedup.value, ends, says))
        return points

    def point(self, evaluation: Evaluation, cost: float, costs: tuple[float, float] | None, says: str) -> Point:
        """Give the point of one build; its interval is that of the paired change, where there is one."""
        found = evaluation.measurements[self.name]
        change = evaluation.differences.get(self.name)
        ends = change.interval if change is not None else found.spread
        start = found.value - change.value if change is not None else 0.0
        goods = (start + ends.low, start + ends.high) if ends else None
        build = evaluation.build
        floor = self.floor()
        off = floor is not None and (found.value > floor if self.falls else found.value < floor)
        alone = sum(e.build.precision == build.precision for e in self.scored) == 1
        says = f"{self.name} {self.spell(found.value)}, {says}; {change_text(evaluation)}"
        return Point(
            build.name,
            (build.precision if alone else f"{build.target} {build.precision}") + off * f" {self.spell(found.value)}",
            cost,
            found.value,
            says + "".join(f"; misses {verdict}" for verdict in evaluation.missed),
            costs,
            goods,
            missed=bool(evaluation.missed),
        )

    def spell(self, value: float) -> str:
        """Write a value of the metric as on its axis."""
        if self.unit == "share":
            return f"{value * 100:.4g}"
        return f"{value:.4g}"

    def least(self) -> float | None:
        """Give the value at which the budget for the drop ends."""
        allowed = next((v.allowed for e in self.scored for v in e.budgets if v.budget == "max_drop"), None)
        if allowed is None or self.before is None:
            return None
        drop = Drop.parse(allowed).allowed(self.before, self.unit)
        return self.before + drop if self.falls else self.before - drop

    def allowed(self, budget: str) -> float | None:
        """Give the largest size in bytes, or latency in ms, that is allowed."""
        spelt = next((v.allowed for e in self.scored for v in e.budgets if v.budget == budget), None)
        return float(spelt.split()[0].replace(",", "")) if spelt else None

    def floor(self) -> float | None:
        """Give the value beyond which builds are drawn at the edge, or None where all fit on one scale."""
        if self.before is None:
            return None
        drops = [(e.measurements[self.name].value - self.before) * (1 if self.falls else -1) for e in self.scored]
        limit = self.least()
        room = max(FAR * abs(median(drops)), FAR * abs(limit - self.before) if limit is not None else 0.0)
        if not room or max(drops) <= 2 * room:
            return None
        return self.before + room if self.falls else self.before - room
