"""Observe: run the calibration samples through a graph and keep what its taps want, in memory that they do not fill."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import onnx_ir as ir

from polycast.model import graphs, values
from polycast.passbase import PassContext

from ._runs import Look, Runs
from ._tally import Tally
from .instrument import elements_of
from .kept import Kept, Key
from .memory import estimate, mebibytes, passes
from .taps import PER_CHANNEL, Seen, Tap, joined

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE, None)


def observe(graph: ir.Model, taps: Iterable[Tap], ctx: PassContext, *, samples: int | None = None) -> dict[str, Seen]:
    """Run the calibration samples, all or the first ``samples``, through ``graph`` and keep what ``taps`` want.

    The tensors are reduced inside the graph, so that memory is that of one run whatever the number of samples, and one
    pass over them gives ranges and histograms alike. Where that is more than ``ctx.max_memory``, several passes look
    at some of the taps each. What was seen is kept in ``ctx.cache``, and so is what an interrupted look saw.
    A tap on a value inside a branch of an If sees the samples that take it.

    Returns: what was seen, by name of the value. Left out is what no sample computed, what lies inside a Loop or a
    Scan, and a value whose channels are wanted where neither the first sample nor the graph says which rank it has.
    Raises: InputError naming the sample that cannot be run, or the memory that is needed; ValueError for a value that
    the graph does not have or that is no float tensor.
    """
    if ctx.calibration is None:
        raise ValueError("observing needs calibration samples")
    taps = _checked(graph, joined(taps))
    count = len(ctx.calibration) if samples is None else min(samples, len(ctx.calibration))
    if not taps or not count:
        return {}
    key = Key(graph, ctx.calibration, count) if ctx.cache else None
    kept = Kept(ctx.cache, key.of(taps) if key else "")
    state = _State.of(taps, kept)
    if state.turn == count:
        return state.seen()
    with tempfile.TemporaryDirectory(prefix="polycast-") as folder:
        runs = Runs(graph, Path(folder))
        shapes = runs.shapes(next(iter(ctx.calibration)))
        taps = [tap for tap in taps if tap.value in shapes and (shapes[tap.value] or not tap.want & PER_CHANNEL)]
        if not taps:
            return {}
        needed = estimate(graph, taps, shapes)
        elements = elements_of(count)
        groups = passes(taps, needed, ctx.max_memory)
        if len(groups) == 1:
            stage = f"calibrate, at most {mebibytes(needed.total)}"
            _pass(Look(runs, taps, shapes, elements), state, kept, ctx, count, stage)
            return state.seen()
        seen: dict[str, Seen] = {}
        for number, group in enumerate(groups, 1):
            stage = f"calibrate {number} of {len(groups)}, at most {mebibytes(needed.of(group))}"
            kept = Kept(ctx.cache, key.of(group) if key else "")
            state = _State.of(group, kept)
            _pass(Look(runs, group, shapes, elements), state, kept, ctx, count, stage)
            seen |= {value: _on_disk(each) for value, each in state.seen().items()}
        return seen


@dataclass
class _State:
    """How far a pass over the samples is: the sample that is next, the values that need care, what was seen."""

    tallies: dict[str, Tally]
    turn: int = 0
    careful: frozenset[str] = frozenset()

    @classmethod
    def of(cls, taps: Sequence[Tap], kept: Kept) -> _State:
        """Take up what was kept of looking at ``taps``, or begin."""
        arrays = kept.load() or {}
        with suppress(IndexError, KeyError, ValueError):
            parts: list[dict[str, np.ndarray]] = [{} for _ in taps]
            for name, array in arrays.items():
                number, _, rest = name.partition("/")
                if rest:
                    parts[int(number)][rest] = array
            tallies = {tap.value: Tally.from_arrays(tap, part) for tap, part in zip(taps, parts, strict=True)}
            return cls(tallies, int(arrays["turn"]), frozenset(arrays["careful"].tolist()))
        return cls({tap.value: Tally(tap) for tap in taps})

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Spell the state as arrays, those of each tally under its number."""
        arrays = {"turn": np.array(self.turn), "careful": np.array(sorted(self.careful), np.str_)}
        for number, tally in enumerate(self.tallies.values()):
            arrays |= {f"{number}/{name}": array for name, array in tally.to_arrays().items()}
        return arrays

    def seen(self) -> dict[str, Seen]:
        """Give what was seen of each value that a sample computed."""
        seen = {value: tally.seen() for value, tally in self.tallies.items()}
        return {value: each for value, each in seen.items() if each.samples}


def _pass(look: Look, state: _State, kept: Kept, ctx: PassContext, count: int, stage: str) -> None:
    """Look at the samples from ``state.turn`` on."""
    assert ctx.calibration is not None
    look.care(state.careful)
    for turn, sample in enumerate(islice(ctx.calibration, state.turn, count), state.turn):
        ctx.tell(stage, turn, count)
        for value, found in look.at(sample, turn).items():
            state.tallies[value].add(found, turn)
        state.turn, state.careful = turn + 1, look.careful
        if kept.due():
            kept.save(state.to_arrays())
    ctx.tell(stage, count, count)
    kept.save(state.to_arrays())


def _checked(graph: ir.Model, taps: Sequence[Tap]) -> list[Tap]:
    """Put ``taps`` in the order of the graph, which is the order that needs least memory."""
    known = {value.name: value for body in graphs(graph) for value in values(body)}
    for tap in taps:
        if tap.value not in known:
            raise ValueError(f"the graph has no value {tap.value!r}")
        if known[tap.value].dtype not in _FLOATS:
            raise ValueError(f"{tap.value!r} is {known[tap.value].dtype}, and only float tensors can be tapped")
    order = {name: place for place, name in enumerate(known)}
    return sorted(taps, key=lambda tap: order[tap.value])


def _on_disk(seen: Seen) -> Seen:
    """Move what is large into a file that nobody else sees, mapped: its pages go when memory is short."""
    return replace(seen, gram=_mapped(seen.gram), rows=_mapped(seen.rows))


def _mapped(array: np.ndarray | None) -> np.ndarray | None:
    if array is None or not array.size:
        return array
    with tempfile.TemporaryFile(prefix="polycast-") as file:
        array.tofile(file)
        return np.memmap(file, array.dtype, "r", shape=array.shape)
