"""Tally: what has been seen of one tap up to now, one sample after the other."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np

from .histogram import Histogram
from .taps import ROWS_KEPT, Channels, Seen, Tap, Want

#: Share of a new sample in the moving averages once 1 / _SHARE samples were seen; before, they are plain averages.
_SHARE = 0.01

_HISTOGRAM = "histogram."

#: Where the number of channels is kept, and what stands there before the first sample and once two do not agree.
_CHANNELS, _UNKNOWN, _UNEVEN = 4, -1, -2

#: What a run gives with the channels on its last axis.
_PER_CHANNEL = ("channel_sum", "gram", "gram_rows", "rows")


class Tally:
    """Adds up what each sample shows of one tap, in float64 and int64; it can be put aside and taken up again."""

    def __init__(self, tap: Tap) -> None:
        self.tap = tap
        self._counts = np.array([0, 0, 0, 0, _UNKNOWN])  # samples, those with a range, elements, not finite, channels
        self._range = np.array([np.inf, -np.inf, 0.0, 0.0])  # low, high, and their moving averages
        self._histogram = Histogram() if Want.HISTOGRAM in tap.want else None
        self._channels: np.ndarray | None = None  # [4, channels]: elements of each, largest |x|, sum, sum of squares
        self._gram: np.ndarray | None = None
        self._waiting: list[np.ndarray] = []  # rows not yet multiplied into the gram
        self._rows: np.ndarray | None = None
        self._lots: np.ndarray | None = None  # [rows]: the lot that each row drew; the smallest are kept

    def add(self, found: Mapping[str, np.ndarray], turn: int) -> None:
        """Add what sample number ``turn`` showed; a tensor that it did not compute has size -1."""
        size = int(found["size"])
        if size < 0:
            return
        finite = int(found.get("finite", size))
        self._counts[:_CHANNELS] += (1, finite > 0, size, size - finite)
        if finite:
            self._add_range(float(found.get("low", 0)), float(found["high"]))
        if self._histogram is not None:
            self._histogram.add(found["elements"])
        if self._even(found):
            self._add_per_channel(found, size, turn)

    def seen(self) -> Seen:
        """Give what was seen."""
        self._multiply()
        samples, ranges, elements, not_finite = self._counts[:_CHANNELS].tolist()
        low, high, average_low, average_high = self._range.tolist() if ranges else (0.0, 0.0, 0.0, 0.0)
        return Seen(
            samples,
            elements,
            low,
            high,
            average_low,
            average_high,
            not_finite=not_finite,
            histogram=self._histogram,
            channels=self._seen_channels(),
            gram=self._gram,
            rows=self._rows,
        )

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Spell the tally as arrays, to be taken up by ``from_arrays`` as if it had never been put aside."""
        waiting = np.concatenate(self._waiting) if self._waiting else None
        optional = {
            "channels": self._channels,
            "gram": self._gram,
            "waiting": waiting,
            "rows": self._rows,
            "lots": self._lots,
        }
        arrays = {"counts": self._counts, "range": self._range}
        arrays |= {name: array for name, array in optional.items() if array is not None}
        if self._histogram is not None:
            arrays |= {_HISTOGRAM + name: array for name, array in self._histogram.to_arrays().items()}
        return arrays

    @classmethod
    def from_arrays(cls, tap: Tap, arrays: Mapping[str, np.ndarray]) -> Tally:
        """Read what ``to_arrays`` gave.

        Raises: KeyError when an array is missing.
        """
        tally = cls(tap)
        tally._counts, tally._range = arrays["counts"], arrays["range"]
        if Want.HISTOGRAM in tap.want:
            parts = {name: arrays[_HISTOGRAM + name] for name in ("place", "counts")}
            tally._histogram = Histogram.from_arrays(parts)
        tally._channels, tally._gram = arrays.get("channels"), arrays.get("gram")
        tally._waiting = [arrays["waiting"]] if "waiting" in arrays else []
        tally._rows, tally._lots = arrays.get("rows"), arrays.get("lots")
        return tally

    def _even(self, found: Mapping[str, np.ndarray]) -> bool:
        """Whether there are as many channels as before; from the first time that there are not, there are none."""
        channels = next((found[field].shape[-1] for field in _PER_CHANNEL if field in found), 0)
        known = int(self._counts[_CHANNELS])
        if known in (_UNKNOWN, channels):
            self._counts[_CHANNELS] = channels
            return channels > 0
        self._counts[_CHANNELS] = _UNEVEN
        self._channels = self._gram = self._rows = self._lots = None
        self._waiting.clear()
        return False

    def _add_per_channel(self, found: Mapping[str, np.ndarray], size: int, turn: int) -> None:
        if "channel_sum" in found:
            self._add_channels(found, size)
        if "gram" in found:
            self._add_gram(found["gram"])
        if "gram_rows" in found:
            self._add_gram_rows(found["gram_rows"])
        if "rows" in found:
            self._add_rows(found["rows"], turn)

    def _add_range(self, low: float, high: float) -> None:
        share = max(1 / self._counts[1], _SHARE)
        self._range[0] = min(self._range[0], low)
        self._range[1] = max(self._range[1], high)
        self._range[2:] += share * (np.array([low, high]) - self._range[2:])

    def _add_channels(self, found: Mapping[str, np.ndarray], size: int) -> None:
        total = found["channel_sum"]
        if self._channels is None:
            self._channels = np.zeros((4, len(total)))
        if not size:
            return
        elements, largest, _, _ = self._channels
        elements += size // len(total)
        np.maximum(largest, -found["channel_low"].astype(np.float64), out=largest)
        np.maximum(largest, found["channel_high"], out=largest)
        self._channels[2] += total
        self._channels[3] += found["channel_squares"]

    def _seen_channels(self) -> Channels | None:
        if self._channels is None:
            return None
        elements, largest, total, squares = self._channels
        return Channels(largest, total / np.maximum(elements, 1), squares / np.maximum(elements, 1))

    def _add_gram(self, gram: np.ndarray) -> None:
        if self._gram is None:
            self._gram = np.zeros(gram.shape)
        self._gram += gram

    def _add_gram_rows(self, rows: np.ndarray) -> None:
        """Put rows aside until there are as many as channels: one large product costs less than many small ones."""
        self._waiting.append(rows)
        if sum(map(len, self._waiting)) >= rows.shape[1]:
            self._multiply()

    def _multiply(self) -> None:
        if self._waiting:
            rows = np.concatenate(self._waiting)
            self._waiting.clear()
            self._add_gram(rows.T @ rows)

    def _add_rows(self, rows: np.ndarray, turn: int) -> None:
        """Let every row draw a lot and keep the rows with the smallest: each had the same chance (a reservoir)."""
        lots = np.random.default_rng([turn, zlib.crc32(self.tap.value.encode())]).random(len(rows))
        rows = rows.astype(np.float32, copy=False)
        if self._rows is None or self._lots is None:
            self._rows, self._lots = rows[:0], lots[:0]
        free = ROWS_KEPT - len(self._rows)
        if free:
            self._rows = np.concatenate([self._rows, rows[:free]])
            self._lots = np.concatenate([self._lots, lots[:free]])
            rows, lots = rows[free:], lots[free:]
        for at in np.flatnonzero(lots < self._lots.max(initial=0)).tolist():
            last = int(self._lots.argmax())
            if lots[at] < self._lots[last]:
                self._rows[last], self._lots[last] = rows[at], lots[at]
