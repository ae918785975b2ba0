"""Measure: a figure with its unit, n, spread and evidence; and latency, taken in turns with the original."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, isfinite, isnan
from time import perf_counter
from typing import Any, Literal, Protocol

import numpy as np

from .errors import ToolchainError
from .statistics import Array, Interval, median_interval, median_ratio
from .targetbase import Evidence

#: A timing lasts this many times what reading the clock costs, so that the clock is under 0.1 % of it.
CLOCK_SHARE = 1000
LEAST_ROUNDS, MOST_TIMINGS, WARM_UP = 5, 20_000, 3
#: Long enough that what it costs to begin a turn (a message to another process, cold caches) does not count.
TURN, MOST_IN_A_TURN = 0.02, 50


@dataclass(frozen=True)
class Measurement:
    """A value with its unit, its n, its spread and its evidence.

    unit: ``share`` (0 to 1), ``ms``, ``bytes``, ``samples/s``, ``x`` for a ratio, or the metric's own.
    n: what the value was computed over (samples, timings, processes).
    note: what to say instead of a number where the value is infinite.
    """

    name: str
    value: float
    unit: str
    n: int
    better: Literal["higher", "lower"]
    evidence: Evidence
    spread: Interval | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if not self.unit or self.n < 1 or self.evidence not in ("device", "emulated", "predicted"):
            raise ValueError(f"{self.name}: no number without unit, n and evidence")
        if isnan(self.value) or not (isfinite(self.value) or self.note):
            raise ValueError(f"{self.name}: {self.value} is no measurement")

    def to_json(self) -> dict[str, Any]:
        """Spell for JSON: an infinite value is null, and its note says why."""
        spread = self.spread and {"low": _finite(self.spread.low), "high": _finite(self.spread.high)}
        return {
            "value": _finite(self.value),
            "unit": self.unit,
            "n": self.n,
            "better": self.better,
            "evidence": self.evidence,
            **({"spread": {**spread, "what": self.spread.what}} if spread and self.spread else {}),
            **({"note": self.note} if self.note else {}),
        }

    @classmethod
    def from_json(cls, name: str, data: Mapping[str, Any]) -> Measurement:
        """Read what ``to_json`` wrote."""
        value = data["value"] if data["value"] is not None else float("inf")
        return cls(
            name, value, data["unit"], data["n"], data["better"], data["evidence"], interval_from(data.get("spread")),
            data.get("note", ""),
        )  # fmt: skip


def interval_from(data: Mapping[str, Any] | None) -> Interval | None:
    """Read an interval; an end that is null was infinite."""
    if data is None:
        return None
    low = float("-inf") if data["low"] is None else data["low"]
    high = float("inf") if data["high"] is None else data["high"]
    return Interval(low, high, data["what"])


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None


class Timed(Protocol):
    """What can be timed, in this process or in another."""

    evidence: Evidence

    def warm_up(self) -> float:
        """Run a few times, and fix how many runs a timing takes. Returns: seconds of a timing."""
        ...

    def time(self, times: int) -> list[float]:
        """Take ``times`` timings, one after another. Returns: seconds a run, of each.

        Where there are several, a run goes before them that is not counted: whose turn it was last has filled the
        caches. Raises: ToolchainError where it cannot go on.
        """
        ...


@dataclass
class Stopwatch:
    """Times ``run`` in this process."""

    run: Callable[[], object]
    evidence: Evidence = "device"
    repeats: int = 1

    def warm_up(self) -> float:
        """See ``Timed``."""
        warm = min(_time(self.run, 1) for _ in range(WARM_UP))
        clock = min(_time(lambda: None, 1) for _ in range(100))
        self.repeats = max(1, ceil(CLOCK_SHARE * clock / max(warm, 1e-9)))
        return warm * self.repeats

    def time(self, times: int) -> list[float]:
        """See ``Timed``."""
        collecting = gc.isenabled()
        gc.disable()
        try:
            if times > 1:
                self.run()
            return [_time(self.run, self.repeats) for _ in range(times)]
        finally:
            if collecting:
                gc.enable()


def _time(run: Callable[[], object], repeats: int) -> float:
    start = perf_counter()
    for _ in range(repeats):
        run()
    return (perf_counter() - start) / repeats


def latency(
    subjects: Mapping[str, Timed],
    *,
    against: str,
    rows: int = 1,
    seconds: float = 2.0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, dict[str, Measurement] | str]:
    """Time every subject, in turns, so that what else the machine does falls on all alike.

    rows: samples in one run. seconds: how long to go on, for each subject; 5 rounds are done whatever they take.
    Returns: by subject ``latency`` (median), ``latency_p90``, ``latency_p99`` in ms and ``throughput`` in samples/s, or
    why it could not be timed; beside ``against``, each has ``speedup``, the median of ``against`` over its own.
    Raises: ValueError for a subject whose evidence is not ``device``: its time says nothing.
    """
    for name, subject in subjects.items():
        if subject.evidence != "device":
            raise ValueError(f"{name} is {subject.evidence}: its time is no speed")
    return figures([time_in_turns(subjects, seconds, progress)], against, rows)


def figures(
    heats: Sequence[Mapping[str, Array | str]], against: str, rows: int = 1
) -> dict[str, dict[str, Measurement] | str]:
    """Give what ``latency`` gives, of one heat or of several, each being seconds a run [rounds, timings] by subject.

    Where a session's memory happens to lie moves its time by a few per cent for as long as it is open, so a heat is
    worth more than any number of rounds: over several, ``latency`` and ``speedup`` are the medians of theirs, from
    lowest to highest.
    """
    found: dict[str, dict[str, Measurement] | str] = {}
    for name in dict.fromkeys(name for heat in heats for name in heat):
        own = [heat[name] for heat in heats if name in heat]
        reasons = [times for times in own if isinstance(times, str)]
        if reasons:
            found[name] = reasons[0]
            continue
        arrays = [times for times in own if not isinstance(times, str)]
        found[name] = timings = _timings(arrays, rows)
        firsts = [heat.get(against) for heat in heats]
        if name != against and not any(first is None or isinstance(first, str) for first in firsts):
            pairs = [(f, o) for f, o in zip(firsts, arrays, strict=True) if f is not None and not isinstance(f, str)]
            timings["speedup"] = _speedup(pairs)
    return found


def time_in_turns(
    subjects: Mapping[str, Timed], seconds: float, progress: Callable[[int, int], None] | None = None
) -> dict[str, Array | str]:
    """Let ``subjects`` take turns, every other round backwards; who fails is left out of the rounds that follow.

    A turn is as many timings as the slowest of them does in TURN seconds, and as many for all, so that they pair.
    Returns: by subject its seconds a run [rounds, timings], or why there are none.
    """
    failed: dict[str, str] = {}
    rounds: dict[str, list[list[float]]] = {name: [] for name in subjects}
    order = list(subjects)

    def ask(name: str, question: Callable[[Timed], list[float]]) -> list[float]:
        try:
            return question(subjects[name])
        except ToolchainError as error:
            failed[name] = error.message
            order.remove(name)
            return []

    lasting = [seconds for name in subjects for seconds in ask(name, lambda subject: [subject.warm_up()])]
    times = min(MOST_IN_A_TURN, max(1, int(TURN / max(lasting, default=TURN))))
    start, done = perf_counter(), 0
    while order and (
        done < LEAST_ROUNDS or (done * times < MOST_TIMINGS and perf_counter() - start < seconds * len(order))
    ):
        for name in [*order]:
            rounds[name].append(ask(name, lambda subject: subject.time(times)))
        order.reverse()
        done += 1
        if progress:
            progress(min(int(perf_counter() - start), ceil(seconds * len(order))), ceil(seconds * len(order)))
    return {name: failed.get(name) or np.array(taken) for name, taken in rounds.items()}


def _timings(heats: Sequence[Array], rows: int) -> dict[str, Measurement]:
    milliseconds = np.concatenate([times.ravel() for times in heats]) * 1e3
    n, medians = milliseconds.size, [float(np.median(times)) * 1e3 for times in heats]
    median = float(np.median(medians))
    spread = median_interval(milliseconds) if len(heats) == 1 else _openings(medians)
    p90, p99 = (float(v) for v in np.percentile(milliseconds, (90, 99)))
    rate = Interval(rows * 1e3 / spread.high, rows * 1e3 / spread.low, spread.what)
    return {
        "latency": Measurement("latency", median, "ms", n, "lower", "device", spread),
        "latency_p90": Measurement("latency_p90", p90, "ms", n, "lower", "device"),
        "latency_p99": Measurement("latency_p99", p99, "ms", n, "lower", "device"),
        "throughput": Measurement("throughput", rows * 1e3 / median, "samples/s", n, "higher", "device", rate),
    }


def _speedup(pairs: Sequence[tuple[Array, Array]]) -> Measurement:
    """Give how many times faster the second of each pair is, a pair being one heat."""
    ratios = [float(np.median(first) / np.median(own)) for first, own in pairs]
    n = sum(own.size for _, own in pairs)
    spread = _openings(ratios) if len(pairs) > 1 else median_ratio(*pairs[0])
    return Measurement("speedup", float(np.median(ratios)), "x", n, "higher", "device", spread)


def _openings(values: Sequence[float]) -> Interval:
    return Interval(min(values), max(values), f"lowest and highest of {len(values)} openings")
