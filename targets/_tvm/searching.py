"""The minutes of ``--tune``: our own few schedules of every kernel first, then MetaSchedule for what costs the most."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from .metaschedule import Proposals
from .records import FASTER, Called, Search, Tell, least_of
from .traces import Trace
from .trials import Trials

#: So many of MetaSchedule's schedules of a kernel are tried at most, over all the times that a model is tuned.
MOST = 128

#: And so many before another kernel has its turn: with fewer, little is learned of either.
AT_ONCE = 32

#: Makes the proposals for a kernel: the kernel, how many at most, and a seed.
Propose = Callable[[Any, int, int], Proposals]


@dataclass
class Kernel:
    """A kernel under search. seconds: of its fastest schedule so far. tried: how many. gain: over where it began."""

    key: str
    function: Any
    called: Called
    seconds: float
    proposals: Proposals | None = None
    tried: int = 0
    gain: float = 1.0

    @property
    def worth(self) -> float:
        """What a run spends in it, the less so the more has been tried in vain."""
        return self.called.times * self.seconds / (1 + self.tried // AT_ONCE)


def deepen(
    search: Search[Any],
    kernels: Mapping[str, Any],
    called: Mapping[str, Called],
    propose: Propose,
    until: float,
    tell: Tell | None = None,
) -> list[Kernel]:
    """Let MetaSchedule look for schedules, of the kernels that a run spends the most in first, until ``until``.

    One is kept where it is faster than what was taken before, both timed in turns; so it stays after an interruption.
    Returns: the kernels that were looked at.
    """
    tried, known = search.kept.tried(), search.kept.read()
    started, looked = time.monotonic(), []
    with closing(Trials(search.timer)) as trials:
        waiting = []
        for key, function in kernels.items():
            if tried.get(key, 0) >= MOST or key not in called or time.monotonic() >= until:
                continue
            if (seconds := trials.seconds(function, known.get(key))) is not None:
                waiting.append(Kernel(key, function, called[key], seconds))
        while waiting and time.monotonic() < until:
            kernel = max(waiting, key=lambda each: each.worth)
            if tell:
                tell(f"search {kernel.called.name}", int(time.monotonic() - started), int(until - started))
            if kernel.proposals is None:
                before = tried.get(kernel.key, 0)
                kernel.proposals = propose(kernel.function, MOST - before, 1 + before)
                looked.append(kernel)
            if not _batch(kernel, search, trials, until):
                waiting.remove(kernel)
    return looked


def _batch(kernel: Kernel, search: Search[Any], trials: Trials, until: float) -> bool:
    """Try one batch. Returns: whether there may be another."""
    assert kernel.proposals is not None
    traces = kernel.proposals.next()
    seconds: list[float | None] = []
    for trace in traces:
        late = time.monotonic() >= until
        seconds.append(None if late else trials.seconds(kernel.function, trace))
    kernel.proposals.learn(seconds)
    kernel.tried += len(traces)
    search.kept.add_tried(kernel.key, len(traces) or MOST)  # where there are no others, there will be none later
    ran = [(took, number) for number, took in enumerate(seconds) if took is not None]
    if ran and min(ran)[0] < kernel.seconds:
        _race(kernel, traces[min(ran)[1]], search)
    return bool(traces) and kernel.tried < MOST


def _race(kernel: Kernel, trace: Trace, search: Search[Any]) -> None:
    """Keep ``trace`` where it is faster than what is kept, both timed in turns."""
    current = search.kept.read().get(kernel.key)
    least = least_of({choice: search.timer(kernel.function, choice) for choice in (current, trace)})
    if least[trace] * FASTER < least[current]:
        kernel.gain *= least[current] / least[trace]
        kernel.seconds = least[trace]
        search.kept.add(kernel.key, trace)


def summary(looked: list[Kernel]) -> str:
    """Say in one line what was found."""
    won = sorted((each for each in looked if each.gain > 1), key=lambda each: -each.gain)
    many = f"{sum(each.tried for each in looked)} schedules of {len(looked)} kernels"
    faster = ", ".join(f"{each.called.name} ×{each.gain:.2f}" for each in won) or "none is faster than ours"
    return f"tuned: MetaSchedule tried {many}: {faster}"
