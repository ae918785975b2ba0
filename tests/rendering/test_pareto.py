"""The plot: its front against a brute-force count, its scales, its labels."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polycast.rendering.pareto import BOTTOM, LEFT, RIGHT, TOP, WIDTH, Axis, Point, _labels, _Scale, front, plot

FIGURES = st.integers(1, 12).map(float)
ACROSS, UP = Axis("size", "{:g}".format), Axis("top1", "{:g}".format)


def point(name: str, cost: float, good: float, **more: object) -> Point:
    return Point(name, name, cost, good, f"{good:g} for {cost:g}", **more)  # type: ignore[arg-type]


@given(st.lists(st.tuples(FIGURES, FIGURES), min_size=1, max_size=20), st.booleans())
def test_the_front_is_what_nothing_beats(pairs: list[tuple[float, float]], falls: bool) -> None:
    points = [point(str(number), cost, good) for number, (cost, good) in enumerate(pairs)]
    sign = -1 if falls else 1

    def beaten(p: Point) -> bool:
        return any(
            o.cost <= p.cost and sign * o.good >= sign * p.good and (o.cost, o.good) != (p.cost, p.good) for o in points
        )

    best = front(points, falls)
    assert {p.name for p in best} == {p.name for p in points if not beaten(p)}
    assert [p.cost for p in best] == sorted(p.cost for p in best)


@given(st.lists(st.floats(1e-3, 1e9), min_size=1, max_size=10), st.booleans())
def test_a_scale_holds_its_values_and_round_ticks(values: list[float], log: bool) -> None:
    scale = _Scale.fitting(values, None, LEFT, RIGHT, log=log)
    assert all(LEFT - 1e-6 <= scale(v) <= RIGHT + 1e-6 and not scale.beyond(v) for v in values)
    order = sorted(values)
    assert [scale(v) for v in order] == sorted(scale(v) for v in values)
    ticks = scale.ticks()
    assert len(ticks) <= 7
    assert all(scale.low <= tick <= scale.high for tick in ticks)


def test_a_wide_range_of_costs_is_logarithmic() -> None:
    assert _Scale.fitting([1.0, 9.0], None, LEFT, RIGHT, log=True).ticks() == [2, 4, 6, 8]
    assert _Scale.fitting([1.0, 100.0], None, LEFT, RIGHT, log=True).ticks() == [1, 2, 5, 10, 20, 50, 100]
    assert not _Scale.fitting([1.0, 100.0], None, BOTTOM, TOP).log, "goodness never is"


def test_less_is_better_turns_the_axis() -> None:
    points = [point("good", 1, 4.0), point("bad", 2, 9.0)]
    rise, fall = (heights(plot(points, ACROSS, Axis("ppl", "{:g}".format, falls=falls), "")) for falls in (False, True))
    assert rise["good"] > rise["bad"]
    assert fall["good"] < fall["bad"], "y grows downwards"


def heights(svg: str) -> dict[str, float]:
    return {
        name: float(y) for name, y in re.findall(r'data-build="(\w+)".*?<circle class="dot"[^>]*cy="([\d.]+)"', svg)
    }


def test_one_element_a_build_with_what_it_is() -> None:
    svg = plot([point("a<b", 1, 2, goods=(1.5, 2.5)), point("c", 3, 4, original=True)], ACROSS, UP, "top1 & size")
    root = ElementTree.fromstring(svg)
    marks = [each for each in root.iter("g") if "point" in each.get("class", "").split()]
    assert [mark.get("data-build") for mark in marks] == ["a<b", "c"]
    assert [mark.findtext("title") for mark in marks] == ["a<b: 2 for 1", "c: 4 for 3"]
    assert all(mark.get("tabindex") == "0" and mark.get("aria-label") for mark in marks)
    assert root.get("aria-label") == "top1 & size"


def test_what_lies_below_the_floor_is_an_arrow_at_the_edge() -> None:
    points = [point("fine", 1, 98.0), point("near", 2, 97.0), point("ruined", 3, 2.0)]
    svg = plot(points, ACROSS, Axis("top1", "{:g}".format, floor=90.0), "")
    ticks = [float(t) for t in re.findall(r'text-anchor="end">([\d.]+)</text>', svg)]
    assert min(ticks) > 90, "one ruined build does not flatten the others"
    assert svg.count("<circle") == 2
    assert f"{BOTTOM - 9:.1f}h12l-6 9z" in svg


def overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


@pytest.mark.parametrize("apart", [0.0, 12.0, 40.0])
def test_labels_in_a_crowd_hide_no_other(apart: float) -> None:
    labels = ["fp32", "fp16", "int8", "int8-dynamic", "int8-weights", "auto"]
    points = [(200 + apart * number, 150 + 9 * (number % 2), label) for number, label in enumerate(labels)]
    points = [(min(x, RIGHT - 10), y, label) for x, y, label in points]
    boxes = [place.box(7.6 * len(label)) for place, (_, _, label) in zip(_labels(points, []), points, strict=True)]
    assert not any(overlap(a, b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert all(left >= 0 and right <= WIDTH and bottom <= BOTTOM for left, _, right, bottom in boxes)
