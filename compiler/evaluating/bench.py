"""Bench: the original and the builds, open side by side, and what is measured of them beside their outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from polycast.build import Build
from polycast.errors import ToolchainError, UnsupportedError
from polycast.measure import Measurement, figures
from polycast.model import Model
from polycast.reference import open_original
from polycast.samples import Samples
from polycast.targetbase import Session

from .footprint import Footprint, medians, model_file
from .race import HEATS, run_heats
from .scoring import ORIGINAL
from .worker import Opening, Worker, saved

Tell = Callable[[str, int, int], None]

SPEEDS = ("latency", "latency_p90", "latency_p99", "throughput", "speedup")
FOOTPRINT = ("memory", "load_time")
#: Below this speed-up it is said what costs the time.
SLOWER = 0.97


@dataclass
class Taken:
    """What was measured of one model beside its outputs: a measurement, or why there is none, by name.

    costs: where a build is slower, what it spends more than the original, in seconds by op type, or why nobody knows.
    """

    cells: dict[str, Measurement | str] = field(default_factory=dict)
    costs: dict[str, float] | str = field(default_factory=dict)
    footprints: list[Footprint] = field(default_factory=list)


class Bench:
    """The original and the builds, open side by side.

    sessions: by the absolute path of a build, and ORIGINAL. refused: for each build that does not run here, why.
    """

    def __init__(self, model: Model, builds: list[Build], samples: Samples, progress: Tell | None) -> None:
        self.model, self.builds, self.samples = model, builds, samples
        self.tell: Tell = progress or (lambda stage, done, total: None)
        self.sessions: dict[str, Session] = {ORIGINAL: open_original(model)}
        self.refused: dict[str, str] = {}
        for build in builds:
            try:
                session = build.open()
            except (ToolchainError, UnsupportedError) as error:
                self.refused[key_of(build)] = error.message
                continue
            if session.evidence == "not run":
                self.refused[key_of(build)] = f"{build.target} cannot run here"
            else:
                self.sessions[key_of(build)] = session

    def take(self, seconds: float) -> dict[str, Taken]:
        """Measure the original and every build in processes of their own: speed in turns, memory and load time.

        seconds: how long latency is measured, for each. Returns: by session; a build that is not on its own hardware
        has reasons.
        """
        feeds = next(iter(self.samples)).feeds
        rows = next((len(a) for a in feeds.values() if a.ndim), 1)
        with saved(feeds) as given, model_file(self.model) as (path, size):
            openings = {ORIGINAL: Opening("original", str(path), given, self.model.signature.to_json())}
            for key, session in self.sessions.items():
                if key != ORIGINAL and session.evidence == "device":
                    openings[key] = Opening("build", key, given)
            found = _race(openings, rows, seconds, lambda done, total: self.tell("time", done, total))
        found[ORIGINAL].cells["size"] = size_of(size)
        for build in self.builds:
            key = key_of(build)
            if key not in found:
                reason = self.refused.get(key) or f"{self.sessions[key].evidence}: numerics only, never speed"
                found[key] = Taken(dict.fromkeys((*SPEEDS, *FOOTPRINT), reason))
            found[key].cells["size"] = size_of(build.bytes)
        return found


def _race(
    openings: Mapping[str, Opening], rows: int, seconds: float, tell: Callable[[int, int], None]
) -> dict[str, Taken]:
    """Time all in turns, in several heats of processes of their own; look where the time goes in what is slower."""
    found = {key: Taken() for key in openings}
    heats = []
    for heat in run_heats(openings, seconds, tell, HEATS):
        heats.append(heat.series)
        for key, footprint in heat.footprints.items():
            found[key].footprints.append(footprint)
    timed = figures(heats, ORIGINAL, rows)
    for key, taken in found.items():
        if len(taken.footprints) < HEATS:
            reason = next(str(series[key]) for series in heats if isinstance(series[key], str))
            taken.cells.update(dict.fromkeys((*SPEEDS, *FOOTPRINT), reason))
            continue
        timings = timed[key]
        taken.cells.update(dict.fromkeys(SPEEDS, timings) if isinstance(timings, str) else timings)
        taken.cells.update(medians(taken.footprints))
    untimed = found[ORIGINAL].cells["latency"]
    for key, taken in found.items():
        if isinstance(untimed, str) and key != ORIGINAL:
            taken.cells["speedup"] = f"the original was not timed: {untimed}"
        speedup = taken.cells.get("speedup")
        if isinstance(speedup, Measurement) and speedup.value < SLOWER:
            taken.costs = _costs(openings[key], openings[ORIGINAL])
    return found


def _costs(build: Opening, original: Opening) -> dict[str, float] | str:
    """Give what a run of the build spends more than one of the original, in seconds by op type, most first."""
    try:
        with Worker(build) as slower, Worker(original) as faster:
            own, before = slower.profile(), faster.profile()
    except ToolchainError as error:
        return error.message
    if own is None or before is None:
        return "the runtime gives no per-op times"
    more = {op: own.get(op, 0.0) - before.get(op, 0.0) for op in own | before}
    return dict(sorted(more.items(), key=lambda item: -item[1]))


def key_of(build: Build) -> str:
    """Give the key of a build among sessions."""
    return str(build.path.resolve())


def size_of(size: int) -> Measurement:
    """Give a size on disk, in bytes."""
    return Measurement("size", float(size), "bytes", 1, "lower", "device")
