"""Sheets: which figures of evaluations stand in which column of a table, and what is said below it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isinf
from typing import Any

from polycast.evaluating.evaluation import Evaluation
from polycast.evaluating.refused import Refused
from polycast.evaluating.scoring import Difference
from polycast.measure import Measurement

from .tables import Cell, Column, Sheet, byte_unit, figure, points, signed

#: What is no metric, and has a column of its own or none.
_OTHER = ("size", "latency", "latency_p90", "latency_p99", "throughput", "speedup", "memory", "load_time")

#: Which column is dropped first where a terminal is too narrow: the last one here.
_RANKS = ("size", "telling", "latency", "agreement", "memory", "load_time", "metric", "promise")

_UNITS = {"share": "%", "cos": "", "abs": "", "ppl": "", "rho": "ρ", "nat": "nat"}

_SELF, _NONE = Cell("itself"), Cell("–")


def sheet(evaluations: Sequence[Evaluation], refused: Sequence[Refused] = ()) -> Sheet:
    """Lay out evaluations against one original: a row for it, where it was measured, and one for each of them.

    refused: builds that are not there; their rows come last, and their reasons below.
    """
    first = next((e for e in evaluations if e.n), evaluations[0])
    metrics = _metrics(evaluations)
    telling = next((m for m in metrics if any(m in e.differences for e in evaluations)), None)
    columns = [
        _sizes(evaluations),
        *(_metric(evaluations, name, _rank(name, telling)) for name in metrics),
        _latencies(evaluations),
        _memory(evaluations),
        _load_times(evaluations),
        _promises(evaluations),
    ]
    title = f"{first.against}"
    title += f" on {first.data}, {first.n:,} sample{'s' * (first.n != 1)}" if first.n else ", not evaluated"
    identity = [
        replace(column, cells=(*column.cells, *map(Cell, words)))
        for column, words in zip(_identity(evaluations), _identities(refused), strict=True)
    ]
    columns = [replace(column, cells=(*column.cells, *[_NONE] * len(refused))) for column in columns]
    warnings = (*map(str, refused), *_warnings(evaluations))
    return Sheet(title, tuple(identity), tuple(columns), tuple(_notes(evaluations)), warnings)


def _identities(refused: Sequence[Refused]) -> list[list[str]]:
    """Give targets, precisions and, where others have their evidence, the word for none."""
    return [[each.target for each in refused], [each.precision for each in refused], ["refused"] * len(refused)]


def evidence_of(evaluation: Evaluation) -> str:
    """Give the evidence of what was run of a build, in one word or two."""
    kinds = {m.evidence for name, m in evaluation.measurements.items() if name != "size"}
    return ", ".join(sorted(kinds)) or "not run"


def promise_text(promise: Mapping[str, Any]) -> str:
    """Say what was promised and what was reached: ``fp16: 98 % of weights (asked 90 %), 97 % of MACs (asked 90 %)``."""
    asked, reached = promise.get("asked", {}), promise.get("reached", {})
    precision = next(iter(asked.get("weights", {})), "as given")
    if precision == "as given":
        return "as given"
    parts = [
        f"{_percent(reached.get(of, {}).get(precision, 0.0))} of {word} (asked {_percent(asked[of][precision])})"
        for of, word in (("weights", "weights"), ("macs", "MACs"))
        if of in asked
    ]
    return f"{precision}: {', '.join(parts)}"


def _percent(share: float) -> str:
    return f"{share * 100:.3g} %"


def _metrics(evaluations: Sequence[Evaluation]) -> list[str]:
    """Name the metrics of all evaluations, in the order in which they were asked for."""
    names = dict.fromkeys(n for e in evaluations for n in (*e.differences, *e.measurements, *e.not_run))
    return [name for name in names if name not in _OTHER]


def _rank(name: str, telling: str | None) -> int:
    kind = "telling" if name == telling else "agreement" if name == "agreement" else "metric"
    return _RANKS.index(kind)


def _identity(evaluations: Sequence[Evaluation]) -> tuple[Column, ...]:
    rows = [("original", "onnxruntime", "device")] if _original(evaluations) else []
    rows += [(e.build.target, e.build.precision, evidence_of(e)) for e in evaluations]
    return tuple(
        Column(head, "", tuple(map(Cell, words)), words=True)
        for head, words in zip(("target", "precision", "evidence"), zip(*rows, strict=True), strict=True)
    )


def _original(evaluations: Sequence[Evaluation]) -> Mapping[str, Measurement]:
    return next((e.baseline for e in evaluations if e.baseline), {})


def _sizes(evaluations: Sequence[Evaluation]) -> Column:
    original = _original(evaluations)
    column = _bytes(evaluations, "size", "size")
    if "size" not in original:
        return column
    cells = [column.cells[0]]
    for cell, evaluation in zip(column.cells[1:], evaluations, strict=True):
        times = evaluation.measurements["size"].value / original["size"].value
        cells.append(Cell(cell.value, (f"×{times:.2f}",)))
    return Column("size", column.unit, tuple(cells), "× orig.", _RANKS.index("size"))


def _memory(evaluations: Sequence[Evaluation]) -> Column:
    return _bytes(evaluations, "memory", "memory")


def _bytes(evaluations: Sequence[Evaluation], name: str, head: str) -> Column:
    found = _cells(evaluations, name)
    unit, size = byte_unit([c.value for c in found if isinstance(c, Measurement)])
    cells = tuple(Cell(figure(c.value / size)) if isinstance(c, Measurement) else _missing(c) for c in found)
    return Column(head, unit, cells, rank=_RANKS.index(name))


def _load_times(evaluations: Sequence[Evaluation]) -> Column:
    found = _cells(evaluations, "load_time")
    cells = tuple(Cell(figure(c.value)) if isinstance(c, Measurement) else _missing(c) for c in found)
    return Column("load", "ms", cells, rank=_RANKS.index("load_time"))


def _latencies(evaluations: Sequence[Evaluation]) -> Column:
    cells = []
    for cell, evaluation in zip(_cells(evaluations, "latency"), _rows(evaluations), strict=True):
        if not isinstance(cell, Measurement):
            cells.append(_missing(cell))
            continue
        speedup = evaluation and evaluation.measurements.get("speedup")
        cells.append(Cell(figure(cell.value), (f"×{speedup.value:.2f}",) if speedup else ()))
    beside = "speed-up" if any(cell.beside for cell in cells) else ""
    return Column("latency", "ms", tuple(cells), beside, _RANKS.index("latency"))


def _promises(evaluations: Sequence[Evaluation]) -> Column:
    cells = [Cell("as given")] if _original(evaluations) else []
    cells += [Cell(promise_text(e.build.promise)) for e in evaluations]
    return Column("promise", "", tuple(cells), rank=_RANKS.index("promise"), words=True)


def _metric(evaluations: Sequence[Evaluation], name: str, rank: int) -> Column:
    found = _cells(evaluations, name)
    unit = next((c.unit for c in found if isinstance(c, Measurement)), "")
    cells = []
    for cell, evaluation in zip(found, _rows(evaluations), strict=True):
        if not isinstance(cell, Measurement):
            cells.append(_SELF if evaluation is None and name not in _differing(evaluations) else _missing(cell))
            continue
        difference = evaluation and evaluation.differences.get(name)
        cells.append(Cell(_value(cell), _change(difference) if difference else ()))
    changes = "change, pp" if unit == "share" else "change"
    beside = changes if any(c.beside for c in cells) else ""
    return Column(name, _UNITS.get(unit, unit), tuple(cells), beside, rank)


def _value(measurement: Measurement) -> str:
    if isinf(measurement.value):
        return "equal"
    if measurement.unit == "share":
        return f"{measurement.value * 100:.2f}"
    return f"{measurement.value:.4f}" if measurement.unit in ("rho", "cos") else figure(measurement.value)


def _change(difference: Difference) -> tuple[str, str]:
    write = points if difference.unit == "share" else _four if difference.unit in ("rho", "cos") else signed
    return write(difference.value), f"[{write(difference.interval.low)}, {write(difference.interval.high)}]"


def _four(x: float) -> str:
    return f"{round(x, 4) + 0.0:+.4f}"


def _differing(evaluations: Sequence[Evaluation]) -> set[str]:
    return {name for e in evaluations for name in e.differences}


def _rows(evaluations: Sequence[Evaluation]) -> list[Evaluation | None]:
    """Give what belongs to each row: None for the original."""
    return [*([None] if _original(evaluations) else []), *evaluations]


def _cells(evaluations: Sequence[Evaluation], name: str) -> list[Measurement | str]:
    original = _original(evaluations)
    return [
        evaluation.cell(name) if evaluation else original.get(name, "was not asked for")
        for evaluation in _rows(evaluations)
    ]


def _missing(reason: Measurement | str) -> Cell:
    return Cell(reason=str(reason))


def met_lines(evaluations: Sequence[Evaluation]) -> list[str]:
    """Say which budgets are met."""
    return [f"{e.build} meets its budget: {verdict}" for e in evaluations for verdict in e.budgets if verdict.met]


def missed_lines(evaluations: Sequence[Evaluation]) -> list[str]:
    """Say which budgets are missed."""
    return [f"{e.build} misses its budget: {verdict}" for e in evaluations for verdict in e.missed]


#: How far apart two sessions on one and the same file lie, where their memory lies differently.
TIE = 0.98


def _warnings(evaluations: Sequence[Evaluation]) -> list[str]:
    """Say aloud which builds miss a budget, and which are slower than the original."""
    lines = missed_lines(evaluations)
    for evaluation in evaluations:
        speedup = evaluation.measurements.get("speedup")
        # Only where the whole interval says so, and by more than two sessions on one file differ: a tie is not slower.
        if speedup and speedup.value < TIE and (speedup.spread is None or speedup.spread.high < 1):
            where = costs_text(evaluation.costs)
            lines.append(
                f"{evaluation.build} is {figure(1 / speedup.value)}x slower than the original{where and f': {where}'}"
            )
    return lines


def costs_text(costs: Mapping[str, float] | str) -> str:
    """Say which op types, three at most, take how much longer: ``most of it in Conv (+3.10 ms), Cast (+0.900 ms)``."""
    if isinstance(costs, str):
        return costs
    more = {op: seconds for op, seconds in costs.items() if seconds > 0}
    if not more:
        return "none of it in its ops" if costs else ""
    largest = sorted(more, key=lambda op: -more[op])[:3]
    told = [op for op in largest if more[op] >= more[largest[0]] / 20]
    most = sum(more[op] for op in told) >= sum(more.values()) / 2
    return f"{'most' if most else 'part'} of it in " + ", ".join(f"{op} (+{figure(more[op] * 1e3)} ms)" for op in told)


def _notes(evaluations: Sequence[Evaluation]) -> list[str]:
    """Say once what holds for every build, and of which build the rest is."""
    lines = met_lines(evaluations)
    whose: dict[str, list[str]] = {}
    for evaluation in evaluations:
        for note in evaluation.notes:
            whose.setdefault(note, []).append(evaluation.build.name)
    for note, names in whose.items():
        lines.append(note if len(names) == len(evaluations) else f"{', '.join(names)}: {note}")
    if len({e.baseline["latency"].value for e in evaluations if "latency" in e.baseline}) > 1:
        lines.append("each build was timed in turns with the original alone: between builds, compare speed-ups")
    if any(e.differences for e in evaluations):
        lines.append("[low, high] is a 95 % interval of the change, paired on the same samples")
    return lines
