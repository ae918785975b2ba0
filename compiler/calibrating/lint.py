"""Lint: what is odd about calibration samples, before anything is computed from them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from polycast.data.feeds import Samples, feeds_digest, listing
from polycast.data.images import ImageSamples

#: Fewer samples than this are said to be few: ranges then hang on single samples.
FEW = 32

#: Samples that a message names at most.
_NAMED = 3


def lint(samples: Samples, against: Samples | None = None) -> list[str]:
    """Give what a user should know of ``samples``: how many are used, and what is odd about them.

    Odd are few of them, repeated ones, inputs that are the same in all of them, NaN, and samples that are also in
    ``against``, the validation data. Both are streamed; a hash is kept for each sample.
    """
    look = _Look()
    for sample in samples:
        look.at(sample.feeds, sample.name)
    lines = look.lines()
    if against is not None:
        shared = _shared(samples, look.names, against)
        if shared:
            share = f"{len(shared)} of {look.count} samples ({len(shared) / look.count:.0%})"
            lines.append(f"{share} are in the validation data too, which flatters its score: {listing(shared, _NAMED)}")
    return lines


class _Look:
    """What was found in the samples up to now."""

    def __init__(self) -> None:
        self.count = 0
        self.names: dict[bytes, list[str]] = {}
        self.not_numbers: list[str] = []
        self.constant: dict[str, bytes] = {}

    def at(self, feeds: Mapping[str, np.ndarray], name: str) -> None:
        """Look at one more sample."""
        arrays = {key: feeds_digest({key: array}) for key, array in feeds.items()}
        if self.count:
            self.constant = {key: known for key, known in self.constant.items() if arrays.get(key) == known}
        else:
            self.constant = arrays
        self.count += 1
        self.names.setdefault(feeds_digest(feeds), []).append(name)
        self.not_numbers += [
            f"{key!r} of {name}" for key, array in feeds.items() if array.dtype.kind == "f" and np.isnan(array).any()
        ]

    def lines(self) -> list[str]:
        """Say what was found."""
        used = f"{self.count} used"
        if self.count < FEW:
            used += f": few, ranges and errors hang on single ones; {FEW} or more are better"
        lines = [used]
        repeats = [f"{name} repeats {first}" for first, *others in self.names.values() for name in others]
        if repeats:
            lines.append(f"{len(repeats)} of {self.count} say nothing new: {listing(repeats, _NAMED)}")
        if self.constant and self.count > 1:
            lines.append(f"the same in every sample: {listing(map(repr, self.constant))}")
        if self.not_numbers:
            lines.append(f"NaN in {listing(self.not_numbers, _NAMED)}")
        return lines


def _shared(samples: Samples, names: Mapping[bytes, list[str]], against: Samples) -> list[str]:
    """Name the samples that ``against`` holds too; of images the files are compared, which need no decoding."""
    if isinstance(samples, ImageSamples) and isinstance(against, ImageSamples):
        files = {mark for mark, _ in against.marks()}
        return [name for mark, name in samples.marks() if mark in files]
    marks = {feeds_digest(sample.feeds) for sample in against}
    return [name for mark, those in names.items() if mark in marks for name in those]
