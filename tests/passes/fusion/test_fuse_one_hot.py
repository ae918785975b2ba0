"""fuse_one_hot: a product of one-hot vectors becomes a lookup, and an id that none of the numbers is picks zeros."""

from __future__ import annotations

import pytest
from fusing import fuse

from polycast.passes.fusion.fuse_one_hot import FuseOneHot

WEIGHTS = """float[3, 2] w = {1, 2, -3, 0.5, 5, -1}, int64[1, 3] numbers = {0, 1, 2}, int64[3] from_five = {5, 6, 7},
    int64[3] gaps = {0, 2, 4}"""


def graph(body: str, ids: str = "int64[n, s, 1] ids", y: str = "float[n, s, 2] y") -> str:
    return f"g ({ids}) => ({y}) <{WEIGHTS}> {{ {body} }}"


@pytest.mark.parametrize("compared", ["ids, numbers", "numbers, ids", "ids, from_five"])
def test_it_becomes_a_lookup(compared: str) -> None:
    fused = fuse(FuseOneHot(), graph(f"e = Equal({compared}) v = Cast<to = 1>(e) y = MatMul(v, w)"), longest=3)
    assert (fused.sites, sorted(fused.ops)) == (1, ["Clip", "Gather", "Squeeze", "Sub"])


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("e = Equal(ids, gaps) v = Cast<to = 1>(e) y = MatMul(v, w)", "the ids are not compared with numbers in a row"),
        (
            "e = Equal(ids, numbers) v = Cast<to = 1>(e) p = MatMul(v, w) r = ReduceMax<keepdims = 1>(v) y = Add(p, r)",
            "the one-hot vectors are read elsewhere",
        ),
    ],
)
def test_what_stays_says_why(body: str, reason: str) -> None:
    fused = fuse(FuseOneHot(), graph(body), longest=3)
    assert fused.sites == 0
    assert fused.reasons == [reason]
