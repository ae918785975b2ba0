"""Tensors that are alive at once have buffers of their own; others share."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from polycast.targets.webgpu._memory import Span, share, spans

SPANS = st.builds(
    lambda first, length, size: Span(first, first + length, size),
    st.integers(0, 30),
    st.integers(0, 8),
    st.integers(1, 99),
)


@given(st.lists(SPANS, max_size=30))
def test_no_two_tensors_of_one_moment_share(found: list[Span]) -> None:
    named = {str(i): span for i, span in enumerate(found)}
    sizes, placed = share(named)
    assert placed.keys() == named.keys()
    for name, span in named.items():
        assert sizes[placed[name]] >= span.size
        for other, beside in named.items():
            both = max(span.first, beside.first) <= min(span.last, beside.last)
            assert name == other or not both or placed[name] != placed[other]


@given(st.integers(1, 30), st.integers(1, 99))
def test_a_chain_of_equal_tensors_takes_two_buffers(count: int, size: int) -> None:
    names = [str(i) for i in range(count)]
    found = spans(dict.fromkeys(names, size), pairwise(names), names[:1], names[-1:])
    assert len(share(found)[0]) <= 2


def test_input_lives_from_before_the_first_launch_and_output_to_after_the_last() -> None:
    found = spans({"x": 4, "h": 8, "y": 4}, [("x", "h"), ("h", "y")], ["x"], ["y"])
    assert found == {"x": Span(-1, 0, 4), "h": Span(0, 1, 8), "y": Span(1, 2, 4)}


def test_input_that_nothing_reads_is_kept_apart_from_outputs_that_are_inputs() -> None:
    found = spans({"x": 4, "unread": 4}, [], ["x", "unread"], ["x"])
    assert share(found)[1]["x"] != share(found)[1]["unread"]
