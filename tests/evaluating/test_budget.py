"""Budgets as users spell them."""

from __future__ import annotations

import pytest

from polycast.errors import RecipeError
from polycast.evaluating.budget import Budget, Drop, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [("500KB", 500_000), ("2MiB", 2 << 20), ("1.5 GB", 1_500_000_000), ("1k", 1000), (4096, 4096), ("12b", 12)],
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "kind", "allowed"),
    [("1pp", "points", 0.01), ("0.5 %", "relative", 0.004), (0.02, "absolute", 0.02), ("1e-3", "absolute", 0.001)],
)
def test_drops(text: str | float, kind: str, allowed: float) -> None:
    drop = Drop.parse(text)
    assert drop.kind == kind
    assert drop.allowed(0.8, "share") == pytest.approx(allowed, rel=1e-12)


def test_points_of_what_is_no_share_are_percent_of_it() -> None:
    assert Drop.parse("1pp").allowed(4.2, "ppl") == pytest.approx(0.042, rel=1e-12)
    assert Drop.parse("1pp").allowed(-4.2, "score") == pytest.approx(0.042, rel=1e-12)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (("a little", None, None), "max drop 'a little' cannot be read\nWrite 1pp"),
        (("-1pp", None, None), "max drop '-1pp' cannot be read"),
        ((None, "2 parsecs", None), "max size '2 parsecs' cannot be read\nWrite bytes, 500KB, 2MiB"),
        ((None, None, "5s"), "max latency '5s' cannot be read\nWrite milliseconds"),
    ],
)
def test_what_cannot_be_read(limits: tuple[str | None, str | None, str | None], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Budget.parse(*limits)


def test_no_limit_is_none() -> None:
    assert Budget.parse(None, None, None) == Budget()
    assert Budget.parse(0, "1KiB", "2.5ms") == Budget(Drop(0.0, "absolute", "0"), 1024, 2.5)
