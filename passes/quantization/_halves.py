"""Halves: the calibration samples in two parts, so that what is fitted on one can be judged on the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

from polycast.passbase import PassContext
from polycast.samples import Sample, Samples


@dataclass
class Half:
    """Every other one of ``samples``, from number ``first`` on."""

    samples: Samples
    first: int
    source: str
    kind: str

    def __len__(self) -> int:
        return (len(self.samples) + 1 - self.first) // 2

    def __iter__(self) -> Iterator[Sample]:
        return islice(self.samples, self.first, None, 2)


def halved(ctx: PassContext) -> list[PassContext]:
    """Give ``ctx`` once with each half of its calibration samples; once with all where there is only one sample."""
    samples = ctx.calibration
    assert samples is not None
    if len(samples) < 2:
        return [ctx]
    return [replace(ctx, calibration=Half(samples, first, samples.source, samples.kind)) for first in (0, 1)]
