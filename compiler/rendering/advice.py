"""Advice: which build to ship, in words with figures, from evaluations against one original."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from polycast.evaluating.evaluation import Evaluation
from polycast.evaluating.scoring import Difference

from .tables import byte_unit, figure, points, signed

#: Without labels and without a budget, a build is offered that agrees with the original on this share of samples.
AGREES = 0.99
#: Speeds this near to each other are taken as the same: where a session's memory lies moves it by a few per cent.
SAME = 1.05
_CHOICE = f"of those within {(SAME - 1) * 100:.0f} % of its speed, the smallest"


@dataclass(frozen=True)
class Pick:
    """The best build in one respect: ``word`` says which, ``says`` its figure."""

    word: str
    build: str
    says: str


@dataclass(frozen=True)
class Advice:
    """What to ship: ``build`` is empty where no build is worth it. ``among``: which builds were looked at."""

    build: str
    says: str
    among: str
    picks: tuple[Pick, ...] = ()


def advise(evaluations: Sequence[Evaluation]) -> Advice:
    """Choose the fastest build within the budget; of those that are as fast, the smallest."""
    measured = [e for e in evaluations if e.n]
    if not measured:
        return Advice("", "Nobody has evaluated these builds yet.", "polycast evaluate measures them.")
    within = [e for e in measured if _within(e)]
    among = _among(measured)
    if not within:
        nearest = min(measured, key=lambda e: (len(e.missed), _lost(e)))
        why = "; ".join(map(str, nearest.missed)) or f"{nearest.build}: {change_text(nearest)}"
        return Advice("", f"No build is. Ship the original. The nearest is {nearest.build} ({why}).", among)
    chosen = _fastest(within)
    if not _gains(chosen):
        chosen = min(within, key=_size)
        if not _gains(chosen):
            return Advice("", "None gains anything: ship the original.", among, _picks(within))
    return Advice(chosen.build.name, _sentence(chosen), among, _picks(within))


def telling(evaluations: Sequence[Evaluation]) -> str | None:
    """Name the metric that a choice is about: the first that has a change, or else agreement with the original."""
    changing = next((name for e in evaluations for name in e.differences), None)
    return changing or next((name for e in evaluations for name in e.measurements if name == "agreement"), None)


def change_text(evaluation: Evaluation) -> str:
    """Say how the telling metric changes, with its interval: ``top1 changes by -0.34 pp [-0.91, +0.22]``."""
    name = telling([evaluation])
    if name is None:
        return "no metric was run"
    change = evaluation.differences.get(name)
    if change is None:
        return f"it agrees with the original on {evaluation.measurements[name].value * 100:.1f} % of samples"
    return f"{name} changes by {spelt(change)}"


def spelt(change: Difference) -> str:
    """Write a change with its interval: ``-0.34 pp [-0.91, +0.22]``."""
    write = points if change.unit == "share" else signed
    unit = " pp" if change.unit == "share" else ""
    return f"{write(change.value)}{unit} [{write(change.interval.low)}, {write(change.interval.high)}]"


def size_text(size: float) -> str:
    """Write bytes in the unit that reads well: ``412 KiB``."""
    unit, each = byte_unit([size])
    return f"{figure(size / each)} {unit}"


def _within(evaluation: Evaluation) -> bool:
    """Whether a build keeps its budgets, and loses nothing that is plain where there is no budget for a loss."""
    if evaluation.missed:
        return False
    if any(verdict.budget == "max_drop" for verdict in evaluation.budgets):
        return True
    change = next(iter(evaluation.differences.values()), None)
    if change is not None:
        return change.interval.high >= 0 if change.better == "higher" else change.interval.low <= 0
    agreement = evaluation.measurements.get("agreement")
    return agreement is None or agreement.value >= AGREES


def _among(evaluations: Sequence[Evaluation]) -> str:
    """Say which builds were looked at."""
    limits = dict.fromkeys(
        f"{verdict.budget.replace('_', ' ')} {verdict.allowed}" for e in evaluations for verdict in e.budgets
    )
    if any(limit.startswith("max drop") for limit in limits):
        return f"The fastest within {', '.join(limits)}; {_CHOICE}."
    besides = f" and within {', '.join(limits)}" if limits else ""
    if any(e.differences for e in evaluations):
        n = max(e.n for e in evaluations)
        return (
            f"No --max-drop was given. The fastest of those whose loss {n:,} samples cannot tell from none{besides}; "
            f"{_CHOICE}."
        )
    return (
        f"There are no labels to score on. The fastest of those that agree with the original on {AGREES * 100:.0f} % "
        f"of samples{besides}; {_CHOICE}."
    )


def _fastest(within: Sequence[Evaluation]) -> Evaluation:
    timed = [e for e in within if "speedup" in e.measurements]
    if not timed:
        return min(within, key=_size)
    fastest = max(e.measurements["speedup"].value for e in timed)
    alike = [e for e in timed if e.measurements["speedup"].value >= fastest / SAME]
    return min(alike, key=lambda e: (_size(e), _lost(e)))


def _gains(evaluation: Evaluation) -> bool:
    """Whether a build is faster than the original, or smaller by a twentieth."""
    original = evaluation.baseline.get("size")
    return _pace(evaluation) > 0 or (original is not None and _size(evaluation) < 0.95 * original.value)


def _pace(evaluation: Evaluation) -> int:
    """Say 1 for a build that is faster than the original, beyond its spread and SAME; -1 for a slower one, else 0."""
    speedup = evaluation.measurements.get("speedup")
    if speedup is None:
        return 0
    low, high = (speedup.spread.low, speedup.spread.high) if speedup.spread else (speedup.value, speedup.value)
    return int(low > 1 and speedup.value >= SAME) - int(high < 1 and speedup.value <= 1 / SAME)


def _sentence(evaluation: Evaluation) -> str:
    parts = []
    speedup, original = evaluation.measurements.get("speedup"), evaluation.baseline.get("size")
    if speedup is not None:
        pace = _pace(evaluation)
        if pace > 0:
            parts.append(f"runs {figure(speedup.value)} times as fast as the original")
        elif pace < 0:
            parts.append(f"takes {figure(1 / speedup.value)} times as long as the original")
        else:
            parts.append("is as fast as the original")
    if original is not None:
        share = _size(evaluation) / original.value
        parts.append(f"takes {share * 100:.0f} % of its bytes ({size_text(_size(evaluation))})")
    said = f"{', '.join(parts)}, and {change_text(evaluation)}" if parts else change_text(evaluation)
    return f"It {said}."


def _picks(within: Sequence[Evaluation]) -> tuple[Pick, ...]:
    """Name the fastest, the smallest and the most accurate."""
    picks = []
    timed = [e for e in within if "speedup" in e.measurements]
    if timed:
        best = max(timed, key=lambda e: e.measurements["speedup"].value)
        latency = best.measurements["latency"]
        picks.append(
            Pick(
                "Fastest",
                best.build.name,
                f"{figure(latency.value)} {latency.unit}, ×{figure(best.measurements['speedup'].value)}",
            )
        )
    sized = [e for e in within if "size" in e.measurements]
    if sized:
        best = min(sized, key=lambda e: (_size(e), _lost(e)))
        picks.append(Pick("Smallest", best.build.name, f"{size_text(_size(best))}{_times_smaller(best)}"))
    scored = [e for e in within if telling([e])]
    if scored:
        best = min(scored, key=lambda e: (_lost(e), _size(e)))
        picks.append(Pick("Most accurate", best.build.name, change_text(best)))
    return tuple(picks)


def _times_smaller(evaluation: Evaluation) -> str:
    original = evaluation.baseline.get("size")
    return f", ×{_size(evaluation) / original.value:.2f}" if original else ""


def _size(evaluation: Evaluation) -> float:
    size = evaluation.measurements.get("size")
    return size.value if size else float("inf")


def _lost(evaluation: Evaluation) -> float:
    """Give the drop of the telling metric; without one, the share that disagrees with the original."""
    name = telling([evaluation])
    if name is None:
        return float("inf")
    change = evaluation.differences.get(name)
    return change.drop if change is not None else 1.0 - evaluation.measurements[name].value
