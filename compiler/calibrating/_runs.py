"""Runs: a graph that onnxruntime runs, its weights written once, with the outputs that this or that look needs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from polycast.errors import InputError
from polycast.reference import start_session
from polycast.samples import Sample

from ._weights import store
from ._writing import TURN, Place, places
from .instrument import Reading, instrument, survey
from .taps import Tap

#: Spreads the turns over the strides: the starts of successive samples lie far apart.
_SPREAD = 2654435761

#: What a run shows of one tap: its figures, by field.
Found = dict[str, np.ndarray]

Shapes = dict[str, tuple[int, ...]]


class Runs:
    """A graph whose weights lie in ``folder``, from where every look at it maps them."""

    def __init__(self, graph: ir.Model, folder: Path) -> None:
        self._folder = folder
        self._graph = graph.clone()
        store(self._graph, folder)

    def shapes(self, sample: Sample) -> Shapes:
        """Give the shapes that ``sample`` gives the tensors of the graph; what cannot be read is left out.

        Raises: InputError naming the sample.
        """
        draft = self._graph.clone()
        numbers = survey(draft)
        found = _run(self._start(draft), sample, {})
        known = places(self._graph)
        shapes = {name: _shape(known[name], found[number]) for name, number in numbers.items()}
        weights = {n: place.value.const_value for n, place in known.items() if place.value.const_value is not None}
        return shapes | {name: tuple(weight.shape.numpy()) for name, weight in weights.items()}

    def start(
        self, taps: Sequence[Tap], shapes: Mapping[str, tuple[int, ...]], careful: Collection[str], elements: int
    ) -> tuple[Any, list[Reading]]:
        """Start a session that shows what ``taps`` want, and say where it does: see ``instrument``."""
        draft = self._graph.clone()
        readings = instrument(draft, taps, shapes, careful, elements)
        return self._start(draft), readings

    def _start(self, draft: ir.Model) -> Any:
        path = self._folder / "instrumented.onnx"
        ir.save(draft, path)
        try:
            return start_session(path, optimized=True)
        except Exception as error:  # onnxruntime's own error types share no base class
            raise InputError(f"onnxruntime cannot run the model to calibrate it: {_first_line(error)}") from error


class Look:
    """Runs samples and gives what they show of the taps.

    careful: the values that were found to hold NaN or infinities, which are told apart from then on.
    """

    def __init__(self, runs: Runs, taps: Sequence[Tap], shapes: Mapping[str, tuple[int, ...]], elements: int) -> None:
        self.careful: frozenset[str] = frozenset()
        self._runs, self._taps, self._shapes, self._elements = runs, taps, shapes, elements
        self._session: Any = None
        self._readings: list[Reading] = []

    def at(self, sample: Sample, turn: int) -> dict[str, Found]:
        """Run ``sample``, which is number ``turn``, and give what it shows, by name of the value.

        A sum that is not finite says that the tensor may hold what is not: the sample is then looked at again.
        Raises: InputError naming the sample that cannot be run.
        """
        if self._session is None:
            self._session, self._readings = self._runs.start(self._taps, self._shapes, self.careful, self._elements)
        found = _run(self._session, sample, {TURN: np.array([turn * _SPREAD % (1 << 31)])})
        by_value = {
            reading.tap.value: {field: found[number] for field, number in reading.outputs.items()}
            for reading in self._readings
        }
        troubled = {value for value, fields in by_value.items() if not np.isfinite(fields["sum"])}
        if troubled <= self.careful:
            return by_value
        self.care(self.careful | troubled)
        return self.at(sample, turn)

    def care(self, values: Collection[str]) -> None:
        """Tell apart what is not finite in ``values``."""
        self.careful, self._session = frozenset(values), None


def _shape(place: Place, found: np.ndarray) -> tuple[int, ...]:
    """Give the shape that was found; where the branch was not taken, what the graph says of it, 1 for an open axis."""
    declared = place.value.shape
    if not len(found) and place.branches and declared is not None:
        return tuple(d if isinstance(d, int) else 1 for d in declared)
    return tuple(found.tolist())


def _run(session: Any, sample: Sample, more: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    wanted = {given.name for given in session.get_inputs()}
    feeds = {name: array for name, array in {**sample.feeds, **more}.items() if name in wanted}
    try:
        found: list[np.ndarray] = session.run(None, feeds)
    except Exception as error:
        raise InputError(f"{sample.name}: onnxruntime cannot run the model on it: {_first_line(error)}") from error
    return found


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
