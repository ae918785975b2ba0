"""Pareto: accuracy against a cost as one figure in SVG, with the front that no other build beats in both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

WIDTH, HEIGHT = 420.0, 350.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 408.0, 16.0, 292.0
#: Labels are placed for the larger type of a phone.
CHARACTER, LINE = 7.6, 15.0
#: From this ratio of the largest to the smallest on, an axis is logarithmic.
WIDE = 10.0

Spell = Callable[[float], str]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Point:
    """One build: what it costs and how good it is, each with its interval, and ``says`` for who asks.

    original: what every build is held against. missed: outside a budget.
    """

    name: str
    label: str
    cost: float
    good: float
    says: str
    costs: tuple[float, float] | None = None
    goods: tuple[float, float] | None = None
    original: bool = False
    missed: bool = False


@dataclass(frozen=True)
class Axis:
    """What is along one side of a plot, and how its ticks are spelt. ``limit``: the user's budget.

    falls: less is better, so that the axis of goodness has its least value on top. floor: what is worse is drawn at
    the edge.
    """

    title: str
    spell: Spell
    limit: float | None = None
    falls: bool = False
    floor: float | None = None

    def cuts(self, value: float) -> bool:
        """Whether ``value`` lies beyond the floor."""
        return self.floor is not None and (value > self.floor if self.falls else value < self.floor)


def front(points: Sequence[Point], falls: bool = False) -> list[Point]:
    """Give the points that no other beats in one of cost and goodness and matches in the other, cheapest first.

    Source: Pareto efficiency; the skyline of Börzsönyi, Kossmann and Stocker 2001.
    """

    def better(p: Point) -> float:
        return -p.good if falls else p.good

    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.cost, -better(p))):
        if not best or better(point) > better(best[-1]) or (point.cost, point.good) == (best[-1].cost, best[-1].good):
            best.append(point)
    return best


def plot(points: Sequence[Point], across: Axis, up: Axis, title: str) -> str:
    """Draw ``points`` as SVG: the front as a line, intervals as bars, budgets as dashes."""
    x = _Scale.fitting([v for p in points for v in (p.cost, *(p.costs or ()))], across.limit, LEFT, RIGHT, log=True)
    inside = [v for p in points for v in (p.good, *(p.goods or ())) if not up.cuts(v)]
    y = _Scale.fitting(inside, up.limit, *((TOP, BOTTOM) if up.falls else (BOTTOM, TOP)))
    best = front(points, up.falls)
    parts = [
        f'<svg class="plot" viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="group" aria-label="{escape(title)}">',
        *_grid(x, y, across, up),
        f'<path class="front" d="{_stairs([(x(p.cost), y(p.good)) for p in best])}"/>',
    ]
    bars = [(x(p.cost) - 1, y(p.goods[1]), x(p.cost) + 1, y(p.goods[0])) for p in points if p.goods]
    bars = [(left, min(a, b), right, max(a, b)) for left, a, right, b in bars]
    places = _labels([(x(p.cost), y(p.good), p.label) for p in points], bars)
    for point, place in zip(points, places, strict=True):
        parts += _mark(point, x, y, place, point in best)
    return "".join([*parts, "</svg>"])


def _grid(x: _Scale, y: _Scale, across: Axis, up: Axis) -> list[str]:
    parts = []
    for value in y.ticks():
        parts.append(f'<path class="grid" d="M{LEFT:g} {y(value):.1f}H{RIGHT:g}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6:g}" y="{y(value) + 4:.1f}" text-anchor="end">')
        parts.append(f"{escape(up.spell(value))}</text>")
    for value in x.ticks():
        parts.append(f'<path class="grid" d="M{x(value):.1f} {TOP:g}V{BOTTOM:g}"/>')
        parts.append(f'<text class="tick" x="{x(value):.1f}" y="{BOTTOM + 18:g}" text-anchor="middle">')
        parts.append(f"{escape(across.spell(value))}</text>")
    middle = (LEFT + RIGHT) / 2
    parts.append(f'<text class="axis" x="{middle:g}" y="{HEIGHT - 14:g}" text-anchor="middle">')
    parts.append(f"{escape(across.title)}</text>")
    if up.limit is not None:
        parts.append(f'<path class="limit" d="M{LEFT:g} {y(up.limit):.1f}H{RIGHT:g}"/>')
    if across.limit is not None:
        parts.append(f'<path class="limit" d="M{x(across.limit):.1f} {TOP:g}V{BOTTOM:g}"/>')
    return parts


def _mark(point: Point, x: _Scale, y: _Scale, place: _Place, best: bool) -> list[str]:
    """Draw one point with its intervals and its label; one below the floor is an arrow at the lower edge."""
    cx, cy = x(point.cost), y(point.good)
    kinds = [word for word, is_so in (("original", point.original), ("missed", point.missed), ("best", best)) if is_so]
    says = f"{point.label}: {point.says}"
    parts = [
        f'<g class="{" ".join(["point", *kinds])}" data-build="{escape(point.name)}" tabindex="0" role="img" '
        f'aria-label="{escape(says)}"><title>{escape(says)}</title>'
    ]
    off = y.beyond(point.good)
    if point.goods and not off:
        parts.append(f'<path class="bar" d="M{cx:.1f} {y(point.goods[0]):.1f}V{y(point.goods[1]):.1f}"/>')
    if point.costs and not off:
        parts.append(f'<path class="bar" d="M{x(point.costs[0]):.1f} {cy:.1f}H{x(point.costs[1]):.1f}"/>')
    if off:
        parts.append(f'<path class="dot" d="M{cx - 6:.1f} {cy - 9:.1f}h12l-6 9z"/>')
    elif point.original:
        parts.append(f'<path class="dot" d="M{cx:.1f} {cy - 9:.1f}l9 9l-9 9l-9 -9z"/>')
    else:
        parts.append(f'<circle class="dot" cx="{cx:.1f}" cy="{cy:.1f}" r="5.5"/>')
    if place.far:
        parts.append(f'<path class="lead" d="M{cx:.1f} {cy:.1f}L{place.x:.1f} {place.y - 4:.1f}"/>')
    parts.append(f'<text class="label" x="{place.x:.1f}" y="{place.y:.1f}" text-anchor="{place.anchor}">')
    parts.append(f"{escape(point.label)}</text>")
    return [*parts, "</g>"]


def _stairs(points: Sequence[tuple[float, float]]) -> str:
    """Give the path of a staircase: what the next point costs more buys nothing until it is paid in full."""
    if not points:
        return ""
    path = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
    for px, py in points[1:]:
        path += f"H{px:.1f}V{py:.1f}"
    return f"{path}H{RIGHT:g}"


@dataclass(frozen=True)
class _Scale:
    """Maps values from ``low`` to ``high`` to pixels; what lies outside is drawn at the edge."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    @classmethod
    def fitting(
        cls, values: Sequence[float], limit: float | None, start: float, end: float, log: bool = False
    ) -> _Scale:
        """Leave room around ``values``; a limit that is far away is drawn at the edge."""
        low, high = min(values), max(values)
        if limit is not None and low - (high - low) <= limit <= high + (high - low):
            low, high = min(low, limit), max(high, limit)
        if log and low > 0 and high / low >= WIDE:
            room = (high / low) ** 0.12
            return cls(low / room, high * room, start, end, True)
        room = (high - low) * 0.12 or abs(high) * 0.05 or 1.0
        least = low - room
        return cls(max(0.0, least) if log else least, high + room, start, end)

    def __call__(self, value: float) -> float:
        inside = min(max(value, self.low), self.high)
        share = (
            log10(inside / self.low) / log10(self.high / self.low)
            if self.log
            else (inside - self.low) / (self.high - self.low)
        )
        return self.start + share * (self.end - self.start)

    def beyond(self, value: float) -> bool:
        """Whether ``value`` does not fit."""
        return not self.low <= value <= self.high

    def ticks(self) -> list[float]:
        """Give round values inside the scale, four to seven of them."""
        if self.log:
            powers = range(floor(log10(self.low)), ceil(log10(self.high)) + 1)
            many = [m * 10.0**p for p in powers for m in (1, 2, 5)]
            inside = [v for v in many if self.low <= v <= self.high]
            decades = [v for v in inside if f"{v:e}".startswith("1.0")]
            return decades[:: ceil(len(decades) / 7)] if len(inside) > 7 and len(decades) > 1 else inside
        span = self.high - self.low
        step = 10.0 ** floor(log10(span / 4))
        step *= next((m for m in (1, 2, 5, 10) if span / (step * m) <= 6), 10)
        first = ceil(self.low / step)
        return [n * step for n in range(first, floor(self.high / step) + 1)]


@dataclass(frozen=True)
class _Place:
    """Where a label is written: x and y of its base line, its text anchor, and where a line leads from, if far."""

    x: float
    y: float
    anchor: str
    far: bool = False

    def box(self, wide: float) -> Box:
        left = {"start": self.x, "end": self.x - wide, "middle": self.x - wide / 2}[self.anchor]
        return left, self.y - LINE + 3, left + wide, self.y + 3


def _labels(points: Sequence[tuple[float, float, str]], bars: Sequence[Box]) -> list[_Place]:
    """Place each label near its point where it hides least, those in a crowd first."""
    dots: list[Box] = [(px - 8, py - 8, px + 8, py + 8) for px, py, _ in points]
    taken, thin = list(dots), list(bars)
    places: dict[int, _Place] = {}
    crowd = [sum(abs(px - qx) + abs(py - qy) < 60 for qx, qy, _ in points) for px, py, _ in points]
    for i in sorted(range(len(points)), key=lambda i: -crowd[i]):
        px, py, label = points[i]
        wide = CHARACTER * len(label)
        tries = list(_around(px, py))
        hidden = [_hidden(place.box(wide), taken, thin) + 40 * number for number, place in enumerate(tries)]
        places[i] = tries[hidden.index(min(hidden))]
        taken.append(places[i].box(wide))
    return [places[i] for i in range(len(points))]


def _around(x: float, y: float) -> Iterator[_Place]:
    """Yield places around a point, the nearest first."""
    for far, reach in ((False, 11.0), (True, 26.0), (True, 44.0), (True, 64.0)):
        slant = reach * 0.7
        yield _Place(x + reach, y + 5, "start", far)
        yield _Place(x - reach, y + 5, "end", far)
        yield _Place(x, y - reach, "middle", far)
        yield _Place(x, y + reach + 11, "middle", far)
        yield _Place(x + slant, y - slant, "start", far)
        yield _Place(x - slant, y - slant, "end", far)
        yield _Place(x + slant, y + slant + 10, "start", far)
        yield _Place(x - slant, y + slant + 10, "end", far)


def _hidden(box: Box, taken: Sequence[Box], thin: Sequence[Box]) -> float:
    """Give the area of ``box`` that lies on what is taken, on bars, or outside the plot, the latter counting most."""
    left, top, right, bottom = box
    outside = max(0.0, LEFT - left) + max(0.0, right - WIDTH) + max(0.0, TOP - 10 - top) + max(0.0, bottom - BOTTOM)
    return 40 * _overlap(box, taken) + _overlap(box, thin) + 1000 * outside


def _overlap(box: Box, others: Sequence[Box]) -> float:
    left, top, right, bottom = box
    return sum(max(0.0, min(right, r) - max(left, x)) * max(0.0, min(bottom, b) - max(top, t)) for x, t, r, b in others)
