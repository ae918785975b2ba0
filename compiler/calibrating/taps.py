"""Taps: what to look at while the calibration samples run, and what was seen there."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from .histogram import Histogram

#: Rows that a tap with Want.ROWS keeps at most.
ROWS_KEPT = 1024


class Want(enum.Flag):
    """What to keep of a float tensor, over all samples. Every tap has its range."""

    RANGE = enum.auto()
    """The smallest and the largest element, and the moving average of both over the samples."""
    HISTOGRAM = enum.auto()
    """How often which magnitude occurs; includes RANGE."""
    CHANNELS = enum.auto()
    """For each index of ``axis``: the largest |x|, the mean and the mean square."""
    GRAM = enum.auto()
    """The sum of ``xᵀ x`` over all rows, x being [rows, channels] with the channels of ``axis``."""
    ROWS = enum.auto()
    """A seeded choice of rows [at most ROWS_KEPT, channels]."""


#: What needs to know where the channels are.
PER_CHANNEL = Want.CHANNELS | Want.GRAM | Want.ROWS


@dataclass(frozen=True)
class Tap:
    """A float tensor of the graph by name, what to keep of it, and which of its axes is the channels."""

    value: str
    want: Want
    axis: int = -1


def joined(taps: Iterable[Tap]) -> list[Tap]:
    """Make one tap of all taps on the same value, in the order of their first.

    Raises: ValueError where two of them see the channels on different axes.
    """
    by_value: dict[str, Tap] = {}
    for tap in taps:
        known = by_value.get(tap.value)
        if known is None:
            by_value[tap.value] = tap
            continue
        if known.want & PER_CHANNEL and tap.want & PER_CHANNEL and known.axis != tap.axis:
            raise ValueError(f"two taps on {tap.value!r} see the channels on axis {known.axis} and on axis {tap.axis}")
        axis = tap.axis if tap.want & PER_CHANNEL else known.axis
        by_value[tap.value] = replace(known, want=known.want | tap.want, axis=axis)
    return list(by_value.values())


@dataclass(frozen=True)
class Channels:
    """Per channel, over all samples and positions: largest |x|, mean, mean square; each [channels] float64."""

    largest: np.ndarray
    mean: np.ndarray
    mean_square: np.ndarray


@dataclass(frozen=True)
class Seen:
    """What was seen of one tensor; what was not wanted is None. Nothing here depends on how many samples there were.

    samples: how many samples computed the tensor: fewer than there are where it lies in a branch of an If.
    elements: how many elements it had in all of them; not_finite: how many of these were NaN or infinite.
    low, high: smallest and largest finite element, low being 0 after a Relu, Sigmoid or Softmax.
    average_low, average_high: their moving average over samples.
    gram: [channels, channels] float64; rows: [rows, channels] float32. In these and in channels, an element that is
    not finite counts as zero; a tensor that has not as many channels in every sample has none of the three.
    """

    samples: int
    elements: int
    low: float = 0.0
    high: float = 0.0
    average_low: float = 0.0
    average_high: float = 0.0
    not_finite: int = 0
    histogram: Histogram | None = None
    channels: Channels | None = None
    gram: np.ndarray | None = None
    rows: np.ndarray | None = None
