"""Race: models timed in turns, each in a process of its own, which are opened anew for every heat."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np

from polycast.errors import ToolchainError
from polycast.measure import time_in_turns
from polycast.statistics import Array

from .footprint import Footprint
from .worker import Opening, Worker

#: Everything is opened anew so many times: where a session's memory happens to lie moves its time by a few per cent.
HEATS = 3
#: Openings of one file differ by less than this.
BEHIND = 1.15

Tell = Callable[[int, int], None]


@dataclass(frozen=True)
class Heat:
    """One opening of all: seconds a run [rounds, timings] of each, or why there are none, and their footprints."""

    series: Mapping[str, Array | str]
    footprints: Mapping[str, Footprint] = field(default_factory=dict)


def run_heats(openings: Mapping[str, Opening], seconds: float, tell: Tell, heats: int = HEATS) -> Iterator[Heat]:
    """Open all and time them in turns, ``heats`` times over; ``seconds`` for each in all."""
    for number in range(heats):

        def told(done: int, total: int, number: int = number) -> None:
            tell(number * total + done, heats * total)

        yield _heat(openings, seconds / heats, told)


def race(
    openings: Mapping[str, Opening], seconds: float, tell: Tell = lambda done, total: None, *, stays: str = ""
) -> dict[str, list[float] | str]:
    """Time all in HEATS heats; who falls behind the fastest by more than BEHIND runs no further, but for ``stays``.

    Returns: by key the median seconds a run of each heat, or why there are none.
    """
    found: dict[str, list[float] | str] = {key: [] for key in openings}
    running = dict(openings)
    for number in range(HEATS):

        def told(done: int, total: int, number: int = number) -> None:
            tell(number * total + done, HEATS * total)

        for key, series in _heat(running, seconds / HEATS, told).series.items():
            own = found[key]
            if isinstance(series, str) or isinstance(own, str):
                found[key] = series if isinstance(series, str) else own
            else:
                own.append(float(np.median(series)))
        last = {key: own[-1] for key in running if not isinstance(own := found[key], str)}
        fastest = min(last.values(), default=0.0)
        running = {key: running[key] for key in last if key == stays or last[key] <= BEHIND * fastest}
    return found


def _heat(openings: Mapping[str, Opening], seconds: float, tell: Tell) -> Heat:
    series: dict[str, Array | str] = {}
    with ExitStack() as open_workers:
        workers: dict[str, Worker] = {}
        for key, opening in openings.items():
            try:
                workers[key] = open_workers.enter_context(Worker(opening))
            except ToolchainError as error:
                series[key] = error.message
        footprints = {key: worker.footprint for key, worker in workers.items()}
        return Heat(series | time_in_turns(workers, seconds, tell), footprints)
